"""What a run leaves for serving: files, hashes, and the registry of published versions."""
