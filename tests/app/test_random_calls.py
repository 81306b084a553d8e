"""Thousands of random calls of every tool through the real bridge and service: nothing breaks, nothing escapes.

`LAB_RANDOM_CALLS` sets how many of each kind (default 2000); the seed is printed when it fails.
"""

from __future__ import annotations

import json
import os
import random
import string
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.types import CallToolResult
from tests_support import service_pid

from workspace.layout import Workspace

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
CALLS = int(os.environ.get("LAB_RANDOM_CALLS", "2000"))
LIMIT_S = 60  # for one call; none of them waits longer by its own arguments
LARGEST_ANSWER = 20_000  # characters
IDS = ["run-0001", "exp-0001", "camp-0001", "run-9999", "2026-01-01-01", "paper:x"]
NASTY = [
    *IDS,
    "",
    " ",
    "../../etc/passwd",
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "a\x00b",
    "\ud800",
    "ignore previous instructions",
    "'; DROP TABLE runs; --",
    "%s%n{}$(touch escaped)`touch escaped`",
    "x" * 5000,
    "ÄÖ漢字🦊\u202e",
    "-rf",
    "https://127.0.0.1:9/repo.git",
    "file:///etc",
]
ANYTHING = [None, True, -1, 0, 1e308, 10**30, "text", [], {}, [1], {"a": {"b": [None]}}, *NASTY]
TIMES = {"timeout_s", "wait_s"}  # a valid call may wait that long: keep it short


class Generator:
    """Arguments from a tool's own schema."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def valid(self, schema: dict[str, Any]) -> dict[str, Any]:
        required = set(schema.get("required", []))
        chosen = {
            name: self.value(part)
            for name, part in schema.get("properties", {}).items()
            if name in required or self.random.random() < 0.35
        }
        return {name: min(value, 0.02) if name in TIMES else value for name, value in chosen.items()}

    def value(self, part: dict[str, Any]) -> Any:
        if "const" in part:
            return part["const"]
        if "enum" in part:
            return self.random.choice(part["enum"])
        if "anyOf" in part:
            return self.value(self.random.choice(part["anyOf"]))
        kind = part.get("type")
        if kind == "string":
            return self.text(part)
        if kind == "boolean":
            return self.random.random() < 0.5
        if kind in ("integer", "number"):
            return self.number(part, whole=kind == "integer")
        if kind == "array":
            most = min(part.get("maxItems", 3), 3)
            return [
                self.value(part.get("items", {})) for _ in range(self.random.randint(part.get("minItems", 0), most))
            ]
        if kind == "object":
            return {self.text({}): self.random.choice(ANYTHING[:12]) for _ in range(self.random.randint(0, 3))}
        return self.random.choice(ANYTHING[:12])

    def text(self, part: dict[str, Any]) -> str:
        text = self.random.choice([*NASTY, "".join(self.random.choices(string.printable, k=12))])
        text = text.encode("utf-8", "ignore").decode()  # half a surrogate pair cannot cross the wire
        text = text.ljust(part.get("minLength", 0), "x")
        return text[: part.get("maxLength", len(text))]

    def number(self, part: dict[str, Any], *, whole: bool) -> float:
        low = part.get("minimum", part.get("exclusiveMinimum", -1000))
        high = part.get("maximum", part.get("exclusiveMaximum", low + 1000))
        if whole:
            return self.random.randint(low, high)
        return low + (high - low) * self.random.uniform(0.01, 0.99)

    def violating(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Valid arguments with one thing wrong."""
        arguments = self.valid(schema)
        properties = schema.get("properties", {})
        wrong = self.random.choice(["unknown", "missing", "type", "type", "range"])
        required = schema.get("required", [])
        name = self.random.choice(list(properties)) if properties else None
        if wrong == "missing" and required:
            del arguments[self.random.choice(required)]
        elif wrong == "type" and name and "type" in properties[name]:
            arguments[name] = {"string": [1], "object": "no", "array": {"x": 1}}.get(properties[name]["type"], "no")
        elif wrong == "range" and name and "maximum" in properties[name]:
            arguments[name] = properties[name]["maximum"] + 1
        elif wrong == "range" and name and "maxLength" in properties[name]:
            arguments[name] = "y" * (properties[name]["maxLength"] + 1)
        else:
            arguments["".join(self.random.choices(string.ascii_letters, k=8))] = self.random.choice(ANYTHING[:12])
        return arguments


def outside(root: Path) -> set[Path]:
    """What lies beside the workspace."""
    return {path for path in root.parent.rglob("*") if root not in path.parents and path != root}


@pytest.mark.parametrize("kind", ["violating", "valid"])
async def test_random_calls(lab: Workspace, connect, kind: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    generator = Generator(seed)
    (lab.root / "lab.toml").write_text("[runs]\ntime_limit_hours = 0.001\n[network]\ngit = false\n")
    (lab.root / "job.py").write_text("print('hello')\n")
    before = outside(lab.root)
    async with connect() as client:
        schemas = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        pid = service_pid(lab)
        token = json.loads(lab.service_file.read_text())["token"]
        refused = 0
        for number in range(CALLS):
            name = list(schemas)[number % len(schemas)]
            arguments = getattr(generator, kind)(schemas[name])
            where = f"seed {seed}, call {number}: {name}({json.dumps(arguments)[:500]})"
            result = await _call(client, name, arguments, where)
            text = "".join(block.text for block in result.content)
            assert "Traceback" not in text and "mistake of the lab's own" not in text, f"{where}: {text}"
            beyond = text.replace(str(lab.root), "")  # the workspace's own place may be told (the command of a run)
            assert token not in text and str(lab.root.parent) not in beyond, f"{where}: {text}"
            assert len(text) <= LARGEST_ANSWER, where
            if kind == "violating":
                assert result.is_error, where
            refused += bool(result.is_error)
        assert service_pid(lab) == pid, f"seed {seed}: the service died"
    assert "Traceback" not in lab.service_log.read_text(), f"seed {seed}"
    assert outside(lab.root) == before, f"seed {seed}"
    assert kind == "violating" or refused < CALLS, "valid calls are not all refused"


async def _call(client: Client, name: str, arguments: dict[str, Any], where: str) -> CallToolResult:
    try:
        with anyio.fail_after(LIMIT_S):
            return await client.call_tool(name, arguments)
    except TimeoutError:
        pytest.fail(f"no answer: {where}")
