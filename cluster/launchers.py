"""Files of `ray up`, Ray's own launcher: for machines on AWS, on GCP, and for your own machines over ssh."""

from __future__ import annotations

from typing import Any

from cluster.settings import PORTS, Settings

# Nodes talk to each other; people come through ssh (`ray dashboard`, `ray submit`, `ray attach`): no other port is
# open to the world, and the dashboard listens to the head's own address alone.
_TOKEN = "~/.ray/auth_token"


def clusters(settings: Settings) -> dict[str, dict[str, Any]]:
    """The files of Ray's cluster launcher (`ray up`) by name, as the values that YAML holds."""
    return {"aws.yaml": _aws(settings), "gcp.yaml": _gcp(settings), "local.yaml": _local(settings)}


def _start(head: bool) -> list[str]:
    gcs, dashboard, metrics = (PORTS[name][0] for name in ("gcs", "dashboard", "metrics"))
    common = f"--object-manager-port=8076 --metrics-export-port={metrics} --disable-usage-stats"
    if head:
        where = f"--head --port={gcs} --dashboard-host=127.0.0.1 --dashboard-port={dashboard}"
        where += " --autoscaling-config=~/ray_bootstrap_config.yaml"
    else:
        where = f"--address=$RAY_HEAD_IP:{gcs}"
    return ["ray stop", f"ulimit -n 65536; ray start {where} {common}"]


def _common(settings: Settings, *, workers: int) -> dict[str, Any]:
    return {
        "cluster_name": "ctxrec",
        "max_workers": workers,
        "idle_timeout_minutes": 10,
        "docker": {"container_name": "ctxrec", "pull_before_run": True} | _docker(settings, "cpu"),
        # `ray get-auth-token --generate` makes it; every node needs the same.
        "file_mounts": {_TOKEN: _TOKEN},
        "head_start_ray_commands": _start(True),
        "worker_start_ray_commands": _start(False),
    }


def _run_options(settings: Settings) -> list[str]:
    env = [f"-e {name}={value}" for name, value, key in settings.variables(service=True) if not key]
    return [*env, "-e RAY_AUTH_MODE=token", "--ulimit nofile=65536:65536", _SECRETS]


# Secrets come from a file of the node, if it has one, a line each: CTXREC_API_KEYS=..., AWS_ACCESS_KEY_ID=...
# Ray's launcher hands this to `docker run` through the node's shell.
_SECRETS = "$(test -f ~/ctxrec.env && echo --env-file $HOME/ctxrec.env)"


def _docker(settings: Settings, variant: str) -> dict[str, Any]:
    return {"image": settings.image_of(variant), "run_options": _run_options(settings)}


def _node_docker(settings: Settings, variant: str) -> dict[str, Any]:
    return {"worker_image": settings.image_of(variant), "worker_run_options": _run_options(settings)}


def _aws(settings: Settings) -> dict[str, Any]:
    sizes, aws = settings.sizes, settings.aws
    common = _common(settings, workers=_most(settings))

    def node(size: str) -> dict[str, Any]:
        config: dict[str, Any] = {
            "InstanceType": aws[size],
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 200, "Encrypted": True}}],
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        }
        if size != "head":
            config["InstanceMarketOptions"] = {"MarketType": "spot"}  # training goes on from its checkpoint
        return config

    return common | {
        "provider": {"type": "aws", "region": aws["region"], "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": node("head")},
            "cpu": _range(sizes["cpu"]) | {"resources": {}, "node_config": node("cpu")},
            "gpu": _range(sizes["gpu"])
            | {"resources": {}, "docker": _node_docker(settings, "gpu"), "node_config": node("gpu")},
        },
        "head_node_type": "head",
    }


def _gcp(settings: Settings) -> dict[str, Any]:
    sizes, gcp = settings.sizes, settings.gcp
    common = _common(settings, workers=_most(settings))

    def node(size: str) -> dict[str, Any]:
        family = "common-cu128" if size == "gpu" else "common-cpu"
        source = f"projects/deeplearning-platform-release/global/images/family/{family}"
        disk = {"diskSizeGb": 200, "sourceImage": source}
        config: dict[str, Any] = {
            "machineType": gcp[size],
            "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
        }
        if size != "head":
            config["scheduling"] = [{"preemptible": True}]
        if size == "gpu":
            config["guestAccelerators"] = [
                {"acceleratorType": gcp["accelerator"], "acceleratorCount": sizes["gpu"]["gpus"]}
            ]
            config["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
            config["scheduling"] = [{"onHostMaintenance": "TERMINATE", "preemptible": True}]
        return config

    def resources(size: str) -> dict[str, int]:
        found = {"CPU": 0 if size == "head" else sizes[size]["cpu"]}
        return found | ({"GPU": sizes[size]["gpus"]} if size == "gpu" else {})

    provider = {"type": "gcp", "region": gcp["region"], "availability_zone": gcp["zone"], "project_id": gcp["project"]}
    return common | {
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "available_node_types": {
            "head": {"resources": resources("head"), "node_config": node("head")},
            "cpu": _range(sizes["cpu"]) | {"resources": resources("cpu"), "node_config": node("cpu")},
            "gpu": _range(sizes["gpu"])
            | {
                "resources": resources("gpu"),
                "docker": _node_docker(settings, "gpu"),
                "node_config": node("gpu"),
            },
        },
        "head_node_type": "head",
    }


def _local(settings: Settings) -> dict[str, Any]:
    local = settings.local
    common = _common(settings, workers=len(local["workers"]))
    return common | {
        "provider": {"type": "local", "head_ip": local["head"], "worker_ips": local["workers"]},
        "auth": {"ssh_user": local["user"]},
        "upscaling_speed": 1.0,
    }


def _range(size: dict[str, Any]) -> dict[str, int]:
    return {"min_workers": size["min"], "max_workers": size["max"]}


def _most(settings: Settings) -> int:
    return settings.sizes["cpu"]["max"] + settings.sizes["gpu"]["max"]
