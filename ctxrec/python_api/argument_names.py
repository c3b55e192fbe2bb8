"""Messages that speak of a `dataset.toml`, in the words of a caller in Python: names of arguments for keys of a spec."""

from __future__ import annotations

import os
import re

_TABLES = {"events": "interactions", "items": "items", "users": "users", "graph": "graph"}
# In their order; a text that none of them knows stays as it is.
_SPOKEN: tuple[tuple[str, str], ...] = (
    (r"under timezone", "with timezone="),
    (r"as time_format under \[events\], such as time_format = ", "with time_format=, such as "),
    (r"as time_format", "with time_format="),
    (r"write time_format = (.*?) under \[events\]", r"give time_format=\1"),
    (r"Correct time_format under \[events\]", "Correct time_format="),
    (r'(\w+) = "COLUMN" in \[events\]', r'\1="COLUMN"'),
    (r"(?:in|to) \[events\] (\w+)", r"with \1="),
    (r"\[events\] (user|item|time|action|value) ", r"\1= "),
    (r'Set strategy = "last" in \[split\], or valid = 0 and test = 0', 'Give split={"strategy": "last"}, or split={"valid": 0, "test": 0}'),
    (r'The split is "last", which', 'The split is {"strategy": "last"}, which'),
    (r"true recommends such", 'split={"repeats": True} recommends such'),
    (r"([Ll])ower split\.valid and split\.test in the dataset spec", r"\1ower valid and test of split="),
    (r"\[events\.context\]", "context=[...]"),
    (r"\[events\.(actions|feedback)\]", r"\1={...}"),
    (r"\bevents\.(time_format|timezone|actions|feedback)\b", r"\1"),
    (r"(?:\. )?Correct the name in the dataset spec", ". Correct the name"),
    (r"into the dataset spec|in the dataset spec", "in a dataset.toml, and give that as interactions"),
)  # fmt: skip


def in_python(text: str) -> str:
    """A message with names of arguments in the place of keys of a spec.

    >>> in_python('To read such as "1.2.2010", write time_format = "%d.%m.%Y" under [events]')
    'To read such as "1.2.2010", give time_format="%d.%m.%Y"'
    >>> in_python("column 'sku' of [events] has A1")
    "column 'sku' of interactions has A1"
    """
    for found, instead in _SPOKEN:
        text = re.sub(found, instead, text)
    return re.sub(r"\[(events|items|users|graph)\]", lambda section: _TABLES[section[1]], text)


def says_everything(interactions: object) -> bool:
    """Whether the log is given as a `dataset.toml`, in whose words messages then stay."""
    return isinstance(interactions, (str, os.PathLike)) and str(interactions).endswith(".toml")
