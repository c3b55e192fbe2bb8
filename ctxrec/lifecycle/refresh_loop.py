"""A refresh from new data to a decision. Each stage may be killed at any moment; the same call goes on with it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from ctxrec.bundle import registry
from ctxrec.bundle.format import check_bundle, read_about
from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.core.folder_lock import only_here
from ctxrec.core.run_paths import BundlePaths, RefreshPaths, RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest.pipeline import prepare
from ctxrec.lifecycle import rounds
from ctxrec.lifecycle.decision import add_to_card, decide, write_card
from ctxrec.lifecycle.rounds import Round
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
    """

    models: str
    work: str
    spec: DatasetSpec | None
    config: Config
    without_evidence: bool = False
    full: bool = False


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
        while now.stage != "done":
            now = _STAGES[now.stage](asked, now)
        return now


def _prepare(asked: Refresh, now: Round) -> Round:
    """Prepare the data anew. Data that the round before was decided on needs no new decision."""
    spec = asked.spec or served_spec(asked.models, now.served)
    paths = RefreshPaths(asked.work)
    data = prepare(spec, paths.data(now.number), asked.config)
    if data.fingerprint in (_decided(paths, now.number - 1), _served_fingerprint(asked.models, now.served)):
        logger.info("no row of the data has changed since the last decision")
        return rounds.advance(asked.work, now, "done", fingerprint=data.fingerprint, outcome="nothing new")
    against = "a full training is asked for" if asked.full else ""
    against = against or why_not(registry.version_folder(asked.models, now.served), data, asked.config)
    if against:
        logger.info("the model is trained anew, because %s", against)
    return rounds.advance(
        asked.work, now, "train", fingerprint=data.fingerprint, warm=not against, trained_anew_because=against
    )


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
    bundle = RunPaths(RefreshPaths(asked.work).run(now.number)).bundle
    try:
        registry.publish(bundle, asked.models, expected=now.compared_with)
    except registry.Superseded as error:
        logger.warning("%s", error)
        return _ended(asked, now, "superseded")
    return _ended(asked, now, "published")


_STAGES = {"prepare": _prepare, "train": _train, "gate": _gate, "publish": _publish}


def _ended(asked: Refresh, now: Round, outcome: rounds.Outcome) -> Round:
    """The finished round; its card has the outcome before the state says that the round is done."""
    add_to_card(asked.models, now.candidate, outcome=outcome)
    return rounds.advance(asked.work, now, "done", outcome=outcome)


def _facts(now: Round) -> dict[str, Any]:
    return {
        "round": now.number,
        "started": now.started,
        "decided": round(time.time(), 3),
        "data_fingerprint": now.fingerprint,
        "warm_start": now.warm,
        "trained_anew_because": now.trained_anew_because,
        "outcome": "",
    }


def served_spec(models: str, version: str) -> DatasetSpec:
    """The data set that a published version was trained on; its paths are absolute.

    Raises:
        UserError: the version is damaged.
    """
    folder, _ = check_bundle(registry.version_folder(models, version), scratch=storage.temporary_folder())
    return read_about(folder).spec


def _served_fingerprint(models: str, version: str) -> str:
    manifest = storage.read_json_object(BundlePaths(registry.version_folder(models, version)).manifest)
    return str(manifest.get("data_fingerprint", ""))


def _decided(paths: RefreshPaths, number: int) -> str:
    """Fingerprint of the data of an earlier round; "" where it is gone."""
    try:
        return PreparedData.open(paths.data(number)).fingerprint
    except UserError:
        return ""
