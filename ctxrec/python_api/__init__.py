"""The Python API: tables in and out, and what the commands do, as functions (`ctxrec.fit`, `ctxrec.load` and others)."""
