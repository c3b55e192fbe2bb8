"""What is ranked, by which bundles and by how many actors: the plan of an evaluation, and the checks before it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import ray

from ctxrec.bundle.reranker_folder import check_reranker
from ctxrec.core import ray_cluster, ray_private, schema, storage
from ctxrec.core.config import Config, DiversityConfig
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths, reranker_beside
from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.baselines.selection import SPLITS
from ctxrec.evaluation.systems import FROZEN, MODEL, TUNED
from ctxrec.retrieval.heard_words import check_context_texts
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.pre_validation import recommender_before_validation
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.retriever import Retriever
from ctxrec.retrieval.slate.rules import Rules
from ctxrec.training.driver import run_outcome
from ctxrec.training.trackers import read_train_log

SEED = 0  # of shuffled contexts and of resamples, so that two evaluations of a run say the same
_SCORES_AT_ONCE = 1 << 25  # scores in memory at a time in one actor (128 MB)


@dataclass(frozen=True, kw_only=True)
class RankingPlan:
    """Everything that an actor must know to rank the requests of a bucket."""

    bundles: dict[str, str]  # system -> bundle of a trained model
    data: str
    num_buckets: int
    split: int
    k: int
    batch_size: int
    num_actors: int  # 0: this process ranks, without Ray
    cpus_per_actor: int
    seed: int
    reranker: str | None = None  # the model's second stage, ranked beside it
    knockouts: bool = False  # rank with each source of the model hidden too
    tuned: bool = False  # whether the model's encoder was tuned
    arranged: dict[str, DiversityConfig] = dataclasses.field(default_factory=dict)  # of the model's lists, by system
    rules: Rules = dataclasses.field(default_factory=Rules)

    @staticmethod
    def make(
        bundles: dict[str, str],
        prepared: PreparedData,
        split: str,
        config: Config,
        *,
        arranged: dict[str, DiversityConfig] | None = None,
        rules: Rules | None = None,
    ) -> RankingPlan:
        num_buckets = len(prepared.bucket_paths)
        if config.evaluate.needs_no_actors(prepared.meta["counts"][split]):
            num_actors, cpus = 0, max(1, int(ray_private.num_cpus()))
        else:
            ray_cluster.connect()
            cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
            num_actors = min(config.evaluate.actors or cpus, num_buckets, cpus)
        return RankingPlan(
            bundles=bundles,
            data=prepared.path,
            num_buckets=num_buckets,
            split=SPLITS[split],
            k=max(config.evaluate.ks),
            batch_size=max(1, min(config.evaluate.batch_size, _SCORES_AT_ONCE // max(prepared.num_items, 1))),
            num_actors=num_actors,
            cpus_per_actor=max(1, cpus // max(num_actors, 1)),
            seed=SEED,
            reranker=reranker_beside(bundles[MODEL]) if config.rerank.use and MODEL in bundles else None,
            knockouts=config.evaluate.knockouts and MODEL in bundles,
            tuned=MODEL in bundles and run_outcome(storage.parent(bundles[MODEL])).is_tuned,
            arranged=(arranged or {}) if MODEL in bundles else {},
            rules=rules or Rules(),
        )


def run_bundles(run: str, split: str) -> dict[str, str]:
    """Bundles of a run: the model, and the model before and after its encoder was tuned, where it was.

    Before the test split both are those that were not refitted. On the validation split no system is, so the model itself
    is the tuned one, and so it is where the run has no refit.
    """
    run = storage.absolute(run)  # actors of a Ray that was started elsewhere have another working folder
    bundles = {MODEL: RunPaths(run).bundle}
    before, tuned = RunPaths(run).before, RunPaths(run).tuned
    if not run_outcome(run).is_tuned or not storage.exists(before):
        return bundles
    refitted = any(record["phase"] == "refit" for record in read_train_log(run))
    if split == "valid" or not refitted:
        return bundles | {FROZEN: before}
    # A run of an earlier version has a refitted model beside one that is not, which tells nothing of the encoder.
    return bundles | ({FROZEN: before, TUNED: tuned} if storage.exists(tuned) else {})


def check_bundles(plan: RankingPlan, item_ids: list[str]) -> None:
    """Load every bundle and the second stage once in this process, where damage gives one clear line.

    Raises:
        UserError: a bundle is missing or damaged, or has another catalogue than the data, or diversity or rules name
            a column or value that the catalogue does not have.
    """
    for system, bundle in plan.bundles.items():
        recommender = load_recommender(bundle)
        for diversity in plan.arranged.values() if system == MODEL else ():
            Retriever(recommender, diversity=diversity, rules=plan.rules)
        if system == MODEL and plan.reranker is not None:
            check_reranker(plan.reranker, recommender.model_version)
        check_context_texts(recommender)
        if recommender.item_ids != item_ids:
            raise UserError(
                f"the catalogue of {bundle} has {len(recommender.item_ids):,} items and is not the one of {plan.data} "
                f"({len(item_ids):,} items); expected the data that the run was trained on"
            )


def load_system(plan: RankingPlan, data: PreparedData, system: str) -> Recommender:
    """The recommender of one of the plan's bundles; for validation requests, as it was before any validation event."""
    bundle = plan.bundles[system]
    if plan.split != schema.VALID:
        return load_recommender(bundle)
    if system == FROZEN:
        return recommender_before_validation(storage.parent(storage.parent(bundle)), data, tuned=False)
    return recommender_before_validation(storage.parent(bundle), data)
