"""Rates of convergence of estimated mixtures: settings, measurements, slopes and verdicts."""
