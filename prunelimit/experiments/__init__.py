"""Experiments: the catalogue of tasks, their specs, runs, records and tables."""
