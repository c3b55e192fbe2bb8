"""The candidate after it was judged: its memory also learns the events that were held out to judge it by."""

from __future__ import annotations

from ctxrec.bundle.all_events import with_all_events
from ctxrec.core import schema
from ctxrec.data.events import histories_from_table
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import join_requests, split_requests
from ctxrec.retrieval.load import load_recommender

_SAMPLE = 200  # requests on which the index's recall is measured


def completed(bundle: str, data: PreparedData, out: str) -> str:
    """Write a copy of a bundle that knows all events of its data (`ctxrec.bundle.all_events`); returns its version.

    Args:
        bundle: path or URI.
        data: what it was trained on.
        out: path or URI of the copy.

    Returns:
        "" where there is nothing to learn: no event was held out, or the bundle has no memory.

    Raises:
        UserError: the bundle is damaged.
    """
    parts = []
    for bucket in range(len(data.bucket_paths)):
        histories = histories_from_table(data.read_bucket(bucket), data.features)
        requests = split_requests(histories, schema.TEST, repeats=data.spec.split.repeats)
        parts.append(requests.evenly(-(-_SAMPLE // len(data.bucket_paths))))
    sample = join_requests(parts, _SAMPLE)
    queries = None if sample is None else load_recommender(bundle).queries(sample)
    return with_all_events(bundle, data, out, queries=queries)
