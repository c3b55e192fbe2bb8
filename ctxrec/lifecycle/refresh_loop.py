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
from ctxrec.ingest.pipeline import prepare
from ctxrec.ingest.source import fingerprint, inspect_source
from ctxrec.lifecycle import rounds
from ctxrec.lifecycle.decision import add_to_card, card_of, decide, write_card
from ctxrec.lifecycle.newest_events import newest_held_out, num_events
from ctxrec.lifecycle.rounds import Round
from ctxrec.lifecycle.service_look import Look, look
from ctxrec.lifecycle.watch import WATCH, WatchParams, read_look, save_look, watch
from ctxrec.training.driver import train
from ctxrec.training.warm_start import why_not

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """What a refresh is asked to do.

    Attributes:
        models: folder of published models, path or URI.
        work: folder for data, runs and the state, path or URI.
        spec: the data set; None: the spec that the served version was trained with.
        config: all options.
        without_evidence: publish also where the newest requests are too few to tell.
        full: train anew instead of on from the served version.
        live: folder where the service stored posted events and items, which are read too; "": none.
        watch: URL of the service that is watched after a version was published; "": none.
        watch_s: seconds for which it is watched.
        guards: what rolls the version back.
    """

    models: str
    work: str
    spec: DatasetSpec | None
    config: Config
    without_evidence: bool = False
    full: bool = False
    live: str = ""
    watch: str = ""
    watch_s: float = 600.0
    guards: WatchParams = WATCH


def refresh(asked: Refresh) -> Round:
    """Prepare, train, decide and publish; an unfinished round goes on where it was.

    Returns:
        The finished round, whose `outcome` says what became of it.

    Raises:
        UserError: nothing is published yet, the data or an option does not fit, or another refresh works in the folder.
    """
    served = registry.read_published(asked.models)
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
        without_evidence=asked.without_evidence,
    )
    write_card(asked.models, decision, name=now.candidate, facts=_facts(now))
    logger.info("%s: %s", now.candidate, decision.why)
    if decision.publish:
        return rounds.advance(asked.work, now, "publish")
    return _ended(asked, now, "refused")


def _publish(asked: Refresh, now: Round) -> Round:
    """Publish, unless something else than the compared version is served by now."""
    paths = RefreshPaths(asked.work)
    if asked.watch and registry.read_published(asked.models).version != now.candidate:
        save_look(paths.look(now.number, "publish"), _look(asked.watch))
    try:
        registry.publish(
            RunPaths(paths.run(now.number)).bundle, asked.models, expected=Published(now.served, since=now.served_since)
        )
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
        guard = _guard_broken(asked, now, published)
    if not guard:
        still = registry.read_published(asked.models).version == now.candidate
        return _ended(asked, now, "published" if still else "superseded")
    try:
        registry.roll_back(asked.models, expected=now.candidate)
        logger.error("%s is rolled back: %s", now.candidate, guard)
    except registry.Superseded as error:
        logger.warning("%s", error)
    return _ended(asked, now, "rolled back")


def _guard_broken(asked: Refresh, now: Round, published: Published) -> str:
    """Watch the service; returns the guard that broke, in words, or "". The card has it before anything is done."""
    paths = RefreshPaths(asked.work)
    at_publication = read_look(paths.look(now.number, "publish"))
    seen = watch(
        asked.watch,
        now.candidate,
        until=published.since + asked.watch_s,
        published=published.since,
        begin=read_look(paths.look(now.number, "begin")),
        at_publication=_look(asked.watch) if at_publication is None else at_publication,
        params=asked.guards,
        still_served=lambda: registry.read_published(asked.models).version == now.candidate,
    )
    enough = "" if seen.answers >= asked.guards.fewest else ", too few to tell"
    add_to_card(
        asked.models,
        now.candidate,
        guard=seen.guard,
        watched_s=seen.seconds,
        watched=f"{seen.answers:,.0f} answers{enough}",
        service={"before": seen.before, "after": seen.after},
    )
    return seen.guard


def _look(url: str) -> Look:
    try:
        return look(url)
    except ConnectionError as error:
        raise UserError(f"{error}; expected the service of --watch. Start it, or leave --watch out") from error


_STAGES = {"prepare": _prepare, "train": _train, "gate": _gate, "publish": _publish, "watch": _watch}


def _ended(asked: Refresh, now: Round, outcome: rounds.Outcome) -> Round:
    """The finished round; its card has the outcome before the state says that the round is done."""
    add_to_card(asked.models, now.candidate, outcome=outcome)
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
