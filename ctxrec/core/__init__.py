"""What everything stands on: errors, options, paths, schemas, the start of Ray. It imports nothing else of ctxrec."""
