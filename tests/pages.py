"""Blocks of code in the pages of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from paths import REPO

# What a page shows besides commands: blocks by the words that they begin with, and why nothing runs them.
SHOWN = {
    "test: 943 requests, full ranking": "output of the demo; its figures are compared with the lab book",
    "ctxrec/     the product": "a map of folders; they are looked up",
}
# Commands that no test runs, by their first words, and why.
NOT_RUN = {
    "make demo": "it installs, downloads and trains for minutes; `make` only calls ctxrec.demo, which is run by hand",
    "ray up": "it rents machines of a cloud",
    "ray job submit": "it needs a cluster; tests/system/test_cluster_entry_points.py submits each of these commands",
    "serve deploy": "it needs a cluster; tests/system/test_cluster_jobs.py deploys that file",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language ("" is a block of commands, or one that only shows something) and text."""

    page: str
    language: str
    text: str

    @property
    def shown(self) -> str | None:
        """Why the block holds nothing to run; None where it does."""
        return next((why for begin, why in SHOWN.items() if self.text.startswith(begin)), None)

    @property
    def commands(self) -> list[list[str]]:
        """The commands of the block as words, without comments. A quoted text may have several lines."""
        assert self.language == "" and self.shown is None
        found, open_text = [], ""
        for line in self.text.splitlines():
            open_text += line + "\n"
            if open_text.count("'") % 2 == 0:
                found.append(shlex.split(open_text, comments=True))
                open_text = ""
        assert not open_text, f"{self.page}: a quotation mark without its pair in {open_text!r}"
        return [command for command in found if command]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in its order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (REPO / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(page, language, text) for language, text in found]


def why_not_run(command: list[str]) -> str | None:
    """Why no test runs a command; None where one does."""
    line = " ".join(command)
    return next((why for begin, why in NOT_RUN.items() if line.startswith(begin)), None)
