"""`make refresh-demo` on small news: a posted day is trained on and published while requests go on, and none fails."""

from __future__ import annotations

import re

from ctxrec.benchmarks.refresh_demo import run_refresh_demo
from ctxrec.bundle.registry import read_published
from ctxrec.core import storage
from ctxrec.core.run_paths import ModelsPaths
from ctxrec.datasets.news import NewsPlan


def test_the_better_version_is_served_without_a_failed_request(tmp_path, capfd):
    run_refresh_demo(str(tmp_path), plan=NewsPlan(users=300, items=400, events=9_000), without_evidence=True)
    said = capfd.readouterr().out
    counts = re.search(r"([\d,]+) requests were answered meanwhile, (\d+) failed", said).groups()
    answered, failed = (int(count.replace(",", "")) for count in counts)
    assert answered > 10 and failed == 0, said
    models = str(tmp_path / "refresh" / "models")
    now = read_published(models)
    assert f"they met the versions {now.previous[0]} and {now.version}" in said, said
    card = storage.read_json(ModelsPaths(models).decision(now.version))
    assert card["outcome"] == "published" and card["guard"] == "" and "judged" in card
    before, after = map(float, re.search(r"before (0\.\d+), after (0\.\d+)", said).groups())
    assert before > 0 and after > 0
