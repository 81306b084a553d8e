"""`lab-mcp demo`: the lab's main job through the real path, with a real MCP client, in a workspace that stays.

Nothing here reaches into the lab: what it shows is what Claude Code would get.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.rule import Rule

from lab_mcp import initialise
from lab_mcp.terminal import console, sparkline
from workspace.errors import LabError
from workspace.layout import Workspace

TRAINING_S = 45
EXPERIMENT: dict[str, Any] = {
    "statement": "A tenth of matrix_lr lowers val_bpb, because smaller steps of the matrices are steadier",
    "change": {"optimizer.matrix_lr": 0.004},
    "metric": "val_bpb",
    "direction": "lower",
    "smallest_effect": 0.01,
    "why": "the loss of the first run jumped up and down from step to step",
    "category": "optimizer",
    "budget_kind": "steps",
    "budget_amount": 24,
}
QUESTIONS = [
    ("did smaller steps of the optimizer help", ["experiment"]),
    ("how large should a model be for a given amount of compute", ["paper"]),
]


class Demo:
    """One demonstration: the workspace, the client, and where to print."""

    def __init__(self, workspace: Workspace, client: Client, console: Console) -> None:
        self.workspace = workspace
        self.client = client
        self.console = console

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """One tool call; the structured result. Raises `LabError` with the tool's words when it is refused."""
        answer = await self.client.call_tool(tool, arguments)
        if answer.is_error or answer.structured_content is None:
            raise LabError(" ".join(getattr(block, "text", "") for block in answer.content) or f"{tool} did not answer")
        return dict(answer.structured_content)

    def say(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.print(Rule(title, align="left", style="cyan"))

    async def hardware(self) -> None:
        self.chapter("What is this machine?  (gpu_status)")
        answer = await self.call("gpu_status")
        self.say(answer["summary"])
        self.say(f"Trains on {answer['backend']}: {answer['backend_reason']}")

    async def train(self, seconds: float) -> dict[str, Any]:
        """Start a run, follow it to its end; its final answer."""
        self.chapter(
            f"Train a language model on real text for {seconds:.0f} s  (start_training, wait_for_run, tail_log)"
        )
        overrides = {"budget.kind": "seconds", "budget.amount": seconds}
        started = await self.call("start_training", name="first run", overrides=overrides)
        run_id = started["run_id"]
        self.say(f"{run_id} {started['state']}: the Python standard library's own sources, nothing downloaded")
        self.say("Preparing: the text is gathered, tokenized, and split into train, validation and audit parts ...")
        answer = await self._follow(run_id)
        if answer["state"] != "succeeded":
            raise LabError(f"{run_id} ended as {answer['state']}: {answer.get('reason') or answer['last_lines']}")
        return answer

    async def _follow(self, run_id: str) -> dict[str, Any]:
        """Progress bar and, every few seconds, a line of the log as it is written."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(30),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        cursor, shown_at = 0, 0.0
        with Progress(*columns, console=self.console) as bars:
            bar = bars.add_task(run_id, total=1.0, text="starting")
            while True:
                answer = await self.call("wait_for_run", run_id=run_id, timeout_s=1)
                progress = answer.get("progress") or {}
                loss = "" if progress.get("loss") is None else f"loss {progress['loss']:.3f}"
                bars.update(bar, completed=progress.get("fraction") or 0.0, text=loss or answer["state"])
                page = await self.call("tail_log", run_id=run_id, cursor=cursor, lines=400)
                cursor = page["next_cursor"]
                steps = [line for line in page["lines"] if line.startswith("Step ")]
                if steps and time.monotonic() - shown_at > 8:
                    shown_at = time.monotonic()
                    bars.console.print(escape(steps[-1]), style="dim")
                if answer["ended"]:
                    bars.update(bar, completed=1.0)
                    return answer

    async def result(self, answer: dict[str, Any]) -> None:
        self.chapter("What came out  (list_runs)")
        run_id = answer["run_id"]
        listed = await self.call("list_runs", run_id=run_id)
        curve = listed["detail"]["curve"]
        column = curve["columns"].index("loss")
        losses = [row[column] for row in curve["rows"] if row[column] is not None]
        summary = answer["summary"]
        if len(losses) > 1:
            self.say(f"loss            {losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}")
        self.say(f"val_bpb         {summary['val_bpb']:.4f} bits per byte, on text it has never seen")
        self.say(f"steps, tokens   {summary['steps']}, {summary['tokens']:,} ({summary['tokens_per_s']:,.0f} tokens/s)")
        self.say(f"a sample        {' '.join(str(summary['sample']).split())[:240]}")

    def folder(self, run_id: str) -> None:
        self.chapter("Where everything lies")
        folder = self.workspace.run_dir(run_id)
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("."):
                size = sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else path.stat().st_size
                self.say(f"  {os.path.relpath(path):44} {size:>12,} bytes")

    async def note(self, run: dict[str, Any]) -> None:
        self.chapter("Write down why  (write_session_note)")
        bpb = run["summary"]["val_bpb"]
        notes = [
            ("Objective", "See what the lab does on this machine, from an untrained model to a judged experiment."),
            (
                "Analysis",
                f"{run['run_id']} reached {bpb:.3f} bits per byte; a short run, so the schedule matters a lot.",
            ),
        ]
        for section, text in notes:
            answer = await self.call("write_session_note", section=section, text=text, runs=[run["run_id"]])
            self.say(f"{section}: {text}")
        self.say(f"in {answer['page']}")

    async def experiment(self) -> dict[str, Any]:
        self.chapter("Test an idea properly  (propose_and_run_experiment)")
        proposed = await self.call("propose_and_run_experiment", **EXPERIMENT)
        experiment = proposed["experiment_id"]
        self.say(f"{experiment}: {EXPERIMENT['statement']}.")
        self.say("Frozen; now preflight, a test run, and the change against the present recipe, each several times ...")
        columns = (TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[text]}"))
        with Progress(*columns, console=self.console) as bars:
            bar = bars.add_task(experiment, total=1.0, text="proposed")

            async def show(progress: float, total: float | None, message: str | None) -> None:
                bars.update(bar, completed=progress, text=message or "")

            arguments = {"experiment_id": experiment, "wait_s": 20}
            while True:
                answer = await self.client.call_tool("list_experiments", arguments, progress_callback=show)
                assert answer.structured_content is not None
                found: dict[str, Any] = answer.structured_content["experiments"][0]
                if found["state"] == "done":
                    bars.update(bar, completed=1.0, text="done")
                    break
        self.say(found["sentence"])
        return found

    async def search(self, experiment: str) -> None:
        self.chapter("Has this been tried? What do papers say?  (rag_search)")
        for query, kinds in QUESTIONS:
            self.say(f"? {query}")
            for _ in range(10):  # an experiment is found within two seconds of its verdict
                hits = (await self.call("rag_search", query=query, kinds=kinds, limit=2))["hits"]
                if "experiment" not in kinds or any(hit["id"] == experiment for hit in hits):
                    break
                await anyio.sleep(0.3)
            for hit in hits:
                self.say(f"  {hit['title']}  [{hit['source']}]")
                self.say(f"    \u201c{hit['quote'][:200]}\u201d")

    def records(self) -> None:
        self.chapter("What it wrote  (results.tsv, docs/sessions/)")
        for line in self.workspace.results_file.read_text(encoding="utf-8").splitlines():
            self.say("  " + " | ".join(line.split("\t")[:8]))
        page = max(self.workspace.sessions_dir.glob("*.md"), key=lambda path: path.stat().st_mtime)
        self.say(f"The notebook page, {os.path.relpath(page)}, begins:")
        for line in page.read_text(encoding="utf-8").splitlines()[:14]:
            self.say("  " + line)


def _first(group: BaseExceptionGroup[LabError]) -> BaseException:
    """The refusal itself, out of the task groups of the client's streams."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _run(workspace: Workspace, console: Console, seconds: float) -> None:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-P", "-m", "lab_mcp", "mcp"],
        env={**os.environ, "LAB_WORKSPACE": str(workspace.root)},
    )
    async with Client(stdio_client(server)) as client:
        demo = Demo(workspace, client, console)
        await demo.hardware()
        answer = await demo.train(seconds)
        await demo.result(answer)
        await demo.note(answer)
        experiment = await demo.experiment()
        await demo.search(experiment["experiment_id"])
        demo.records()
        demo.folder(answer["run_id"])


def main(directory: Path, *, seconds: float = TRAINING_S) -> None:
    """Make (or reuse) a workspace in `directory` and show the lab at work in it."""
    started = time.monotonic()
    report = initialise.init(directory)
    console.print(escape(f"Workspace: {report.root} ({'new' if report.changed else 'as it was'})"))
    try:
        anyio.run(_run, Workspace(Path(report.root)), console, seconds)
    except* LabError as group:
        raise _first(group) from None
    console.print()
    console.print(escape(f"Done in {time.monotonic() - started:.0f} s. Look around: cd {os.path.relpath(report.root)}"))
    console.print(escape(f"For Claude Code: {report.register_command}"))
