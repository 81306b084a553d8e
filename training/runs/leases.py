"""Who may use a device: one lock file per device in a machine-wide folder, across workspaces and users.

A lease is a `flock` on an open descriptor. The supervisor, the shim and the job inherit that descriptor, so the lease
ends exactly when the last of them has ended, however they ended. Without accelerators the leased things are CPU slots,
`cpu-0` and up.

Runs of one workspace may share a device (`runs.per_device`): then each holds the device's lock in shared mode and a
place of its own, `UUID+0` and up. The device's file names the workspace; nobody else can take it while they run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.runs.place import FOLDER_VARIABLE, lease_folder
from training.runs.waking import NOTE
from workspace import clock, durable
from workspace.errors import Unavailable

HOLDER_BYTES = 4096
PROBE_TRIES = 3  # somebody else's `holders()` holds a lock for some microseconds
PROBE_PAUSE_S = 0.002


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as written by itself."""

    resource: str
    run: str
    workspace: str
    user: str
    since: str


@dataclass
class Lease:
    """A held lease. The descriptor is to be handed on (`pass_fds`); closing it here does not end the others' hold."""

    resource: str
    descriptor: int

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Leases:
    """The leases of this machine."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or lease_folder()

    def acquire(self, resource: str, *, run: str, workspace: Path) -> Lease | None:
        """The lease, or None when somebody holds it. Raises `Unavailable` when the folder cannot be used."""
        descriptor = self._open(resource, create=True)
        assert descriptor is not None
        if not _lock(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            return None
        holder = {"run": run, "workspace": str(workspace), "user": user_name(), "since": clock.now()}
        with contextlib.suppress(OSError):  # for showing only: the file may be another user's, the disk full
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        return Lease(resource, descriptor)

    def share(self, resource: str, places: int, *, run: str, workspace: Path) -> list[Lease] | None:
        """One of `places` places on a device that runs of this workspace share; None when there is none for us."""
        device = self.acquire(resource, run=run, workspace=workspace)
        if device is None:
            descriptor = self._open(resource, create=True)
            assert descriptor is not None
            device = Lease(resource, descriptor)
        # from exclusive to shared there is a moment without a lock: somebody else may be quicker
        if not _lock(device.descriptor, fcntl.LOCK_SH):
            device.close()
            return None
        if _read_holder(resource, device.descriptor).workspace == str(workspace):
            names = [f"{resource}+{place}" for place in range(places)]
            place = self.acquire_some(names, 1, run=run, workspace=workspace)
            if place is not None:
                return [device, *place]
        device.close()
        return None

    def acquire_some(self, resources: Sequence[str], count: int, *, run: str, workspace: Path) -> list[Lease] | None:
        """Leases on the first `count` free ones of `resources`; None, and nothing held, when fewer are free."""
        held: list[Lease] = []
        try:
            for resource in resources:
                if len(held) == count:
                    break
                lease = self.acquire(resource, run=run, workspace=workspace)
                if lease:
                    held.append(lease)
        except BaseException:
            release(held)
            raise
        if len(held) < count:
            release(held)
            return None
        return held

    def holders(self, resources: Iterable[str] | None = None) -> dict[str, Holder]:
        """The held leases (of `resources`, or all of this machine) and who holds them."""
        if resources is None:
            try:
                resources = [p.name.removesuffix(".lock") for p in self.folder.iterdir() if p.suffix == ".lock"]
            except FileNotFoundError:
                return {}
        found: dict[str, Holder] = {}
        for resource in resources:
            descriptor = self._open(resource, create=False)
            if descriptor is None:
                continue
            try:
                if not _lock(descriptor, fcntl.LOCK_SH):
                    found[resource] = _read_holder(resource, descriptor)
            finally:
                os.close(descriptor)
        return found

    def _open(self, resource: str, *, create: bool) -> int | None:
        path = self.folder / (re.sub(r"[^A-Za-z0-9._-]", "_", resource) + ".lock")
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # to open somebody's FIFO must not wait for its writer
        try:
            # Without O_CREAT first: in a sticky folder Linux refuses O_CREAT on a file of another user.
            for mode in (os.O_RDWR, os.O_RDONLY):
                try:
                    return os.open(path, mode | flags)
                except PermissionError:
                    continue
                except FileNotFoundError:
                    break
            if not create:
                return None
            self._make_folder()
            return self._create(path, flags)
        except OSError as error:
            raise Unavailable(
                f"the machine's device leases cannot be used: {error.strerror}",
                fix=f"the machine-wide folder of leases, {self.folder.name}, must be one everybody may write to "
                f"(mode 1777); {FOLDER_VARIABLE} names another one",
            ) from error

    def _create(self, path: Path, flags: int) -> int:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
        except FileExistsError:  # somebody else was quicker
            return os.open(path, os.O_RDWR | flags)
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, 0o666)  # whatever the umask
        return descriptor

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            return
        self.folder.chmod(0o1777)


class Note:
    """What this workspace leaves for the runs of others: how its service is started, and whether there is one."""

    def __init__(self, folder: Path, workspace: Path, command: Sequence[str], service_lock: Path) -> None:
        name = hashlib.sha256(f"{os.getuid()} {workspace}".encode()).hexdigest()[:16]
        self.path = folder / f"{name}{NOTE}"
        self.content = {"workspace": str(workspace), "command": list(command), "service_lock": str(service_lock)}
        self._there: bool | None = None

    def leave(self, *, waits: bool) -> None:
        """Have the note there, or not. Raises OSError."""
        if waits is self._there or not self.content["command"]:
            return
        if waits:
            durable.write_json(self.path, self.content)
        else:
            self.path.unlink(missing_ok=True)
        self._there = waits


def release(leases: Iterable[Lease]) -> None:
    """Close our descriptors; a lease somebody inherited goes on."""
    for lease in leases:
        lease.close()


def _lock(descriptor: int, kind: int) -> bool:
    for attempt in range(PROBE_TRIES):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if attempt + 1 < PROBE_TRIES:
            time.sleep(PROBE_PAUSE_S)
    return False


def _read_holder(resource: str, descriptor: int) -> Holder:
    value: Any = {}
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(os.pread(descriptor, HOLDER_BYTES, 0))
    fields = {
        name: str(value.get(name, "unknown")) if isinstance(value, dict) else "unknown"
        for name in ("run", "workspace", "user", "since")
    }
    return Holder(resource, **fields)


def user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this uid, no variable that says one
        return str(os.getuid())
