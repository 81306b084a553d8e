"""Random kills against an oracle: a real service with real runs, in which things are killed -9 at random moments.

A round is one moment in the life of one run (its start, its running, a checkpoint, its end) at which some of its
supervisor, shim and job, the service and the keeper are killed, or the run is stopped as well. Rounds come in batches
that share a service, so that runs also suffer from what was meant for others. The jobs write down by themselves what
they did, outside their run folders; from that and from what was killed the oracle says how a run may have ended.

    kill_rounds.run(folder, rounds=20, seed=7)     AssertionError names the seed and everything that may not be
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests_support import TINY, end_all, processes_of

from lab_mcp import connection
from lab_mcp.initialise import init
from training.runs import tree
from training.runs.leases import Leases
from training.runs.place import FOLDER_VARIABLE
from workspace import durable
from workspace.errors import LabError
from workspace.layout import Workspace
from workspace.process import TAG_VARIABLE, start_time

BATCH = 10  # rounds that share a workspace and a service
PATIENCE_S = 300.0  # a hang, not a measure: other programs may take the whole machine for minutes
MARGIN_S = 0.1  # between what is killed and what is written on another core
OWN = ("supervisor", "shim", "job")
VICTIMS = [
    "supervisor", "supervisor", "shim", "job", "service", "service keeper", "supervisor job", "supervisor shim",
    "supervisor shim job", "supervisor service", "job service", "shim service keeper",
    "supervisor shim job service keeper", "stop", "stop supervisor", "stop service", "",
]  # fmt: skip
MOMENTS = ["start", "run", "checkpoint", "end"]
JOB = """
import os, sys, time
log, length, code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
def say(what):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, f"{what} {time.monotonic()}\\n".encode())
    os.close(descriptor)
say("started")
if os.fork() == 0:  # what a run leaves behind must not stay
    os.setsid()
    time.sleep(600)
for number in range(3):
    time.sleep(length / 3)
    say("checkpoint")
say("finished")
sys.exit(code)
"""


@dataclass
class Run:
    """One run: what is asked of it, what was done to it, and what it says of itself."""

    key: str
    trainer: bool
    length: float
    code: int
    moments: list[str]
    victims: list[list[str]]
    jitter: list[float]
    truth: Path
    id: str = ""
    killed: list[tuple[str, float, bool]] = field(default_factory=list)  # victim, monotonic s, its shim was there
    stopped: bool = False

    def says(self, what: str) -> list[float]:
        """When the job wrote down this."""
        with contextlib.suppress(FileNotFoundError):
            lines = (line.split() for line in self.truth.read_text().splitlines())
            return [float(words[1]) for words in lines if len(words) == 2 and words[0] == what]
        return []

    def when(self, victim: str, *, with_shim: bool = False) -> list[float]:
        return [at for name, at, shim in self.killed if name == victim and (shim or not with_shim)]

    def __str__(self) -> str:
        kind = "trainer" if self.trainer else f"script of {self.length:.2f} s, exit {self.code}"
        return f"{self.id or self.key} ({kind}; {list(zip(self.moments, self.victims, strict=True))}; {self.killed})"


def plan(chance: random.Random, folder: Path, rounds: int, batch: int) -> list[Run]:
    """Runs with `rounds` moments among them; the first is a run of the lab's own trainer."""
    runs: list[Run] = []
    while rounds:
        events = min(rounds, chance.choice([1, 1, 2]))
        rounds -= events
        trainer = not runs
        key = f"batch-{batch}-run-{len(runs)}"
        runs.append(
            Run(
                key=key,
                trainer=trainer,
                length=chance.uniform(0.1, 2.5),
                code=chance.choice([0, 0, 0, 3]),
                moments=sorted((chance.choice(MOMENTS) for _ in range(events)), key=MOMENTS.index),
                victims=[chance.choice(VICTIMS).split() for _ in range(events)],
                jitter=[chance.choice([0.0, 0.005, 0.03, 0.1, 0.3]) * chance.random() for _ in range(events)],
                truth=folder / f"{key}.txt",
            )
        )
    return runs


class Batch:
    """A workspace with a service, its runs, and one thread for each of them."""

    def __init__(self, folder: Path, runs: list[Run]) -> None:
        self.workspace = Workspace(Path(init(folder / "lab").root))
        (self.workspace.root / "job.py").write_text(JOB)
        settings = "[runs]\nmax_concurrent = 3\ngrace_seconds = 1.0\n"
        self.workspace.settings_file.write_text(settings)
        self.runs = runs
        self.kills: Counter[str] = Counter()
        self.trouble: list[str] = []
        self.stops: list[threading.Thread] = []

    def ask(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """As a client does: again, with a service that came back, until there is an answer."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                endpoint = connection.ensure_service(self.workspace)
                return dict(connection.request(endpoint, "POST", f"/api/tools/{tool}", arguments))
            except (OSError, http.client.HTTPException, LabError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def live(self, run: Run) -> bool:
        """Whether the start was answered and the run has not ended."""
        return bool(run.id) and not (self.workspace.run_dir(run.id) / "exit.json").exists()

    # -- one run -------------------------------------------------------------------------------------------------------

    def follow(self, run: Run) -> None:
        try:
            if run.moments[0] == "start":  # also while the call that starts it is being answered
                threading.Thread(target=self._strike_early, args=(run,), daemon=True).start()
            self._start(run)
            for number, moment in enumerate(run.moments):
                if not (number == 0 and moment == "start"):
                    self._await(run, moment)
                    time.sleep(run.jitter[number])
                    self._strike(run, run.victims[number])
        except Exception as error:  # noqa: BLE001  told with the seed
            self.trouble.append(f"{run}: {type(error).__name__}: {error}")

    def _start(self, run: Run) -> None:
        wish: dict[str, Any] = {"idempotency_key": run.key, "name": run.key}
        if run.trainer:
            budget = {"budget.kind": "steps", "budget.amount": 40, "checkpoint.every_seconds": 0.1}
            wish["overrides"] = TINY | budget
        else:
            wish |= {"script": "job.py", "args": [str(run.truth), str(run.length), str(run.code)]}
        run.id = self.ask("start_training", **wish)["run_id"]

    def _strike_early(self, run: Run) -> None:
        time.sleep(run.jitter[0] * 3)
        self._strike(run, run.victims[0])

    def _await(self, run: Run, moment: str) -> None:
        """Until the moment has come, or the run is over."""
        deadline = time.monotonic() + PATIENCE_S
        while self.live(run) and not self._has_come(run, moment) and time.monotonic() < deadline:
            time.sleep(0.003)

    def _has_come(self, run: Run, moment: str) -> bool:
        folder = self.workspace.run_dir(run.id)
        if moment in ("start", "run"):
            return (
                (folder / "job.json").exists()
                if moment == "start"
                else (folder / "metrics.jsonl").exists() or bool(run.says("started"))
            )
        if run.trainer:
            if moment == "end":
                return (folder / "summary.json").exists()
            with contextlib.suppress(FileNotFoundError):
                return any((folder / "checkpoints").iterdir())
            return False
        return bool(run.says("checkpoint" if moment == "checkpoint" else "finished"))

    def _strike(self, run: Run, victims: list[str]) -> None:
        found = self._find(run)
        if "stop" in victims and run.id:
            run.stopped = True
            stop = threading.Thread(target=self.ask, args=("stop_run",), kwargs={"run_id": run.id}, daemon=True)
            stop.start()
            self.stops.append(stop)
        for victim in victims:
            for pid in found.get(victim, ()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    run.killed.append((victim, time.monotonic(), "shim" in found))
                    self.kills[victim] += 1

    def _find(self, run: Run) -> dict[str, list[int]]:
        """The pids of what can be killed now, by role."""
        found: dict[str, list[int]] = {}
        root, folder = str(self.workspace.root), f"{self.workspace.root}/runs/{run.id}"
        for pid, words in _commands():
            if root not in " ".join(words):
                continue
            role = None
            if "lab_mcp.service" in words or "lab_mcp.keeper" in words:
                role = "service" if "lab_mcp.service" in words else "keeper"
            elif run.id and folder in words and "training.runs.supervisor" in words:
                role = "supervisor"
            elif run.id and folder in words and any(word.endswith("shim.py") for word in words):
                role = "shim"
            elif words[-1:] == [folder] and "training.train" in words:
                role = "job"
            if role:
                found.setdefault(role, []).append(pid)
        job = _read(self.workspace.run_dir(run.id) / "job.json").get("job") if run.id else None
        if job and start_time(job["pid"]) == job["started"]:
            found["job"] = [job["pid"]]
        return found

    # -- all of them ---------------------------------------------------------------------------------------------------

    def play(self, chance: random.Random) -> None:
        self.ask("gpu_status")
        threads = [threading.Thread(target=self.follow, args=(run,), daemon=True) for run in self.runs]
        for thread in threads:
            thread.start()
            time.sleep(chance.random() * 0.3)
        deadline = time.monotonic() + PATIENCE_S
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            self.ask("gpu_status")  # when service and keeper are both gone, the next client brings them back
            time.sleep(0.2)
        while (left := self.ask("list_runs", state="live", limit=50)["runs"]) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.trouble += [f"has not ended: {run['run_id']} {run['state']} {run.get('waiting_for')}" for run in left]
        for stop in self.stops:  # one that is still asking would bring back the service that `close` ends
            stop.join(PATIENCE_S)

    def judge(self) -> None:
        """Everything that may not be, into `trouble`."""
        listed = {view["name"]: view for view in self.ask("list_runs", limit=50)["runs"]}
        total = self.ask("list_runs", limit=1)["total"]
        folders = [path.name for path in self.workspace.runs_dir.glob("run-*")]
        if not total == len(listed) == len(folders) == len(self.runs):
            self.trouble.append(f"{len(self.runs)} runs were started; {total} are listed, folders: {sorted(folders)}")
        for run in self.runs:
            view = listed.get(run.key)
            if view is None:
                self.trouble.append(f"lost from the list: {run}")
                continue
            self._judge_run(run, view)
        with contextlib.closing(sqlite3.connect(f"file:{self.workspace.database_file}?mode=ro", uri=True)) as database:
            told = Counter(database.execute("SELECT topic, payload FROM outbox WHERE topic LIKE 'run.%'").fetchall())
        self.trouble += [f"told {count} times: {what}" for what, count in told.items() if count > 1]
        ended = sum(topic == "run.ended" for topic, _ in told)
        if ended != len(self.runs):
            self.trouble.append(f"{ended} ends were told of {len(self.runs)} runs")

    def _judge_run(self, run: Run, view: dict[str, Any]) -> None:
        folder = self.workspace.run_dir(view["run_id"])
        final = _read(folder / "exit.json")
        got = (view["state"], view.get("failure_class"), view.get("exit_code"))
        if got != (final.get("state"), final.get("class"), final.get("exit_code")):
            self.trouble.append(f"{run}: listed as {got}, its folder says {final}")
        if len(run.says("started")) > 1:
            self.trouble.append(f"ran {len(run.says('started'))} times: {run}")
        allowed = oracle(run, folder)
        if got not in allowed:
            self.trouble.append(
                f"{run}: ended as {got} ({view.get('reason')}), the oracle says {sorted(allowed, key=str)}"
            )
        self.trouble += [f"torn: {run.key}/{name}" for name in torn(folder)]
        tag = _read(folder / "run.json").get("environment", {}).get(TAG_VARIABLE, "")
        if left := tree.members((), tag):
            self.trouble.append(f"left behind by {run}: {left}")

    def close(self) -> None:
        """Shut the service down; nothing may be left."""
        endpoint = connection.ensure_service(self.workspace)
        connection.request(endpoint, "POST", "/api/shutdown", {})
        deadline = time.monotonic() + 30
        while (left := processes_of(self.workspace.root)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.trouble.append(f"process left: {process.pid} {process.cmdline()}")
        if left:
            self.trouble += self.workspace.service_log.read_text()[-3000:].splitlines()
        self.trouble += [f"lease left: {holder}" for holder in Leases().holders().values()]


def oracle(run: Run, folder: Path) -> set[tuple[str, str | None, int | None]]:
    """(state, class, exit code) a run may have ended with, from what was done to it and what it wrote down itself."""
    shim, supervisor, job = run.when("shim"), run.when("supervisor"), run.when("job")
    finished = run.says("finished")
    allowed: set[tuple[str, str | None, int | None]] = set()
    if run.trainer:
        complete = _read(folder / "summary.json").get("state") == "succeeded"
        natural: tuple[str, str | None, int | None] = ("succeeded", None, 0)
        over = complete or not (job or run.stopped)
    else:
        complete = False  # a script's files prove nothing
        natural = ("succeeded", None, 0) if run.code == 0 else ("failed", "exit", run.code)
        over = bool(finished)
    if over:
        allowed.add(natural)
    if job:
        allowed.add(("failed", "signal", None))
    if run.stopped:
        allowed |= {("cancelled", None, code) for code in (None, 0, 3, 75)}
    if shim and (supervisor or not run.says("started")):  # nobody may have seen how it ended
        unseen = unknown_end(run, folder, complete)
        ends = job or finished
        witnesses = [*shim, *run.when("supervisor", with_shim=True)]
        blind = ends and run.when("supervisor", with_shim=True) and not run.stopped
        if blind and min(ends) > max(witnesses) + (0 if job else MARGIN_S):
            return {unseen}  # it ended when none of those who would know was left
        allowed.add(unseen)
    return allowed


def unknown_end(run: Run, folder: Path, complete: bool) -> tuple[str, str | None, int | None]:
    """What must be said of a run whose end nobody saw."""
    if run.trainer and complete:
        return ("succeeded", None, None)
    checkpoints = folder / "checkpoints"
    if run.trainer and checkpoints.is_dir() and any(p.name.startswith("step-") for p in checkpoints.iterdir()):
        return ("preempted", None, None)
    return ("lost", None, None)


def torn(folder: Path) -> list[str]:
    """JSON files of a run folder that are not whole; of JSONL every line but the last must be."""
    found = []
    for path in folder.rglob("*.json*"):
        lines = path.read_text().splitlines()[:-1] if path.suffix == ".jsonl" else [path.read_text()]
        try:
            for line in lines:
                json.loads(line)
        except ValueError:
            found.append(path.name)
    return found


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(durable.read_json(path) or {})  # type: ignore[call-overload]
    return {}


def _commands() -> list[tuple[int, list[str]]]:
    """Every process of this machine with its command."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
                found.append((int(name), words))
    return found


def run(folder: Path, rounds: int, seed: int, batches: range | None = None) -> list[dict[str, Any]]:
    """Play `rounds` rounds (or only some batches of them); figures of each batch.

    AssertionError with everything that contradicts the oracle.
    """
    trouble: list[str] = []
    figures = []
    for number in batches or range(-(-rounds // BATCH)):
        found = play_batch(folder / f"batch-{number}", min(BATCH, rounds - number * BATCH), seed, number)
        print(*found["trouble"], sep="\n", flush=True)
        trouble += found.pop("trouble")
        figures.append(found)
        print(found, flush=True)
    assert not trouble, "\n".join(trouble)
    return figures


def play_batch(place: Path, rounds: int, seed: int, number: int) -> dict[str, Any]:
    """One batch: a workspace and leases of its own; figures, and under `trouble` what may not be."""
    chance = random.Random(f"{seed}/{number}")
    place.mkdir()
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(place / "leases"))
        batch = Batch(place, plan(chance, place, rounds, number))
        try:
            batch.play(chance)
            batch.judge()
            batch.close()
        finally:
            end_all(batch.workspace.root)
    return {
        "seed": seed, "batch": number, "rounds": rounds, "runs": len(batch.runs), "killed": dict(batch.kills),
        "seconds": round(time.monotonic() - began, 1),
        "trouble": [f"seed {seed}, batch {number}: {text}" for text in batch.trouble],
    }  # fmt: skip
