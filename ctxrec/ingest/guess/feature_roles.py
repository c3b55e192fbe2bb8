"""Which column of a table of items or users is its key, a text, a category, a number, a picture or a sound."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctxrec.ingest.guess import names
from ctxrec.ingest.guess.column_look import ColumnLook
from ctxrec.ingest.guess.looked_table import LookedTable

_TEXT_WORDS = 4.0  # mean number of words from which a text is prose rather than a category
_OF_A_CATEGORY = 3.0  # times that a value stands in the table on average from which it is a category
_MOST_OF_A_LIST = 200.0  # mean characters of a text that is a list of categories


@dataclass
class FeatureRoles:
    """The columns of a table: uses as "id", "text", "categorical", "text, categorical" and so on; "" is left out."""

    key: str
    uses: dict[str, str]
    separators: dict[str, str] = field(default_factory=dict)
    unsure: list[tuple[str, str]] = field(default_factory=list)

    def of(self, use: str) -> tuple[str, ...]:
        """The columns with a use; of texts the title comes first."""
        found = [column for column, uses in self.uses.items() if use in uses.split(", ")]
        if use == "text":
            found.sort(key=lambda column: not names.says(column, names.TITLE))
        return tuple(found)


def choose(table: LookedTable, *, key: str, with_media: bool = True) -> FeatureRoles:
    """Choose the use of each column.

    Args:
        table: of items or users.
        key: the column of its ids.
        with_media: of items, which have images and sounds, and columns that are a text and a category. A column of users is one thing.
    """
    roles = FeatureRoles(key, {key: "id"})
    for column, look in table.looks.items():
        if column == key:
            continue
        use, doubt = _use(look, with_media=with_media)
        if look.media is not None and look.media in roles.uses.values():
            use, doubt = "", f"{column} holds more {look.media}s; the spec takes one column of them"
        roles.uses[column] = use
        if doubt:
            roles.unsure.append((use.split(", ")[-1] or "columns", doubt))
        if "categorical" in use and look.separator is not None:
            roles.separators[column] = look.separator
            what = "a list in brackets" if look.separator == "[]" else f"several values between {look.separator!r}"
            roles.unsure.append(("separators", f"{column} looks like {what}, as in {look.examples[0]!r}"))
    return roles


def _use(look: ColumnLook, *, with_media: bool) -> tuple[str, str | None]:
    """What a column is used for, and what is not sure about it."""
    name = look.name
    if look.media is not None:
        return (look.media, None) if with_media else ("", f"{name} is left out: [users] takes no {look.media}s")
    if look.kind == "empty":
        return "", f"{name} is left out: the sample has no value of it"
    if look.kind in ("bytes", "nested"):
        return "", f"{name} is left out: {look.type} is no text, category or number"
    if look.kind == "list":
        return ("text, categorical" if with_media and names.says(name, names.WORDY) else "categorical"), None
    if look.distinct < 2 and look.missing >= 0.01:
        return "categorical", f"{name} has one value, {look.examples[0]!r}, or none; it is taken for a mark"
    if look.distinct < 2:
        return "", f"{name} is left out: it has one value, {look.examples[0]!r}"
    if look.time is not None and look.kind == "time":
        return "", f"{name} is left out: a time is no feature; write the year or an epoch number into a column for it"
    if look.is_address or look.other_dates or look.kind == "time":
        return "", f"{name} is left out: its values are {'addresses' if look.is_address else 'dates'}"
    if look.kind == "truth":
        return "categorical", None
    if look.kind == "number":
        return _use_of_number(look)
    return _use_of_text(look, both=with_media)


def _use_of_number(look: ColumnLook) -> tuple[str, str | None]:
    identifier = names.says(look.name, names.IDENTIFIER) and look.whole
    if identifier and look.is_unique:
        return "", f"{look.name} is left out: it is another id of each row"
    if identifier:
        return "categorical", None if look.repeats > 2 else f"{look.name} is taken for a category: its name is of an id"
    if look.whole and {"zip", "postal", "postcode", "zipcode"} & set(names.words(look.name)):
        return "categorical", None
    if look.whole and look.low >= 0 and look.distinct <= 5 and look.high < 10:
        return "categorical", f"{look.name} has {look.distinct} whole numbers, and is taken for a category"
    return "numeric", None


def _use_of_text(look: ColumnLook, *, both: bool) -> tuple[str, str | None]:
    """`both` is whether a column may be a text and a category."""
    name = look.name
    title = names.says(name, names.TITLE) or names.says(name, names.DESCRIPTION)
    # "product_type_name" is no title: its values come again.
    wordy = names.says(name, names.WORDY) or (title and look.repeats >= _OF_A_CATEGORY)
    is_list = look.separator is not None and look.length <= _MOST_OF_A_LIST and (look.words <= _TEXT_WORDS * 2 or wordy)
    is_title = title and look.repeats < _OF_A_CATEGORY
    if is_list and not is_title:
        return ("text, categorical" if both and wordy and look.letters > 0.5 else "categorical"), None
    if is_title and not both and look.words < _TEXT_WORDS:
        return "", f"{name} is left out: it has few words, as the name of a user has"
    if is_title or look.words >= _TEXT_WORDS:
        doubt = None if is_title or look.words >= 2 * _TEXT_WORDS else f"{name} is taken for a text"
        if look.repeats > 5 and not is_title and not both:
            return "categorical", f"{name} is taken for a category: its values come again"
        if look.repeats > 5 and not is_title:
            return "text, categorical", f"{name} is taken for a text and a category: its values come again"
        return "text", doubt
    if look.is_unique and not wordy:
        if look.letters < 0.5 or look.words < 1.2:
            return "", f"{name} is left out: it differs in each row, and has no words"
        if not both and look.words < _TEXT_WORDS:
            return "", f"{name} is left out: it differs in each row"
        return "text", f"{name} is taken for a text"
    doubt = (
        None
        if wordy or look.repeats >= _OF_A_CATEGORY
        else f"{name} is taken for a category: {look.distinct} values in {look.count} rows"
    )
    return ("text, categorical" if both and wordy and look.letters > 0.5 else "categorical"), doubt
