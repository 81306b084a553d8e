"""The service: who is let in, what a client without MCP gets, how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from rag_support import eventually
from tests_support import processes_of

from lab_mcp import connection
from lab_mcp.keeper import ended_since
from rag.index.inspect import work_waits
from training.runs.waking import ASKED_AT
from workspace import interpreter, process
from workspace.errors import LabError
from workspace.layout import Workspace

ROUTES = [
    ("GET", "/healthz"),
    ("POST", "/api/tools/gpu_status"),
    ("POST", "/api/shutdown"),
    ("POST", "/mcp"),
    ("GET", "/x"),
]


def ask(port: int, method: str, path: str, headers: dict[str, str]) -> int:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    link.putrequest(method, path, skip_host=True)
    for name, value in {"Content-Length": "2", **headers}.items():
        link.putheader(name, value)
    link.endheaders(b"{}")
    status = link.getresponse().status
    link.close()
    return status


def test_every_route_wants_token_host_and_origin(lab: Workspace) -> None:
    endpoint = connection.ensure_service(lab)
    host = f"127.0.0.1:{endpoint.port}"
    right = {"Host": host, "Authorization": f"Bearer {endpoint.token}"}
    for method, path in ROUTES:
        assert ask(endpoint.port, method, path, {"Host": host}) == 401
        assert ask(endpoint.port, method, path, {**right, "Authorization": "Bearer wrong"}) == 401
        assert ask(endpoint.port, method, path, {**right, "Host": "evil.example"}) == 421
        assert ask(endpoint.port, method, path, {**right, "Host": "127.0.0.1.evil.example"}) == 421
        assert ask(endpoint.port, method, path, {**right, "Origin": "http://127.0.0.1:1"}) == 403
        assert ask(endpoint.port, method, path, {**right, "Origin": "http://evil.example"}) == 403
    assert ask(endpoint.port, "GET", "/healthz", {**right, "Origin": f"http://{host}"}) == 200
    tunnel = {**right, "Host": "localhost:8443", "Origin": "http://localhost:8443"}
    assert ask(endpoint.port, "GET", "/healthz", tunnel) == 200, "a tunnel has a port of its own"
    assert connection.live_endpoint(lab) is not None, "none of that may have shut the service down"


def test_the_token_is_for_the_owner_only_and_in_no_command_line(lab: Workspace) -> None:
    endpoint = connection.ensure_service(lab)
    assert stat.S_IMODE(lab.service_file.stat().st_mode) == 0o600
    started = processes_of(lab.root)
    assert started
    for each in started:
        assert not any(endpoint.token in part for part in each.cmdline())
        assert endpoint.token not in json.dumps(each.environ())


def test_many_starters_get_one_service(lab: Workspace) -> None:
    found: list[connection.Endpoint] = []
    threads = [threading.Thread(target=lambda: found.append(connection.ensure_service(lab))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len({endpoint.identity for endpoint in found}) == 1
    services = [p for p in processes_of(lab.root) if "lab_mcp.service" in p.cmdline()]
    assert len(services) == 1


def test_a_second_serve_says_so_and_ends(lab: Workspace, command) -> None:
    endpoint = connection.ensure_service(lab)
    second = command("serve")
    assert second.returncode == 2
    assert str(endpoint.identity.pid) in second.stderr


def test_shutdown_ends_service_and_keeper(lab: Workspace, command) -> None:
    endpoint = connection.ensure_service(lab)
    assert command("status").returncode == 0
    ended = command("shutdown")
    assert ended.returncode == 0, ended.stderr
    assert not process.is_alive(endpoint.identity)
    assert [p for p in processes_of(lab.root) if p.is_running() and p.status() != "zombie"] == []
    assert command("status").returncode == 1


def test_term_ends_service_and_keeper_for_good(lab: Workspace) -> None:
    """As systemd or a user ends it: no crash, so nobody starts it again."""
    os.kill(connection.ensure_service(lab).identity.pid, signal.SIGTERM)
    until(lambda: not processes_of(lab.root))
    assert "starting it again" not in lab.service_log.read_text()


def until(condition, seconds: float = 20) -> None:
    """Wait for something another process does."""
    for _ in range(int(seconds * 20)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def living(lab: Workspace, module: str = "") -> list[int]:
    """Pids of the workspace's processes."""
    found = []
    for each in processes_of(lab.root):
        with contextlib.suppress(psutil.Error):
            if each.status() != psutil.STATUS_ZOMBIE and (not module or module in each.cmdline()):
                found.append(each.pid)
    return found


def test_a_service_is_started_while_the_one_before_is_still_ending(lab: Workspace) -> None:
    endpoint = connection.ensure_service(lab)
    connection.request(endpoint, "POST", "/api/shutdown")
    until(lambda: connection.live_endpoint(lab) is None)
    assert connection.ensure_service(lab).identity != endpoint.identity


def test_shutdown_is_obeyed_after_the_keeper_was_killed(lab: Workspace, command) -> None:
    endpoint = connection.ensure_service(lab)
    (first,) = living(lab, "lab_mcp.keeper")
    os.kill(first, signal.SIGKILL)
    until(lambda: living(lab, "lab_mcp.keeper") not in ([], [first]))  # the service has started another one
    assert command("shutdown").returncode == 0
    until(lambda: not living(lab))
    assert not process.is_alive(endpoint.identity)


def test_keepers_and_wakers_that_come_late_obey_the_shutdown(lab: Workspace, command, monkeypatch) -> None:
    """They were asked for while the service lived, and a busy machine let them begin after the end."""
    connection.ensure_service(lab)
    before = time.time()
    assert command("shutdown").returncode == 0
    until(lambda: not living(lab))
    late = interpreter.python_command("lab_mcp.keeper", str(lab.root), str(before))
    assert subprocess.run(late, cwd="/", timeout=60).returncode == 0
    monkeypatch.setenv(ASKED_AT, str(before))  # as the supervisor of a run does whose end others waited for
    assert command("wake").returncode == 0
    assert not living(lab) and lab.service_log.read_text().count(" serving ") == 1
    monkeypatch.delenv(ASKED_AT)
    assert command("wake").returncode == 0 and living(lab), "whoever asks after the end is served"


def test_a_shutdown_from_the_future_stops_nobody(lab: Workspace) -> None:
    """The clock was set back since."""
    lab.create_folders()
    (lab.locks_dir / "service.lock").write_text(f"ended {time.time() + 7200}\n")
    assert connection.ensure_service(lab).port


BUSY = """
import sys, time
from lab_mcp import compose, service
rounds = compose.rounds
compose.rounds = lambda lab: [*rounds(lab), [lambda: time.sleep(600)]]
service.main(sys.argv[1])
"""


def test_term_ends_a_service_while_a_round_of_it_waits(lab: Workspace) -> None:
    """As for an audit, or for a model's answer."""
    lab.create_folders()
    busy = subprocess.Popen([sys.executable, "-P", "-c", BUSY, str(lab.root)], cwd="/", stderr=subprocess.DEVNULL)
    try:
        until(lambda: connection.live_endpoint(lab) is not None, 60)
        busy.send_signal(signal.SIGTERM)
        assert busy.wait(60) == 0
    finally:
        busy.kill()


def test_the_end_is_said_once_as_of_the_shutdown(lab: Workspace) -> None:
    """A run that ends while the service is ending wakes the next one."""
    connection.request(connection.ensure_service(lab), "POST", "/api/shutdown")
    asked = time.time()
    until(lambda: not living(lab))
    assert not ended_since(lab.locks_dir / "service.lock", asked)


def test_a_service_whose_workspace_is_moved_ends_and_the_new_place_is_served(lab: Workspace) -> None:
    endpoint = connection.ensure_service(lab)
    moved = Workspace(lab.root.rename(lab.root.with_name(lab.root.name + " moved")))
    until(lambda: not process.is_alive(endpoint.identity))
    assert not lab.root.exists(), "nothing may be written to the old place any more"
    answer = connection.request(connection.ensure_service(moved), "POST", "/api/tools/service_status", {})
    assert answer["workspace"] == moved.root.name


@pytest.mark.parametrize("content", ['{"port": 1}', "[]", '"x"', "{"])
def test_a_damaged_service_file_hinders_nobody(lab: Workspace, content: str) -> None:
    lab.create_folders()
    lab.service_file.write_text(content)
    assert connection.read_endpoint(lab) is None
    assert connection.ensure_service(lab).port


def test_the_log_stays_bounded_while_others_have_it_open(tmp_path: Path) -> None:
    from lab_mcp.service_log import bound_log

    file = tmp_path / "service.log"
    with file.open("ab", buffering=0) as keepers:
        keepers.write(b"old\n" * 10)
        bound_log(file, limit=100)
        assert file.stat().st_size == 40, "short enough"
        bound_log(file, limit=30)
        keepers.write(b"new\n")
    assert file.read_bytes() == b"new\n"
    assert (tmp_path / "service.log.1").read_bytes() == b"old\n" * 10


def test_an_idle_service_ends_by_itself(lab: Workspace) -> None:
    lab.settings_file.write_text("[service]\nidle_minutes = 0.02\n")
    endpoint = connection.ensure_service(lab)
    deadline = threading.Event()
    for _ in range(200):
        if not process.is_alive(endpoint.identity):
            break
        deadline.wait(0.1)
    assert not process.is_alive(endpoint.identity)


def test_wrong_settings_are_told_to_whoever_starts_the_service(lab: Workspace) -> None:
    lab.settings_file.write_text("[runs]\ngrace_seconds = -3\n")
    with pytest.raises(LabError, match=r"lab\.toml.*grace_seconds.*at least 0"):
        connection.ensure_service(lab)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workspace_is_refused_in_words(lab: Workspace) -> None:
    lab.lab_dir.chmod(0o500)
    try:
        with pytest.raises(LabError, match="writable"):
            connection.ensure_service(lab)
    finally:
        lab.lab_dir.chmod(0o700)


def test_plain_json_calls_refuse_in_words(lab: Workspace) -> None:
    endpoint = connection.ensure_service(lab)
    with pytest.raises(LabError, match="did you mean 'processes'"):
        connection.request(endpoint, "POST", "/api/tools/gpu_status", {"proceses": True})
    with pytest.raises(LabError, match="closest gpu_status"):
        connection.request(endpoint, "POST", "/api/tools/gpu_stats", {})
    for path in ("/api/sessions", "/api/clean", "/api/tools/gpu_status"):
        with pytest.raises(LabError, match="object"):
            connection.request(endpoint, "POST", path, ["no object"])
    with pytest.raises(LabError, match="valid number"):
        connection.request(endpoint, "POST", "/api/clean", {"older_than_days": "old"})


def test_a_fault_of_the_lab_is_answered_in_words_and_logged(lab: Workspace) -> None:
    endpoint = connection.ensure_service(lab)
    with contextlib.closing(sqlite3.connect(lab.database_file)) as database:
        database.execute("ALTER TABLE runs RENAME TO taken_away")
    with pytest.raises(LabError, match=r"the lab itself failed here \(OperationalError\)"):
        connection.request(endpoint, "POST", "/api/tools/list_runs", {})
    deadline = time.monotonic() + 20
    while "Exception in ASGI application" not in lab.service_log.read_text():
        assert time.monotonic() < deadline, "where it failed is in the log"
        time.sleep(0.05)
    assert connection.request(endpoint, "GET", "/healthz")["status"] == "ok"


def test_a_users_own_tools_folder_and_pythonpath_do_not_shadow_ours(lab: Workspace, command) -> None:
    for name in ("tools", "training", "workspace"):
        (lab.root / name).mkdir()
        (lab.root / name / "__init__.py").write_text("raise SystemExit('the wrong package was imported')\n")
    answer = command("gpu", env={"PYTHONPATH": str(lab.root)})
    assert answer.returncode == 0, answer.stderr
    assert "trains on" in answer.stdout


def test_without_home(lab: Workspace, command) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    import subprocess
    import sys

    answer = subprocess.run(
        [sys.executable, "-m", "lab_mcp", "gpu"],
        cwd=lab.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


def test_memory_comes_up_after_the_first_answer_and_again_by_itself_while_documents_wait(lab: Workspace) -> None:
    def workers() -> list[int]:
        return [each.pid for each in processes_of(lab.root) if "rag.worker" in each.cmdline()]

    endpoint = connection.ensure_service(lab)
    assert connection.request(endpoint, "POST", "/api/tools/gpu_status", {})
    eventually(workers)
    (lab.papers_dir / "herd.txt").write_text(" ".join(f"Herd {n} of wildebeest migrates." for n in range(2000)))
    report = connection.request(endpoint, "POST", "/api/tools/rag_index", {"wait_s": 0})
    assert report["state"] == "indexing"
    before = workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: workers() and workers() != before, 120)
    eventually(lambda: not work_waits(lab.index_dir), 120)


def test_with_nothing_to_index_memory_comes_up_beside_the_service(lab: Workspace, command) -> None:
    report = connection.request(connection.ensure_service(lab), "POST", "/api/tools/rag_index", {"wait_s": 60})
    assert report["state"] == "done"
    assert command("shutdown").returncode == 0
    until(lambda: not living(lab))
    connection.ensure_service(lab)
    assert living(lab, "rag.worker") or os.cpu_count() == 1, "it is begun before the service answers"
