"""A Ray that does not start is one line that says where, why and what to do."""

from __future__ import annotations

import socket

import pytest
import ray
from ray.exceptions import AuthenticationError

from ctxrec.core import ray_cluster
from ctxrec.core.errors import Failed


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /very/long"), "whose name is too long; set TMPDIR"),
        (OSError(28, "No space left on device", "/tmp/ray"), "Ray did not start: no space is left for /tmp/ray; free"),
        (
            RuntimeError("The current node timed out\nduring startup"),
            "RuntimeError on this machine: The current node.*; wait until",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch, error, told):
    def fail(**_options):
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(Failed, match=told) as raised:
        ray_cluster.connect()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("Timed out while waiting for GCS"),
            "check that the cluster is up; if it is, its token may be another",
        ),
        (AuthenticationError("Token authentication is enabled but no token was found"), "does not take the token"),
        (RuntimeError("Unauthenticated: InvalidAuthToken"), "does not take the token of this process"),
    ],
)
def test_a_cluster_of_another_token_is_one_line_that_names_the_token(error, told):
    match = rf"^Ray did not start: .*{told}.*RAY_AUTH_TOKEN"
    with pytest.raises(Failed, match=match) as raised, ray_cluster.naming_why_not("10.0.0.1:6379"):
        raise ConnectionError("Failed to connect to Ray cluster") from error
    assert "10.0.0.1:6379" in str(raised.value) and "\n" not in str(raised.value)


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    """Ray itself looked for minutes and wrote lines about its own parts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray_cluster, "_REACH_S", 0.6)
        with pytest.raises(
            Failed, match=rf"^Ray did not start: nothing answers at {address}, .*unset RAY_ADDRESS"
        ) as told:
            ray_cluster.connect()
        assert "\n" not in str(told.value)
        taken.listen()
        ray_cluster.check_reachable(address)
        ray_cluster.check_reachable(f"ray://{address}")
    ray_cluster.check_reachable("auto")  # Ray finds it
    with pytest.raises(Failed, match=r"nothing answers at 127\.0\.0\.1:99999"):
        ray_cluster.check_reachable("127.0.0.1:99999")
