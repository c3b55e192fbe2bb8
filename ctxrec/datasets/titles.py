"""Film titles as GroupLens writes them: "Usual Suspects, The (1995)"."""

from __future__ import annotations

import re

YEAR = re.compile(r"^(.*?) \((\d{4})\)(.*)$")  # title, year, rest
_ARTICLE = re.compile(r"^(.+?), (The|A|An|La|Le|Les|Il|El|Los|Las|Das|Der|Die)(?= \(|$)")


def article_first(title: str) -> str:
    """A title with its article in front.

    >>> article_first("Usual Suspects, The (1995)")
    'The Usual Suspects (1995)'
    """
    return _ARTICLE.sub(r"\2 \1", title)
