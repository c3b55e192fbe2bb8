"""How many of the newest events are held out to judge a candidate by, which cannot train on them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pyarrow as pa

from ctxrec.bundle.format import check_bundle
from ctxrec.core import schema, storage
from ctxrec.core.dataset_spec import SplitSpec
from ctxrec.core.run_paths import BundlePaths


@dataclass(frozen=True)
class HeldOutParams:
    """The newest events under a temporal split. The lab book is `tests/bench/RESULTS.md` ("Refreshes").

    Attributes:
        of_new: share of the new events that are held out: the others are trained on, which is what a refresh is for.
        fewest: fewer held-out events than this tell too little; the share of the spec bounds them from above.
    """

    of_new: float = 0.5
    fewest: int = 4000


HELD_OUT = HeldOutParams()


def newest_held_out(split: SplitSpec, *, num_rows: int, known: int, params: HeldOutParams = HELD_OUT) -> SplitSpec:
    """The split of a refresh: the spec's, with fewer test events where less than that share is new.

    Args:
        split: of the dataset spec.
        num_rows: rows of the log now.
        known: events that the served version knows.
        params: see `HeldOutParams`.

    >>> newest_held_out(SplitSpec(test=0.1), num_rows=1_000_000, known=980_000).test
    0.01
    >>> newest_held_out(SplitSpec(test=0.1), num_rows=1_000, known=900).test
    0.1
    """
    if split.strategy != "temporal" or not split.test or num_rows <= 0:
        return split
    new = params.of_new * max(num_rows - known, 0)
    return dataclasses.replace(split, test=min(split.test, round(max(new, params.fewest) / num_rows, 6)))


def num_events(bundle: str) -> int:
    """Events in the histories of a bundle, path or URI."""
    folder, _ = check_bundle(bundle, scratch=storage.temporary_folder())
    with pa.memory_map(BundlePaths(folder).histories) as source:
        items = pa.ipc.open_file(source).read_all().column(schema.EVENT_ITEMS)
        return sum(len(chunk.flatten()) for chunk in items.chunks)
