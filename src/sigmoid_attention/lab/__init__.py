"""The tools of all studies: rows, a store, statistics, parallel sweeps, figures and pages."""
