"""Every command of README.md, serve/README.md and serve/HTTP_API.md runs, on a small log in the form of the demo's data.

The commands run in this process. The service is its real application on a real port, without Ray Serve around it, which
tests/system/service has. A training gets a tiny encoder and the quick preset; all else is as it stands in the pages.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from commands import call
from pages import Block, blocks, why_not_run
from paths import REPO
from prometheus_client import values
from shop import WORDS

from ctxrec.bundle.registry import find_bundle, publish
from ctxrec.core import storage
from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.ranking_plan import run_bundles
from ctxrec.evaluation.systems import MODEL
from ctxrec.experiments.ab_test import read_experiment
from serve import browse, deployment, edge
from serve.api import EventsRequest, RecommendRequest
from serve.arguments import AppArgs
from serve.command import read
from serve.journal import logged_events
from serve.keys import Keys
from serve.replica import Replica
from serve.service_metrics import Metrics

README, SERVICE, API = "README.md", "serve/README.md", "serve/HTTP_API.md"
NOW = 893286638  # the time of the pages' requests
GENRES = ["Comedy", "Sci-Fi", "Horror", "Drama"]
ITEMS = [1, 50, 95, 172, 209, 242, 258, 273, 302, 313, *range(400, 430)]


def write_movies(folder: Path) -> None:
    """A log in the form of the demo's (`ctxrec.datasets.movielens_100k`), with its ids; users stay in one genre."""
    rng = random.Random(0)
    genres = [GENRES[n % 4] for n in range(len(ITEMS))]
    items = {
        "item_id": ITEMS,
        "title": [f"{WORDS[n % 7]} {WORDS[7 + n % 11]} ({1970 + n})" for n in range(len(ITEMS))],
        "genres": [[genre, "Adventure"] for genre in genres],
        "year": [float(1970 + n) for n in range(len(ITEMS))],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    people = {
        "user_id": list(range(180, 230)),
        "age": [20.0 + n for n in range(50)],
        "occupation": [("artist", "writer")[n % 2] for n in range(50)],
    }
    pq.write_table(pa.table(people), folder / "users.parquet")
    rows = []
    for user in range(180, 230):
        own = [item for item, genre in zip(ITEMS, genres, strict=True) if genre == GENRES[user % 4]]
        rows += [(user, item, NOW - rng.randrange(10**7), rng.randint(1, 5)) for item in rng.sample(own, 6)]
    names = ("user_id", "item_id", "timestamp", "rating")
    (folder / "events").mkdir()
    log = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(log, folder / "events" / "events.parquet")


def small(command: list[str], encoder: str) -> list[str]:
    """What a command gets besides what the page says, so that it takes seconds, and init knows the demo's users."""
    name = command[1] if command[0] == "ctxrec" else command[2].split(".")[-1]
    if name == "init":
        return ["--users", "users.parquet"]
    more = {
        "train": [f"encoder.name={encoder}", "train.preset=quick"],
        "evaluate": ["evaluate.bootstrap=20"],
    }
    return [word for option in more.get(name, ()) for word in ("--set", option)]


def run_command(command: list[str], encoder: str) -> str:
    """What a command prints, which must end with status 0."""
    module, rest = ("ctxrec.__main__", command[1:]) if command[0] == "ctxrec" else (command[2], command[3:])
    ended = call(module, *rest, *small(command, encoder))
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
    return ended.stdout


def started(command: list[str]) -> AppArgs:
    """The arguments of the application that a `serve run` starts."""
    start = read(command[2], tuple(command[3:]))
    assert start is not None
    return start.applications[0]


def curl(command: list[str], url: str) -> httpx.Response:
    """The call of a `curl` command, at another address."""
    words, body, headers, method = iter(command[1:]), None, {}, None
    params: dict[str, str] = {}
    for word in words:
        if word in ("-s", "-G"):  # -G: a GET whose data are the query
            continue
        if word == "--data-urlencode":
            assert "-G" in command, command
            name, _, value = next(words).partition("=")
            params[name] = value
            continue
        if word == "-d":
            body = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-X":
            method = next(words)
        else:
            assert word.startswith("localhost:8000/"), command
            path = word.removeprefix("localhost:8000")
    target = httpx.URL(url + path).copy_merge_params(params)
    return httpx.request(method or ("POST" if body else "GET"), target, content=body, headers=headers, timeout=60)


def commands_of(page: str) -> list[list[str]]:
    """All commands of a page that tests run."""
    every = [c for b in blocks(page) if b.language == "" and b.shown is None for c in b.commands]
    return [command for command in every if why_not_run(command) is None]


@pytest.fixture(scope="module")
def folder(ray_cluster, tiny_encoder, tmp_path_factory) -> Iterator[Path]:
    """The folder of a reader who has run the commands of the README on a log of their own."""
    here = tmp_path_factory.mktemp("reader")
    write_movies(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for command in commands_of(README):
            if command[0] == "ctxrec":
                run_command(command, tiny_encoder)
        yield here


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory) -> Iterator[str]:
    """The address of the service that the `serve run` of the README starts."""
    (command,) = [command for command in commands_of(README) if command[:2] == ["serve", "run"]]
    args = started(command).resolved()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path_factory.mktemp("metrics")))
        patch.setattr(values, "ValueClass", values.ValueClass)
        metrics, keys = Metrics(str(tmp_path_factory.mktemp("metrics"))), Keys({})
        patch.setattr(edge, "_current", edge.install(args, keys, metrics))
        replica = Replica(args, metrics, num_threads=1)
        patch.setattr(browse, "_state", (replica, keys, True))
        routes = SimpleNamespace(_keys=keys, _metrics=metrics, _replica=replica)  # what they read of the replica
        patch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=routes))
        server = uvicorn.Server(uvicorn.Config(deployment.app, port=0, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()
        replica.close()
        metrics.close()


def test_the_five_commands_lead_to_a_model_that_knows_the_columns_of_the_demos(folder, url):
    assert (folder / "runs/latest/report.html").stat().st_size > 10_000
    known = httpx.get(f"{url}/v1/catalogue").json()
    assert set(known["item_columns"]["categorical"]) == {"genres"} and set(known["item_columns"]["numeric"]) == {"year"}
    assert known["actions"] == [] and known["context"] == {"categorical": {}, "numeric": [], "text": []}


def test_what_other_processes_are_given_does_not_depend_on_their_folder(folder):
    """The Ray of the tests was started in another folder, to which a relative path would lead."""
    assert PreparedData.open("data").path == str(folder / "data")
    assert run_bundles("runs/latest", "test")[MODEL] == str(folder / "runs/latest/bundle")


@pytest.mark.parametrize("page", [README, API])
def test_every_call_of_the_pages_is_answered_without_a_warning(url, page):
    calls = [command for command in commands_of(page) if command[0] == "curl"]
    assert len(calls) >= 5
    for command in calls:
        answer = curl(command, url)
        assert answer.status_code == 200, f"{' '.join(command)}: {answer.text}"
        if answer.headers["content-type"].startswith("application/json"):
            kinds = {warning["type"] for warning in answer.json().get("warnings", ())}
            of_the_shop = {"context_not_read", "attributes_not_read", "short_list"}  # a quick model, and few items
            assert kinds <= of_the_shop, f"{' '.join(command)}: {answer.text}"


def test_the_list_of_the_first_example_keeps_its_rules(folder, url):
    command = next(c for c in commands_of(README) if "filter" in " ".join(c))
    body = json.loads(command[command.index("-d") + 1])
    found = [item["item_id"] for item in curl(command, url).json()["items"]]
    rows = httpx.get(f"{url}/v1/items", params={"id": found}).json()["items"]
    assert len(found) == body["k"] and not set(found) & set(body["exclude"])
    assert all("Sci-Fi" in row["genres"] and row["year"] >= 1980 for row in rows)


def test_the_python_block_of_the_http_page_runs(url):
    (block,) = [block for block in blocks(API) if block.language == "python"]
    exec(
        compile(block.text.replace("http://localhost:8000", url), API, "exec"),
        {"print": lambda items: shown.extend(items)},
    )
    assert len(shown) == 5


shown: list[object] = []


def test_the_file_of_requests_of_the_readme_is_scored(folder, tiny_encoder):
    (line,) = re.findall(r"`(ctxrec recommend [^`]+)`", (REPO / README).read_text())
    requests = {
        "request_id": ["a", "b"],
        "user_id": ["196", "186"],
        "timestamp": [NOW, NOW],
        "query": ["red hat", None],
    }
    pq.write_table(pa.table(requests), folder / "R.parquet")
    run_command(line.replace("--run RUN", "--run runs/latest").split(), tiny_encoder)
    assert [len(items) for items in pq.read_table(folder / "O.parquet").column("item_ids").to_pylist()] == [10, 10]


def of(page: str, *words: str) -> Block:
    (found,) = [block for block in blocks(page) if all(word in block.text for word in words)]
    return found


async def ask(args: AppArgs, metrics: str, users: list[str], k: int, *, takes_the_first: bool = False) -> list:
    """Answers of a replica with these arguments, whose users may each take the first item of their list."""
    replica = Replica(args.resolved(), Metrics(metrics), num_threads=1)
    try:
        asked = [
            RecommendRequest.model_validate({"user_id": user, "k": k, "context": {"timestamp": NOW}}) for user in users
        ]
        answers = list((await replica.recommend(asked, "r")).answers)
        if takes_the_first:
            events = [
                {"user_id": user, "item_id": answer.item_ids[0]} for user, answer in zip(users, answers, strict=True)
            ]
            await replica.append(logged_events(EventsRequest.model_validate({"events": events})))
        return answers
    finally:
        replica.close()


def test_the_rules_of_the_service_page_hold_in_all_its_commands(folder, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    rules = of(SERVICE, "[[block]]", "[[pin]]").text
    (folder / "rules.toml").write_text(re.sub(r"(since|until) = .*", "", rules))  # at the time of the log, too
    requests = {"request_id": ["a"], "user_id": ["196"], "timestamp": [NOW]}
    pq.write_table(pa.table(requests), folder / "R.parquet")
    serve, recommend, evaluate = of(SERVICE, "rules=rules.toml").commands
    (answer,) = asyncio.run(ask(started(serve), str(tmp_path / "metrics"), ["196"], 20))
    horror = {str(item) for item, n in zip(ITEMS, range(len(ITEMS)), strict=True) if GENRES[n % 4] == "Horror"}
    assert len(answer.item_ids) == 20 and not horror & set(answer.item_ids) and answer.item_ids[0] in ("258", "313")
    run_command(recommend, tiny_encoder)
    (batch,) = pq.read_table(folder / "O.parquet").column("item_ids").to_pylist()
    assert len(batch) == 10 and not horror & set(batch) and batch[0] in ("258", "313")
    assert "0.7" in run_command(evaluate, tiny_encoder)


def test_the_ab_test_of_the_service_page_runs_to_its_end(folder, tiny_encoder, make_variant, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    bundle = find_bundle("runs/latest")
    publish(bundle, "MODELS")
    make_variant(bundle, folder / "runs/new/bundle")
    start, more, compare, end = of(SERVICE, "--test spring", "--end-test").commands
    for command in (start, more):
        run_command(command, tiny_encoder)
    users = [str(user) for user in range(180, 230)]
    answers = asyncio.run(
        ask(AppArgs(run="MODELS", load_encoder=False), str(tmp_path / "metrics"), users, 5, takes_the_first=True)
    )
    arms = {answer.experiment[1] for answer in answers}
    assert arms == {"control", "treatment"}
    run_command(compare, tiny_encoder)
    assert set(storage.read_json("ab.json")["arms"]) >= arms
    run_command(end, tiny_encoder)
    assert read_experiment("MODELS") is None
    shutil.rmtree("MODELS")
