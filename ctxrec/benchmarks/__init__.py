"""Suites of data sets, seeds and ablations, and their table."""
