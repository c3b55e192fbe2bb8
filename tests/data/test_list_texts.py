"""Lists that a text format writes as one text: how they are divided, and when a column looks like them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from ctxrec.data.list_texts import BRACKETS, divide, hint, in_brackets


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[u'A', u\"B's\"]", ["A", "B's"]),  # Python 2
        ("['A'\n 'B']", ["A", "B"]),  # NumPy
        ("('a',)", ["a"]),
        ("['it\\'s', None]", ["it's"]),
        ('{"a b",c}', ["a b", "c"]),  # PostgreSQL
        ("[1. 2.5]", ["1.", "2.5"]),
        ("[true, null, 2.0]", ["true", "2"]),
        ("[[1, 2]]", None),
        ("['a'", None),
        ("['a', b, c]", ["a", "b", "c"]),
        ("['a' b]", None),
        ("", None),
    ],
)
def test_lists_in_brackets(text, words):
    assert in_brackets(text) == words


def test_texts_are_divided_alone_and_in_lists():
    texts = pa.chunked_array([["A|B", " A | C|", ""], [None, "D"]])
    assert divide(texts, "|").to_pylist() == [["A", "B"], ["A", "C"], None, None, ["D"]]
    assert divide(texts.combine_chunks().dictionary_encode(), "|").to_pylist()[:2] == [["A", "B"], ["A", "C"]]
    lists = pa.array([["x"], ["A|B", None, "C"], None, [], ["A | B|", "|"]])
    divided = [["A", "B", "C"], None, [], ["A", "B"]]
    for kind in (pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.dictionary(pa.int8(), pa.string()))):
        assert divide(lists.cast(kind).slice(1), "|").to_pylist() == divided, kind
        assert divide(pa.chunked_array([lists.cast(kind)]), "|").to_pylist() == [["x"], *divided]
    numbers = pa.array([[1, 2], None])
    assert divide(numbers, "|") is numbers
    assert divide(pa.array(["['A', 'B']", "C", "[]"]), BRACKETS).to_pylist() == [["A", "B"], ["C"], []]


@pytest.mark.parametrize(
    ("values", "separator"),
    [
        (["Action|Comedy", "Drama|Action", "Drama"], "|"),
        (["a;b", "b;c", "a"], ";"),
        (["a, b", "b, a", "a, c", "c, b", "a"], ","),
        (["['a', 'b']", "['c']", "[]"], BRACKETS),
        (["Smith, John", "Doe, Jane", "Poe, Edgar"], None),  # parts that never come again
        (["[draft", "x"], None),
        (["a"] * 99 + ["a|b"], None),  # one odd value
        ([], None),
        ([["a", "b"], ["a|b"], ["b|c"], None], "|"),  # of JSON lines that have texts and lists
    ],
)
def test_a_column_that_looks_like_lists(values, separator):
    found = hint(pa.chunked_array([pa.array(values) if values else pa.array([], pa.string())]))
    assert (found and found.separator) == separator
    assert found is None or found.example in values or [found.example] in values


def test_only_texts_look_like_lists():
    assert hint(pa.array([[1, 2]])) is None and hint(pa.array([1, 2])) is None
    assert hint(pa.array([["a, b"], ["b, a", "a, c"], ["c, b"]])) is None, "a list of JSON has its own commas"
    assert hint(pa.array(["a|b", "a|c"]).dictionary_encode()).share == pytest.approx(1.0)
