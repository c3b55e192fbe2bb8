"""The list of options: how many there are, that each says what it means, and that OPTIONS.md is up to date."""

from __future__ import annotations

import dataclasses

from options_page import PAGE, meanings, page, sections

from ctxrec.core.removed_options import REMOVED

MOST_OPTIONS = 90


def test_there_are_at_most_90_options():
    count = sum(len(dataclasses.fields(section)) for section in sections().values())
    print(f"{count} options")
    assert count <= MOST_OPTIONS, "make a number that no user has to decide a constant, or a frozen *Params"


def test_each_option_says_what_it_means_in_a_sentence():
    for name, section in sections().items():
        about, texts = meanings(section)
        assert about.endswith("."), name
        assert list(texts) == [field.name for field in dataclasses.fields(section)], name
        for key, text in texts.items():
            assert text[0] in "`" or text[0].isupper(), f"{name}.{key}"
            assert text.endswith("."), f"{name}.{key}"


def test_the_page_is_that_of_the_dataclasses():
    assert PAGE.read_text() == page(), "run `make options`"


def test_a_removed_option_is_none_of_todays():
    today = {f"{name}.{field.name}" for name, section in sections().items() for field in dataclasses.fields(section)}
    assert not today & set(REMOVED)
