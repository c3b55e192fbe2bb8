"""A Ray that does not start is one line that says where, why and what to do."""

from __future__ import annotations

import pytest
import ray

from ctxrec.core import ray_cluster
from ctxrec.core.errors import Failed


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /very/long"), "whose name is too long; set TMPDIR"),
        (OSError(28, "No space left on device", "/tmp/ray"), "Ray did not start: no space is left for /tmp/ray; free"),
        (RuntimeError("The current node timed out\nduring startup"), "on this machine: RuntimeError: The current node"),
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
