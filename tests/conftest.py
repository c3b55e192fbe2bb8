"""Shared parts of the tests: the two tiers, one real Ray cluster, a tiny real encoder, a tiny real data set.

A test is in the tier `system` if it lies in `tests/system`, if it uses the fixture `ray_cluster` (or one that does, as
`tiny_data` and `tiny_run`), or if it is marked so because it starts a process. All others are in the tier `unit`, which
runs first. The hook below marks them; nobody has to.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import socket
import string
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

WORDS = [
    "red",
    "blue",
    "green",
    "small",
    "large",
    "soft",
    "hard",
    "shoe",
    "hat",
    "coat",
    "lamp",
    "chair",
    "table",
    "sock",
    "glove",
    "scarf",
    "ring",
    "desk",
]


# The tests of each tier, and their seconds with fixtures, summed over the processes that ran them.
TIERS: dict[str, list[float]] = {"unit": [0, 0.0], "system": [0, 0.0]}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, tier in TIERS.items():
        if name in report.keywords:
            tier[0] += report.when == "call"
            tier[1] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    took = [f"{name} tier: {count} tests of {seconds:.0f} s" for name, (count, seconds) in TIERS.items() if count]
    if took:
        terminalreporter.write_line("; ".join(took))


SYSTEM_TESTS = Path(__file__).resolve().parent / "system"


def _is_system(item: pytest.Item) -> bool:
    uses_ray = "ray_cluster" in getattr(item, "fixturenames", ())
    return uses_ray or SYSTEM_TESTS in item.path.parents or item.get_closest_marker("system") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, Any, Any]:
    """Mark every test with its tier, and run the unit tier first."""
    for item in items:
        item.add_marker("system" if _is_system(item) else "unit")
    result = yield  # pytest selects by mark and groups by fixture
    items.sort(key=_is_system)  # stable
    return result


@pytest.fixture(autouse=True)
def _a_unit_test_starts_no_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses Ray to the unit tier, so that the tier stays what it says."""
    if request.node.get_closest_marker("unit"):
        import ray

        def refuse(*_args: object, **_options: object) -> None:
            pytest.fail("this test starts Ray: it must ask for the fixture ray_cluster (or one that does)")

        monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray cluster of two CPUs for all tests that one process runs."""
    import ray

    from ctxrec.core import ray_cluster

    ray_cluster.connect()
    yield
    ray.shutdown()


def make_encoder(folder: Path, kind: str = "bert") -> str:
    """Write a random two-layer encoder with a word tokenizer; returns its path."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *string.ascii_lowercase]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    if kind == "bert":
        model = BertModel(
            BertConfig(
                vocab_size=len(words),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    else:
        model = GPT2Model(
            GPT2Config(
                vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=64,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "bert")


def make_dataset(folder: Path, *, num_users: int = 60, num_items: int = 40, strategy: str = "last") -> str:
    """Write a small shop: parquet log, items with text and features, users; returns the spec's path.

    Users stay inside one of four groups of items and walk through it in order, so there is a signal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    colours, things = WORDS[:7], WORDS[7:]
    items = {
        "item_id": [f"i{n}" for n in range(num_items)],
        "title": [f"{colours[n % 7]} {things[n % 11]} {string.ascii_lowercase[n % 26]}" for n in range(num_items)],
        "category": [[f"group{n % 4}", "all"] for n in range(num_items)],
        "price": [float(n) if n % 5 else None for n in range(num_items)],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    users = {
        "user_id": [f"u{n}" for n in range(num_users)],
        "gender": [rng.choice(["F", "M", None]) for _ in range(num_users)],
        "age": [rng.choice([20.0, 35.0, None]) for _ in range(num_users)],
    }
    pq.write_table(pa.table(users), folder / "users.parquet")
    rows = []
    for user in range(num_users):
        position = rng.randrange(num_items // 4)
        time = 1_600_000_000 + rng.randrange(1_000_000)
        for _ in range(rng.randint(4, 15)):
            position = (position + rng.choice([1, 1, 1, 2])) % (num_items // 4)
            time += rng.randint(60, 90_000)
            rows.append(
                (f"u{user}", f"i{position * 4 + user % 4}", time, rng.choice(["view", "buy"]),
                 rng.choice(["tv", "phone"]), rng.random(), rng.choice(["red shoe", "hat", None]))
            )  # fmt: skip
    rng.shuffle(rows)
    columns = list(zip(*rows, strict=True))
    names = ["user_id", "item_id", "timestamp", "action", "device", "basket_value", "query"]
    pq.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), folder / "events.parquet")
    spec = folder / "dataset.toml"
    spec.write_text(
        f"""name = "tiny"
[events]
path = "events.parquet"
action = "action"
[events.context]
categorical = ["device"]
numeric = ["basket_value"]
text = ["query"]
[events.actions]
view = 0.5
buy = 1.0
[items]
path = "items.parquet"
text = ["title"]
categorical = ["category"]
numeric = ["price"]
[users]
path = "users.parquet"
categorical = ["gender"]
numeric = ["age"]
[split]
strategy = "{strategy}"
"""
    )
    return str(spec)


@pytest.fixture(scope="session")
def tiny_spec(tmp_path_factory) -> str:
    return make_dataset(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def tiny_data(ray_cluster, tiny_spec, tmp_path_factory) -> str:
    """The tiny data set, prepared."""
    from ctxrec.core.config import Config
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    out = str(tmp_path_factory.mktemp("data") / "tiny")
    prepare(load_spec(tiny_spec), out, Config())
    return out


@pytest.fixture(scope="session")
def tiny_config(tiny_encoder):
    """Options of a small training on two workers."""
    from ctxrec.core.config import load_config

    return load_config(
        None,
        [
            f"encoder.name={tiny_encoder}",
            "encoder.top_layers=1",
            "model.dim=16",
            "model.history=10",
            "train.workers=2",
            "train.global_batch_size=16",
            "train.tower_epochs=3",
            "train.encoder_epochs=2",
            "train.max_failures=0",
            "train.precision=fp32",  # bf16 where a CPU has it would round what tests compare
        ],
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tiny_config, tmp_path_factory) -> str:
    """A finished training on the tiny data set: two workers, ZeRO-2, LoRA."""
    from ctxrec.training.driver import train

    return train(tiny_data, str(tmp_path_factory.mktemp("runs") / "tiny"), tiny_config)


@dataclasses.dataclass
class World:
    """A random data set as arrays, without files and without Ray."""

    spec: Any
    features: Any  # FeatureMeta
    histories: Any  # Histories
    catalogue: Any  # ItemFeatures
    table: pa.Table  # the item table that the catalogue comes from

    def config(self, *overrides: str):
        from ctxrec.core.config import load_config

        return load_config(None, ["model.dim=8", "model.history=6", *overrides])

    def batcher(self, config):
        from ctxrec.data.batching import Batcher

        return Batcher(self.features, history=config.model.history, action_weights=self.spec.events.actions)

    def towers(self, config, *, text_width: int = 0):
        """Towers in evaluation mode, with every weight moved off its starting value, and their catalogue."""
        import torch

        from ctxrec.model.inputs import ItemTensors, ModelShape
        from ctxrec.model.two_tower import Towers

        torch.manual_seed(0)
        shape = ModelShape.of(config.model, self.features, num_items=len(self.catalogue), text_width=text_width)
        towers = Towers(config.model, shape, temperature=config.train.temperature).eval()
        with torch.no_grad():
            for parameter in towers.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return towers, ItemTensors.of(self.catalogue, shape)

    def recommender(self, config, *, blend=None):
        """A recommender of random towers without text encoder; `blend` makes one of item vectors and their widths."""
        import torch

        from ctxrec.retrieval.recommender import Recommender

        towers, items = self.towers(config)
        with torch.inference_mode():
            vectors, _ = towers(items, None)
        return Recommender(
            config=config,
            spec=self.spec,
            features=self.features,
            towers=towers,
            items=self.table,
            item_vectors=vectors.numpy(),
            histories=self.histories,
            model_version="test",
            blend=None if blend is None else blend(vectors.numpy(), towers.widths),
        )


def _make_world(
    *, rich: bool = True, lengths: tuple[int, ...] = (9, 1, 5, 14, 7, 2), num_items: int = 20, seed: int = 0
):
    import numpy as np

    from ctxrec.core import schema
    from ctxrec.core.dataset_spec import DatasetSpec
    from ctxrec.data.events import US, Context, Events, Histories, Users, time_codes
    from ctxrec.data.features import item_features
    from ctxrec.data.prepared import FeatureMeta

    rng = np.random.default_rng(seed)
    scale = {"mean": 0.3, "std": 0.5}
    features = FeatureMeta({}, {}, {}, {}, {}, {}, [], [])
    raw_spec: dict[str, Any] = {"name": "world", "events": {"path": "events.parquet"}}
    if rich:
        features = FeatureMeta(
            item_categories={"kind.of": ["a", "b", "c"], "maker": ["x", "y"]},
            item_numbers={"price": scale, "size": scale},
            user_categories={"gender": ["F", "M"]},
            user_numbers={"age": scale},
            context_categories={"device": ["tv", "phone"]},
            context_numbers={"basket": scale},
            context_texts=["query"],
            actions=["view", "buy"],
        )
        raw_spec["events"]["action"] = "action"
        raw_spec["events"]["actions"] = {"view": 0.5, "buy": 1.0}
    num_events, num_users = sum(lengths), len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    gaps = rng.integers(1, 200_000, num_events)
    times = np.concatenate([1_600_000_000 + np.cumsum(gaps[a:b]) for a, b in zip(offsets, offsets[1:], strict=False)])
    times = times.astype(np.int64) * US
    cat, num, text = time_codes(times), {}, {}
    users = Users(ids=np.array([f"u{n}" for n in range(num_users)], object))
    if rich:
        cat["device"] = rng.integers(0, 4, num_events).astype(np.int32)
        num["basket"] = np.where(rng.random(num_events) < 0.3, np.nan, rng.normal(size=num_events)).astype(np.float32)
        text["query"] = np.array(
            [[None, "red shoe", "a red hat", "lamp"][n] for n in rng.integers(0, 4, num_events)], object
        )
        users.cat["gender"] = rng.integers(0, 4, num_users).astype(np.int32)
        users.num["age"] = np.where(rng.random(num_users) < 0.3, np.nan, 30).astype(np.float32)
    histories = Histories(
        users=users,
        events=Events(
            offsets=offsets,
            items=rng.integers(0, num_items, num_events).astype(np.int32),
            times=times,
            actions=rng.integers(0, len(features.actions) + 1, num_events).astype(np.int16),
            context=Context(cat=cat, num=num, text=text),
        ),
        split=np.zeros(num_events, np.int8),
    )
    columns: dict[str, Any] = {
        schema.ITEM_ID: [f"i{n}" for n in range(num_items)],
        schema.ITEM_TITLE: [f"title {n}" for n in range(num_items)],
        schema.ITEM_TEXT: [None if n % 5 == 0 else f"{WORDS[n % 7]} {WORDS[7 + n % 11]}" for n in range(num_items)],
        schema.ITEM_TRAIN_EVENTS: [1] * num_items,
    }
    if rich:
        kinds = pa.array(
            [[["a", "c"], ["b"], [], None, ["new"]][n % 5] for n in range(num_items)], pa.list_(pa.string())
        )
        columns[schema.category_column("kind.of")] = kinds
        columns[schema.category_column("maker")] = pa.array([["x"]] * num_items, pa.list_(pa.string()))
        columns[schema.numeric_column("price")] = pa.array(
            [None if n % 4 == 0 else float(n) for n in range(num_items)], pa.float32()
        )
        columns[schema.numeric_column("size")] = pa.array([1.0] * num_items, pa.float32())
    table = pa.table(columns)
    return World(DatasetSpec.from_dict(raw_spec), features, histories, item_features(table, features), table)


@pytest.fixture(scope="session")
def make_world():
    """Makes a random data set of given history lengths; with `rich`, one with every kind of feature."""
    return _make_world


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "gpt2", "gpt2")


class RedisServer:
    """A Redis server of the tests' own, which syncs before it answers unless told otherwise."""

    def __init__(self, folder: Path, *, appendfsync: str = "always"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder, self._sync = folder, appendfsync
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--appendonly", "yes", "--appendfsync", self._sync, "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(1200):  # a minute
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("redis-server does not listen")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def redis_server(tmp_path):
    """Starts Redis servers, which end with the test."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    servers: list[RedisServer] = []

    def start(**options: str) -> RedisServer:
        servers.append(RedisServer(tmp_path / f"redis{len(servers)}", **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def make_variant():
    """Writes another version of a bundle: the same items and vectors, other weights, and so other scores."""

    def make(bundle: str, out: Path, *, by: float = 1.0) -> str:
        """Returns the new model version."""
        from safetensors.numpy import load_file, save_file

        from ctxrec.bundle.format import BUNDLE
        from ctxrec.core import manifest, storage
        from ctxrec.core.run_paths import BundlePaths

        shutil.copytree(bundle, out)
        blend = BundlePaths(str(out)).blend
        arrays = load_file(blend)
        change = np.linspace(0.2 * by, by, arrays["weights"].size, dtype=np.float32)
        arrays["weights"] = arrays["weights"] + change.reshape(arrays["weights"].shape)
        save_file(arrays, blend)
        kept = storage.read_json(BundlePaths(str(out)).manifest)
        files = manifest.hash_files(str(out))
        facts = {key: kept[key] for key in ("encoder", "data_fingerprint")}
        manifest.write_manifest(str(out), BUNDLE, files=files, model_version=manifest.version_of(files), **facts)
        return manifest.version_of(files)

    return make
