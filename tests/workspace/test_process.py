"""Who a process is, and how our own children are started clean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from workspace import clock, interpreter, process
from workspace.errors import LabError, closest, unknown


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield started
    started.kill()
    started.wait(timeout=20)


def test_this_process_is_alive_and_survives_json() -> None:
    me = process.this_process()
    assert me.pid == os.getpid() and process.is_alive(me)
    assert process.ProcessIdentity.from_json(json.loads(json.dumps(me.as_json()))) == me


def test_an_ended_process_is_not_alive_not_even_as_a_zombie(sleeper: subprocess.Popen[bytes]) -> None:
    identity = process.identify(sleeper.pid)
    assert identity is not None and process.is_alive(identity)
    sleeper.kill()
    deadline = time.monotonic() + 20
    while process.is_alive(identity) and time.monotonic() < deadline:  # nobody has waited for it: it is a zombie
        time.sleep(0.01)
    assert not process.is_alive(identity) and process.identify(sleeper.pid) is None
    assert sleeper.returncode is None
    sleeper.wait(timeout=20)
    assert not process.is_alive(identity)


def test_a_pid_that_was_given_to_another_process_is_not_the_first(sleeper: subprocess.Popen[bytes]) -> None:
    identity = process.identify(sleeper.pid)
    assert identity is not None
    assert not process.is_alive(replace(identity, started=str(int(identity.started) - 1)))


def test_another_boot_or_host_is_not_alive_here() -> None:
    me = process.this_process()
    assert not process.is_alive(replace(me, boot="another")) and not process.is_alive(replace(me, host="another"))


def test_a_name_with_brackets_and_spaces_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    program = tmp_path / "odd ) name"
    program.symlink_to("/bin/sleep")
    started = subprocess.Popen([str(program), "60"])
    try:
        identity = process.identify(started.pid)
        assert identity is not None and identity.started.isdigit() and process.is_alive(identity)
    finally:
        started.kill()
        started.wait(timeout=20)


def test_pids_that_cannot_be() -> None:
    assert process.identify(2**22 + 5) is None and process.start_time(2**31 - 1) is None


# -- the interpreter --------------------------------------------------------------------------------------------------


def test_our_children_do_not_see_a_users_folders(tmp_path: Path) -> None:
    for name in ("tools", "training", "workspace"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    script = "import tools, training, workspace, json; print(json.dumps([tools.__file__, workspace.__file__]))"
    command = interpreter.python_command("x")
    command = [*command[: command.index("-m")], "-c", script]
    environment = interpreter.service_environment({**os.environ, "PYTHONPATH": str(tmp_path)})
    answer = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert all(Path(path).is_relative_to(interpreter.PACKAGE_ROOT) for path in json.loads(answer.stdout))


def test_the_services_environment_holds_no_secrets_and_no_python_variables() -> None:
    given = {
        "PATH": "/bin", "HOME": "/h", "LAB_BACKEND": "cpu", "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": "/evil",
        "PYTHONHOME": "/x", "ANTHROPIC_API_KEY": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "VIRTUAL_ENV": "/v",
        "WANDB_API_KEY": "secret", "LD_PRELOAD": "/evil.so",
    }  # fmt: skip
    kept = interpreter.service_environment(given)
    assert kept == {"PATH": "/bin", "HOME": "/h", "LAB_BACKEND": "cpu", "CUDA_VISIBLE_DEVICES": "0"}
    assert interpreter.service_environment({})["PATH"]


def test_shadowing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert interpreter.is_shadowed()


# -- clock and errors -------------------------------------------------------------------------------------------------


def test_times_are_utc_text_that_sorts() -> None:
    first = clock.now()
    assert first.endswith("Z") and len(first) == 24 and clock.from_epoch(0) == "1970-01-01T00:00:00.000Z"
    assert clock.from_epoch(1.9999) < clock.from_epoch(2.0)
    assert clock.seconds_between(clock.from_epoch(10), clock.from_epoch(12.5)) == 2.5
    assert clock.parse(first).utcoffset().total_seconds() == 0  # type: ignore[union-attr]


def test_errors_say_problem_valid_and_next() -> None:
    assert str(LabError("wrong.", valid="right", fix="do it.")) == "wrong. Valid: right. Next: do it."
    assert str(LabError("wrong")) == "wrong."


def test_unknown_names_the_closest() -> None:
    known = [f"run-{n:04d}" for n in range(1, 40)]
    assert "run-0012" in str(unknown("run", "run-012", known))
    assert "there is no run yet" in str(unknown("run", "x", []))
    assert "and 34 more" in str(unknown("run", "zzz", known))
    assert len(str(unknown("run", "x" * 10_000, known))) < 300
    assert closest("", known) == [] and closest("grace_second", ["grace_seconds", "x"]) == ["grace_seconds"]
