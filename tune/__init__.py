"""The search for good options with Ray Tune: `python -m tune.sweep`."""
