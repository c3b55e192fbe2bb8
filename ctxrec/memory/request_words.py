"""The words of a request as queries of the text head: the free text of its context, and the text that it asks with.

Legend: N requests, C width of text vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ctxrec.data.requests import Requests

CONTEXT_TEXT, QUERY = "context text", "query"
WORDS = (CONTEXT_TEXT, QUERY)  # sources of the blend: they share the item vectors of the text head

# Gives each text a vector on the axes of the text head, of unit length: float32 [n, C]; 0 where it says nothing.
ReadTexts = Callable[[Sequence[str]], np.ndarray]


def context_texts(requests: Requests) -> list[str]:
    """The free text of each request's context, "" without any; texts of several columns are joined."""
    columns = [values.tolist() for values in requests.context.text.values()]
    if not columns:
        return [""] * len(requests)
    return ["; ".join(text.strip() for text in row if text and text.strip()) for row in zip(*columns, strict=True)]


def query_texts(requests: Requests) -> list[str]:
    """The text that each request asks with, "" without one."""
    if requests.query is None:
        return [""] * len(requests)
    return [text.strip() if text else "" for text in requests.query.tolist()]


def texts_of_words(requests: Requests) -> dict[str, list[str]]:
    """The texts of each source of `WORDS`, "" for a request without one."""
    return {CONTEXT_TEXT: context_texts(requests), QUERY: query_texts(requests)}


def word_queries(requests: Requests, read: ReadTexts | None, sources: Sequence[str] = WORDS) -> dict[str, np.ndarray]:
    """Queries of the text head by source: float32 [N, C] each, 0 for a request without such a text.

    Args:
        requests: N requests.
        read: gives texts their vectors; it is not called without any text. None: there are no queries.
        sources: of `WORDS`, those that are wanted. One of which no request has a text is left out.
    """
    if read is None:
        return {}
    texts = {source: column for source, column in texts_of_words(requests).items() if source in sources}
    distinct = list(dict.fromkeys(text for column in texts.values() for text in column if text))
    if not distinct:
        return {}
    vectors = read(distinct)
    place = {text: n for n, text in enumerate(distinct)}
    made = {}
    for source, column in texts.items():
        rows = np.array([n for n, text in enumerate(column) if text], np.int64)
        if len(rows):
            made[source] = np.zeros((len(requests), vectors.shape[1]), np.float32)
            made[source][rows] = vectors[[place[column[n]] for n in rows]]
    return made


def without_words(requests: Requests, source: str) -> Requests:
    """The requests without the texts that one of the sources `WORDS` reads."""
    if source == QUERY:
        return dataclasses.replace(requests, query=None)
    nothing = np.full(len(requests), None, object)
    context = dataclasses.replace(requests.context, text=dict.fromkeys(requests.context.text, nothing))
    return dataclasses.replace(requests, context=context)
