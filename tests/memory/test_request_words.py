"""Words of requests: which texts there are, each read once, and rows of zeros for requests without them."""

from __future__ import annotations

import numpy as np

from ctxrec.data.events import Context, Events, Users
from ctxrec.data.requests import Requests
from ctxrec.memory.request_words import CONTEXT_TEXT, QUERY, without_words, word_queries


def requests_with(context: dict[str, list[str | None]], query: list[str | None] | None = None) -> Requests:
    num = len(next(iter(context.values()))) if context else len(query or [])
    none = np.zeros(0, np.int64)
    return Requests(
        users=Users(ids=np.full(num, None)),
        history=Events(np.zeros(num + 1, np.int64), none.astype(np.int32), none, none.astype(np.int16), Context()),
        times=np.zeros(num, np.int64),
        context=Context(text={name: np.array(values, object) for name, values in context.items()}),
        query=None if query is None else np.array(query, object),
    )


def test_each_text_is_read_once_and_goes_to_its_requests():
    seen = []

    def read(texts):
        seen.append(list(texts))
        return np.array([[len(text), 1] for text in texts], np.float32)

    requests = requests_with(
        {"search": ["red", None, " ", "红色"], "note": ["hat", "", None, None]}, [None, "red", "红色", " "]
    )
    found = word_queries(requests, read)
    assert seen == [["red; hat", "红色", "red"]]
    np.testing.assert_array_equal(found[CONTEXT_TEXT], [[8, 1], [0, 0], [0, 0], [2, 1]])
    np.testing.assert_array_equal(found[QUERY], [[0, 0], [3, 1], [2, 1], [0, 0]])
    assert set(word_queries(without_words(requests, QUERY), read)) == {CONTEXT_TEXT}
    assert set(word_queries(without_words(requests, CONTEXT_TEXT), read)) == {QUERY}


def test_without_words_nothing_is_read():
    def read(texts):
        raise AssertionError("nothing is to be read")

    assert word_queries(requests_with({"search": [None, ""]}), read) == {}
    assert word_queries(requests_with({}, [None, "  "]), read) == {}
    assert word_queries(requests_with({}, ["red"]), None) == {}


def test_requests_that_are_taken_keep_their_query():
    taken = requests_with({}, ["a", None, "c"]).take(np.array([2, 0]))
    assert taken.query is not None and taken.query.tolist() == ["c", "a"]
    assert requests_with({"search": ["a"]}).take(np.array([0])).query is None
