"""Numbers in texts with a decimal comma or grouped thousands: read, guessed, and never silently misread."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ctxrec.core.dataset_spec import EventsSpec, GraphSpec
from ctxrec.core.errors import UserError
from ctxrec.data import parsing
from ctxrec.ingest.guess.decimals import decimals_of


@pytest.mark.parametrize(
    ("text", "comma", "point", "plain"),
    [
        ("2,55", 2.55, None, None),
        ("1.234,50", 1234.5, None, None),
        ("1 234,5", 1234.5, None, None),
        ("1\u202f234,5", 1234.5, None, None),
        ("1.234.567", 1234567, None, None),
        ("-,5", -0.5, None, None),
        ("1,234", 1.234, 1234, None),
        ("1.234", 1234, 1.234, 1.234),
        ("0,234", 0.234, None, None),
        ("1,234.50", None, 1234.5, None),
        ("1,234,567", None, 1234567, None),
        ("1'234.5", None, 1234.5, None),
        ("2.55", None, 2.55, 2.55),
        ("12,34,5", None, None, None),
        ("1.23,4", None, None, None),
        ("7", 7, 7, 7),
        ("1e3", 1000, 1000, 1000),
        ("1,5e3", 1500, None, None),
        ("true", 1, 1, 1),
        ("about 3", None, None, None),
    ],
)
def test_a_text_is_the_same_number_or_none(text, comma, point, plain):
    for decimal, wanted in ((",", comma), (".", point), (None, plain)):
        for column in (pa.array([text]), pa.array([text]).dictionary_encode()):
            numbers, wrong = parsing.to_numbers(column, np.float64, decimal=decimal)
            assert wrong.tolist() == [wanted is None]
            assert wanted is None or numbers.tolist() == [pytest.approx(wanted)]
    typed, _ = parsing.to_numbers(pa.array([2.5]), decimal=",")
    assert typed.tolist() == [2.5], "a number that is no text has no sign"


def test_a_wrong_sign_is_a_users_mistake():
    with pytest.raises(UserError, match=r"events\.decimal is ';'; expected the decimal sign"):
        EventsSpec(path="x", decimal=";")
    with pytest.raises(UserError, match="triples have no numbers"):
        GraphSpec(path="x", decimal=",")


@pytest.mark.parametrize(
    ("columns", "delimiter", "sign", "doubts"),
    [
        ({"price": ["2,55", "3"]}, ";", ",", []),
        ({"price": ["2.55", "3"]}, ";", None, []),
        ({"price": ["1.234,5", "3"]}, ",", ",", ["taken for numbers with a decimal comma, such as '1.234,5'"]),
        ({"price": ["1,234.5", "3"]}, ",", ".", []),
        (
            {"price": ["1,234", "3"]},
            ",",
            ".",
            ["may have a decimal comma or grouped thousands; it is read with", "as 1234"],
        ),
        ({"price": ["1,234", "3"]}, ";", ",", ["as 1.234"]),
        ({"price": ["1,234", "3"], "weight": ["2,5", "1"]}, ";", ",", ["price has numbers such as '1,234'"]),
        ({"price": ["1,234", "3"], "weight": ["2.5", "1"]}, ";", ".", ["as 1234"]),
        (
            {"price": ["2,55", "3"], "weight": ["2.5", "1"]},
            ";",
            ",",
            ["weight has numbers such as '2.5', which are none"],
        ),
        (
            {"price": ["2,55", "3"], "mass": ["1.234", "1"]},
            ";",
            ",",
            ["mass has numbers such as '1.234', which are read"],
        ),
        (
            {"price": ["2,55", "3"], "sum": ["1,234.5", "1"]},
            ";",
            ",",
            ["sum has numbers such as '1,234.5', which are none"],
        ),
        ({"genres": ["1,2", "3"]}, ";", None, []),
        ({"words": ["red, blue", "3"]}, ";", None, []),
        ({"price": ["2,55", None]}, None, ",", ["decimal comma"]),
    ],
)
def test_the_sign_of_a_table_is_guessed_with_its_doubts(columns, delimiter, sign, doubts):
    found = decimals_of(pa.table(columns), delimiter)
    assert found.sign == sign and bool(found.doubts) is bool(doubts)
    for told in doubts:
        assert told in " ".join(found.doubts)
