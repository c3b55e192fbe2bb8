"""Rule files: what they may say, what they say wrongly, and when a rule is in force."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.retrieval.slate.rules import Block, Boost, Pin, RuleBook, Rules, load_rules


def rules_of(tmp_path, text: str) -> Rules:
    (tmp_path / "rules.toml").write_text(text)
    return load_rules(str(tmp_path / "rules.toml"))


def test_a_file_with_every_kind_of_rule(tmp_path):
    rules = rules_of(
        tmp_path,
        """
        [[block]]
        items = ["a", "b"]
        [[boost]]
        column = "price"
        max = 20
        by = -0.5
        since = 2026-12-01
        until = 2026-12-02T12:00:00+02:00
        [[pin]]
        column = "category"
        any = ["new"]
        place = 3
        """,
    )
    assert rules.block == (Block(items=("a", "b")),)
    assert rules.pin == (Pin(column="category", any=("new",), place=3),)
    (boost,) = rules.boost
    assert boost.by == -0.5 and boost.max == 20
    first = 1_796_083_200  # 1 December 2026, 00:00 UTC
    assert boost.window_us == (first * US, (first + 86_400 + 10 * 3600) * US)
    assert Block(items=("a",)).window_us == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[blok]]\nitems = ["a"]', r"unknown key 'blok'; valid keys are block, boost, pin"),
        ('[[block]]\nitem = "a"', r"unknown key 'block\[0\]\.item'; valid keys are items, column, any"),
        ("[[block]]", r"rules\.toml: a rule names its items by either items or column"),
        ('[[block]]\nitems = ["a"]\ncolumn = "x"\nany = ["y"]', "either items or column; found both"),
        ('[[block]]\ncolumn = "x"', "has any, none, min or max; found column 'x' alone"),
        ('[[block]]\nitems = ["a"]\nmin = 3', "found min without column"),
        ('[[boost]]\nitems = ["a"]', r"missing boost\[0\]\.by; this key is required"),
        ('[[boost]]\nitems = ["a"]\nby = 0', r"boost\.by is 0"),
        ('[[boost]]\nitems = ["a"]\nby = nan', r"boost\.by is nan"),
        ('[[pin]]\nitems = ["a"]\nplace = 0', r"pin\.place is 0; expected 1"),
        ('[[block]]\nitems = ["a"]\nsince = "soon"', r"block\[0\]\.since is 'soon'; expected a date or a time"),
        ('[[block]]\nitems = ["a"]\nsince = 2026-02-01\nuntil = 2026-01-01', "expected until to be later"),
        ('[[block]]\nitems = "a"', r"block\[0\]\.items is 'a'; expected a list"),
        ("block = 3", "block is 3; expected a list"),
        ("[[block", "is not valid TOML"),
    ],
)
def test_mistakes_are_named_with_what_is_valid(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        rules_of(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no rule file at .*nothing\.toml"):
        load_rules(str(tmp_path / "nothing.toml"))


def test_requests_are_grouped_by_what_is_in_force_at_their_times(tmp_path):
    rules = rules_of(
        tmp_path,
        """
        [[block]]
        items = ["0"]
        since = 1970-01-01T00:00:10Z
        [[block]]
        items = ["1"]
        until = 1970-01-01T00:00:20Z
        [[boost]]
        items = ["2", "3"]
        by = 0.5
        [[boost]]
        items = ["3"]
        by = 0.25
        """,
    )
    asked = []

    def match(rule):
        asked.append(rule)
        return np.isin(np.arange(4), [int(item) for item in rule.items])

    book = RuleBook(rules, match)
    groups = book.groups(np.array([5, 10, 19, 20, 7]) * US)
    found = {tuple(rows.tolist()): np.flatnonzero(~now.open_I).tolist() for rows, now in groups}
    assert found == {(0, 4): [1], (1, 2): [0, 1], (3,): [0]}
    assert all(now.gain_I.tolist() == [0, 0, 0.5, 0.75] for _, now in groups)
    num = len(asked)
    book.groups(np.array([5]) * US)
    assert len(asked) == num, "kept"
    book.forget()
    book.groups(np.array([5]) * US)
    assert len(asked) > num
    assert book and not RuleBook(Rules(), match)
    assert Boost(items=("a",), by=1) != Boost(items=("a",), by=2)
