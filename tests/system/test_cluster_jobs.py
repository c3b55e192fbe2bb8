"""The product on a Ray cluster over several hosts that share nothing but the network and an object store.

The tests build on each other, in this order: they are one story of one cluster.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path

import hosts
import pytest
from ray_hosts import RAY_ENV, RayHosts, start_redis
from shop import make_dataset, make_encoder
from trainings import assert_same_training

pytestmark = pytest.mark.slow

BUCKET = "s3://ctxrec"
OPTIONS = {
    "encoder.name": f"{BUCKET}/encoder",
    "encoder.top_layers": 1,
    "model.dim": 16,
    "model.history": 10,
    "train.workers": 2,
    "train.cpus_per_worker": 1,
    "train.global_batch_size": 16,
    "train.tower_epochs": 3,
    "train.encoder_epochs": 1,
    "train.precision": "fp32",
}
ALONE = """
import sys
from ctxrec.core import ray_cluster
from ctxrec.core.config import load_config
from ctxrec.evaluation.offline import evaluate_run
from ctxrec.ingest.pipeline import prepare
from ctxrec.core.dataset_spec import load_spec
from ctxrec.training.driver import train
config = load_config(None, sys.argv[1:])
ray_cluster.connect()
prepare(load_spec("s3://ctxrec/shop/dataset.toml"), "s3://ctxrec/alone/data", config)
run = train("s3://ctxrec/alone/data", "s3://ctxrec/alone/run", config)
evaluate_run(run, split="test", out=run, config=config)
"""
COPY = """
import shutil, sys
from ctxrec.core import storage
source, target = sys.argv[1:]
if storage.is_uri(target):
    storage.write_dir(target, lambda made: shutil.copytree(source, made, dirs_exist_ok=True), scratch="/tmp/up")
else:
    shutil.copytree(storage.fetch_dir(source, scratch="/tmp/down"), target)
"""


def flags(**more: object) -> list[str]:
    return [w for key, value in (OPTIONS | more).items() for w in ("--set", f"{key}={value}")]


@dataclasses.dataclass
class Site:
    """The cluster, the host `store` with the object store and Redis, and a folder that all hosts see."""

    ray: RayHosts
    folder: Path

    def fetch(self, uri: str) -> Path:
        """A folder of the object store in a folder of this machine."""
        target = self.folder / uri.removeprefix(f"{BUCKET}/").replace("/", "-")
        self.ray.lan["store"].run("python", "-c", COPY, uri, str(target), **self.ray.env)
        return target


@pytest.fixture(scope="module")
def site():
    hosts.require("redis-server", "curl")
    folder = Path(tempfile.mkdtemp(prefix="ctxrec-hosts-", dir="/var/tmp"))  # hosts have a /tmp of their own
    lan = hosts.Lan(["store", "head", "a", "b"])
    try:
        env = hosts.start_storage(lan["store"], folder / "storage.log", "ctxrec")
        make_dataset(folder / "shop")
        make_encoder(folder / "encoder")
        for name in ("shop", "encoder"):
            lan["store"].run("python", "-c", COPY, str(folder / name), f"{BUCKET}/{name}", **env)
        ray = RayHosts(lan, folder, redis=start_redis(lan["store"], folder / "redis.log"), env=env)
        for name in ("a", "b"):
            ray.join(name)
        ray.wait_for_nodes("a", "b")
        yield Site(ray, folder)
    finally:
        lan.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_jobs_over_hosts_give_what_one_machine_gives(site):
    """Nobody names an interface, and no host has another's files."""
    ray = site.ray
    ray.submit("python", "-m", "ctxrec.prepare", f"{BUCKET}/shop/dataset.toml", "--out", f"{BUCKET}/data")
    ray.start_job(
        "train", "python", "-m", "ctxrec.train", "--data", f"{BUCKET}/data", "--out", f"{BUCKET}/run", *flags()
    )
    seen: set[str] = set()
    while ray.status("train") in ("PENDING", "RUNNING"):
        seen |= set(ray.processes("ray::RayTrainWorker"))
        time.sleep(1)
    assert ray.status("train") == "SUCCEEDED", ray.log_of("train")[-4000:]
    assert seen == {"a", "b"}
    ray.submit("python", "-m", "ctxrec.evaluate", "--run", f"{BUCKET}/run")
    alone = ray.lan.add("alone")
    env = {name: value for name, value in ray.env.items() if name not in RAY_ENV} | {"OMP_NUM_THREADS": "1"}
    alone.run("python", "-c", ALONE, *(f"{k}={v}" for k, v in OPTIONS.items()), timeout_s=900, **env)
    alone.kill()
    found, expected = site.fetch(f"{BUCKET}/run"), site.fetch(f"{BUCKET}/alone/run")
    assert_same_training(str(found), str(expected))
    metrics = [json.loads((run / "metrics.json").read_text())["model"] for run in (found, expected)]
    for name, value in metrics[1].items():
        assert metrics[0][name]["mean"] == pytest.approx(value["mean"], abs=0.02), name  # a tie or two of 60 requests


def test_a_sweep_is_a_job(site):
    (site.folder / "sweep.toml").write_text(
        '[sweep]\ntrials = 3\nsearch = "random"\nfinal = false\n'
        '[space]\n"train.tower_lr" = { low = 1e-3, high = 1e-2, log = true }\n'
    )
    own = flags(**{"train.workers": 1, "train.encoder_epochs": 0})
    command = ["python", "-m", "tune.sweep", "--data", f"{BUCKET}/data", "--out", f"{BUCKET}/sweep"]
    said = site.ray.submit(*command, "--config", str(site.folder / "sweep.toml"), *own, timeout_s=900)
    assert "3 trials" in said
    found = site.fetch(f"{BUCKET}/sweep")
    summary = json.loads((found / "summary.json").read_text())
    assert summary["finished"] >= 1 and summary["failed"] == 0
    assert 0 < summary["best"]["value"] <= 1 and "tower_lr" in (found / "best.toml").read_text()


def test_training_goes_on_when_a_host_is_cut_off(site):
    """Another host is there to take over; no epoch is missing and none is twice."""
    ray = site.ray
    ray.lan.add("c")
    ray.join("c")
    ray.wait_for_nodes("a", "b", "c")
    own = flags(**{"train.tower_epochs": 20, "train.patience": 100, "train.encoder_epochs": 0, "train.refit": "false"})
    ray.start_job("cut", "python", "-m", "ctxrec.train", "--data", f"{BUCKET}/data", "--out", f"{BUCKET}/cut", *own)
    ray.until(lambda: "valid" in ray.log_of("cut") or ray.status("cut") == "FAILED", 300, "a first evaluation")
    lost = next(iter(ray.processes("ray::RayTrainWorker")))
    assert lost in ("a", "b", "c") and ray.status("cut") == "RUNNING", ray.log_of("cut")[-4000:]
    ray.lan.cut_off(lost)
    ray.until(lambda: ray.status("cut") not in ("PENDING", "RUNNING"), 500, "the end of the training")
    assert ray.status("cut") == "SUCCEEDED", ray.log_of("cut")[-4000:]
    ray.lan[lost].kill()
    assert_whole_training(site.fetch(f"{BUCKET}/cut"), 20)


def assert_whole_training(run: Path, epochs: int) -> None:
    """Every epoch once, and a bundle."""
    log = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log if line["phase"] == "towers"] == list(map(float, range(1, epochs + 1)))
    assert (run / "bundle" / "manifest.json").exists()


def test_training_goes_on_without_the_head(site):
    """A command that runs on a node, as a job that asks for a part of a CPU does, outlives the head; so do workers."""
    ray = site.ray
    own = flags(
        **{"train.cpus_per_worker": 0.9, "train.tower_epochs": 100, "train.patience": 100, "train.encoder_epochs": 0}
    )
    command = ["python", "-m", "ctxrec.train", "--data", f"{BUCKET}/data", "--out", f"{BUCKET}/headless"]
    ray.start_job("headless", *command, *own, "--set", "train.refit=false", cpus=0.1)
    ray.until(lambda: "valid" in ray.log_of("headless") or ray.status("headless") == "FAILED", 300, "an evaluation")
    workers = ray.processes("ray::RayTrainWorker")
    assert len(workers) == 2 and ray.status("headless") == "RUNNING", ray.log_of("headless")[-4000:]
    ray.replace_head()
    ray.wait_for_nodes(*workers)
    assert ray.processes("ray::RayTrainWorker") == workers and ray.status("headless") == "RUNNING"
    ray.until(lambda: ray.status("headless") not in ("PENDING", "RUNNING"), 500, "the end of the training")
    assert ray.status("headless") == "SUCCEEDED", ray.log_of("headless")[-4000:]
    assert_whole_training(site.fetch(f"{BUCKET}/headless"), 100)


CLIENT = """
import json, sys, time, urllib.request
hosts, out = sys.argv[1].split(","), open(sys.argv[2], "a", buffering=1)
body = json.dumps({"user_id": "u1", "k": 5}).encode()
number = 0
while True:
    number += 1
    begin, tries, replica = time.time(), 0, None
    while replica is None and time.time() - begin < 30:
        url = f"http://{hosts[(number + tries) % len(hosts)]}:8000/v1/recommend"
        tries += 1
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=3) as answer:
                replica = len(json.load(answer)["items"])
        except OSError as error:
            time.sleep(0.1)
    out.write(json.dumps({"at": begin, "seconds": time.time() - begin, "tries": tries, "items": replica}) + "\\n")
    time.sleep(0.1)
"""


def test_serving_goes_on_without_the_head_and_without_a_host(site):
    """A client that asks the next host where one does not answer gets every answer."""
    ray = site.ray
    left = [name for name in ("a", "b", "c") if name in ray.lan.hosts and ray.lan[name].alive]
    config = site.folder / "serve.yaml"
    config.write_text(
        "proxy_location: EveryNode\nhttp_options: {host: 0.0.0.0, port: 8000}\n"
        "applications:\n- name: ctxrec\n  route_prefix: /\n  import_path: serve.app:build_app\n"
        f"  args: {{run: '{BUCKET}/run', replicas: 2, direct_port: 0, hosts: '*', store: 'redis://{ray.lan['store'].address}:6379/1'}}\n"
    )
    ray.head.run("serve", "deploy", str(config), f"--address=http://{ray.head.address}:8265", **ray.env)
    ray.until(lambda: _app_status(ray) == "RUNNING", 300, "the service")
    assert sorted(ray.processes("ray::ServeReplica")) == left, "a replica on each host"
    answers = site.folder / "answers.jsonl"
    addresses = ",".join(str(ray.lan[name].address) for name in left)
    ray.lan["store"].start(site.folder / "client.log", "python", "-c", CLIENT, addresses, str(answers))
    ray.until(lambda: _count(answers) > 50, 120, "answers")

    before = _count(answers)
    ray.replace_head(lambda: ray.until(lambda: _count(answers) > before + 50, 60, "answers without a head"))
    ray.wait_for_nodes(*left)
    ray.submit("python", "-c", "print('a job on the new head')")
    ray.until(lambda: _app_status(ray) == "RUNNING", 300, "the service under the new head")

    before = _count(answers)
    ray.lan[left[0]].kill()
    ray.until(lambda: _count(answers) > before + 50, 120, "answers without a host")
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert all(answer["items"] == 5 for answer in found), [a for a in found if a["items"] != 5]
    print(
        f"{len(found)} answers, slowest {max(a['seconds'] for a in found):.1f} s, {sum(a['tries'] > 1 for a in found)} asked twice"
    )


def _app_status(ray: RayHosts) -> str:
    found = ray.get("/api/serve/applications/") or {"applications": {}}
    return found["applications"].get("ctxrec", {"status": "NONE"})["status"]


def _count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0
