"""The private parts of Ray that we use are there, in the version that they were written for."""

from __future__ import annotations

import logging

import ray
from ray.train.torch.config import _TorchBackend

from ctxrec.core import ray_private


def test_the_installed_ray_is_the_one_that_the_file_was_written_for():
    assert ray.__version__ == ray_private.WRITTEN_FOR, "read ctxrec/core/ray_private.py, then change WRITTEN_FOR"


def test_trainings_get_the_variables_that_we_name():
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    ray_private.pass_to_train_processes("CTXREC_TEST")
    assert "CTXREC_TEST" in ENV_VARS_TO_PROPAGATE
    ENV_VARS_TO_PROPAGATE.discard("CTXREC_TEST")


def test_the_hook_runs_on_the_workers_before_the_process_group(monkeypatch):
    done = []

    class Workers:
        def execute(self, function):
            done.append(function)

    monkeypatch.setattr(_TorchBackend, "on_start", lambda *args: done.append("process group"))
    backend = ray_private.torch_backend(logging.shutdown)
    backend().on_start(Workers(), None)
    assert issubclass(backend, _TorchBackend) and done == [logging.shutdown, "process group"]
