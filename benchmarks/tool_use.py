"""How well a model uses the lab: the thirty tasks of tests/tool_use_tasks.py, and what schemas and answers cost.

    python benchmarks/tool_use.py                 characters and tokens of the schemas and of typical answers
    python benchmarks/tool_use.py --load          the same after three conversations at once and 4,000 random calls
    python benchmarks/tool_use.py --model NAME    plays every task with Claude Code and that model, too

The last needs the `claude` program and ANTHROPIC_API_KEY; it costs money. A task counts when its end state is
reached.
Tokens are estimated as characters / 4, except the model's own, which Claude Code reports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from report import machine, write_section
from tests_support import end_all
from tool_use_tasks import TASKS, Task

from lab_mcp import compose, connection
from lab_mcp.initialise import init
from workspace.layout import Workspace

LIMIT_S = 600.0  # of one task
TITLE = "Tool use"


def characters(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def schemas() -> list[tuple[str, int]]:
    """Characters of name, description and input schema, per tool and together."""
    each = [
        (
            tool.name,
            characters({"name": tool.name, "description": tool.description, "inputSchema": tool.input_schema()}),
        )
        for tool in compose.all_tools()
    ]
    return [*each, ("all", sum(size for _, size in each))]


def served(root: Path) -> Workspace:
    """A workspace with a running service."""
    workspace = Workspace(Path(init(root).root))
    connection.ensure_service(workspace)
    return workspace


def call(workspace: Workspace, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    endpoint = connection.ensure_service(workspace)
    answer: dict[str, Any] = connection.request(endpoint, "POST", f"/api/tools/{tool}", arguments)
    return answer


def answers() -> list[tuple[str, int]]:
    """Characters of typical answers, in a lab with one short run of the recipe and a few notes."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = served(Path(folder) / "lab")
        try:
            small = {"budget.kind": "steps", "budget.amount": 4, "model.depth": 1, "data.vocab_size": 512}
            call(workspace, "start_training", {"overrides": small})
            while not call(workspace, "wait_for_run", {"run_id": "run-0001"})["ended"]:
                pass
            for section in ("Objective", "Results", "Next steps"):
                call(workspace, "write_session_note", {"section": section, "text": "Depth 1 trains in seconds."})
            asked: list[tuple[str, dict[str, Any]]] = [
                ("gpu_status", {}),
                ("service_status", {}),
                ("list_runs", {}),
                ("list_runs", {"run_id": "run-0001"}),
                ("wait_for_run", {"run_id": "run-0001"}),
                ("tail_log", {"run_id": "run-0001"}),
                ("lab_overview", {}),
                ("list_experiments", {}),
                ("run_campaign", {}),
                ("rag_search", {"query": "how much data for a model of a given size"}),
            ]
            return [
                (
                    tool + (" of one run" if arguments and tool == "list_runs" else ""),
                    characters(call(workspace, tool, arguments)),
                )
                for tool, arguments in asked
            ]
        finally:
            end_all(workspace.root)


LOAD = {
    "test_conversations.py": "three conversations at once, 340 calls each: errors, mixed up or lost answers",
    "test_random_calls.py": "2,000 calls that break the schemas and 2,000 that fit them: tracebacks, hangs, files "
    "outside the workspace, restarts of the service",
}


def load() -> list[str]:
    """Plays the load tests; a row for each, which is there only when the test found nothing."""
    rows = ["", "| under load | found |", "|---|---:|"]
    root = Path(__file__).resolve().parent.parent
    for file, what in LOAD.items():
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-n", "0", "-m", "slow", f"tests/app/{file}"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{file} failed:\n{done.stdout[-4000:]}")
        rows.append(f"| {what} | 0 |")
    return rows


def play(task: Task, program: str, model: str) -> dict[str, Any]:
    """One task with a real model: reached, turns, tokens, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = served(Path(folder) / "lab")
        try:
            for name, text in (task.files or {}).items():
                (workspace.root / name).write_text(text)
            for step in task.before:
                call(workspace, step.tool, step.arguments)
            began = time.monotonic()
            done = subprocess.run(
                [
                    program,
                    "-p",
                    task.request,
                    "--model",
                    model,
                    "--allowedTools",
                    "mcp__lab",
                    "--output-format",
                    "json",
                ],
                cwd=workspace.root,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            said = json.loads(done.stdout) if done.stdout.startswith("{") else {}
            usage = said.get("usage", {})
            connection.request(connection.ensure_service(workspace), "POST", "/api/shutdown")
            time.sleep(1)
            lab = compose.build_lab(workspace, {"pid": 0, "url": "", "started_at": "", "version": "0"})
            try:
                reached = task.done(lab)
            finally:
                compose.stop(lab)
            return {
                "task": task.name,
                "reached": reached,
                "turns": said.get("num_turns"),
                "input_tokens": sum(v for k, v in usage.items() if k.endswith("input_tokens") and isinstance(v, int)),
                "output_tokens": usage.get("output_tokens"),
                "seconds": round(time.monotonic() - began, 1),
            }
        finally:
            end_all(workspace.root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="play the tasks with this model, through Claude Code")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    parser.add_argument("--load", action="store_true", help="play the load tests, too (minutes)")
    options = parser.parse_args()
    sizes = [("schema", *row) for row in schemas()] + [("answer", *row) for row in answers()]
    lines = [f"Measured {machine()}. Tokens are characters / 4.", "", "| | characters | tokens |", "|---|---:|---:|"]
    lines += [f"| {kind} {name} | {size:,} | {size // 4:,} |" for kind, name, size in sizes]
    lines += load() if options.load else []
    played = []
    if options.model:
        program = shutil.which("claude")
        if program is None or not os.environ.get("ANTHROPIC_API_KEY"):
            sys.exit("playing the tasks needs the claude program on PATH and ANTHROPIC_API_KEY")
        for task in TASKS:
            played.append(play(task, program, options.model))
            print(json.dumps(played[-1]), flush=True)
        reached = sum(row["reached"] for row in played)
        lines += ["", f"{options.model}: {reached} of {len(played)} tasks reached their end state, "]
        lines[-1] += f"{sum(row['turns'] or 0 for row in played) / len(played):.1f} turns each."
    text = "\n".join(lines)
    print(text)
    print(json.dumps({"sizes": sizes, "played": played}))
    if options.write:
        write_section(TITLE, f"python benchmarks/tool_use.py{' --load' if options.load else ''}", text)


if __name__ == "__main__":
    main()
