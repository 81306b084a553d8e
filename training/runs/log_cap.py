"""Keeps a job's log within bounds while the job goes on writing it: the head is punched out of the file, the end stays.

The job writes at the file's end and notices nothing; the file keeps its length (offsets and cursors stay right), only
the disk space of its beginning is given back. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from training.runs.alerts.alert import SUGGESTIONS, append_once
from training.runs.place import say
from workspace import clock, durable

KEEP_SIZE, PUNCH_HOLE = 0x01, 0x02
BLOCK = 4096
KEPT = 0.5  # of the cap, so that a busy log is not punched with every heartbeat
ALERT_CLASS = "log"


class LogCap:
    """The cap of one log, looked at with every heartbeat. `cap_bytes` of 0 means none.

    `policy` is `alerts.log`: what to do about a log that cannot be shortened.
    """

    def __init__(self, folder: Path, cap_bytes: int, policy: str = "warn") -> None:
        self.folder = folder
        self.log = folder / "train.log"
        self.cap_bytes = cap_bytes
        self.policy = policy
        self.hopeless = self.complained = False
        self.stop_request: dict[str, Any] = {}  # as stop.json has it, for the case that the disk is too full for one

    def hold(self) -> None:
        """Drop the log's head when it takes more than the cap. Never raises: what cannot be done is an alert."""
        if not self.cap_bytes or self.hopeless:
            return
        try:
            state = self.log.stat()
        except OSError:
            return
        if state.st_blocks * 512 <= self.cap_bytes:
            return
        end = (state.st_size - int(self.cap_bytes * KEPT)) // BLOCK * BLOCK
        try:
            punch(self.log, end)
        except OSError as error:
            text = (
                f"the log is larger than {self.cap_bytes / 1e9:g} GB, and this file system cannot drop its beginning "
                f"({error.strerror}); it goes on growing"
            )
            self.hopeless = self._tell(self.policy, text, state)
        else:
            kept = f"{self.cap_bytes * KEPT / 1e9:g} GB"
            text = f"the log grew beyond {self.cap_bytes / 1e9:g} GB: its beginning was dropped, {kept} at least stay"
            self._tell("off" if self.policy == "off" else "note", text, state)

    def _tell(self, severity: str, text: str, state: os.stat_result) -> bool:
        """Once for each text, whichever supervisor of the run comes to it; `stop` asks for the run's end, too.

        Whether it is written down.
        """
        if severity == "off":
            return True
        if severity == "stop":
            request = {"at": clock.now(), "reason": f"{ALERT_CLASS}: {text}", "by": "alerts.log in lab.toml"}
            self.stop_request = self.stop_request or request | {"alert": ALERT_CLASS}
        length, held = state.st_size, state.st_blocks * 512
        record: dict[str, Any] = {"time": clock.now(), "class": ALERT_CLASS, "severity": severity, "text": text}
        record["numbers"] = {"cap_bytes": self.cap_bytes, "length_bytes": length, "on_disk_bytes": held}
        record["evidence"] = [f"train.log: {length:,} bytes long, {held:,} of them on the disk"]
        record["suggestion"] = SUGGESTIONS[ALERT_CLASS]
        try:
            append_once(self.folder, record, ("class", "text"))
            stop = self.folder / "stop.json"
            if severity == "stop" and not stop.exists():
                durable.write_json(stop, self.stop_request)
        except OSError as error:
            if not self.complained:
                say(f"{text} (not written down: {error})")
            self.complained = True
            return False
        return True


def punch(file: Path, length: int) -> None:
    """Give back the space of the first `length` bytes; they read as zeros then. Raises OSError."""
    if not sys.platform.startswith("linux"):
        raise OSError(95, "this system cannot do it")
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fallocate = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if fallocate(descriptor, KEEP_SIZE | PUNCH_HOLE, 0, length):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)
