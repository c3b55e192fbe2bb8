"""Arms of an A/B test in a replica, and its rule file, without HTTP and without Ray Serve."""

from __future__ import annotations

import pytest
from tolerance import assert_same_answers

from ctxrec.core.errors import UserError
from ctxrec.experiments.ab_test import Arm, Experiment
from ctxrec.experiments.exposures import read_exposures
from ctxrec.retrieval.retriever import Retriever
from serve.api import RecommendRequest
from serve.arms import Arms, ExposureLog
from serve.engine import Engine, served_config
from serve.rule_file import RuleFile

USERS = [f"u{n}" for n in range(6)] + [f"new{n}" for n in range(30)]


@pytest.fixture(scope="module")
def engines(make_world) -> dict[str, Engine]:
    """Two versions: other weights, and so other lists."""
    made = {}
    for version, options in (("1", ()), ("2", ("model.dim=16",))):
        world = make_world(num_items=30)
        recommender = world.recommender(world.config(*options))
        recommender.model_version = version
        made[version] = Engine(Retriever(recommender))
    return made


def arms_of(engines: dict[str, Engine]) -> Arms:
    test = Experiment(name="t", arms=(Arm(name="b", version="2", share=0.4),))
    return Arms(test, {"2": (engines["2"], None)})


def body(user: str | None, **more) -> RecommendRequest:
    who = {"user_id": user} if user is not None else {"history": [{"item_id": "i3"}]}
    return RecommendRequest.model_validate(who | {"k": 4, "context": {"timestamp": 1_700_000_000}} | more)


def test_every_request_is_answered_by_the_version_of_its_arm(engines):
    arms, seen = arms_of(engines), []
    calls = [
        ([body(u) for u in USERS], "r1"),
        ([body(USERS[0])], "r2"),
        ([body("u1", context={"x": 1})], "r3"),
    ]
    replies = arms.recommend(calls, engines["1"], seen.extend)
    alone = {v: engine.recommend([calls[0][0]])[0].answers for v, engine in engines.items()}
    for n, (user, answer) in enumerate(zip(USERS, replies[0].answers, strict=True)):
        arm = arms.test.arm_of(user)
        assert answer.experiment == ("t", arm.name if arm else "control") and arms.arm_of(user) == answer.experiment[1]
        assert answer.model_version == (arm.version if arm else "1")
        assert answer.item_ids == alone[answer.model_version][n].item_ids
    assert {a.model_version for a in replies[0].answers} == {"1", "2"}
    assert_same_answers(replies[1].answers, replies[0].answers[:1])
    (error,) = replies[2].answers
    assert isinstance(error, UserError) and "'x'" in str(error), "a refused request is in no arm"
    assert {"tower", "search"} <= replies[0].seconds.keys()
    assert [(e.user_id, e.request_id) for e in seen] == [(u, "r1") for u in USERS] + [(USERS[0], "r2")]
    for exposure, answer in zip(seen, replies[0].answers, strict=False):
        assert (exposure.arm, exposure.model_version) == (answer.experiment[1], answer.model_version)
        assert exposure.item_ids == answer.item_ids and exposure.share == pytest.approx(
            0.4 if exposure.arm == "b" else 0.6
        )


def test_somebody_without_a_name_goes_by_the_request(engines):
    arms, seen = arms_of(engines), []
    for request_id in [f"request{n}" for n in range(20)] * 2:
        (reply,) = arms.recommend([([body(None), body(None)], request_id)], engines["1"], seen.extend)
        assert {a.experiment[1] for a in reply.answers} == {arms.arm_of(request_id)}
    assert {e.arm for e in seen} == {"b", "control"} and {e.user_id for e in seen} == {None}
    (reply,) = arms.recommend([([body(None)], None)], engines["1"], seen.extend)
    assert reply.answers[0].experiment[1] in ("b", "control"), "also without an id"


def test_without_a_test_nothing_is_written_down(engines):
    seen = []
    (reply,) = Arms().recommend([([body("u1")], None)], engines["1"], seen.extend)
    assert reply.answers[0].experiment is None and not seen and Arms().arm_of("u1") is None


def test_exposures_are_written_when_the_log_stops_and_tried_again_when_that_fails(engines, tmp_path):
    seen = []
    arms_of(engines).recommend([([body(u) for u in USERS], None)], engines["1"], seen.extend)
    (tmp_path / "file").write_text("in the way")
    log = ExposureLog(str(tmp_path / "file"), every_s=0.05)
    log.add(seen)
    log._rounds._stopped.wait(0.3)
    (tmp_path / "file").unlink()
    log.stop()
    assert sorted(read_exposures(str(tmp_path / "file")).column("user_id").to_pylist()) == sorted(USERS)


def test_a_changed_rule_file_is_taken_over_and_a_damaged_one_is_not(make_world, tmp_path):
    def retriever(num_items: int) -> Retriever:
        world = make_world(num_items=num_items)
        return Retriever(world.recommender(world.config()))

    def shown(of: Retriever) -> list[str]:
        answer = Engine(of).recommend([[body("new", k=5)]])[0].answers[0]
        return answer.item_ids

    path, made = tmp_path / "rules.toml", retriever(20)
    with pytest.raises(UserError, match="no rule file at"):
        RuleFile(str(path))
    best = shown(made)
    path.write_text(f'[[block]]\nitems = ["{best[0]}"]')
    file = RuleFile(str(path))
    file.put_in_force(made.slate_builder)
    assert file.look() is None and best[0] not in shown(made)
    path.write_text(f'[[block]]\nitems = ["{best[1]}"]')
    file.take_over(file.look(), made.slate_builder)
    assert best[0] in shown(made) and best[1] not in shown(made)
    path.write_text("[[block]")
    with pytest.raises(UserError, match="not valid TOML"):
        file.look()
    assert file.look() is None, "it is said once"
    path.unlink()
    with pytest.raises(UserError, match="no rule file at"):
        file.look()
    path.write_text('[[block]]\nitems = ["i999"]')
    with pytest.raises(UserError, match="'i999'"):
        file.take_over(file.look(), made.slate_builder)
    assert best[1] not in shown(made)
    fewer = retriever(int(best[1][1:]) or 5)  # another version, without that item
    file.put_in_force(fewer.slate_builder)
    assert shown(fewer)


def test_options_over_those_of_the_bundle(tmp_path):
    (tmp_path / "config.toml").write_text("[diversity]\nstrength = 0.1\npool = 7\n[model]\ndim = 32\n")
    config = served_config(str(tmp_path), ["diversity.strength=0.5", "index.nprobe=3"])
    assert (config.diversity.strength, config.diversity.pool, config.index.nprobe) == (0.5, 7, 3)
    for wrong in ("model.dim=3", "diversity.rules=x", "nonsense"):
        with pytest.raises(UserError, match=r"expected index\.key=value, diversity\.key=value"):
            served_config(str(tmp_path), [wrong])
    with pytest.raises(UserError, match=r"unknown key 'diversity\.strong'"):
        served_config(str(tmp_path), ["diversity.strong=1"])
