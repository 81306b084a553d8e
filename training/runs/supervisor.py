"""One run's supervisor: a small detached process that starts the job, watches it, and writes how it ended.

    python -P -s -m training.runs.supervisor RUN_DIR [--adopt] [--lock FD] [--leases FD,FD]

Started by the launcher; outlives it. Reads `run.json`, keeps `heartbeat.json`, obeys `stop.json` and SIGTERM, enforces
the time limit, ends the whole process tree, writes `exit.json` once. With `--adopt` the job is running already, or has
ended, unwatched: its supervisor was killed. Whoever holds the lock on `.supervisor` is the run's only supervisor.
Standard library and standard-library-only modules of ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from training.runs import cgroup, outcome, place, tree
from training.runs.environment import job_environment
from training.runs.heartbeat import Heartbeat
from training.runs.log_cap import LogCap
from training.runs.outcome import End, Evidence, Stop
from training.runs.place import AlreadySupervised, lease_folder, read, say, take_lock
from training.runs.shim import ALREADY_STARTED
from training.runs.waking import wake, wake_others
from workspace import clock, durable
from workspace.process import TAG_VARIABLE, ProcessIdentity, identify, is_alive, this_process

POLL_S = 0.25  # how often stop.json is looked for, and an adopted job that is no child of ours
SHIM_WRITES_S = 3.0  # for the shim to write how the job ended, before it is killed too
KILL_AGAIN_S = 5.0
LEFTOVER_GRACE_S = 2.0
WRITE_PAUSES_S = (0.2, 1.0, 5.0)  # then the last one again and again
WRITE_LIMIT_S = 7 * 24 * 3600.0  # a full or missing disk over a holiday: nobody else may know how the job ended
SHIM = Path(__file__).with_name("shim.py")


class Supervisor:
    def __init__(self, folder: Path, leases: list[int], lock: int) -> None:
        self.folder = folder
        self.leases = leases
        self.lock = lock  # an open file in the folder
        self.run = read(folder / "run.json")
        self.tag = str(self.run.get("environment", {}).get(TAG_VARIABLE, ""))
        self.group: Path | None = None
        self.log_cap = LogCap(folder, int(self.run.get("log_cap_bytes") or 0), self.run.get("log_policy", "warn"))
        self.subreaper = tree.become_subreaper()
        self.shim: ProcessIdentity | None = None
        self.job: ProcessIdentity | None = None
        self.shim_is_child = False
        self.statuses: dict[int, int] = {}  # children that ended: pid -> wait status
        self.started_at = clock.now()
        self.started_monotonic = time.monotonic()
        self.stop: Stop | None = None
        self.kill_at = 0.0
        self.told: set[ProcessIdentity] = set()  # jobs that were sent TERM
        self.asked_by_signal: str | None = None
        self.start_error: str | None = None
        self.rebooted = False
        self.over_at, self.memory_kill, self.leftovers = self.started_at, False, 0
        self.mark = place.mark_beside(folder)
        self.heartbeat = Heartbeat()
        kills = outcome.memory_kills()
        self.memory_kills = (kills, kills)  # at the last two heartbeats
        self.wake_read, wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.asked_by_signal = signal.Signals(number).name

    # -- the job -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the shim, which starts the job. A failure to start is an end like any other, with its reason."""
        self.group = cgroup.create(re.sub(r"[^A-Za-z0-9-]", "-", self.tag or self.folder.name))
        groups = [str(self.group)] if self.group else []
        command = [sys.executable, "-I", "-S", str(SHIM), str(self.folder), *groups, "--", *self.run["command"]]
        try:
            log = os.open(self.folder / "train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                started = subprocess.Popen(
                    command,
                    cwd=self.run["cwd"],
                    env=job_environment(os.environ, self.run.get("passed", ()), self.run.get("environment", {})),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=self.leases,
                )
            finally:
                os.close(log)
        except OSError as error:
            self.start_error = f"the job could not be started: {error.strerror}"
            return
        started.returncode = 0  # we reap it ourselves; this keeps Popen from warning about a living child
        self.shim = identify(started.pid) or ProcessIdentity(started.pid, "ended", "", "")
        self.shim_is_child = True
        self.started_monotonic = time.monotonic()

    def adopt(self) -> None:
        """Take up a job whose supervisor was killed, from the identities on disk."""
        self.shim_is_child = False
        self.shim = None
        self._read_job()
        started = read(self.folder / "job.json").get("started_at")
        if started:
            self.started_at = str(started)
            self.started_monotonic -= max(0.0, clock.seconds_between(self.started_at, clock.now()))
        present, shim = this_process(), read(self.folder / "job.json").get("shim") or {}
        self.rebooted = bool(shim) and (shim.get("boot"), shim.get("host")) != (present.boot, present.host)

    def _read_job(self) -> None:
        record = read(self.folder / "job.json")
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if record.get("shim") and self.shim is None:
                self.shim = ProcessIdentity.from_json(record["shim"])
            if record.get("cgroup") and self.group is None:
                self.group = Path(record["cgroup"])
            if record.get("job"):
                self.job = ProcessIdentity.from_json(record["job"])
                self.started_at = str(record["started_at"])

    def _find_job(self) -> None:
        """The shim was killed before it wrote who the job is: the job is the oldest process of the tree."""
        self._read_job()
        if self.job is None:
            left = self._members()
            oldest = min(left, key=lambda p: (not p.started.isdigit(), p.started.zfill(20), p.pid), default=None)
            self.job = identify(oldest.pid) if oldest else None

    def over(self) -> bool:
        """Whether the job has ended (its descendants may live on)."""
        self.statuses |= tree.reap(-1 if self.subreaper else self.shim.pid if self.shim_is_child and self.shim else -1)
        if self.start_error:
            return True
        if self.shim is not None:
            alive = self.shim.pid not in self.statuses if self.shim_is_child else is_alive(self.shim)
            if alive:
                return False
            if self._shim_code() == ALREADY_STARTED and not place.seen(self.folder / "job_exit.json"):
                there = place.seen(self.folder)  # if not: it may have been the job's own code
                if there:
                    self.adopt()  # an earlier attempt, thought dead, had just started the job
                if there or self.stop is None:
                    return False
        if place.seen(self.folder / "job_exit.json") or self._shim_code() is not None:
            return True
        if self.job is None:
            self._find_job()
        return self.job is None or self.job.pid in self.statuses or not is_alive(self.job)

    def _shim_code(self) -> int | None:
        """The exit code the shim itself gave, None when it was killed or is not our child."""
        status = self.statuses.get(self.shim.pid) if self.shim else None
        return os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None

    def end(self) -> End:
        """How the job ended, from the first source that knows."""
        record = read(self.folder / "job_exit.json")
        self.statuses |= tree.reap()
        if record:
            return End(record.get("exit_code"), record.get("signal"), record.get("ended_at"), record.get("error"))
        if self.start_error:
            return End(127, error=self.start_error)
        if self.job and self.job.pid in self.statuses:  # the shim was killed; the job was then ours to reap
            code = os.waitstatus_to_exitcode(self.statuses[self.job.pid])
            return End(code) if code >= 0 else End(signal=signal.Signals(-code).name)
        of_shim = self._shim_code()
        never = self.job is None and place.seen(self.folder) and place.seen(self.folder / "job.json") is False
        if of_shim is not None and never:
            return End(127, error="the job could not be started; the end of its log says why")
        return End(of_shim)

    def _members(self, *, spare_shim: bool = False) -> list[tree.Process]:
        """The run's live processes, the shim (if not spared) among them."""
        roots = [identity.pid for identity in (self.shim, self.job) if identity and is_alive(identity)]
        if self.subreaper:
            roots.append(os.getpid())
        spare = [self.shim.pid] if spare_shim and self.shim else []
        return tree.members(roots, self.tag, spare=spare, group=self.group)

    # -- stopping ------------------------------------------------------------------------------------------------------

    def look_for_stop(self) -> None:
        if self.stop is None:
            self.stop = self._stop_due()
            if self.stop:
                self._begin_stop()
        else:
            if self.job and self.job not in self.told:  # it appeared after the stop was begun
                self._tell([tree.Process(self.job.pid, self.job.started, 0)])
            if time.monotonic() >= self.kill_at:
                self.kill_tree()
                self.kill_at = time.monotonic() + KILL_AGAIN_S

    def _find_folder(self) -> None:
        """The run's folder may have been moved, with its whole workspace. Moved alone, to the trash, it was deleted."""
        moved = place.moved_to(self.lock) if place.seen(self.folder) is False else None
        if moved and moved.name == self.folder.name and place.is_whole(moved.parent, self.mark):
            say(f"{self.folder} is now {moved}")
            self.folder = moved
            self.log_cap = LogCap(moved, self.log_cap.cap_bytes, self.log_cap.policy)

    def _stop_due(self) -> Stop | None:
        """The stop that is due now."""
        self._find_folder()
        request = read(self.folder / "stop.json") or self.log_cap.stop_request
        if request:
            return outcome.stop_asked_for(request, clock.now())
        if self.asked_by_signal:
            state = "cancelled" if self.asked_by_signal == "SIGINT" else "preempted"  # INT: by a person, by stop_run
            return Stop(state, f"the supervisor was asked to end ({self.asked_by_signal})", clock.now())
        if place.is_gone(self.folder, self.mark):
            return Stop("cancelled", "its run folder was deleted", clock.now())
        limit = float(self.run.get("time_limit_s") or 0)
        if limit and self.elapsed() > limit:
            return Stop("timed_out", f"the time limit of {limit:g} s was reached", clock.now())
        return None

    def _stop_acted_on(self) -> Stop | None:
        """The stop that was asked for while the job lived, and that a supervisor killed since may have carried out."""
        request = read(self.folder / "stop.json")
        return outcome.stop_asked_for(request, str(request["at"])) if request and request.get("at") else None

    def _begin_stop(self) -> None:
        self.heartbeat.due = 0.0
        self.kill_at = time.monotonic() + float(self.run.get("grace_s", 20.0))
        self._tell(self._members(spare_shim=True))

    def _tell(self, processes: list[tree.Process]) -> None:
        for process in processes:
            if tree.send(process, signal.SIGTERM) and self.job and process.pid == self.job.pid:
                self.told.add(self.job)

    def kill_tree(self) -> None:
        """KILL everything; the shim last, so that it can still tell how the job ended."""
        if self.group:
            cgroup.kill(self.group)
        tree.kill_all(lambda: self._members(spare_shim=True))
        deadline = time.monotonic() + SHIM_WRITES_S
        while self.shim and is_alive(self.shim) and time.monotonic() < deadline:
            time.sleep(tree.KILL_ROUND_S)
        left = tree.kill_all(self._members)
        if left:
            say(f"could not be ended: {[p.pid for p in left]}")

    def end_leftovers(self) -> int:
        """End what the job left behind: TERM, a short grace, KILL. Returns how many processes there were."""
        left = self._members()
        if not left:
            return 0
        for process in left:
            tree.send(process, signal.SIGTERM)
        deadline = time.monotonic() + min(LEFTOVER_GRACE_S, float(self.run.get("grace_s", 20.0)))
        while self._members() and time.monotonic() < deadline:
            time.sleep(tree.KILL_ROUND_S)
            self.statuses |= tree.reap()
        self.kill_tree()
        return len(left)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def elapsed(self) -> float:
        return time.monotonic() - self.started_monotonic

    def beat(self) -> None:
        self.mark = place.mark_beside(self.folder) or self.mark
        state = "stopping" if self.stop else "running" if self.job else "starting"
        job = self.job or self.shim
        record = {
            "state": state,
            "job": job.as_json() if job else None,
            "started_at": self.started_at,
            "elapsed_s": round(self.elapsed(), 3),
        }
        self.memory_kills = (self.memory_kills[1], outcome.memory_kills())
        self.log_cap.hold()
        self.heartbeat.write(self.folder, record)

    def watch(self) -> None:
        """Until the job is over: heartbeat, limits, stop requests. Wakes when a child ends or a signal comes."""
        while not self.over():
            if self.job is None:
                self._read_job()
                self.heartbeat.due = 0.0 if self.job else self.heartbeat.due
            if time.monotonic() >= self.heartbeat.due:
                self.beat()
            self.look_for_stop()
            select.select([self.wake_read], [], [], POLL_S)
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_read, 4096)

    def finish(self) -> None:
        """The job has ended: nothing of its tree is to be left."""
        self.over_at = clock.now()
        self._find_folder()
        self._read_job()
        self.memory_kill = outcome.memory_kills() > self.memory_kills[0]
        self.leftovers = self.end_leftovers()
        if self.group:
            cgroup.remove(self.group)

    def record(self) -> dict[str, Any]:
        """The final record, from what the folder says: it must be there."""
        self._read_job()
        end = self.end()
        started = clock.parse(self.started_at).timestamp()
        seen = Evidence(
            kind=str(self.run.get("kind", "script")),
            summary=outcome.trainer_summary(self.folder, started),
            checkpoint=outcome.has_checkpoint(self.folder),
            memory_kill=self.memory_kill,
            memory_advice=self.run.get("memory_advice"),
            rebooted=self.rebooted,
            exception=outcome.last_exception(self.folder / "train.log"),
        )
        ended_at = end.ended_at or self.over_at
        record = outcome.decide(end, self.stop or self._stop_acted_on(), seen) | {
            "started_at": self.started_at,
            "ended_at": ended_at,
            "elapsed_s": round(max(0.0, clock.seconds_between(self.started_at, ended_at)), 3),
        }
        if self.leftovers:
            record["ended_leftovers"] = self.leftovers
        return record

    def write_exit(self, attempts: int = 10**6) -> bool:
        """Judge how it ended and write that durably: on a full or missing disk again and again.

        False when more attempts may help; True when it is written, or the folder was deleted.
        """
        deadline = time.monotonic() + WRITE_LIMIT_S
        for attempt in range(attempts):
            if attempt:
                time.sleep(WRITE_PAUSES_S[min(attempt, len(WRITE_PAUSES_S)) - 1])
            try:
                self._find_folder()
                if not place.is_there(self.folder):  # nor are summary, checkpoints and log, which tell how it ended
                    raise FileNotFoundError(errno.ENOENT, "the run's folder is not there")
                durable.write_json(self.folder / "exit.json", self.record())
                return True
            except OSError as error:
                if attempt < len(WRITE_PAUSES_S):
                    say(f"exit.json not written: {error}")
                if time.monotonic() > deadline or place.is_gone(self.folder, self.mark):
                    return True
        return False


def main(arguments: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="training.runs.supervisor")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adopt", action="store_true", help="the job was started before: watch it")
    parser.add_argument("--lock", type=int, help="descriptor holding the lock on .supervisor")
    parser.add_argument("--leases", default="", help="descriptors of device leases, for the job to inherit")
    options = parser.parse_args(arguments)
    leases = [int(number) for number in options.leases.split(",") if number]
    for descriptor in [*leases, *([options.lock] if options.lock is not None else [])]:
        os.set_inheritable(descriptor, False)
    try:
        lock = take_lock(options.folder) if options.lock is None else options.lock
    except AlreadySupervised:
        say(f"{options.folder.name} has a supervisor")
        return 3
    if place.seen(options.folder / "exit.json") is not False:  # what cannot be looked at is not begun a second time
        return 0
    supervisor = Supervisor(options.folder, leases, lock)
    if options.adopt or place.seen(options.folder / "job.json") is not False:
        supervisor.adopt()
    else:
        supervisor.start()
    supervisor.watch()
    supervisor.finish()
    for descriptor in leases:
        os.close(descriptor)
    written = supervisor.write_exit(attempts=1)
    wake_others(lease_folder())  # they do not wait for a disk that is full or away
    if not written:
        supervisor.write_exit()
    os.close(lock)
    wake(supervisor.folder, supervisor.run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
