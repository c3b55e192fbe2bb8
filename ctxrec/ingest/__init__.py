"""From files to prepared data with Ray Data: readers, rejects, buckets, catalogue, graph."""
