"""Starting, observing, stopping and taking up runs. One interface; the local machine is its first implementation."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from training.runs import place, tree
from training.runs.leases import Lease
from training.runs.outcome import ENDED_BY_RULE
from training.runs.place import AlreadySupervised, read, take_lock
from workspace import clock, durable
from workspace.interpreter import python_command, service_environment
from workspace.process import TAG_VARIABLE, ProcessIdentity, is_alive


@dataclass(frozen=True)
class Observation:
    """What a run folder says now."""

    present: bool  # the folder is there
    exit: Mapping[str, Any] | None = None  # the final record
    supervised: bool = False
    started: bool = False  # the job has been started, once and for all
    heartbeat: Mapping[str, Any] = field(default_factory=dict)


class Launcher(Protocol):
    """Where runs are executed."""

    def submit(self, folder: Path, run: Mapping[str, Any], leases: Sequence[Lease], claim: Callable[[], bool]) -> bool:
        """Start the run in `folder` with this run.json unless it was started before or `claim()` says no.

        `claim` is called when nobody else can start the run any more. Whether it was started. Raises OSError.
        """

    def poll(self, folder: Path) -> Observation: ...

    def cancel(self, folder: Path, reason: str, by: str, rule: str | None = None) -> None:
        """Ask the run to end, for a `rule` of [alerts] when there is one; a run that has not started never will.

        Raises OSError.
        """

    def end_unwatched(self, folder: Path) -> bool:
        """KILL what lives of a run that has no supervisor and whose folder is not there; whether there was anything."""

    def adopt(self, folder: Path) -> bool:
        """Give a started run without a supervisor a new one. Whether it was given one. Raises OSError."""

    def close_run(self, folder: Path, final: Mapping[str, Any]) -> bool:
        """Write the final record of a run that never started; False when it has started or has a record."""

    def reap(self) -> None:
        """Forget supervisors that have ended."""


class LocalLauncher:
    """Runs as detached processes of this machine."""

    def __init__(self, passed: Mapping[str, str] | None = None) -> None:
        self.passed = dict(passed or {})  # variables that users' scripts get besides
        self._supervisors: list[subprocess.Popen[bytes]] = []

    def submit(self, folder: Path, run: Mapping[str, Any], leases: Sequence[Lease], claim: Callable[[], bool]) -> bool:
        with _supervisor_lock(folder) as lock:
            if lock is None or (folder / "job.json").exists() or (folder / "exit.json").exists() or not claim():
                return False
            durable.write_json(folder / "run.json", run)
            self._start(folder, lock, leases)
        return True

    def poll(self, folder: Path) -> Observation:
        if not place.is_there(folder):
            return Observation(present=False)
        final = read(folder / "exit.json")
        heartbeat = {} if final else read(folder / "heartbeat.json")
        supervised = not final and (_live(heartbeat.get("supervisor")) is not None or _is_locked(folder))
        if not final and not supervised:  # it may have ended between the two looks
            final = read(folder / "exit.json")
        started = (folder / "job.json").exists()
        return Observation(True, final or None, supervised, started, heartbeat)

    def cancel(self, folder: Path, reason: str, by: str, rule: str | None = None) -> None:
        if not place.is_there(folder):
            process = _supervisor_of(folder)
            if process is None or not tree.send(process, _signal(rule)):
                raise FileNotFoundError(errno.ENOENT, "its folder is not there, nor a supervisor that could be asked")
            return
        final = {"state": "cancelled", "class": None, "reason": f"{reason} (by {by})"}
        if self.close_run(folder, final) or (folder / "exit.json").exists():
            return
        earlier = read(folder / "stop.json")
        if earlier and (rule or not earlier.get("alert")):
            return  # it was asked for before, and what was first counts; only a person has more to say than a rule
        try:
            at = earlier.get("at") or clock.now()  # the end is compared with when it was first asked for
            asked = {"at": at, "reason": reason, "by": by} | ({"alert": rule} if rule else {})
            durable.write_json(folder / "stop.json", asked)
        except OSError:  # full disk: the supervisor also understands a signal
            supervisor = _live(read(folder / "heartbeat.json").get("supervisor"))
            if supervisor is None:
                raise
            tree.send(tree.Process(supervisor.pid, supervisor.started, 0), _signal(rule))

    def end_unwatched(self, folder: Path) -> bool:
        if _supervisor_of(folder) is not None:
            return False
        pids = [process.pid for process in tree.processes() if _variable(process.pid, "LAB_RUN_DIR") == str(folder)]
        tags = {tag for pid in pids if (tag := _variable(pid, TAG_VARIABLE))}
        for tag in tags:
            tree.kill_all(lambda tag=tag: tree.members((), tag))  # type: ignore[misc]
        return bool(tags)

    def adopt(self, folder: Path) -> bool:
        with _supervisor_lock(folder) as lock:
            final = folder / "exit.json"
            if lock is None or (final.exists() and not _is_damaged(final)):
                return False
            if final.exists():  # what it said is found out again
                final.rename(folder / "exit.json.damaged")
            self._start(folder, lock, [], "--adopt")
        return True

    def close_run(self, folder: Path, final: Mapping[str, Any]) -> bool:
        with _supervisor_lock(folder) as lock:
            if lock is None or (folder / "job.json").exists() or (folder / "exit.json").exists():
                return False
            never = {"exit_code": None, "signal": None, "started_at": None, "ended_at": clock.now(), "elapsed_s": None}
            durable.write_json(folder / "exit.json", {**never, **final})
        return True

    def reap(self) -> None:
        self._supervisors = [process for process in self._supervisors if process.poll() is None]

    def _start(self, folder: Path, lock: int, leases: Sequence[Lease], *flags: str) -> None:
        """Start a supervisor that inherits the lock and the leases: they are never free in between."""
        descriptors = [lease.descriptor for lease in leases]
        command = python_command("training.runs.supervisor", str(folder), *flags, "--lock", str(lock))
        if descriptors:
            command += ["--leases", ",".join(map(str, descriptors))]
        log = os.open(folder / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            process = subprocess.Popen(
                command,
                cwd="/",
                env=service_environment() | self.passed,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock, *descriptors],
            )
        finally:
            os.close(log)
        self._supervisors.append(process)


@contextlib.contextmanager
def _supervisor_lock(folder: Path) -> Iterator[int | None]:
    """A descriptor with the run's supervisor lock, None when somebody else has it."""
    try:
        lock = take_lock(folder)
    except AlreadySupervised:
        yield None
        return
    try:
        yield lock
    finally:
        os.close(lock)


def _supervisor_of(folder: Path) -> tree.Process | None:
    """The supervisor that names this folder in its command; None when there is none to be seen."""
    for process in tree.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            if b"training.runs.supervisor" in words and os.fsencode(folder) in words:
                return process
    return None


def _variable(pid: int, name: str) -> str | None:
    """A variable a process was started with (Linux; None where unreadable)."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(os.fsencode(f"{name}=")):
                return os.fsdecode(entry).partition("=")[2]
    return None


def _signal(rule: str | None) -> signal.Signals:
    """What says to a supervisor, where stop.json cannot, whether the run may go on some time: TERM is preemption."""
    return signal.SIGTERM if ENDED_BY_RULE.get(rule or "", ("", None))[0] == "preempted" else signal.SIGINT


def _is_damaged(file: Path) -> bool:
    """Whether a file that only a durable writer writes does not hold what it wrote. Raises OSError."""
    try:
        return not isinstance(durable.read_json(file), dict)
    except ValueError:
        return True


def _is_locked(folder: Path) -> bool:
    with _supervisor_lock(folder) as lock:
        return lock is None


def _live(value: Any) -> ProcessIdentity | None:
    """The process a file names, if it is alive."""
    try:
        identity = ProcessIdentity.from_json(value)
    except (KeyError, TypeError, ValueError):
        return None
    return identity if is_alive(identity) else None
