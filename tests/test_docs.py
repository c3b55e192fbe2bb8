"""The documentation names only what is there: files, links, modules, options; and it stays short."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
from paths import REPO
from test_layers import LAYERS

from ctxrec.core.commands import COMMANDS
from ctxrec.core.config import Config

# The lab book is history: it may name options and files that have been removed since.
PAGES = sorted(
    path
    for folder in ("", "ctxrec", "serve", "tune", "cluster", "tests")
    for path in (REPO / folder).glob("*.md" if not folder else "**/*.md")
    if path.name != "RESULTS.md"
)
MOST_LINES = {"README.md": 200, "README.zh.md": 200, "ctxrec/README.md": 120, "cluster/README.md": 120}


def name(page: Path) -> str:
    return str(page.relative_to(REPO))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "#")):
            file, _, anchor = target.partition("#")
            assert (page.parent / file).exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.*)$", (page.parent / file).read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}, target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_are_there(page):
    """A path with a folder, from the repository, from ctxrec/ or from the page's own folder."""
    for found in set(re.findall(r"(?<![\w/.])(?:\w+/)+\w+\.(?:py|toml|md)\b", page.read_text())):
        if not found.startswith(("my/", "runs/", "RUN/", "SWEEP/")):
            assert any((base / found).exists() for base in (REPO, REPO / "ctxrec", page.parent)), found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_commands_are_there(page):
    for found in set(re.findall(r"python -m ((?:ctxrec|tune|cluster)\.\w+)", page.read_text())):
        assert importlib.util.find_spec(found), found
    blocks = re.findall(r"```.*?```|`[^`]*`", page.read_text(), re.DOTALL)
    for found in set(re.findall(r"(?:^|[`;$] ?)ctxrec ([a-z]\w*) ", "\n".join(blocks), re.MULTILINE)):
        assert found in COMMANDS, found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_flags_are_there(page):
    """A flag of a command of ours is a string of the sources, with its dashes or (where several are made) without."""
    files = [path for folder in ("ctxrec", "tune", "cluster", "tests/bench") for path in (REPO / folder).rglob("*.py")]
    known = set(re.findall(r"[\"'](?:--)?([a-z]+(?:-[a-z]+)*)[\"']", "\n".join(path.read_text() for path in files)))
    text = page.read_text().replace("\\\n", " ")
    ours = r"(?:python (?:-m (?:ctxrec|tune|cluster)\.|tests/bench/)|(?:^|`)ctxrec (?=[a-z]+ ))([^`\n]*)"
    for line in re.findall(ours, text, re.MULTILINE):
        assert set(re.findall(r"--([a-z]+(?:-[a-z]+)*)", line)) <= known | {"help"}, line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_options_are_there(page):
    options = {
        section.name: {option.name for option in dataclasses.fields(section.default_factory())}
        for section in dataclasses.fields(Config)
    }
    for section, option in set(re.findall(r"(?<![\w./-])(\w+)\.(\w+)(?![\w/(])", page.read_text())):
        if section in options and option not in ("py", "md", "toml", "yaml"):
            assert option in options[section], f"{section}.{option}"


def named_modules(readme: str) -> set[str]:
    """Names of Python files that a page has between backticks, without their folders.

    >>> sorted(named_modules("| `rows.py`, `guess/names.py` | rows.py, not tails.py |"))
    ['names.py', 'rows.py']
    """
    return set(re.findall(r"`(?:\w+/)*(\w+\.py)`", readme))


@pytest.mark.parametrize("package", [*(f"ctxrec/{package}" for package in LAYERS), "serve", "tune"])
def test_every_module_is_named_in_the_readme_of_its_package(package):
    modules = {path.name for path in (REPO / package).rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert not modules - named_modules((REPO / package / "README.md").read_text())


def test_the_map_has_the_table_of_layers():
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([^|]+) \|$", (REPO / "ctxrec/README.md").read_text(), re.MULTILINE)
    found = {package: () if below == "nothing of ctxrec" else tuple(below.split(", ")) for package, below in rows}
    assert {package: set(below) for package, below in found.items()} == {p: set(b) for p, b in LAYERS.items()}


@pytest.mark.parametrize("page", MOST_LINES)
def test_pages_are_short_enough_to_read(page):
    assert len((REPO / page).read_text().splitlines()) <= MOST_LINES[page]
