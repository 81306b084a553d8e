"""How long an assistant waits: cold start, warm calls, large logs.

python benchmarks/latency.py [--write]     --write also replaces the section in docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from conversation import ERAS, Conversation, bridge_command, environment
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from report import machine, write_section

from lab_mcp import compose, initialise
from tools.tool import Caller
from workspace.layout import Workspace

COLD_STARTS, WARM_CALLS, UNTIMED = 10, 400, 20
Figures = dict[str, float]


def shut_down(workspace: Workspace) -> None:
    command = [sys.executable, "-P", "-m", "lab_mcp", "shutdown", "--workspace", str(workspace.root)]
    subprocess.run(command, check=True, capture_output=True)


def cold_start(workspace: Workspace, era: str, *, first: bool = True) -> tuple[float, float]:
    """Seconds from starting `lab-mcp mcp`, no service alive, to its first answer and to the list of tools.

    The `first` start in a workspace has no greeting that the bridge could give from memory.
    """
    shut_down(workspace)
    if first:
        (workspace.cache_dir / "greeting.json").unlink(missing_ok=True)
    started = time.perf_counter()
    with Conversation(workspace, era) as lab:
        replied = time.perf_counter() - started
        lab.request("tools/list", {})
        return replied, time.perf_counter() - started


def import_sdk() -> float:
    """Seconds of a process that only imports what any server made with the SDK imports."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-s", "-c", "import mcp.server, uvicorn"], check=True)
    return time.perf_counter() - started


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(seconds: list[float]) -> Figures:
    return {
        "p50_ms": round(statistics.median(seconds) * 1000, 2),
        "p99_ms": round(percentile(seconds, 0.99) * 1000, 2),
        "max_ms": round(max(seconds) * 1000, 2),
    }


def timed(call: Callable[[], object], calls: int) -> Figures:
    for _ in range(min(UNTIMED, calls)):
        call()
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return summary(seconds)


def warm(workspace: Workspace) -> dict[str, Figures]:
    results = {}
    for era in ERAS:
        with Conversation(workspace, era) as lab:
            time.sleep(6)  # the service has brought up its memory by then
            results[f"gpu_status, warm, {era}"] = timed(lambda lab=lab: lab.call("gpu_status"), WARM_CALLS)  # type: ignore[misc]
    results["the same with the Python SDK's client"] = anyio.run(with_the_sdk, workspace)
    return results


async def with_the_sdk(workspace: Workspace) -> Figures:
    program, *arguments = bridge_command()
    server = StdioServerParameters(command=program, args=arguments, env=environment(workspace))
    async with Client(stdio_client(server)) as client:
        seconds = []
        for number in range(UNTIMED + WARM_CALLS):
            started = time.perf_counter()
            await client.call_tool("gpu_status", {})
            if number >= UNTIMED:
                seconds.append(time.perf_counter() - started)
        return summary(seconds)


def lists_and_logs(workspace: Workspace) -> dict[str, Figures]:
    (workspace.root / "lines.py").write_text(
        "for i in range(100): print(f'Step {i} | Loss: 3.1415 | a line of a usual log')\n"
    )
    results = {}
    with Conversation(workspace) as lab:
        run_id = lab.call("start_training", script="lines.py")["run_id"]
        lab.call("wait_for_run", run_id=run_id)
        results["list_runs, warm"] = timed(lambda: lab.call("list_runs"), WARM_CALLS)
        log = workspace.run_dir(run_id) / "train.log"
        small = log.read_bytes() * 2
        for name, size in (("10 kB", 10_000), ("10 GB", 10_000_000_000)):
            with log.open("wb") as file:
                file.truncate(size - len(small))  # a sparse head: the size without the disk
                file.seek(0, os.SEEK_END)
                file.write(small)
            results[f"tail_log, {name} log"] = timed(lambda: lab.call("tail_log", run_id=run_id, lines=50), 100)
        results["tail_log with a filter, 10 GB log"] = timed(
            lambda: lab.call("tail_log", run_id=run_id, contains="no such line"), 20
        )
    return results


async def alone(workspace: Workspace) -> Figures:
    """gpu_status without bridge, HTTP and protocol: what the tool itself takes."""
    lab, tools = compose.build_lab(workspace, {}), compose.all_tools()
    compose.start(lab)
    seconds = []
    for number in range(UNTIMED + WARM_CALLS):
        started = time.perf_counter()
        await tools.call(lab, "gpu_status", {}, Caller("bench"))
        if number >= UNTIMED:
            seconds.append(time.perf_counter() - started)
    compose.stop(lab)
    return summary(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--note", default="", help="what else the machine was doing, for the text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(initialise.init(Path(folder) / "lab").root))
        results: dict[str, Figures] = {}
        for era in ERAS:
            cold = [cold_start(workspace, era) for _ in range(COLD_STARTS)]
            results[f"cold start to first reply, {era}"] = summary([replied for replied, _ in cold])
            results[f"cold start to the list of tools, {era}"] = summary([listed for _, listed in cold])
        again = [cold_start(workspace, ERAS[1], first=False) for _ in range(COLD_STARTS)]
        results[f"every later cold start to first reply, {ERAS[1]}"] = summary([replied for replied, _ in again])
        results["importing the MCP SDK's server and nothing else"] = summary([import_sdk() for _ in range(COLD_STARTS)])
        results |= warm(workspace)
        results |= lists_and_logs(workspace)
        shut_down(workspace)
        results["gpu_status, the tool alone"] = anyio.run(alone, workspace)
    lines = ["| what | p50 ms | p99 ms | slowest ms |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {r['p50_ms']} | {r['p99_ms']} | {r['max_ms']} |" for name, r in results.items()]
    text = (
        f"Measured {machine()}{options.note and ', ' + options.note}. Through the stdio bridge, from the line that is "
        "written to the line that is read; a client's own work comes on top, as the row of the Python SDK's shows.\n\n"
        + "\n".join(lines)
    )
    print(text)
    print(json.dumps(results))
    if options.write:
        write_section("Latency", "python benchmarks/latency.py", text)


if __name__ == "__main__":
    main()
