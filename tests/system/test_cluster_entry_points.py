"""Each command of the manifests on a local Ray cluster, word for word, with their variables; and their service.

The object store is a real one with the bucket of settings.toml, so that addresses need no change; only options that
make the work small are added behind a command. The tests build on each other, in the runbook's order.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import boto3
import httpx
import pytest
import redis
import yaml
from paths import REPO
from redis_servers import RedisServer
from shop import make_dataset, make_encoder
from trainings import Nodes, command_env, free_ports, lose_power

from cluster.settings import load
from ctxrec.training import deepspeed_engine

deepspeed_engine.use_cpu_accelerator()
pytestmark = pytest.mark.slow

KUBERAY = REPO / "cluster" / "kuberay"
TOKEN = "fedcba9876543210" * 3
SECRETS = {"api-keys": "read@a-key-of-this-test", "redis-password": "let me in"}
NODE_CPUS = 4  # two replicas and the two workers of a training, each with one


@dataclasses.dataclass
class Site:
    """The cluster, and what a pod of it and a person at a terminal have in their environment."""

    nodes: Nodes
    env: dict[str, str]
    encoder: str
    redis_url: str
    bucket: str

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.nodes.dashboard}"

    def run(self, *command: str, **env: str) -> str:
        """Run a command to its end as the operator's pod or a person does; its output."""
        whole = command_env() | self.env | {"RAY_ADDRESS": self.dashboard} | env
        done = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout + done.stderr

    def read(self, uri: str) -> bytes:
        place = urlparse(uri)
        return self.storage.get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read()

    @property
    def storage(self):
        return boto3.client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            region_name=self.env["AWS_DEFAULT_REGION"],
        )

    def small(self) -> list[str]:
        """Options that make a training one of seconds."""
        options = {
            "encoder.name": self.encoder, "encoder.top_layers": 1, "model.dim": 16, "model.history": 10,
            "train.global_batch_size": 16, "train.tower_epochs": 2, "train.encoder_epochs": 1,
        }  # fmt: skip
        return [word for key, value in options.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    settings = load()
    (port,) = free_ports(1)
    storage_log = open(folder / "storage.log", "wb")  # noqa: SIM115 - closed with the server
    storage = subprocess.Popen(
        [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=storage_log,
        stderr=storage_log,
    )
    store = RedisServer(folder / "redis")
    redis.Redis.from_url(store.url).config_set("requirepass", SECRETS["redis-password"])
    env = {name: value or SECRETS[key] for name, value, key in settings.variables(service=True)} | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "CTXREC_CACHE": str(folder / "cache"),
        "TORCH_EXTENSIONS_DIR": os.environ["TORCH_EXTENSIONS_DIR"],  # DeepSpeed's, compiled once
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    bucket = urlparse(settings.storage["spec"]).netloc
    nodes = None
    try:
        nodes = Nodes(folder, token=TOKEN, head_cpus=0, env=env)
        nodes.add(cpus=NODE_CPUS)
        auth = {name: value for name, value in nodes.env.items() if name != "RAY_ADDRESS"}
        made = Site(nodes, env | auth, make_encoder(folder / "encoder"), store.url, bucket)
        made.storage.create_bucket(Bucket=bucket)
        spec = Path(make_dataset(folder / "shop"))
        for path in spec.parent.iterdir():
            name = urlparse(settings.storage["spec"]).path.lstrip("/") if path == spec else path.name
            made.storage.upload_file(str(path), bucket, name)
        yield made
    finally:
        if nodes is not None:
            nodes.__exit__()
        lose_power(storage)
        store.kill()
        storage_log.close()


def entry_point(name: str) -> list[str]:
    return shlex.split(yaml.safe_load((KUBERAY / f"rayjob-{name}.yaml").read_text())["spec"]["entrypoint"])


def submit(site: Site, name: str, *more: str) -> str:
    """As the operator's submitter does with an entry point."""
    return site.run("ray", "job", "submit", "--", *entry_point(name), *more)


def test_the_jobs_run_in_the_runbooks_order(site):
    storage = load().storage
    submit(site, "prepare")
    assert json.loads(site.read(f"{storage['data']}/meta.json"))["counts"]["users"] == 60
    submit(site, "train", *site.small())
    assert json.loads(site.read(f"{storage['run']}/bundle/manifest.json"))["files"]
    log = [json.loads(line) for line in site.read(f"{storage['run']}/train_log.jsonl").splitlines()]
    assert {line["phase"] for line in log} == {"towers", "encoder", "refit"}
    said = submit(site, "sweep", *site.small(), "--set", "sweep.trials=2")
    assert "2 trials" in said and json.loads(site.read(f"{storage['sweep']}/summary.json"))["failed"] == 0
    assert site.read(f"{storage['sweep']}/best.toml") and site.read(f"{storage['sweep']}/best/bundle/manifest.json")
    submit(site, "evaluate")
    assert json.loads(site.read(f"{storage['nightly']}/metrics.json"))["split"] == "test"


def test_the_nightly_job_runs_with_its_own_variables(site):
    """Its container's whole command, which has nothing but the address and the token of the standing cluster."""
    (cron,) = yaml.safe_load_all((KUBERAY / "nightly-evaluate.yaml").read_text())
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    given = {"RAY_ADDRESS": site.dashboard, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    assert {variable["name"] for variable in container["env"]} == set(given)
    report = f"{load().storage['nightly']}/report.html"
    place = urlparse(report)
    site.storage.delete_object(Bucket=place.netloc, Key=place.path.lstrip("/"))
    plain = {name: value for name, value in command_env().items() if not name.startswith(("AWS_", "CTXREC_"))}
    refused = subprocess.run(
        container["command"],
        env=plain | given | {"RAY_AUTH_TOKEN": "0" * 48},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert refused.returncode != 0 and "oken" in refused.stdout + refused.stderr, "a wrong token"
    done = subprocess.run(container["command"], env=plain | given, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert b"<html" in site.read(report)


def test_the_service_deploys_and_wants_a_key(site, tmp_path):
    """serveConfigV2 as it is but for ports and the name of Redis: two replicas, as its autoscaler's least."""
    (service,) = yaml.safe_load_all((KUBERAY / "rayservice.yaml").read_text())
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    port, direct = free_ports(2)
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (app,) = config["applications"]
    app["args"] |= {"store": site.redis_url, "direct_port": direct}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    site.run("serve", "deploy", str(tmp_path / "serve.yaml"), f"--address={site.dashboard}")
    auth = {"Authorization": f"Bearer {TOKEN}"}
    deadline = time.monotonic() + 300
    while True:
        told = httpx.get(f"{site.dashboard}/api/serve/applications/", headers=auth).json()
        state = told["applications"].get(app["name"], {"status": "NONE"})
        if state["status"] == "RUNNING":
            break
        assert state["status"] != "DEPLOY_FAILED" and time.monotonic() < deadline, json.dumps(state)[-4000:]
        time.sleep(1)
    (wanted,) = app["deployments"]
    least = wanted["autoscaling_config"]["min_replicas"]
    running = state["deployments"][wanted["name"]]
    assert [replica["state"] for replica in running["replicas"]] == ["RUNNING"] * least
    ask = {"json": {"user_id": "u1", "k": 5}, "timeout": 30}
    key = {"Authorization": f"Bearer {SECRETS['api-keys'].removeprefix('read@')}"}
    for at in (port, direct):
        assert httpx.post(f"http://127.0.0.1:{at}/v1/recommend", **ask).status_code == 401
        answer = httpx.post(f"http://127.0.0.1:{at}/v1/recommend", headers=key, **ask)
        assert answer.status_code == 200 and len(answer.json()["items"]) == 5, answer.text
    assert httpx.get(f"{site.dashboard}/api/serve/applications/").status_code in (401, 403), "no token, no dashboard"
    # The scope of that key is reading: a post of events is refused, and so the password of Redis is not at stake.
    event = {"events": [{"user_id": "u1", "item_id": "i1", "timestamp": 1_700_000_000}]}
    assert httpx.post(f"http://127.0.0.1:{port}/v1/events", json=event, headers=key, timeout=30).status_code == 403
