"""The rule file of a service, read again when it changes; a damaged file leaves the old rules in force."""

from __future__ import annotations

import hashlib
import logging

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.retrieval.slate.rules import Rules, load_rules
from ctxrec.retrieval.slate.slate_builder import SlateBuilder

logger = logging.getLogger(__name__)


class RuleFile:
    """The rules of a file. While another thread searches, only `look` may be called.

    Args:
        path: path or URI; empty: no rules.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, path: str):
        self._path = path
        self._seen = self._content()
        self._rules = load_rules(path) if path else Rules()

    def look(self) -> Rules | None:
        """The rules of a file that has changed since the last look and can be read; None otherwise.

        Raises:
            UserError: it has changed, and is missing or damaged; once for each change.
        """
        content = self._content()
        if content == self._seen:
            return None
        self._seen = content
        return load_rules(self._path)

    def take_over(self, rules: Rules, slate_builder: SlateBuilder) -> None:
        """Put rules in force.

        Raises:
            UserError: one does not fit the catalogue; the old rules stay.
        """
        slate_builder.use_rules(rules)
        self._rules = rules

    def put_in_force(self, slate_builder: SlateBuilder) -> None:
        """Put the present rules in force on another catalogue, without the rules that do not fit it."""
        for problem in slate_builder.use_rules(self._rules, lenient=True):
            logger.error("a rule of %s is left out: %s", self._path, problem)

    def _content(self) -> str:
        if not self._path:
            return ""
        try:
            return hashlib.sha256(storage.read_bytes(self._path)).hexdigest()
        except (UserError, OSError):
            return "missing"
