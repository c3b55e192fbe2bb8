"""What the log says of pairs of items and of popularity, and the blend of all sources of a score."""
