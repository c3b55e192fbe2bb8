"""Prepared data in memory: events, requests, features, batches and statistics of a log, as NumPy, Arrow and torch."""
