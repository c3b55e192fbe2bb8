"""The base of all packages: errors, options, paths, schemas and the start of Ray. It imports nothing else of
ctxrec."""
