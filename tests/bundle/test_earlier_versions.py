"""What an earlier version of ctxrec wrote still loads and answers the same: tests/bundle/published_v1.

The folder was published before the packages had their names and while the options had `model.use_*`, `encoder.compile`
and others that are gone. Its answers were written down then.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from tolerance import assert_same_scores

from ctxrec.bundle.registry import read_published
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.retriever import load_retriever

EARLIER = Path(__file__).parent / "published_v1"
NOW = 1_700_000_000


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy, so that nothing writes into the checkout."""
    return Path(shutil.copytree(EARLIER, tmp_path / "models"))


def test_a_published_model_of_an_earlier_version_gives_the_same_lists(published, caplog):
    version = read_published(str(published)).version
    with caplog.at_level(logging.WARNING, logger="ctxrec"):
        retriever = load_retriever(str(published / "versions" / version))
    requests, fallback = retriever.recommender.make_requests(
        [RawRequest(user_id="u1", timestamp=NOW), RawRequest(user_id="new", timestamp=NOW)]
    )
    assert fallback.tolist() == [False, True]
    wanted = json.loads((published / "answers.json").read_text())
    for (items, scores), answer in zip(retriever.top_k(requests, 5), wanted, strict=True):
        assert retriever.item_ids(items) == answer["items"]
        assert_same_scores(scores, answer["scores"])


def test_a_damaged_file_of_an_earlier_version_is_still_refused(published):
    version = read_published(str(published)).version
    path = published / "versions" / version / "blend.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"blend\.safetensors"):
        load_retriever(str(published / "versions" / version))
