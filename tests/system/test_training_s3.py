"""A training whose data and run lie on an S3-compatible store: killed, and gone on with."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainings import end_all, finish, free_ports, kill_command, same_to_the_digit, start, with_train

from ctxrec.core import storage
from ctxrec.training import checkpoint
from ctxrec.training.driver import train


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> str:
    """A bucket on a real server of the S3 protocol, for this process and the commands that it starts."""
    (port,) = free_ports(1)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    import boto3

    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with open(tmp_path / "moto.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                boto3.client("s3").create_bucket(Bucket="ctxrec")
                break
            except Exception:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "moto.log").read_text()[
                    -3000:
                ]
                time.sleep(0.5)
        yield "s3://ctxrec"
    finally:
        end_all()
        server.kill()
        server.wait()


@pytest.mark.slow
def test_a_killed_training_goes_on_from_the_store(tiny_data, tiny_config, tmp_path, bucket):
    data, run, log = f"{bucket}/data", f"{bucket}/run", tmp_path / "log"
    storage.write_dir(data, lambda out: shutil.copytree(tiny_data, out, dirs_exist_ok=True), scratch=str(tmp_path))
    config = with_train(tiny_config, tower_epochs=6, patience=100, workers=1)
    first, deadline = start(config, data, run, log), time.monotonic() + 300
    while len(checkpoint.folders(f"{run}/checkpoints")) < 2:  # so that one of them is whole
        assert first.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
    kill_command(first)
    assert not storage.exists(f"{run}/manifest.json")
    finish(config, data, run, log)
    assert "going on from phase" in log.read_text()
    (tmp_path / "fetched").mkdir()
    same_to_the_digit(
        Path(storage.fetch_dir(run, scratch=str(tmp_path / "fetched"))),
        train(tiny_data, str(tmp_path / "undisturbed"), config),
    )
    kept = checkpoint.folders(f"{run}/checkpoints")
    assert len(kept) == config.train.keep_checkpoints
    assert all(checkpoint.damage(storage.fetch_dir(path, scratch=str(tmp_path))) is None for path in kept)
