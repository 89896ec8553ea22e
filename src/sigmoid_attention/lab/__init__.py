"""What studies stand on: rows, a store, statistics, sweeps over processes, figures and pages."""
