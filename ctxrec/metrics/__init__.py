"""Formulas of ranking metrics and their intervals, in NumPy."""
