"""Candidates that were spoilt, by their data or by what is in their bundle: none of them is published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from refreshes import arrive, change_arrays, make_shop, permute_ids, quick, rewritten, serve_first, with_column
from shared_folders import shared_folder

from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest.pipeline import prepare
from ctxrec.lifecycle.decision import Decision, decide
from ctxrec.training.driver import train

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def world(ray_cluster, tiny_encoder, tmp_path_factory) -> Path:
    """A served version on the first period of a shop, and a good candidate on the first two."""

    def make(out: Path) -> None:
        config = quick(tiny_encoder)
        shop = make_shop(out / "shop")
        serve_first(shop, out / "models", config)
        arrive(shop, 1)
        data = prepare(load_spec(str(shop / "dataset.toml")), str(out / "data"), config)
        train(data.path, str(out / "run"), config)

    return Path(shared_folder(tmp_path_factory, "sabotage", make))


def served(world: Path) -> str:
    return RunPaths(str(world / "models" / "first-run")).bundle


def decided(world: Path, bundle: str, data: str | None = None) -> Decision:
    return decide(bundle, served(world), PreparedData.open(data or str(world / "data")))


def test_the_good_candidate_is_published(world):
    decision = decided(world, RunPaths(str(world / "run")).bundle)
    assert decision.publish, decision.why


# What is done to the files of the shop before the candidate is trained, and what the refusal names.
def log_of(shop: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    for path in sorted((shop / "events").glob("*.parquet")):
        pq.write_table(change(pq.read_table(path)), path)


def shuffle_training_targets(shop: Path) -> None:
    """The items of all events before the newest tenth change places, as a wrong join would do."""
    cut = pc.quantile(pq.read_table(shop / "events").column("timestamp"), 0.9)[0].as_py()

    def change(log: pa.Table) -> pa.Table:
        old = np.flatnonzero(log.column("timestamp").to_numpy() < cut)
        items = log.column("item_id").to_numpy(zero_copy_only=False).copy()
        items[old] = items[RNG.permutation(old)]
        return with_column(log, "item_id", pa.array(items, pa.string()))

    log_of(shop, change)


def lose_half_of_the_catalogue(shop: Path) -> None:
    items = pq.read_table(shop / "items.parquet")
    kept = items.filter(pa.array(np.arange(len(items)) % 2 == 0))
    pq.write_table(kept, shop / "items.parquet")
    log_of(
        shop, lambda log: log.filter(pc.is_in(log.column("item_id"), value_set=kept.column("item_id").combine_chunks()))
    )


def lose_the_new_events(shop: Path) -> None:
    (shop / "events" / "1.parquet").unlink()


def lose_the_old_events(shop: Path) -> None:
    (shop / "events" / "0.parquet").unlink()


def lose_a_tenth_of_the_users(shop: Path) -> None:
    log_of(shop, lambda log: log.filter(pc.invert(pc.ends_with(log.column("user_id"), "7"))))


def rename_items(shop: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        return with_column(
            table, "item_id", pc.binary_join_element_wise("sku-", table.column("item_id").combine_chunks(), "")
        )

    log_of(shop, change)
    pq.write_table(change(pq.read_table(shop / "items.parquet")), shop / "items.parquet")


def rename_users(shop: Path) -> None:
    log_of(shop, lambda log: with_column(log, "user_id", pc.utf8_upper(log.column("user_id").combine_chunks())))


def one_item_explodes(shop: Path) -> None:
    """Robots take one item in a third of all events, each time as somebody new."""
    log = pq.read_table(shop / "events" / "1.parquet")
    num = 3000
    times = RNG.integers(pc.min(log.column("timestamp")).as_py(), pc.max(log.column("timestamp")).as_py(), num)
    robots = log.take(pa.array(RNG.integers(0, len(log), num)))
    robots = with_column(robots, "user_id", pa.array([f"robot{n}" for n in range(num)]))
    robots = with_column(with_column(robots, "item_id", pa.array(["i39"] * num)), "timestamp", pa.array(times))
    pq.write_table(pa.concat_tables([log, robots]), shop / "events" / "1.parquet")


def join_wrong_users(shop: Path) -> None:
    """Every event goes to a random user, as a wrong join would do; each user still has as many."""

    def change(log: pa.Table) -> pa.Table:
        users = log.column("user_id").to_numpy(zero_copy_only=False)
        cut = int(0.95 * len(log))
        users = np.concatenate([RNG.permutation(users[:cut]), users[cut:]])
        return with_column(log, "user_id", pa.array(users, pa.string()))

    log_of(shop, change)


OF_DATA = {
    shuffle_training_targets: "NDCG@10",
    lose_half_of_the_catalogue: "lost items",
    lose_the_new_events: "new events",
    lose_the_old_events: "lost events",
    lose_a_tenth_of_the_users: "lost users",
    rename_items: "lost items",
    rename_users: "lost users",
    one_item_explodes: "most frequent item",
    join_wrong_users: "NDCG@10",
}


@pytest.mark.parametrize("spoil", OF_DATA, ids=lambda spoil: spoil.__name__)
def test_spoilt_data_is_not_published(world, tiny_encoder, tmp_path, spoil):
    shop = Path(shutil.copytree(world / "shop", tmp_path / "shop"))
    spoil(shop)
    config = quick(tiny_encoder)
    data = prepare(load_spec(str(shop / "dataset.toml")), str(tmp_path / "data"), config)
    run = train(data.path, str(tmp_path / "run"), config)
    decision = decided(world, RunPaths(run).bundle, data.path)
    # Without evidence no gate passes but those of slices.
    stops = [g.name for g in decision.gates if g.verdict == "failed" or (g.verdict != "passed" and g.name == "NDCG@10")]
    assert not decision.publish and any(OF_DATA[spoil] in name for name in stops), decision


# What is done to the files of the good candidate's bundle.
def explode(arrays: dict[str, np.ndarray]) -> None:
    """The popularity of one item is a hundred times as large."""
    arrays["popularity"][3] = 100 * np.abs(arrays["popularity"]).max()


def negate(arrays: dict[str, np.ndarray]) -> None:
    arrays["weights"][:] = -10


def only_popularity(arrays: dict[str, np.ndarray]) -> None:
    arrays["weights"][0] = -10
    arrays["weights"][0, 1:3] = 3


def no_number(arrays: dict[str, np.ndarray]) -> None:
    arrays["popularity"][5] = np.nan


def grow(arrays: dict[str, np.ndarray]) -> None:
    arrays["padding"] = np.zeros(20_000_000, np.float32)


def cut_off(folder: Path) -> None:
    with open(folder / "histories.arrow", "r+b") as stream:
        stream.truncate(2000)


OF_BUNDLE = {
    "ids are remapped": (permute_ids, "NDCG@10"),
    "an item explodes": (change_arrays("blend.safetensors", explode), "NDCG@10"),
    "all weights are lost": (change_arrays("blend.safetensors", negate), "NDCG@10"),
    "popularity alone is left": (change_arrays("blend.safetensors", only_popularity), "NDCG@10"),
    "a score is no number": (change_arrays("blend.safetensors", no_number), "loads"),
    "the bundle grows": (change_arrays("vectors.safetensors", grow), "size"),
    "histories are cut off": (cut_off, "loads"),
}


@pytest.mark.parametrize("name", OF_BUNDLE)
def test_a_spoilt_bundle_is_not_published(world, tmp_path, name):
    spoil, gate = OF_BUNDLE[name]
    decision = decided(world, rewritten(RunPaths(str(world / "run")).bundle, tmp_path / "spoilt", spoil))
    failed = [found.name for found in decision.gates if found.verdict == "failed"]
    assert not decision.publish and any(gate in found for found in failed), decision


def test_files_changed_without_their_hashes_and_the_old_version_are_not_published(world, tmp_path):
    """A byte of a file is another one; and the served bundle itself comes back as the candidate."""
    copy = Path(shutil.copytree(RunPaths(str(world / "run")).bundle, tmp_path / "changed"))
    content = bytearray((copy / "blend.safetensors").read_bytes())
    content[-5] ^= 1
    (copy / "blend.safetensors").write_bytes(content)
    assert "does not match its hash" in decided(world, str(copy)).why
    stale = decided(world, served(world))
    assert not stale.publish and "new events" in stale.why
