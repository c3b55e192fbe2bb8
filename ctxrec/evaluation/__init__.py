"""Offline comparison of a model with baselines: requests, slices, intervals, report."""
