"""Published versions: one is served, others wait; nothing damaged gets there; going back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import assert_users_mistake, call

from ctxrec.bundle.format import BUNDLE
from ctxrec.bundle.registry import Published, find_bundle, publish, read_published, roll_back
from ctxrec.core import manifest, storage
from ctxrec.core.errors import UserError
from ctxrec.experiments import ab_test
from ctxrec.experiments.ab_test import Arm
from ctxrec.retrieval.retriever import load_retriever


@pytest.fixture
def bundles(tiny_run, make_variant, tmp_path) -> dict[str, str]:
    """Three versions, in order."""
    first = find_bundle(tiny_run)
    second = make_variant(first, tmp_path / "second")
    third = make_variant(str(tmp_path / "second"), tmp_path / "third")
    version = load_retriever(tiny_run).recommender.model_version
    return {version: first, second: str(tmp_path / "second"), third: str(tmp_path / "third")}


def test_versions_follow_each_other_and_come_back(bundles, tmp_path):
    models = str(tmp_path / "models")
    a, b, c = bundles
    assert publish(bundles[a], models) == Published(a)
    assert publish(bundles[b], models) == Published(b, (a,))
    assert publish(bundles[b], models) == Published(b, (a,)), "once more changes nothing"
    assert publish(bundles[c], models) == Published(c, (a, b))
    assert find_bundle(models) == str(tmp_path / "models" / "versions" / c)
    assert load_retriever(models).recommender.model_version == c
    assert roll_back(models) == read_published(models) == Published(b, (a,))
    assert publish(bundles[c], models) == Published(c, (a, b)), "it still lies there"
    assert roll_back(models, a) == Published(a, (b, c))
    assert roll_back(models, a) == Published(a, (b, c))
    assert publish(bundles[b], models) == Published(b, (c, a))
    assert sorted(p.name for p in (tmp_path / "models" / "versions").iterdir()) == sorted(bundles)


def test_what_is_damaged_is_never_served(bundles, tmp_path):
    models = str(tmp_path / "models")
    a, b, _ = bundles
    publish(bundles[a], models)
    publish(bundles[b], models)
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles[b], damaged)
    (damaged / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"items\.parquet does not match"):
        publish(str(damaged), models)
    (tmp_path / "models" / "versions" / a / "index.faiss").unlink()
    with pytest.raises(UserError, match=r"index\.faiss is missing"):
        roll_back(models)
    assert read_published(models) == Published(b, (a,))
    (tmp_path / "models" / "current.json").write_text("[]")
    with pytest.raises(UserError, match=r"names no version; publish a model with --repair"):
        find_bundle(models)


def test_there_must_be_something_to_go_back_to(bundles, tmp_path):
    models = str(tmp_path / "models")
    with pytest.raises(UserError, match=r"current\.json is missing.*ctxrec publish first"):
        roll_back(models)
    a = next(iter(bundles))
    publish(bundles[a], models)
    with pytest.raises(UserError, match="no version before"):
        roll_back(models)
    publish(list(bundles.values())[1], models)
    with pytest.raises(UserError, match=f"'nonsense' does not lie in .*models; found .*{a}"):
        roll_back(models, "nonsense")


def test_a_version_that_lies_there_can_be_named_after_a_plain_rollback(bundles, tmp_path):
    models, (a, b, _) = str(tmp_path / "models"), bundles
    publish(bundles[a], models)
    with pytest.raises(UserError, match=f"'nope' does not lie in .*; found {a}$"):
        roll_back(models, "nope")
    publish(bundles[b], models)
    assert roll_back(models) == Published(a)
    with pytest.raises(UserError, match=f"no version before {a} to go back to; give --rollback one of {b}$"):
        roll_back(models)
    assert roll_back(models, b) == read_published(models) == Published(b, (a,))


def test_a_model_of_another_data_set_is_named(bundles, tmp_path, caplog):
    models, (a, b, _) = str(tmp_path / "models"), bundles
    publish(bundles[a], models)
    publish(bundles[b], models)
    assert not caplog.messages, "they are of one data set"
    path = Path(bundles[b]) / "data.json"
    about = json.loads(path.read_text())
    about["spec"]["name"] = "films"
    path.write_text(json.dumps(about))
    kept = storage.read_json(str(path.parent / "manifest.json"))
    files = manifest.hash_files(str(path.parent))
    facts = {key: kept[key] for key in ("encoder", "data_fingerprint")}
    manifest.write_manifest(str(path.parent), BUNDLE, files=files, model_version=manifest.version_of(files), **facts)
    now = publish(bundles[b], models)
    assert now.previous == (a, b) and len(caplog.messages) == 1
    assert "served the data set 'tiny' and now serves 'films'" in caplog.text


def test_a_test_runs_beside_what_is_served_until_it_ends(bundles, tmp_path):
    models, (a, b, c) = str(tmp_path / "models"), bundles
    publish(bundles[a], models)
    assert ab_test.read_experiment(models) is None
    with pytest.raises(UserError, match=f"{a} is what .* serves to everybody"):
        ab_test.start(bundles[a], models, name="t", arm="b", share=0.1)
    with pytest.raises(UserError, match="arm 'b' has no version yet"):
        ab_test.start(None, models, name="t", arm="b", share=0.1)
    with pytest.raises(UserError, match=r"share of arm 'b' is 1\.5"):
        ab_test.start(bundles[b], models, name="t", arm="b", share=1.5)
    assert not (tmp_path / "models" / "versions" / b).exists(), "nothing has changed"
    made = ab_test.start(bundles[b], models, name="t", arm="b", share=0.1)
    assert made.arms == (Arm(name="b", version=b, share=0.1),) and read_published(models) == Published(a)
    assert ab_test.read_experiment(models) == made
    more = ab_test.start(bundles[c], models, name="t", arm="c", share=0.25)
    assert ab_test.start(None, models, name="t", arm="b", share=0.2).arms == (
        Arm(name="b", version=b, share=0.2),
        more.arms[1],
    )
    with pytest.raises(UserError, match="runs the test 't'; end it"):
        ab_test.start(bundles[c], models, name="other", arm="c", share=0.1)
    assert publish(bundles[b], models) == Published(b, (a,)), "the control follows what is published"
    assert ab_test.end(models).name == "t" and ab_test.read_experiment(models) is None
    with pytest.raises(UserError, match="no test runs"):
        ab_test.end(models)
    (tmp_path / "models" / "experiment.json").write_text('{"name": "t", "arms": [{"name": "b"}]}')
    with pytest.raises(UserError, match=r"experiment\.json: missing arms\[0\]\.version"):
        ab_test.read_experiment(models)


def test_the_command(bundles, tmp_path):
    models, (a, b, _) = str(tmp_path / "models"), bundles

    def typed(*args: str) -> str:
        ended = call("ctxrec.publish", *args)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert typed("--run", bundles[a], "--to", models) == f"{models} serves {a}\n"
    assert_users_mistake(call("ctxrec.publish", "--to", models, "--rollback"), "no version before")
    assert typed("--run", bundles[b], "--to", models) == f"{models} serves {b}; before: {a}\n"
    assert typed("--to", models, "--rollback", a) == f"{models} serves {a}; before: {b}\n"
    started = typed("--run", bundles[b], "--to", models, "--test", "spring", "--share", "0.1")
    assert started == f"test spring: treatment {b} for 10.0%; control {a} for the rest\n"
    assert typed("--to", models, "--end-test") == f"the test spring has ended; {models} serves {a}\n"
    for args, says in (
        (["--to", models], "expected one of --run RUN"),
        (["--run", str(tmp_path), "--to", models], "a run"),
        (["--run", bundles[b], "--to", models, "--test", "spring"], "--test needs --share"),
        (["--run", bundles[b], "--to", models, "--end-test"], "--end-test goes alone"),
    ):
        assert_users_mistake(call("ctxrec.publish", *args), says)
