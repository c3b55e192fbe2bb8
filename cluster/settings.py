"""The settings of cluster/, and what is derived from them: images, variables, commands, ports."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent

# What listens where. Nothing but the service is meant for people outside, and that one only behind TLS.
PORTS = {
    "gcs": (6379, "Ray's own control: nodes join here"),
    "dashboard": (8265, "dashboard and job submission: whoever reaches it with the token runs code"),
    "client": (10001, "ray:// connections of notebooks"),
    "metrics": (8080, "Prometheus figures of Ray itself"),
    "serve": (8000, "the recommendation service (contract: HTTP API)"),
}


@dataclass(frozen=True)
class Settings:
    """The content of settings.toml, with the versions that pyproject.toml pins."""

    raw: dict[str, Any]
    version: str  # of ctxrec
    ray: str
    serve: dict[str, Any]  # serve/config.yaml

    def __getattr__(self, section: str) -> dict[str, Any]:
        try:
            return self.raw[section]
        except KeyError:
            raise AttributeError(section) from None

    def image_of(self, variant: str) -> str:
        return f"{self.image['name']}:{self.version}-{variant}"

    def variables(self, *, service: bool) -> list[tuple[str, str, str]]:
        """The environment variables of a node as (name, value, key of a secret); the value or the key is empty."""
        rules = {name: rule for name, rule in self.environment.items() if service or rule.get("only") != "service"}
        return [(name, rule.get("value", ""), rule.get("secret", "")) for name, rule in rules.items()]

    def commands(self) -> dict[str, str]:
        """The command of each job, as a user types it."""
        at, training = self.storage, self.training
        gpu = "yes" if training["variant"] == "gpu" else "no"
        options = f"--set train.workers={training['workers']} --set train.use_gpu={gpu}"
        return {
            "prepare": f"python -m ctxrec.prepare {at['spec']} --out {at['data']}",
            "train": f"python -m ctxrec.train --data {at['data']} --out {at['run']} {options}",
            "sweep": f"python -m tune.sweep --data {at['data']} --out {at['sweep']}",
            "refresh": f"python -m ctxrec.refresh {at['spec']} --models {at['models']} {options}",
            "evaluate": f"python -m ctxrec.evaluate --run {at['run']} --split test --out {at['nightly']}",
        }

    def serve_config(self) -> dict[str, Any]:
        """The content of serve/config.yaml, changed where a cluster differs."""
        config = yaml.safe_load(yaml.safe_dump(self.serve))  # a copy
        config["http_options"]["host"] = self.service["host"]
        (application,) = config["applications"]
        application["args"] |= {"run": self.storage["run"], "store": self.service["store"]}
        del application["args"]["replicas"]  # the autoscaler decides
        application["deployments"] = [
            {
                "name": "Service",
                "num_replicas": "auto",
                "autoscaling_config": {
                    "min_replicas": self.service["min_replicas"],
                    "max_replicas": self.service["max_replicas"],
                    "target_ongoing_requests": self.service["target_ongoing_requests"],
                },
            }
        ]
        return config


def load(path: Path = HERE / "settings.toml") -> Settings:
    """The settings of a file, with the versions that pyproject.toml names and the ports of the service."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    (ray,) = [found[1] for d in project["dependencies"] if (found := re.fullmatch(r"ray\[[\w,]+\]==([\d.]+)", d))]
    serve = yaml.safe_load((HERE.parent / "serve" / "config.yaml").read_text())
    return Settings(raw=tomllib.loads(path.read_text()), version=project["version"], ray=ray, serve=serve)
