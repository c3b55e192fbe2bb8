"""What a running service stores, events and items, in SQLite or Redis, and its files for the next prepare."""
