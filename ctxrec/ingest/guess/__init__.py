"""What the files of an unknown log hold: which column is the user, the item, the time and so on; a spec with its doubts."""

from ctxrec.ingest.guess.guessing import Guess, Unsure, guess
from ctxrec.ingest.guess.table_sample import TableSample, sample_files, sample_table

__all__ = ["Guess", "TableSample", "Unsure", "guess", "sample_files", "sample_table"]
