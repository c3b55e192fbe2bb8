"""The files of cluster/ are up to date, valid for what reads them, and true to the project."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from commands import call
from jsonschema import Draft202012Validator
from paths import REPO
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema
from referencing import Registry, Resource

from cluster import launchers, render
from cluster.settings import PORTS, load
from serve.arguments import AppArgs

CLUSTER = REPO / "cluster"
MANIFESTS = sorted(path.name for path in (CLUSTER / "kuberay").glob("*.yaml"))
LAUNCHERS = sorted(path.name for path in (CLUSTER / "ray-up").glob("*.yaml"))
OWN_KINDS = "ray.io/v1"


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text()))


ALL = [(name, document) for name in MANIFESTS for document in documents(name)]


def ray_schema() -> Draft202012Validator:
    """Our schema of KubeRay's kinds, over Kubernetes' own definitions."""
    newest = f"v{kubernetes_validate.latest_version()}-local-strict"
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / newest
    core = json.loads((folder / "_definitions.json").read_text())
    registry = Registry().with_resource(core["$id"], Resource.from_contents(core))
    return Draft202012Validator(json.loads((CLUSTER / "kuberay.schema.json").read_text()), registry=registry)


def pods(value) -> list[dict]:
    """Every pod template anywhere in a document."""
    if isinstance(value, list):
        return [pod for one in value for pod in pods(one)]
    if not isinstance(value, dict):
        return []
    here = [value] if "containers" in value.get("spec", {}) else []
    return here + [pod for one in value.values() for pod in pods(one)]


def containers(document: dict) -> list[dict]:
    return [container for pod in pods(document) for container in pod["spec"]["containers"]]


def commands() -> dict[str, list[str]]:
    """The command of each job in the manifests, by the file that has it."""
    found = {}
    for name, document in ALL:
        if document["kind"] == "RayJob":
            found[name] = shlex.split(document["spec"]["entrypoint"])
        if document["kind"] == "CronJob":
            (container,) = containers(document)
            found[name] = container["command"][container["command"].index("--") + 1 :]
    return found


def test_the_files_are_as_the_settings_make_them():
    for name, text in render.files(load()).items():
        assert (CLUSTER / name).read_text() == text, f"{name}: python -m cluster.render"
    written = {f"kuberay/{name}" for name in MANIFESTS} | {f"ray-up/{name}" for name in LAUNCHERS}
    assert written == set(render.files(load())), "no file is left over"


@pytest.mark.parametrize(("name", "document"), ALL, ids=[f"{n}-{d['kind']}-{d['metadata']['name']}" for n, d in ALL])
def test_manifests_are_valid(name, document):
    if document["apiVersion"] == OWN_KINDS:
        errors = list(ray_schema().iter_errors(document))
        assert not errors, [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]
    else:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "rayVersio"], "2.60.0"),  # a field that does not exist
        (["spec", "rayVersion"], 2.6),
        (["spec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),  # a number where the operator takes text
        (["spec", "headGroupSpec", "template", "spec", "containers", 0, "imag"], "x"),  # deep in the pod
        (["spec", "workerGroupSpecs", 0, "minReplicas"], -1),
        (["spec", "authOptions", "mode"], "tokens"),
        (["kind"], "RayClusters"),
    ],
)
def test_the_schema_refuses_mistakes(path, value):
    (document,) = documents("raycluster.yaml")
    assert ray_schema().is_valid(document)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not ray_schema().is_valid(document)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_up_files_are_valid_for_the_installed_ray(name):
    config = yaml.safe_load((CLUSTER / "ray-up" / name).read_text())
    validate_config(prepare_config(config))


def test_one_ray_version_and_the_images_of_this_version():
    settings, project = load(), tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert any(d.startswith("ray[") and d.endswith(f"=={settings.ray}") for d in project["dependencies"])
    allowed = {f"{settings.image['name']}:{project['version']}-{variant}" for variant in ("cpu", "gpu")}
    for name, document in ALL:
        spec = document.get("spec", {})
        for part in (spec, spec.get("rayClusterSpec", {}), spec.get("rayClusterConfig", {})):
            assert part.get("rayVersion", settings.ray) == settings.ray, name
        images = {container["image"] for container in containers(document)}
        assert images <= allowed | {"redis:7.4"}, name
    for name in LAUNCHERS:
        found = re.findall(r"image: (\S+)", (CLUSTER / "ray-up" / name).read_text())
        assert found and set(found) <= allowed


def test_dockerfile_installs_what_the_project_declares():
    text = (CLUSTER / "Dockerfile").read_text()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    (python,) = re.findall(r"^ARG PYTHON=([\d.]+)$", text, re.M)
    assert python == load().image["python"]
    assert tuple(map(int, python.split("."))) >= (3, 11) and project["project"]["requires-python"] == ">=3.11"
    extras = {extra for found in re.findall(r"extras=([\w,-]+)", text) for extra in found.split(",")}
    assert extras <= set(project["project"]["optional-dependencies"])
    (pattern,) = re.findall(r"grep -o '([^']+)' pyproject.toml", text)
    assert len(re.findall(pattern, (REPO / "pyproject.toml").read_text())) == 1, "torch is declared where it is sought"
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for source in line.split()}
    assert all((REPO / source).exists() for source in copied)
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {"pyproject.toml"} <= copied
    for tag in re.findall(r"-t (\S+)", text):
        assert tag in {load().image_of("cpu"), load().image_of("gpu")}
    assert re.findall(r"--uid (\d+)", text) == ["1000"] and "USER ctxrec" in text


@pytest.mark.parametrize(("name", "command"), sorted({c[2]: (n, c) for n, c in commands().items()}.values()))
def test_each_entry_point_exists_and_knows_its_options(name, command):
    assert command[:2] == ["python", "-m"]
    assert importlib.util.find_spec(command[2]) is not None, f"{name}: no module {command[2]}"
    done = call(command[2], "--help")
    assert done.returncode == 0, done.stderr
    for option in (word for word in command if word.startswith("--")):
        assert re.search(rf"{option}\b", done.stdout), f"{name}: {command[2]} has no {option}"


def test_jobs_take_options_that_the_configuration_has():
    from ctxrec.core.config import load_config

    sets = [b for command in commands().values() for a, b in zip(command, command[1:], strict=False) if a == "--set"]
    assert sets and load_config(None, sets)


def test_the_service_is_that_of_serve_config():
    (service,) = documents("rayservice.yaml")
    deployed = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(deployed)
    ours = yaml.safe_load((REPO / "serve" / "config.yaml").read_text())
    (app,), (original,) = deployed["applications"], ours["applications"]
    assert (app["import_path"], app["name"], app["route_prefix"]) == (
        original["import_path"], original["name"], original["route_prefix"],
    )  # fmt: skip
    settings = load()
    changed = {"run": settings.storage["run"], "store": settings.service["store"]}
    assert app["args"] == {k: v for k, v in original["args"].items() if k != "replicas"} | changed
    AppArgs(**app["args"])
    assert deployed["http_options"] == ours["http_options"] | {"host": settings.service["host"]}
    from serve.port_guard import PROXY_ENVIRONMENT

    assert (
        deployed["controller_options"] == ours["controller_options"] == {"runtime_env": {"env_vars": PROXY_ENVIRONMENT}}
    )
    (deployment,) = app["deployments"]
    from serve.deployment import Service

    assert deployment["name"] == Service.name
    head = {port["name"]: port["containerPort"] for port in containers(service)[0]["ports"]}
    assert head["serve"] == ours["http_options"]["port"] == PORTS["serve"][0]


def variables_that_the_code_reads() -> set[str]:
    """CTXREC_* names in the sources: every string that is one."""
    names = set()
    for package in ("ctxrec", "serve", "tune"):
        for path in (REPO / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names |= set(re.findall(r"^CTXREC_[A-Z_]+$", node.value))
    return names


def test_environment_variables_have_one_place():
    settings, read = load(), variables_that_the_code_reads()
    assert {name for name in settings.environment if name.startswith("CTXREC_")} <= read
    assert read <= set(re.findall(r"CTXREC_[A-Z_]+", (CLUSTER / "README.md").read_text())), "the runbook has them all"
    for rule in settings.environment.values():
        assert rule["why"] and (("value" in rule) != ("secret" in rule))
    given = set(settings.environment) | {"RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "REDIS_PASSWORD"}
    for name, document in ALL:
        for container in containers(document):
            for variable in container.get("env", []):
                assert variable["name"] in given, name
                rule = settings.environment.get(variable["name"], {})
                assert ("valueFrom" in variable) or variable["value"] == rule.get("value", variable["value"])
    for name in LAUNCHERS:
        assert set(re.findall(r"-e (\w+)=", (CLUSTER / "ray-up" / name).read_text())) <= given


def test_nothing_is_exposed_and_nothing_secret_is_written():
    for name, document in ALL:
        assert document["kind"] not in ("Ingress", "Secret"), name
        if document["kind"] == "Service":
            assert document["spec"]["type"] == "ClusterIP"
        if document["apiVersion"] == OWN_KINDS:
            spec = document["spec"]
            cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
            assert cluster["authOptions"] == {"mode": "token"}
            assert (
                cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
                and "enableIngress" not in cluster["headGroupSpec"]
            )
        for container in containers(document):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            for variable in container.get("env", []):
                secret = re.search(r"TOKEN|PASSWORD|KEYS|SECRET", variable["name"])
                assert not secret or "secretKeyRef" in variable["valueFrom"], variable["name"]
    policies = {d["metadata"]["name"]: d["spec"] for _, d in ALL if d["kind"] == "NetworkPolicy"}
    assert set(policies) == {"ctxrec-ray", "ctxrec-redis"}
    assert all(rule.get("from") for spec in policies.values() for rule in spec["ingress"]), "no rule is for everybody"
    for name in LAUNCHERS:
        text = (CLUSTER / "ray-up" / name).read_text()
        assert "0.0.0.0" not in text and "RAY_AUTH_MODE=token" in text and launchers._TOKEN in text
    assert yaml.safe_load((REPO / "serve" / "config.yaml").read_text())["http_options"]["host"] == "127.0.0.1"


def test_every_port_is_explained_in_the_runbook():
    text = (CLUSTER / "README.md").read_text()
    for number, _ in PORTS.values():
        assert re.search(rf"\b{number}\b", text), number


def test_costs_follow_from_measured_figures():
    text, measured = (CLUSTER / "README.md").read_text(), (REPO / "tests" / "bench" / "RESULTS.md").read_text()
    (price,) = re.findall(r"so \$([\d.]+) an hour", text)
    rows = re.findall(r"^\| (events|requests)[^|]*\| ([\d,]+) \| ([\d.]+) (s|h) \| \$([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for _, rate, time, unit, cost in rows:
        assert re.search(rf"(?<![\d,]){rate}(?![\d,])", measured), f"{rate} a second is not in tests/bench/RESULTS.md"
        seconds = float(time) * (3600 if unit == "h" else 1)
        assert seconds == pytest.approx(1e6 / float(rate.replace(",", "")), rel=0.05)
        assert float(cost) == pytest.approx(seconds / 3600 * float(price), rel=0.05)


def test_render_check_tells_a_stale_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(render, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["render"])
    with pytest.raises(SystemExit) as wrote:
        render.main()
    assert wrote.value.code == 0
    (tmp_path / "kuberay" / "raycluster.yaml").write_text("other")
    monkeypatch.setattr(sys, "argv", ["render", "--check"])
    with pytest.raises(SystemExit) as checked:
        render.main()
    assert checked.value.code == 1 and "kuberay/raycluster.yaml" in capsys.readouterr().out.splitlines()[-1]


def test_the_password_of_redis_comes_from_the_environment(redis_server, monkeypatch):
    import redis

    from ctxrec.core.errors import UserError
    from ctxrec.live.opening import open_store

    server = redis_server()
    redis.Redis.from_url(server.url).config_set("requirepass", "let me in")
    monkeypatch.delenv("CTXREC_REDIS_PASSWORD", raising=False)
    with pytest.raises(UserError, match="authenticate"):
        open_store(server.url)
    monkeypatch.setenv("CTXREC_REDIS_PASSWORD", "let me in")
    assert open_store(server.url).row_changes("items", 0) == []
