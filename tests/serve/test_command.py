"""`serve run` before it starts anything: what is asked for, and one line for a mistake. Ports and their claims."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from serve_commands import serve_run_mistake
from trainings import command_env, free_ports

from ctxrec.benchmarks.main_job import run_main_job
from ctxrec.core import storage
from ctxrec.core.errors import UserError
from serve import ports
from serve.command import read


def test_ports_are_taken_from_the_command_line_and_the_rest_goes_on(tmp_path, monkeypatch):
    start = read(
        "serve.app:build_app", ("run=runs/a", "port=8011", "options=diversity.strength=0.2", "dashboard_port=8300")
    )
    assert (start.port, start.is_port_set, start.dashboard_port) == (8011, True, 8300)
    assert start.rest == ("run=runs/a", "options=diversity.strength=0.2")
    assert start.applications[0].options == "diversity.strength=0.2"
    plain = read("serve.app:build_app", ("run=runs/a",))
    assert (plain.port, plain.is_port_set, plain.dashboard_port) == (8000, False, None)
    assert read("other.app:main", ("port=1",)) is None, "not ours"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "serve_app.py").write_text("")
    assert read("serve_app:build_app", ()) is None, "it is there, and another's"


def test_a_config_file_is_read_and_that_of_another_application_is_left_alone(tmp_path):
    path = tmp_path / "serve.yaml"
    application = "applications:\n- {name: a, import_path: 'serve.app:build_app', args: {run: r}}\n"
    path.write_text(application)
    start = read(str(path), ())
    assert (start.host, start.port, start.applications[0].run) == ("127.0.0.1", 8000, "r")
    path.write_text("http_options: {host: 0.0.0.0, port: 9000}\n" + application)
    assert (read(str(path), ()).host, read(str(path), ()).port) == ("0.0.0.0", 9000)
    path.write_text("applications:\n- {name: a, import_path: 'other:app', args: {port: 1}}\n")
    assert read(str(path), ()) is None


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["serve.app:build_app", "run=RUN", "port=none"], "port is 'none'; expected a number from 1 to 65535"),
        (["serve.app:build_app", "run=RUN", "dashboard_port=70000"], "dashboard_port is '70000'; expected a number"),
        (["serve.app:build_app", "run=RUN", "replica_count=2"], "unknown argument replica_count; expected run, "),
        (["serve.app:build_app", "run=RUN", "replica_count=2"], ", port, dashboard_port"),
        (["serve.app:build_app"], "run=RUN is missing; give the run, bundle or folder of published models to serve, as run=runs/latest"),
        (["serve.app:buildapp", "run=RUN"], "no application serve.app:buildapp; did you mean serve.app:build_app?"),
        (["serve.apps:build_app", "run=RUN"], "did you mean serve.app:build_app?"),
        (["TYPO"], "no application serve.app:build_ap; did you mean serve.app:build_app?"),
        (["serve.app:build_app", "5"], "'5' is no argument of the application; expected KEY=VALUE"),
        (["serve.app:build_app", "run=missing"], "found nothing at"),
        (["FILE", "port=8001"], "port=8001 beside a config file; set it in"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_starts(arguments, wanted, tmp_path, monkeypatch, capsys):
    file = tmp_path / "serve.yaml"
    file.write_text("applications:\n- {name: a, import_path: 'serve.app:build_app', args: {run: r}}\n")
    typo = tmp_path / "typo.yaml"
    typo.write_text(file.read_text().replace("build_app", "build_ap"))
    files = {"FILE": str(file), "TYPO": str(typo)}
    given = [files[a] if a in files else a.replace("RUN", str(tmp_path)) for a in arguments]
    line = serve_run_mistake(given, monkeypatch, capsys)
    assert wanted in line


@pytest.mark.system  # a process
def test_a_mistake_ends_a_process_with_one_line_and_2(tmp_path):
    env = {name: value for name, value in command_env().items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "serve.command", "run", "serve.app:build_app", "run=missing"]
    ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2 and "found nothing at" in line and "Traceback" not in ended.stderr
    assert "Started a local Ray" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("applications: [", "cannot be read"),
        ("applications:\n- {import_path: 'serve.app:build_app', args: {run: r, port: 1}}", "as http_options.port"),
        ("http_options: {port: x}\napplications:\n- {import_path: 'serve.app:build_app', args: {run: r}}", "is 'x'; expected"),
    ],
)  # fmt: skip
def test_a_wrong_config_file_is_named(text, wanted, tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=wanted) as caught:
        read(str(path), ())
    assert "serve.yaml" in str(caught.value)


def test_the_command_serve_is_this_one():
    """Two packages bring a `serve`; the one that is installed last has it, and its package needs Ray."""
    ours = [
        point for point in entry_points(group="console_scripts", name="serve") if point.value == "serve.command:main"
    ]
    if not ours:
        pytest.skip("this checkout's package is not installed (make setup)")
    script = os.path.join(os.path.dirname(sys.executable), "serve")
    with open(script) as file:
        assert "serve.command" in file.read(), "install ctxrec again: Ray's own command has taken its place"


def test_the_demo_refuses_a_port_before_it_trains(tmp_path):
    with ports.listener("127.0.0.1", 0, shared=True) as there:
        there.listen()
        port = there.getsockname()[1]
        with pytest.raises(UserError, match=f"something listens at port {port} already; .* --port"):
            run_main_job(str(tmp_path / "out"), port=port)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_at_which_something_listens_is_refused_even_one_that_others_may_share(shared):
    (port,) = free_ports(1)
    ports.check_free("127.0.0.1", port, option="port=")
    with ports.listener("127.0.0.1", port, shared=shared) as there:
        there.listen()
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(UserError, match=f"{port} cannot be used: Address already in use; .* set port="):
                ports.check_free(host, port, option="port=")
    with pytest.raises(UserError, match="cannot be used"):
        ports.check_free("203.0.113.9", port, option="port=")  # not an address of this machine


def test_a_port_belongs_to_one_owner_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = ports.claim(1234, "a")
    assert first is not None
    with ports.claim(1234, "a"):
        assert ports.claim(1234, "b") is None
    assert ports.claim(1234, "b") is None
    first.close()
    with ports.claim(1234, "b"):
        assert ports.claim(1234, "a") is None


def test_claims_follow_no_link_and_lie_where_nobody_else_can_write(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = storage.temporary_folder()
    assert os.stat(folder).st_mode & 0o777 == 0o700
    os.chmod(folder, 0o777)
    assert os.stat(storage.temporary_folder()).st_mode & 0o777 == 0o700
    victim = tmp_path / "precious"
    victim.write_text("kept")
    os.symlink(victim, os.path.join(folder, "port-1"))
    with pytest.raises(OSError, match="symbolic links"):
        ports.claim(1, "a")
    os.unlink(os.path.join(folder, "port-1"))
    os.rmdir(folder)
    os.symlink(tmp_path / "elsewhere", folder)
    os.mkdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link or a file; expected a folder of this user"):
        ports.claim(1, "a")
    assert victim.read_text() == "kept" and os.listdir(tmp_path / "elsewhere") == []
    os.unlink(folder)
    if os.getuid() == 0:
        os.mkdir(folder)
        os.chown(folder, 12345, -1)
        with pytest.raises(UserError, match="a folder of user 12345"):
            ports.claim(1, "a")


def test_a_listener_that_does_not_get_its_port_is_closed():
    (port,) = free_ports(1)
    with socket.socket() as there:
        there.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match="in use"):
            ports.listener("127.0.0.1", port, shared=True)
