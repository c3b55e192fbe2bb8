"""The models that ctxrec is compared with."""
