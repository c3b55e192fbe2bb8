"""The online service on Ray Serve: HTTP in front of the model, the index and the stores of `ctxrec`."""
