"""How long an assistant waits: cold start, warm calls, large logs. Writes a table and latency.json beside it.

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
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from report import machine, write_section

from lab_mcp import initialise
from workspace.layout import Workspace

COLD_STARTS, WARM_CALLS = 5, 300
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}},
}
DISCOVER = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "server/discover",
    "params": {
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    },
}


def bridge_command() -> list[str]:
    return [sys.executable, "-P", "-m", "lab_mcp", "mcp"]


def environment(workspace: Workspace) -> dict[str, str]:
    return {**os.environ, "LAB_WORKSPACE": str(workspace.root)}


def first_reply(workspace: Workspace, message: dict[str, Any]) -> float:
    """Seconds from starting `lab-mcp mcp` (no service alive) to its first answer."""
    subprocess.run(
        [sys.executable, "-P", "-m", "lab_mcp", "shutdown"], env=environment(workspace), check=True, capture_output=True
    )
    started = time.perf_counter()
    bridge = subprocess.Popen(
        bridge_command(), env=environment(workspace), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert bridge.stdin is not None and bridge.stdout is not None
    bridge.stdin.write(json.dumps(message).encode() + b"\n")
    bridge.stdin.flush()
    answer = json.loads(bridge.stdout.readline())
    elapsed = time.perf_counter() - started
    assert "result" in answer, answer
    bridge.stdin.close()
    bridge.wait()
    return elapsed


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(seconds: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(seconds) * 1000, 2),
        "p99_ms": round(percentile(seconds, 0.99) * 1000, 2),
        "max_ms": round(max(seconds) * 1000, 2),
    }


async def timed(client: Client, tool: str, arguments: dict[str, Any], calls: int) -> dict[str, float]:
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        answer = await client.call_tool(tool, arguments)
        seconds.append(time.perf_counter() - started)
        assert not answer.is_error, answer.content
    return summary(seconds)


async def warm(workspace: Workspace) -> dict[str, dict[str, float]]:
    (workspace.root / "lines.py").write_text(
        "for i in range(100): print(f'Step {i} | Loss: 3.1415 | a line of a usual log')\n"
    )
    results = {}
    async with Client(
        stdio_client(
            StdioServerParameters(command=bridge_command()[0], args=bridge_command()[1:], env=environment(workspace))
        )
    ) as client:
        run_id = (await client.call_tool("start_training", {"script": "lines.py"})).structured_content["run_id"]
        await client.call_tool("wait_for_run", {"run_id": run_id})
        results["gpu_status, warm"] = await timed(client, "gpu_status", {}, WARM_CALLS)
        results["list_runs, warm"] = await timed(client, "list_runs", {}, WARM_CALLS)
        log = workspace.run_dir(run_id) / "train.log"
        small = log.read_bytes() * 2
        for name, size in (("10 kB", 10_000), ("10 GB", 10_000_000_000)):
            with log.open("wb") as file:
                file.truncate(size - len(small))  # a sparse head: the size without the disk
                file.seek(0, os.SEEK_END)
                file.write(small)
            results[f"tail_log, {name} log"] = await timed(client, "tail_log", {"run_id": run_id, "lines": 50}, 100)
        results["tail_log with a filter, 10 GB log"] = await timed(
            client, "tail_log", {"run_id": run_id, "contains": "no such line"}, 20
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(initialise.init(Path(folder) / "lab").root))
        results: dict[str, dict[str, float]] = {}
        for era, message in (("2025-11-25", INITIALIZE), ("2026-07-28", DISCOVER)):
            cold = [first_reply(workspace, message) for _ in range(COLD_STARTS)]
            results[f"cold start to first reply, {era}"] = summary(cold)
        results |= anyio.run(warm, workspace)
        subprocess.run(
            [sys.executable, "-P", "-m", "lab_mcp", "shutdown"],
            env=environment(workspace),
            check=True,
            capture_output=True,
        )
    lines = ["| what | p50 ms | p99 ms | slowest ms |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {r['p50_ms']} | {r['p99_ms']} | {r['max_ms']} |" for name, r in results.items()]
    text = f"Measured {machine()}. Through the stdio bridge, as Claude Code calls.\n\n" + "\n".join(lines)
    print(text)
    print(json.dumps(results))
    if options.write:
        write_section("Latency", "python benchmarks/latency.py", text)


if __name__ == "__main__":
    main()
