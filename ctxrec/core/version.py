"""The version of ctxrec, which data folders record, as results may change between versions."""

VERSION = "0.1.0"
