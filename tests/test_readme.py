"""The front page: short lines, the same code and figures in both languages, and the figures of the lab book."""

from __future__ import annotations

import re

import pytest
from pages import NOT_RUN, SHOWN, blocks, why_not_run
from paths import REPO

from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.toml import read_toml
from ctxrec.datasets.movielens_100k import SPEC

README, CHINESE, SERVICE = "README.md", "README.zh.md", "serve/README.md"
NUMBER = re.compile(r"[+-]?\d*\.?\d[\d,.]*(?<![,.])")


def text_of(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def table_rows(page: str) -> list[list[str]]:
    """The cells of all rows of all tables, without the lines below their heads."""
    rows = [line for line in text_of(page).splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


@pytest.mark.parametrize("page", [README, CHINESE])
def test_lines_fit_on_a_screen(page):
    wide = [line for line in text_of(page).splitlines() if len(line) > 120]
    assert not wide


def test_both_languages_have_the_same_code():
    assert [(b.language, b.text) for b in blocks(README)] == [(b.language, b.text) for b in blocks(CHINESE)]


def test_both_languages_have_the_same_figures_in_their_tables():
    english, chinese = table_rows(README), table_rows(CHINESE)
    assert [len(row) for row in english] == [len(row) for row in chinese]
    for ours, theirs in zip(english, chinese, strict=True):
        assert [NUMBER.findall(cell) for cell in ours] == [NUMBER.findall(cell) for cell in theirs], ours
        assert re.findall("`[^`]+`", " ".join(ours)) == re.findall("`[^`]+`", " ".join(theirs)), ours


def test_both_languages_name_each_other_and_the_same_pages():
    assert f"[中文]({CHINESE})" in text_of(README).splitlines()[2]
    assert f"[English]({README})" in text_of(CHINESE).splitlines()[2]
    links = [set(re.findall(r"\]\(([^)]+)\)", text_of(page))) - {README, CHINESE} for page in (README, CHINESE)]
    assert links[0] == links[1]
    heads = [re.findall(r"^#+ ", text_of(page), re.MULTILINE) for page in (README, CHINESE)]
    assert heads[0] == heads[1]


def test_figures_in_sentences_are_the_same_in_both_languages():
    """Those with a point or a comma, which are measured; small whole numbers are words in one of the two."""
    found = [
        set(re.findall(r"(?<!\w)\d*[.,]\d+(?![\w.])", re.sub(r"```.*?```", "", text_of(p), flags=re.S)))
        for p in (README, CHINESE)
    ]
    assert found[0] == found[1] and ".1409" in found[0]


def test_results_are_those_of_the_lab_book():
    """A row's figures stand in one row of the lab book's table of all data sets; the quick preset's in its own."""
    lab = text_of("tests/bench/RESULTS.md")
    accuracy = lab.split("### Accuracy on all data sets")[1].split("\n###")[0]
    quick = lab.split("### The quick preset\n")[1].split("\n###")[0]
    rows = [row for row in table_rows(README) if re.match(r"\.\d", row[1])]
    assert len(rows) == 8
    for name, ours, ensemble, difference, fast, minutes in rows:
        (theirs,) = [line for line in accuracy.splitlines() if line.startswith((f"| {name} |", f"| {name} ("))]
        cells = [cell.strip() for cell in theirs.split("|")]
        assert cells[4].startswith(f"{ours} (") and cells[5].startswith(f"{ensemble} (") and cells[7] == difference
        assert not fast or f"| {name} | {fast} |" in quick
        assert re.search(rf"(?<![\d.]){re.escape(minutes)}(?!\d)", accuracy)


def test_what_the_demo_prints_is_in_the_lab_book():
    lab = text_of("tests/bench/RESULTS.md").split("### What `make demo` prints")[1].split("\n###")[0]
    (shown,) = [block for block in blocks(README) if block.text.startswith("test: ")]
    for line in shown.text.splitlines()[2:]:
        found = next(row for row in lab.splitlines() if row.startswith(line.split("  ")[0] + "  "))
        assert [n for n in NUMBER.findall(line) if n not in NUMBER.findall(found)] == [], line


def test_the_map_names_what_is_there():
    (shown,) = [block for block in blocks(README) if block.text.startswith("ctxrec/ ")]
    folders = re.findall(r"^(\w+)/", shown.text, re.MULTILINE)
    assert all((REPO / folder).is_dir() for folder in folders) and len(folders) == 5


def test_the_spec_of_the_data_contract_is_one(tmp_path):
    (block,) = [block for block in blocks(README) if block.language == "toml"]
    (tmp_path / "dataset.toml").write_text(block.text)
    spec = load_spec(str(tmp_path / "dataset.toml"))
    assert spec.events.user == "customer" and spec.items is not None and spec.items.text == ("title", "description")


def test_examples_of_the_service_have_the_columns_of_the_demos_model(tmp_path):
    """Those of the spec that the demo writes: tests/system/test_pages_run.py runs the examples on such a model."""
    (tmp_path / "dataset.toml").write_text(SPEC.format(graph=""))
    raw = read_toml(str(tmp_path / "dataset.toml"))
    assert raw["items"]["categorical"] == ["genres"] and raw["items"]["numeric"] == ["year"]
    assert set(raw["events"]) == {"path", "value"}, "no actions, and no context but the time"


@pytest.mark.parametrize("page", [README, SERVICE])
def test_what_is_not_run_is_listed_with_its_reason(page):
    """tests/system runs all other blocks: test_python_api.py those of Python, test_pages_run.py those of commands."""
    for block in blocks(page):
        assert block.language in ("", "python", "toml")
        if block.language == "" and block.shown is None:
            for command in block.commands:
                known = command[0] in ("ctxrec", "curl") or command[:2] in (["python", "-m"], ["serve", "run"])
                assert known or why_not_run(command), f"{page}: {' '.join(command)}"


def test_no_reason_is_left_over():
    every = [block for page in (README, SERVICE) for block in blocks(page)]
    for begin in SHOWN:
        assert any(block.text.startswith(begin) for block in every), begin
    lines = [" ".join(c) for b in every if b.language == "" and b.shown is None for c in b.commands]
    for begin in NOT_RUN:
        assert any(line.startswith(begin) for line in lines), begin
