"""The protocol's own suites against the server factory, and its inspector against the lab: both eras."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab_mcp.compose import all_tools
from workspace.layout import Workspace

pytestmark = pytest.mark.slow
PLACE = Path(os.environ.get("LAB_CONFORMANCE") or Path(__file__).parents[2] / ".venv" / "conformance")
FIXTURE = Path(__file__).with_name("fixture.py")
SUITES = {
    # folder, arguments, scenarios it has at least
    "2025-11-25 by 0.1.16": ("older", ["--suite", "all"], 32),
    "2025-11-25 by 0.2": ("newer", ["--suite", "all", "--spec-version", "2025-11-25"], 32),
    "2026-07-28 by 0.2": ("newer", ["--requirements", "2026-07-28"], 37),
}
# The scenarios about tasks are not scored. The lab's tasks are runs, experiments and campaigns, whose own record is the
# task. So three checks find nothing to check: there is no tool that ends in an error after it became a task (a run that
# failed is a result, and no protocol error), and `confirm_delete`, `failing_job` and the like, with questions in the
# middle of a task and tools that only clients with tasks may call, would be the fixture's own, not the lab's.
TASKS = {
    "capability-negotiation": set(),
    "wire-fields": set(),
    "request-state-removal": set(),
    "request-headers": set(),
    "mrtr-composition": set(),
    "lifecycle": {"sep-2663-tool-error-uses-completed-status", "sep-2663-tasks-get-status-failed"},
    "dispatch-and-envelope": {"tasks-server-directed-creation-no-hint"},
}
LIMIT_S = 300


@pytest.fixture(scope="session")
def node() -> Path:
    found = PLACE / "node" / "node"
    if not found.exists():
        reason = f"the conformance suites are not in {PLACE.name} (run .ci/install-conformance)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def fixture_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("fixture")
    process = subprocess.Popen(
        [sys.executable, "-P", str(FIXTURE), str(port)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for _ in range(100):
            with socket.socket() as probe:
                probe.settimeout(0.1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize("suite", SUITES)
def test_every_scored_scenario_passes(node: Path, fixture_url: str, tmp_path: Path, suite: str) -> None:
    folder, arguments, fewest = SUITES[suite]
    program = PLACE / folder / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    done = subprocess.run(
        [node, program, "server", "--url", fixture_url, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    outcomes = dict(re.findall(r"^[✓✗] ([\w-]+): \d+ passed, (\d+) failed$", done.stdout, re.MULTILINE))
    unscored = set(re.findall(r"^  [✓✗] ([\w-]+) \((?:extension|pending)\)$", done.stdout, re.MULTILINE))
    failed = {name for name, failures in outcomes.items() if failures != "0"} - unscored
    assert not failed, f"{failed}\n{done.stdout[-6000:]}"
    assert len(outcomes.keys() - unscored) >= fewest, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("scenario", TASKS)
def test_tasks(node: Path, fixture_url: str, tmp_path: Path, scenario: str) -> None:
    program = PLACE / "newer" / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    done = subprocess.run(
        [node, program, "server", "--url", fixture_url, "--scenario", f"tasks-{scenario}"],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    checks = re.findall(r"\[([\w-]+) *\]\S* \S*(SUCCESS|FAILURE)", done.stdout)
    assert {name for name, outcome in checks if outcome == "FAILURE"} == TASKS[scenario], done.stdout[-5000:]
    assert len(checks) >= 2 + len(TASKS[scenario]), done.stdout[-5000:]


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_finds_no_error_in_any_schema_and_can_call(
    node: Path, lab: Workspace, tmp_path: Path, era: str
) -> None:
    inspector = PLACE / "inspector" / "node_modules" / ".bin" / "mcp-inspector"

    def inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
        server = [sys.executable, "-P", "-m", "lab_mcp", "mcp"]
        return subprocess.run(
            [node, inspector, "--cli", *server, "--protocol-era", era, "--format", "json", *arguments],
            cwd=lab.root,
            env={**os.environ, "LAB_WORKSPACE": str(lab.root), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    listed = inspect("--method", "tools/list", "--strict")
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert len(found.get("result", found)["tools"]) == len(list(all_tools()))
    called = inspect("--method", "tools/call", "--tool-name", "lab_overview", "--tool-args-json", "{}")
    assert called.returncode == 0 and "experiments_running" in called.stdout, called.stderr
    refused = inspect("--method", "tools/call", "--tool-name", "list_runs", "--tool-args-json", '{"stat": "live"}')
    assert refused.returncode == 5, refused.stdout
