"""A refresh from new data to a decision. Each stage may be killed at any moment; the same call goes on with it."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import Any

from ctxrec.bundle import registry
from ctxrec.bundle.format import check_bundle, read_about
from ctxrec.bundle.registry import Published
from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.core.folder_lock import only_here
from ctxrec.core.run_paths import BundlePaths, RefreshPaths, RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.experiments import ab_test
from ctxrec.ingest.pipeline import prepare
from ctxrec.ingest.source import fingerprint, inspect_source
from ctxrec.lifecycle import rounds
from ctxrec.lifecycle.completed import completed
from ctxrec.lifecycle.decision import add_to_card, card_of, copy_card, decide, write_card
from ctxrec.lifecycle.guards import WATCH, WatchParams
from ctxrec.lifecycle.newest_events import newest_held_out, num_events
from ctxrec.lifecycle.rounds import Round
from ctxrec.lifecycle.service_look import Look, look
from ctxrec.lifecycle.watch import read_look, save_look, watch
from ctxrec.training.driver import train
from ctxrec.training.warm_start import why_not

logger = logging.getLogger(__name__)

_TEST, _ARM = "refresh", "candidate"  # names of the A/B test that a canary is


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """What a refresh is asked to do.

    Attributes:
        models: folder of published models, path or URI.
        work: folder for data, runs and the state, path or URI.
        spec: the data set; None: the spec that the served version was trained with.
        config: all options.
        complete: publish the candidate with a memory of all events, those too by which it was judged.
        without_evidence: publish also where the newest requests are too few to tell.
        full: train anew instead of on from the served version.
        live: folder where the service stored posted events and items, which are read too; "": none.
        watch: URL of the service that is watched after a version was published; "": none.
        watch_s: seconds for which it is watched.
        canary: share of the users that get the candidate first, as an arm of an A/B test, for `watch_s` seconds; 0: none.
        guards: what rolls the version back.
    """

    models: str
    work: str
    spec: DatasetSpec | None
    config: Config
    complete: bool = True
    without_evidence: bool = False
    full: bool = False
    live: str = ""
    watch: str = ""
    watch_s: float = 600.0
    canary: float = 0.0
    guards: WatchParams = WATCH


def refresh(asked: Refresh) -> Round:
    """Prepare, train, decide and publish; an unfinished round goes on where it was.

    Returns:
        The finished round, whose `outcome` says what became of it.

    Raises:
        UserError: nothing is published yet, the data or an option does not fit, another refresh works in the folder, or an
            A/B test runs where a canary is asked for.
    """
    served = registry.read_published(asked.models)
    if asked.canary:
        _check_canary(asked)
    with only_here(asked.work):
        last = rounds.last_round(asked.work)
        now = rounds.begin(asked.work, last, served) if last is None or last.stage == "done" else last
        if now is last:
            logger.info("going on with round %d at stage %s", now.number, now.stage)
        if asked.watch and not storage.exists(RefreshPaths(asked.work).look(now.number, "begin")):
            save_look(RefreshPaths(asked.work).look(now.number, "begin"), _look(asked.watch))
        while now.stage != "done":
            now = _STAGES[now.stage](asked, now)
        return now


def _prepare(asked: Refresh, now: Round) -> Round:
    """Prepare the data anew. Files that the last decision was made on need no new one."""
    spec = asked.spec or served_spec(asked, now.served)
    files = inspect_source(spec, asked.live)
    rows = fingerprint(files, asked.config)
    source = rows + " without evidence" * asked.without_evidence + " full" * asked.full
    served = registry.version_folder(asked.models, now.served)
    known = storage.read_json_object(BundlePaths(served).manifest).get("data_fingerprint")
    if source == now.decided or (rows == known and not asked.full):
        logger.info("no row of the data has changed since the last decision")
        return rounds.advance(asked.work, now, "done", source=source, outcome="nothing new")
    split = newest_held_out(spec.split, num_rows=files.num_rows, known=num_events(served))
    spec = dataclasses.replace(spec, split=split)
    paths = RefreshPaths(asked.work)
    data = prepare(spec, paths.data(now.number), asked.config, kept=paths.log, live=asked.live)
    against = "a full training is asked for" if asked.full else why_not(served, data, asked.config)
    if against:
        logger.info("the model is trained anew, because %s", against)
    return rounds.advance(asked.work, now, "train", source=source, warm=not against, trained_anew_because=against)


def _train(asked: Refresh, now: Round) -> Round:
    """Train on from the served version, or anew, as was settled with the data."""
    paths = RefreshPaths(asked.work)
    warm = registry.version_folder(asked.models, now.served) if now.warm else ""
    run = train(paths.data(now.number), paths.run(now.number), asked.config, warm=warm)
    version = str(storage.read_json_object(BundlePaths(RunPaths(run).bundle).manifest)["model_version"])
    return rounds.advance(asked.work, now, "gate", candidate=version)


def _gate(asked: Refresh, now: Round) -> Round:
    """Compare both versions. The card is written before anything is published, and once more at the end."""
    paths = RefreshPaths(asked.work)
    decision = decide(
        RunPaths(paths.run(now.number)).bundle,
        registry.version_folder(asked.models, now.served),
        PreparedData.open(paths.data(now.number)),
        live=asked.live,
        without_evidence=asked.without_evidence,
    )
    write_card(asked.models, decision, name=now.candidate, facts=_facts(now))
    logger.info("%s: %s", now.candidate, decision.why)
    if decision.publish:
        return rounds.advance(asked.work, now, "complete" if asked.complete else "canary")
    return _ended(asked, now, "refused")


def _complete(asked: Refresh, now: Round) -> Round:
    """Let the candidate's memory know the newest events too, which have judged it and are of no more use for that.

    The same gates look at the result. They cannot tell how well it ranks, since it has seen what they ask, but they see
    what is damaged, lost, slow or shown everywhere. Where one fails, the candidate that was judged is published.
    """
    paths = RefreshPaths(asked.work)
    bundle, data = RunPaths(paths.run(now.number)).bundle, PreparedData.open(paths.data(now.number))
    version = completed(bundle, data, paths.complete(now.number))
    if not version:
        return rounds.advance(asked.work, now, "canary")
    served = registry.version_folder(asked.models, now.served)
    decision = decide(
        paths.complete(now.number), served, data, live=asked.live, without_evidence=asked.without_evidence
    )
    if not decision.publish:
        logger.warning("published without the newest events, because with them %s", decision.why)
        add_to_card(asked.models, now.candidate, without_the_newest_events_because=decision.why)
        return rounds.advance(asked.work, now, "canary")
    copy_card(asked.models, now.candidate, version)
    return rounds.advance(asked.work, now, "canary", candidate=version, judged=now.candidate)


def _canary(asked: Refresh, now: Round) -> Round:
    """Give the candidate to a share of the users first, and to nobody where a guard breaks."""
    guard = card_of(asked.models, now.candidate).get("guard")  # of a canary that was killed before it ended the test
    if asked.canary and not guard:
        served = registry.read_published(asked.models)
        if (served.version, served.since) != (now.served, now.served_since):
            _end_canary(asked)
            return _ended(asked, now, "superseded")
        at = _kept_look(asked, RefreshPaths(asked.work).look(now.number, "canary"))
        ab_test.start(_bundle(asked, now), asked.models, name=_TEST, arm=_ARM, share=asked.canary)
        guard = _guard_broken(asked, now, since=at.at, at_publication=at, canary=True)
        if not guard and not _canary_runs(asked):  # somebody ended it
            return _ended(asked, now, "superseded")
    _end_canary(asked)
    if not guard:
        return rounds.advance(asked.work, now, "publish")
    logger.error("%s goes to nobody: %s", now.candidate, guard)
    return _ended(asked, now, "rolled back")


def _check_canary(asked: Refresh) -> None:
    if not 0 < asked.canary < 1:
        raise UserError(f"--canary is {asked.canary}; expected a share of the users above 0 and below 1")
    if not asked.watch:
        raise UserError("--canary needs --watch URL, the service in which the users are")
    test = ab_test.read_experiment(asked.models)
    if test is not None and test.name != _TEST:
        raise UserError(
            f"{asked.models} runs the A/B test {test.name!r}; end it (ctxrec publish --end-test), or leave --canary out"
        )


def _canary_runs(asked: Refresh) -> bool:
    test = ab_test.read_experiment(asked.models)
    return test is not None and test.name == _TEST


def _end_canary(asked: Refresh) -> None:
    if _canary_runs(asked):
        ab_test.end(asked.models)


def _bundle(asked: Refresh, now: Round) -> str:
    """What is published: the completed bundle, or the one of the run."""
    paths = RefreshPaths(asked.work)
    return paths.complete(now.number) if now.judged else RunPaths(paths.run(now.number)).bundle


def _publish(asked: Refresh, now: Round) -> Round:
    """Publish, unless something else than the compared version is served by now."""
    paths = RefreshPaths(asked.work)
    if asked.watch and registry.read_published(asked.models).version != now.candidate:
        save_look(paths.look(now.number, "publish"), _look(asked.watch))
    try:
        registry.publish(_bundle(asked, now), asked.models, expected=Published(now.served, since=now.served_since))
    except registry.Superseded as error:
        logger.warning("%s", error)
        return _ended(asked, now, "superseded")
    if asked.watch:
        return rounds.advance(asked.work, now, "watch")
    return _ended(asked, now, "published")


def _watch(asked: Refresh, now: Round) -> Round:
    """Watch the service, and go back to the version before where a guard breaks."""
    published = registry.read_published(asked.models)
    guard = card_of(asked.models, now.candidate).get("guard")  # of a watch that was killed before it rolled back
    if not guard and asked.watch and published.version == now.candidate:
        at = _kept_look(asked, RefreshPaths(asked.work).look(now.number, "publish"))
        guard = _guard_broken(asked, now, since=published.since, at_publication=at)
    if not guard:
        still = registry.read_published(asked.models).version == now.candidate
        return _ended(asked, now, "published" if still else "superseded")
    try:
        registry.roll_back(asked.models, expected=now.candidate)
        logger.error("%s is rolled back: %s", now.candidate, guard)
    except registry.Superseded as error:
        logger.warning("%s", error)
    return _ended(asked, now, "rolled back")


def _guard_broken(asked: Refresh, now: Round, *, since: float, at_publication: Look, canary: bool = False) -> str:
    """Watch the service; returns the guard that broke, in words, or "". The card has it before anything is done."""

    def still_served() -> bool:
        if canary:
            return _canary_runs(asked)
        return registry.read_published(asked.models).version == now.candidate

    seen = watch(
        asked.watch,
        now.candidate,
        until=since + asked.watch_s,
        published=since,
        begin=read_look(RefreshPaths(asked.work).look(now.number, "begin")),
        at_publication=at_publication,
        params=asked.guards,
        still_served=still_served,
        canary=canary,
    )
    enough = "" if seen.answers >= asked.guards.fewest else ", too few to see more than a plain fault"
    told = {
        "watched_s": seen.seconds,
        "watched": f"{seen.answers:,.0f} answers{enough}",
        "service": {"before": seen.before, "after": seen.after, "hits": seen.hits},
    }
    facts = {f"canary_{name}": value for name, value in told.items()} if canary else told
    add_to_card(asked.models, now.candidate, guard=seen.guard, **facts)
    return seen.guard


def _kept_look(asked: Refresh, path: str) -> Look:
    """What the service said when a stage first looked at it; a command that goes on after a kill reads it again."""
    kept = read_look(path)
    if kept is None:
        kept = _look(asked.watch)
        save_look(path, kept)
    return kept


def _look(url: str) -> Look:
    try:
        return look(url)
    except ConnectionError as error:
        raise UserError(f"{error}; expected the service of --watch. Start it, or leave --watch out") from error


_STAGES = {
    "prepare": _prepare,
    "train": _train,
    "gate": _gate,
    "complete": _complete,
    "canary": _canary,
    "publish": _publish,
    "watch": _watch,
}


def _ended(asked: Refresh, now: Round, outcome: rounds.Outcome) -> Round:
    """The finished round; its card has the outcome before the state says that the round is done."""
    add_to_card(asked.models, now.candidate, outcome=outcome)
    if now.judged:
        add_to_card(asked.models, now.judged, outcome=f"{outcome} as {now.candidate}")
    return rounds.advance(asked.work, now, "done", outcome=outcome)


def _facts(now: Round) -> dict[str, Any]:
    return {
        "round": now.number,
        "started": now.started,
        "decided": round(time.time(), 3),
        "source": now.source,
        "warm_start": now.warm,
        "trained_anew_because": now.trained_anew_because,
        "outcome": "",
    }


def served_spec(asked: Refresh, version: str) -> DatasetSpec:
    """The data set of the version that was served when the first round began; its paths are absolute.

    It is kept in the working folder, because what a refresh publishes has a split of its own (`newest_held_out`).

    Raises:
        UserError: the version is damaged.
    """
    path = RefreshPaths(asked.work).spec
    if not storage.exists(path):
        bundle = registry.version_folder(asked.models, version)
        folder, _ = check_bundle(bundle, scratch=storage.temporary_folder())
        storage.write_json(path, read_about(folder).spec.to_dict())
    return DatasetSpec.from_dict(storage.read_json_object(path), source=path)
