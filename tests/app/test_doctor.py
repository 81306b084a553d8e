"""`lab-mcp doctor`: each thing that would bite is found, said with a reason and a remedy, and nothing is changed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import git
import pytest

from lab_mcp import doctor, machine_checks, workspace_checks
from lab_mcp.finding import GIB, Finding
from lab_mcp.initialise import init
from sessions.entry import GENESIS, Entry
from sessions.notebook import Notebook
from training.hardware import compiler
from training.hardware.cpu import CpuProbe
from training.hardware.status import Device, HardwareStatus
from training.hardware.torch_build import TorchBuild
from workspace import durable, process
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import MAX_ATTEMPTS, Outbox
from workspace.settings import NetworkSettings, RagSettings, Settings


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(Path(init(tmp_path / "lab").root))


def find(findings: list[Finding], words: str) -> Finding:
    matching = [f for f in findings if words in f.what]
    assert matching, [f.what for f in findings]
    return matching[0]


def levels(findings: list[Finding]) -> set[str]:
    return {finding.level for finding in findings}


def test_a_healthy_workspace_has_no_error_and_every_complaint_a_remedy(workspace: Workspace) -> None:
    before = {p: p.stat().st_mtime_ns for p in workspace.root.rglob("*") if p.is_file()}
    findings = doctor.examine(workspace)
    assert "error" not in levels(findings)
    assert all(f.why and f.fix for f in findings if f.level in ("warn", "error"))
    assert {p: p.stat().st_mtime_ns for p in workspace.root.rglob("*") if p.is_file()} == before
    assert not [f for f in findings if "could not be made" in f.what]


def test_without_a_workspace_the_machine_is_examined() -> None:
    findings = doctor.examine(None)
    assert find(findings, "Python") and not [f for f in findings if "workspace" in f.what]


def test_torch_is_not_imported(workspace: Workspace) -> None:
    code = (
        "import sys\nsys.path.insert(0, sys.argv[2])\nfrom pathlib import Path\nfrom lab_mcp.doctor import examine\n"
        "from workspace.layout import Workspace\nexamine(Workspace(Path(sys.argv[1])))\nprint('torch' in sys.modules)\n"
    )
    repository = str(Path(doctor.__file__).parent.parent)
    command = [sys.executable, "-P", "-c", code, str(workspace.root), repository]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout == "False\n"


def test_a_check_that_breaks_is_a_finding_and_the_rest_goes_on(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: Settings) -> list[Finding]:
        raise RuntimeError("odd machine")

    monkeypatch.setattr(machine_checks, "CHECKS", [broken, machine_checks.git])
    findings = doctor.examine(workspace)
    assert "odd machine" in find(findings, "'broken' could not be made").why
    assert find(findings, "git 2") or find(findings, "git ")


# -- GPU, driver, torch -----------------------------------------------------------------------------------------------


def status(*devices: Device, backend: str = "cpu", notes: list[str] | None = None, **versions: str) -> HardwareStatus:
    return HardwareStatus(
        time="2026-11-21T00:00:00.000Z", backend=backend, backend_reason="test", devices=list(devices),  # type: ignore[arg-type]
        cpu=CpuProbe().read(), versions=versions, notes=notes or [],
    )  # fmt: skip


H200 = Device(id="cuda:0", backend="cuda", index=0, uuid="GPU-1", name="NVIDIA H200")
MI300 = Device(id="rocm:0", backend="rocm", index=0, uuid="amd-1", name="AMD Instinct MI300X")
CPU_TORCH = TorchBuild(version="2.13.0+cpu")
CUDA_TORCH = TorchBuild(version="2.13.0", cuda="13.0")


@pytest.mark.parametrize(("device", "toolkit"), [(H200, "CUDA"), (MI300, "ROCm")])
def test_a_gpu_with_a_cpu_only_torch(device: Device, toolkit: str) -> None:
    found = find(list(machine_checks.judge_hardware(status(device), CPU_TORCH)), f"there is a {toolkit} GPU")
    assert found.level == "error" and "2.13.0+cpu" in found.what and toolkit in found.fix


def test_a_gpu_with_its_torch_is_well() -> None:
    healthy = status(H200, backend="cuda", cuda_driver="13.0", nvidia_driver="580.65.06")
    findings = list(machine_checks.judge_hardware(healthy, CUDA_TORCH))
    assert levels(findings) == {"ok"} and find(findings, "580.65.06 (CUDA 13.0) is new enough")


@pytest.mark.parametrize(
    ("driver", "built", "level"),
    [("12.8", "13.0", "error"), ("12.4", "12.8", "note"), ("13.0", "12.8", "ok"), ("12.10", "12.9", "ok")],
)
def test_a_driver_too_old(driver: str, built: str, level: str) -> None:
    seen = status(H200, backend="cuda", cuda_driver=driver, nvidia_driver="570.86.15")
    build = TorchBuild(version="2.13.0", cuda=built)
    found = find(list(machine_checks.judge_hardware(seen, build)), "570.86.15")
    assert found.level == level


def test_a_lost_device_and_a_refusing_driver_are_told() -> None:
    lost = H200.model_copy(update={"usable": False, "unusable_because": "fell off the bus"})
    notes = ["NVIDIA: the driver in the kernel and its library differ in version", "x; `lab-mcp doctor` says what"]
    findings = list(machine_checks.judge_hardware(status(lost, notes=notes), CUDA_TORCH))
    assert find(findings, "NVIDIA H200 cannot be used").why == "fell off the bus"
    assert find(findings, "differ in version").level == "note"
    assert not [f for f in findings if "`lab-mcp doctor` says" in f.what]


def test_an_impossible_backend_is_an_error_not_a_crash(workspace: Workspace) -> None:
    workspace.settings_file.write_text('[hardware]\nbackend = "hpu"\n')
    found = find(doctor.examine(workspace), "hardware.backend = 'hpu'")
    assert found.level == "error" and found.fix


def test_compile_obstacles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask = compiler._compiler_obstacle.__wrapped__
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "there is no C++ compiler" in ask("c++")
    monkeypatch.setenv("CXX", "my-compiler")
    assert "my-compiler" in ask("c++")
    fake = tmp_path / "my-compiler"
    fake.write_text("#!/bin/sh\necho 'fatal error: vector: No such file or directory' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "headers are missing" in ask("c++")
    (tmp_path / "Python.h").write_text("")
    assert "vector: No such file" in ask("c++")
    fake.write_text("#!/bin/sh\nexit 0\n")
    assert ask("c++") is None
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert "triton" in (compiler.compile_obstacle("cuda") or "")
    assert compiler.compile_obstacle("mps") is None


def test_small_shared_memory_and_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(machine_checks, "SMALLEST_SHM", 2**60)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
    findings = list(machine_checks.limits(Settings()))
    if Path("/dev/shm").is_dir():
        assert "bus error" in find(findings, "/dev/shm").why
    assert "ulimit -n 4096" in find(findings, "only 256 files").fix


def test_untested_python_and_missing_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks, "TESTED_PYTHONS", set())
    assert find(list(machine_checks.python(Settings())), "was not tested").level == "note"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find(list(machine_checks.git(Settings())), "git is not installed").level == "error"


# -- the workspace ----------------------------------------------------------------------------------------------------


def test_a_wrong_setting_is_told_and_the_rest_still_examined(workspace: Workspace) -> None:
    workspace.settings_file.write_text("[runs]\ngrace_second = 5\n")
    findings = doctor.examine(workspace)
    assert find(findings, "there is no setting runs.grace_second").level == "error"
    assert find(findings, "GiB free")


@pytest.mark.parametrize(("free", "level"), [(GIB // 2, "error"), (5 * GIB, "warn"), (50 * GIB, "ok")])
def test_space(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    monkeypatch.setattr(workspace_checks.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and _Usage(free))
    assert find(list(workspace_checks.space(workspace, Settings())), "GiB free").level == level


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_what_may_leave_the_premises(workspace: Workspace) -> None:
    closed = Settings(network=NetworkSettings(hub=False, git=False))
    (found,) = workspace_checks.premises(workspace, closed)
    assert found.level == "ok"
    for url in ("http://127.0.0.1:6333", "http://localhost:6333"):
        (found,) = workspace_checks.premises(workspace, closed.model_copy(update={"rag": RagSettings(qdrant_url=url)}))
        assert found.level == "ok"
    outside = Settings(network=NetworkSettings(hub=True), rag=RagSettings(qdrant_url="https://q.example.org:6333"))
    (found,) = workspace_checks.premises(workspace, outside)
    assert found.level == "note" and "q.example.org" in found.what and "network.hub" in found.what


def test_a_qdrant_server_that_is_away_is_told_by_its_url(workspace: Workspace) -> None:
    assert list(workspace_checks.memory(workspace, Settings(rag=RagSettings(qdrant_url="")))) == []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        named = Settings(rag=RagSettings(qdrant_url=f"http://ada:secret@127.0.0.1:{port}"))
        (found,) = workspace_checks.memory(workspace, named)
        assert found.level == "ok"
    (found,) = workspace_checks.memory(workspace, named)
    assert found.level == "error" and f"http://127.0.0.1:{port} does not answer" in found.what
    assert "secret" not in found.what


def test_a_network_file_system_is_told_with_what_moves_where(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from workspace import layout

    monkeypatch.setattr(layout, "file_system", lambda path: "nfs4")
    monkeypatch.setattr(workspace_checks, "file_system", lambda path: "nfs4")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (found,) = workspace_checks.network_file_system(Workspace(workspace.root), Settings())
    assert "nfs4" in found.what and str(tmp_path / "state") in found.why


def service_file(
    workspace: Workspace, identity: process.ProcessIdentity, version: str = "0.0.1", port: int = 1
) -> None:
    content = {"port": port, "token": "t", "process": identity.as_json(), "version": version, "started_at": "x"}
    durable.write_json(workspace.service_file, content)


def test_another_hosts_live_service(workspace: Workspace) -> None:
    other = process.ProcessIdentity(1, "1", "boot", "other-host")
    service_file(workspace, other)
    (found,) = workspace_checks.service(workspace, Settings())
    assert found.level == "error" and "other-host" in found.what
    old = time.time() - 7200
    os.utime(workspace.service_file, (old, old))
    (found,) = workspace_checks.service(workspace, Settings())
    assert found.level == "ok" and "2 hours ago" in found.what


def test_a_service_that_lives_but_does_not_answer(workspace: Workspace) -> None:
    with socket.socket() as listener:  # accepts connections and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        service_file(workspace, process.this_process(), port=listener.getsockname()[1])
        (found,) = workspace_checks.service(workspace, Settings())
    assert found.level == "error" and "does not answer" in found.what


def test_a_damaged_database_is_found(workspace: Workspace) -> None:
    database = Database(workspace.database_file)
    database.migrate("x", ["CREATE TABLE x (a TEXT); CREATE INDEX by_a ON x (a);"])
    with database.transaction() as tx:
        tx.executemany("INSERT INTO x VALUES (?)", [(f"{n:05d}" * 40,) for n in range(2000)])
    database.close()
    assert find(list(workspace_checks.database(workspace, Settings())), "is whole")
    with workspace.database_file.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 8 * 4096)
    (found,) = [f for f in workspace_checks.database(workspace, Settings()) if f.level != "ok"]
    assert found.level == "error" and "lab.db" in found.what
    workspace.database_file.write_bytes(b"no database at all" * 500)
    assert find(list(workspace_checks.database(workspace, Settings())), "cannot be read").level == "error"


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (lambda lines: lines[:-1], "entries are gone"),
        (lambda lines: [], "missing or empty"),
        (lambda lines: chained(lines, "note 1", "note 9"), "say something else"),
    ],
)
@pytest.mark.parametrize("served", [False, True])
def test_what_was_done_to_the_notebook_is_found(
    workspace: Workspace, done: Callable[[list[str]], list[str]], words: str, served: bool
) -> None:
    """Also by somebody who made the chain of hashes anew, and after a service has taken the file in again."""
    database = Database(workspace.database_file)
    notebook = Notebook(workspace, database, Outbox(database))
    session = [notebook.write(conversation="c", section="Results", text=f"note {n}").session for n in range(3)][-1]
    (found,) = workspace_checks.notebook(workspace, Settings())
    assert found.level == "ok"
    journal = workspace.journal_dir / f"{session}.jsonl"
    journal.write_text("".join(f"{line}\n" for line in done(journal.read_text().splitlines())))
    if served:
        Notebook(workspace, database, Outbox(database)).recover()
    database.close()
    (found,) = workspace_checks.notebook(workspace, Settings())
    assert found.level == "error" and words in found.what and session in found.what


def chained(lines: list[str], old: str, new: str) -> list[str]:
    """The journal with other words in it and every hash right again."""
    previous, made = GENESIS, []
    for line in lines:
        entry = Entry.from_json(json.loads(line.replace(old, new))).sealed(previous)
        previous = entry.hash
        made.append(json.dumps(entry.as_json()))
    return made


def test_a_large_database_is_not_waited_for(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(workspace.database_file).close()
    monkeypatch.setattr(workspace_checks, "LARGEST_CHECKED", 1000)
    assert find(list(workspace_checks.database(workspace, Settings())), "was not checked").level == "note"


def test_failed_documentation_is_told(workspace: Workspace) -> None:
    database = Database(workspace.database_file)
    outbox = Outbox(database)
    with database.transaction() as tx:
        outbox.post(tx, "run.ended", {"run": "run-0001"})
        tx.execute("UPDATE outbox SET attempts = ?, error = 'Unavailable: no index'", (MAX_ATTEMPTS,))
    database.close()
    found = find(list(workspace_checks.database(workspace, Settings())), "1 changes could not be written")
    assert found.level == "warn" and "no index" in found.what


def test_clock_skew(workspace: Workspace) -> None:
    workspace.service_file.write_text("{}")
    future = time.time() + 3600
    os.utime(workspace.service_file, (future, future))
    assert find(list(workspace_checks.writable(workspace, Settings())), "from the future").level == "warn"


def test_git_without_identity_and_without_repository(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workspace.root))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(workspace.root))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    findings = list(workspace_checks.repository(workspace, Settings()))
    assert find(findings, "git does not know your name").level == "note"
    with git.Repo(workspace.root) as repository, repository.config_writer() as writer:
        writer.set_value("user", "name", "A")
        writer.set_value("user", "email", "a@b")
    findings = list(workspace_checks.repository(workspace, Settings()))
    assert not [f for f in findings if "your name" in f.what]


def test_a_registration_that_points_nowhere(workspace: Workspace) -> None:
    assert list(workspace_checks.files(workspace, Settings())) == []
    registration = workspace.root / ".mcp.json"
    registration.write_text('{"mcpServers": {"lab": {"command": "/gone/bin/lab-mcp"}}}')
    assert find(list(workspace_checks.files(workspace, Settings())), "not there any more").level == "warn"
    registration.write_text("{")
    assert find(list(workspace_checks.files(workspace, Settings())), "not valid").level == "warn"
    registration.unlink()
    assert find(list(workspace_checks.files(workspace, Settings())), "no .mcp.json").level == "note"
