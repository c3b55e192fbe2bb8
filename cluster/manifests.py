"""KubeRay's manifests, and what belongs to them: a network policy, Redis, the scheduled jobs."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.settings import PORTS, Settings

API = "ray.io/v1"
CLUSTER = "ctxrec"  # name of the standing cluster; its token lies in the secret of this name
REDIS = "ctxrec-redis"
# Which KubeRay label marks every pod of a Ray cluster, and which of ours marks those that may call the service.
NODE, CLIENT = "ray.io/is-ray-node", "ctxrec/client"


def manifests(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """The YAML documents of each file."""
    commands = settings.commands()
    jobs = {f"rayjob-{name}.yaml": [_ray_job(settings, name, command)] for name, command in commands.items()}
    return {
        "base.yaml": [_namespace(settings), *_network_policies(settings)],
        "redis.yaml": _redis(settings),
        "raycluster.yaml": [_ray_cluster(settings)],
        **jobs,
        "nightly-evaluate.yaml": [_scheduled(settings, "nightly-evaluate", "nightly", commands["evaluate"])],
        "refresh.yaml": [_scheduled(settings, "refresh", "refresh", commands["refresh"])],
        "rayservice.yaml": [_ray_service(settings)],
    }


def _meta(settings: Settings, name: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "ctxrec", "app.kubernetes.io/version": settings.version}
    return {"name": name, "namespace": settings.kubernetes["namespace"], "labels": labels}


def _env(settings: Settings, *, service: bool) -> list[dict[str, Any]]:
    made = []
    for name, value, key in settings.variables(service=service):
        if key:
            source = {"secretKeyRef": {"name": settings.kubernetes["service_secret"], "key": key}}
            made.append({"name": name, "valueFrom": source})
        else:
            made.append({"name": name, "value": value})
    return made


def _restricted() -> dict[str, Any]:
    """A security context without privileges, which Kubernetes calls the restricted profile."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _pod(settings: Settings, size: str, name: str, *, variant: str, service: bool) -> dict[str, Any]:
    """A pod of one container of our image."""
    wanted = settings.sizes[size]
    amount: dict[str, Any] = {"cpu": str(wanted["cpu"]), "memory": f"{wanted['memory_gib']}Gi"}
    limits: dict[str, Any] = {"memory": amount["memory"]}  # no limit of CPU: it would only slow an idle node
    if variant == "gpu":
        amount["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(wanted["gpus"])
    ports = ["gcs", "dashboard", "client"] if size == "head" else []
    container = {
        "name": name,
        "image": settings.image_of(variant),
        "env": _env(settings, service=service),
        # What reads the storage; where the cloud knows the pod by its service account there need be none.
        "envFrom": [{"secretRef": {"name": settings.kubernetes["storage_secret"], "optional": True}}],
        "ports": [{"name": port, "containerPort": PORTS[port][0]} for port in [*ports, "metrics", "serve"]],
        "resources": {"requests": amount, "limits": limits},
        "securityContext": _restricted(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # the operator adds /dev/shm itself
    }
    return {
        "metadata": {"labels": {"app.kubernetes.io/name": "ctxrec"}},
        "spec": {
            "containers": [container],
            "securityContext": {"runAsUser": 1000, "fsGroup": 1000},
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def _group(settings: Settings, size: str, *, variant: str, service: bool = False, least: int | None = None) -> dict:
    wanted = settings.sizes[size]
    least = wanted["min"] if least is None else least
    pod = _pod(settings, size, "ray-worker", variant=variant, service=service)
    if variant == "gpu":
        pod["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if service:  # replicas survive the loss of a host only if they are not all on it
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        pod["spec"]["topologySpreadConstraints"] = [spread | {"labelSelector": {"matchLabels": {NODE: "yes"}}}]
    pod["spec"]["terminationGracePeriodSeconds"] = 120
    return {
        "groupName": size,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": max(wanted["max"], least),
        "rayStartParams": {},
        "template": pod,
    }


def _cluster_spec(
    settings: Settings, groups: list[dict], *, service: bool = False, keeps_state: bool = False
) -> dict[str, Any]:
    """A Ray cluster. With `keeps_state` the head keeps its state in Redis, so what runs on nodes outlives the head."""
    head = _pod(settings, "head", "ray-head", variant="cpu", service=service)
    spec: dict[str, Any] = {
        "rayVersion": settings.ray,
        "authOptions": {"mode": "token"},  # the operator makes the token and keeps it in a secret
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "idleTimeoutSeconds": 300,
            "upscalingMode": "Default",
            "securityContext": _restricted(),
        },
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # No work on the head, so that it lives; the dashboard listens to the pod's network, behind the policy.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
            "template": head,
        },
        "workerGroupSpecs": groups,
    }
    if keeps_state:
        password = {"name": settings.kubernetes["service_secret"], "key": "redis-password"}
        spec["gcsFaultToleranceOptions"] = {
            "redisAddress": f"{REDIS}:6379",
            "redisPassword": {"valueFrom": {"secretKeyRef": password}},
        }
    return spec


def _ray_cluster(settings: Settings) -> dict[str, Any]:
    groups = [_group(settings, "cpu", variant="cpu"), _group(settings, "gpu", variant="gpu")]
    return {
        "apiVersion": API,
        "kind": "RayCluster",
        "metadata": _meta(settings, CLUSTER),
        "spec": _cluster_spec(settings, groups, keeps_state=True),
    }


def _ray_job(settings: Settings, name: str, command: str) -> dict[str, Any]:
    """A cluster of its own for one command. It is deleted when the command has ended.

    Every command may be started again: what is finished is reused, what is not goes on.
    """
    training = settings.training
    trains = name in ("train", "sweep")
    variant = training["variant"] if trains else "cpu"
    least = training["workers"] if trains else 1
    return {
        "apiVersion": API,
        "kind": "RayJob",
        "metadata": _meta(settings, f"ctxrec-{name}"),
        "spec": {
            "entrypoint": command,
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 2,
            "activeDeadlineSeconds": 172_800 if trains else 21_600,
            "rayClusterSpec": _cluster_spec(settings, [_group(settings, variant, variant=variant, least=least)]),
        },
    }


def _ray_service(settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "RayService",
        "metadata": _meta(settings, "ctxrec-service"),
        "spec": {
            # A change of the cluster brings up a second one, which takes over when it answers.
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": 120,
            "serveConfigV2": yaml.safe_dump(settings.serve_config(), sort_keys=False),
            "rayClusterConfig": _cluster_spec(
                settings,
                [_group(settings, "service", variant="cpu", service=True)],
                service=True,
                keeps_state=True,
            ),
        },
    }


def _scheduled(settings: Settings, name: str, schedule: str, command: str) -> dict[str, Any]:
    """A job that submits a command to the standing cluster, with the token of that cluster.

    Args:
        settings: of the cluster.
        name: of the job.
        schedule: key of [kubernetes] that says when it starts.
        command: as a user types it.
    """
    token = {"secretKeyRef": {"name": CLUSTER, "key": "auth_token"}}
    container = {
        "name": "submit",
        "image": settings.image_of("cpu"),
        "command": ["ray", "job", "submit", "--", *command.split()],
        "env": [
            {"name": "RAY_ADDRESS", "value": f"http://{CLUSTER}-head-svc:{PORTS['dashboard'][0]}"},
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": token},
        ],
        "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": _restricted(),
    }
    pod = {
        "metadata": {"labels": {NODE: "no"}},
        "spec": {"restartPolicy": "Never", "securityContext": {"runAsUser": 1000}, "containers": [container]},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _meta(settings, f"ctxrec-{name}"),
        "spec": {
            "schedule": settings.kubernetes[schedule],
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"backoffLimit": 1, "activeDeadlineSeconds": 21_600, "template": pod}},
        },
    }


def _namespace(settings: Settings) -> dict[str, Any]:
    name = settings.kubernetes["namespace"]
    # Our containers are restricted; those that the operator adds itself need not be.
    labels = {"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _network_policies(settings: Settings) -> list[dict[str, Any]]:
    """Network policies: Ray's pods, the operator and the scheduled jobs reach Ray's pods; clients reach the service's port."""
    inside = [{"podSelector": {"matchExpressions": [{"key": NODE, "operator": "Exists"}]}}]
    operator = [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    ]
    submitter = [{"podSelector": {"matchExpressions": [{"key": "job-name", "operator": "Exists"}]}}]
    client = [{"namespaceSelector": {}, "podSelector": {"matchLabels": {CLIENT: "yes"}}}]

    def tcp(*names: str) -> list[dict[str, Any]]:
        return [{"protocol": "TCP", "port": PORTS[name][0]} for name in names]

    ray = {
        "podSelector": {"matchLabels": {NODE: "yes"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": inside},
            {"from": operator, "ports": tcp("dashboard", "serve")},
            {"from": submitter, "ports": tcp("dashboard")},
            {"from": client, "ports": tcp("serve")},
        ],
    }
    redis = {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": REDIS}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": inside, "ports": [{"protocol": "TCP", "port": 6379}]}],
    }
    return [
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": _meta(settings, name), "spec": spec}
        for name, spec in (("ctxrec-ray", ray), (REDIS, redis))
    ]


def _redis(settings: Settings) -> list[dict[str, Any]]:
    """A Redis for posted events, posted items and the head's state. To use a managed Redis, set service.store."""
    labels = {"app.kubernetes.io/name": REDIS}
    password = {"secretKeyRef": {"name": settings.kubernetes["service_secret"], "key": "redis-password"}}
    container = {
        "name": "redis",
        "image": "redis:7.4",
        # What the service acknowledges must be on disk: see store_durable in serve/arguments.py.
        "args": ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--requirepass", "$(REDIS_PASSWORD)"],
        "env": [{"name": "REDIS_PASSWORD", "valueFrom": password}],
        "ports": [{"name": "redis", "containerPort": 6379}],
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": _restricted(),
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}},
    }
    port = {"name": "redis", "port": 6379, "targetPort": 6379}
    stateful = {
        "serviceName": REDIS,
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [container], "securityContext": {"runAsUser": 999, "fsGroup": 999}},
        },
        "volumeClaimTemplates": [claim],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _meta(settings, REDIS),
            "spec": {"type": "ClusterIP", "selector": labels, "ports": [port]},
        },
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": _meta(settings, REDIS), "spec": stateful},
    ]
