"""Lists that a text format writes as one text: `Action|Comedy`, `['Action', 'Comedy']`; how they are divided and noticed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.data import parsing

BRACKETS = (
    "[]"  # in place of a separator: each value is a list in brackets, as JSON, Python, NumPy or PostgreSQL write it
)

_SAMPLE = 10_000  # values that are looked at
_LEAST_SHARE = 0.05  # of the values of a column that looks like lists
_PAIRS = {"[": "]", "(": ")", "{": "}"}
_TOKEN = re.compile(
    r"""\s*(?:u?'((?:[^'\\]|\\.)*)'|u?"((?:[^"\\]|\\.)*)"|([^\s,'"{}\[\]()][^,'"{}\[\]()]*?))\s*(?:,|$|(?=u?['"]))"""
)
_NUMBERS = re.compile(r"[-+.\deE\s]+")
_NO_VALUE = ("none", "null", "nan")


@dataclass(frozen=True)
class ListHint:
    """What makes a column look like lists.

    Attributes:
        separator: what divides the values, or BRACKETS.
        share: of the values that hold it.
        seen: number of values that were looked at.
        example: one of those that hold it.
    """

    separator: str
    share: float
    seen: int
    example: str


def in_brackets(text: str) -> list[str] | None:
    """The values of a list in brackets; None where the text is no list of single values.

    >>> [in_brackets(t) for t in ("['A', \\"B's\\"]", '["A", 1.0]', "['A' 'B']", "{A,B c}", "[1 2]", "[]", "A", "[{'a': 1}]")]
    [['A', "B's"], ['A', '1'], ['A', 'B'], ['A', 'B c'], ['1', '2'], [], None, None]
    """
    text = text.strip()
    if len(text) < 2 or _PAIRS.get(text[0]) != text[-1]:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, list) and not any(isinstance(value, (list, dict)) for value in values):
        return [word for value in values if (word := parsing.value_text(value)) is not None]
    inside = text[1:-1].strip()
    if _NUMBERS.fullmatch(inside):
        return inside.split()
    words, place = [], 0
    while place < len(inside):
        token = _TOKEN.match(inside, place)
        if token is None:
            return None
        quoted = token[1] if token[1] is not None else token[2]
        if quoted is not None:
            words.append(re.sub(r"\\(.)", r"\1", quoted))
        elif token[3].lower() not in _NO_VALUE:
            words.append(token[3])
        place = token.end()
    return words


def divided(text: str, separator: str) -> list[str]:
    """The values of one text: between separators, or in brackets; a text that is no such list is one value."""
    if separator == BRACKETS:
        words = in_brackets(text)
        return [text] if words is None else words
    return [word.strip() for word in text.split(separator) if word.strip()]


def divide(column: pa.Array | pa.ChunkedArray, separator: str) -> pa.Array | pa.ChunkedArray:
    """A column of texts as list<string> (`divided`); in a column of lists each text of a list is divided.

    So a text means the same alone and in a list: of JSON lines that have texts and lists in one column, Arrow has lists
    only.
    """
    lists = parsing.as_lists(column)
    if lists is None:
        coded = parsing.to_text(column).dictionary_encode()
        made = [divided(text, separator) for text in coded.dictionary.to_pylist()]
        return pa.array(made, pa.list_(pa.string())).take(coded.indices)
    if not _has_texts(lists.type.value_type):
        return column
    parts = divide(lists.flatten(), separator)
    starts = np.append(0, np.cumsum(lists.value_lengths().fill_null(0).to_numpy()))
    offsets = np.append(0, np.cumsum(parts.value_lengths().fill_null(0).to_numpy()))[starts].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), parts.flatten(), mask=lists.is_null())


def value_words(value: object) -> list[str]:
    """The values of a category, one or a list, as `prepare` reads them from a column of their own type."""
    values = value if isinstance(value, list) else [value]
    return [text for text in map(parsing.value_text, values) if text is not None]


def value_line(value: object) -> str | None:
    """A text, which may be given as a list, as `prepare` reads it."""
    return ", ".join(value_words(value)) if isinstance(value, list) else parsing.value_text(value)


def hint(column: pa.Array | pa.ChunkedArray) -> ListHint | None:
    """What makes the texts of a column, single ones or those of lists, look like lists; None where nothing does.

    Bars and semicolons rarely stand in a single value. Commas do ("Smith, John"), so they count only where their parts
    come again in other values, and not in lists. A sample is looked at that is spread over the whole column.
    """
    separators = ["|", ";", ","]
    if (lists := parsing.as_lists(column)) is not None:
        column, separators = lists.flatten(), ["|", ";"]
    if not _has_texts(column.type):
        return None
    values = parsing.to_text(column.take(pa.array(np.arange(0, len(column), -(-len(column) // _SAMPLE) or 1))))
    texts = values.drop_null()
    brackets = pc.match_substring_regex(texts, r"^\s*(\[.*\]|\(.*\)|\{.*\})\s*$")
    for separator, found in [(BRACKETS, brackets), *((s, pc.match_substring(texts, s)) for s in separators)]:
        holding = texts.filter(found)
        if len(holding) < max(_LEAST_SHARE * len(texts), 2):
            continue
        distinct = holding.unique()
        if separator == BRACKETS:
            distinct = pa.array([t for t in distinct.to_pylist() if in_brackets(t)], pa.string())
            if not len(distinct):
                continue
        parts = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(distinct, separator)))
        if separator == "," and len(parts.unique()) >= len(distinct):
            continue
        return ListHint(separator, len(holding) / len(texts), len(texts), distinct[0].as_py())
    return None


def _has_texts(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
