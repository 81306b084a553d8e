"""The job's parent: starts one command, waits, and records by itself how it ended. Standard library only, one file.

    python -I -S shim.py RUN_DIR [CGROUP] -- COMMAND...

It exists so that the true exit status is known even when the supervisor was killed. It writes

- `job.json`       {"shim": identity, "job": identity|null, "started_at", "cgroup": path|null}: created exclusively
                   before the command is started, so that one run folder can never start two jobs;
- `job_exit.json`  {"exit_code", "signal", "started_at", "ended_at", "error"?}: durable, when the command has ended.

The end is written before the job's process is let go of: when the shim is killed in between, the job's next parent (the
supervisor) still finds its exit status. The shim's own exit code repeats the command's (128 + n for signal n), for a
parent that finds no `job_exit.json` (full disk).
Signals meant for the job's group do not end it; descriptors it was given (device leases) go on to the command.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime

ALREADY_STARTED = 126  # exit code: this folder has had its job
CANNOT_START = 127  # the shell's code for "command not found"
WRITE_ATTEMPTS = 600  # one a second, when the disk is full and nobody else can tell how the job ended


def identity(pid: int) -> dict[str, object]:
    """The same four fields as `workspace.process.ProcessIdentity`."""
    sys.path.insert(0, __file__.rsplit(os.sep, 3)[0])
    from workspace.process import ProcessIdentity, boot_id, host_name, identify

    known = identify(pid) or ProcessIdentity(pid, "ended", boot_id(), host_name())
    return known.as_json()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def say(text: str) -> None:
    """A line for the log. Not being able to write it ends nobody: the disk may be full."""
    with contextlib.suppress(OSError):
        os.write(2, f"[lab] {text}\n".encode(errors="replace"))


def write(path: str, value: dict[str, object], *, exclusive: bool = False) -> None:
    """Durable and atomic; with `exclusive`, FileExistsError when `path` is there already."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            text = (json.dumps(value) + "\n").encode()
            if os.write(descriptor, text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if exclusive:
            os.link(temporary, path)
        else:
            os.replace(temporary, path)  # noqa: PTH105
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
    folder = os.open(os.path.dirname(path), os.O_RDONLY)  # noqa: PTH120
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def record_end(folder: str, end: dict[str, object], parent: int) -> None:
    """Write `job_exit.json`. On a full disk: go on trying only when no supervisor is there to see the exit code."""
    for attempt in range(WRITE_ATTEMPTS):
        try:
            write(f"{folder}/job_exit.json", end)
            return
        except OSError as error:
            say(f"job_exit.json cannot be written: {error}")
            if attempt >= 2 and os.getppid() == parent:
                return
            time.sleep(min(1.0, 0.1 * 2**attempt))


def join(group: str | None) -> str | None:
    """Move this process into the control group; `group`, or None when that was not to be."""
    if group is None:
        return None
    try:
        with open(f"{group}/cgroup.procs", "w") as file:  # noqa: PTH123
            file.write("0")
    except OSError:
        return None
    return group


def wait_for_end(pid: int) -> int:
    """The exit code of the ended job, -n for signal n. Its process stays a zombie until somebody reaps it."""
    if not hasattr(os, "waitid"):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert seen is not None
    return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status


def main(arguments: list[str]) -> int:
    separator = arguments.index("--")
    folder, *groups = arguments[:separator]
    command = arguments[separator + 1 :]
    assert command
    parent = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    started_at = now()
    about: dict[str, object] = {"shim": identity(os.getpid()), "job": None, "started_at": started_at}
    about["cgroup"] = groups[0] if groups else None
    try:
        write(f"{folder}/job.json", about, exclusive=True)
    except FileExistsError:
        return ALREADY_STARTED
    end: dict[str, object] = {"exit_code": None, "signal": None, "started_at": started_at}
    inside = join(groups[0] if groups else None)  # the job is born there; the shim is not to be killed with it
    try:
        defaults = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
        pid = os.posix_spawnp(command[0], command, os.environ, setsigdef=defaults, setsigmask=[])
    except OSError as error:
        name = os.path.basename(command[0])  # noqa: PTH119
        end.update(exit_code=CANNOT_START, ended_at=now(), error=f"{name} could not be started: {error.strerror}")
        say(f"cannot start {command[0]}: {error.strerror}")
        record_end(folder, end, parent)
        return CANNOT_START
    finally:
        join(os.path.dirname(inside) if inside else None)  # noqa: PTH120
    with contextlib.suppress(OSError):  # full disk: the supervisor finds the job among its descendants
        write(f"{folder}/job.json", about | {"job": identity(pid)})
    code = wait_for_end(pid)
    if code < 0:
        end["signal"] = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    else:
        end["exit_code"] = code
    end["ended_at"] = now()
    record_end(folder, end, parent)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
