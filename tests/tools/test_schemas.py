"""What a client is shown: a snapshot, small enough, the same in both eras."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from mcp import Client

from lab_mcp.compose import all_tools
from lab_mcp.reference import markdown
from tools.resources import ADDRESSES
from tools.server import INSTRUCTIONS, build_server

SNAPSHOT = Path(__file__).with_name("schemas.json")
PAGE = Path(__file__).parents[2] / "docs" / "tools.md"
MAX_SCHEMA_CHARACTERS = 16_000
pytestmark = pytest.mark.anyio


async def listed(mode: str) -> list[dict]:
    async with Client(build_server(all_tools(), None), mode=mode) as client:
        tools = (await client.list_tools()).tools
        return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_tools_are_what_the_snapshot_says(mode: str) -> None:
    """To accept a deliberate change: `python -P tests/tools/test_schemas.py` rewrites the snapshot."""
    assert await listed(mode) == json.loads(SNAPSHOT.read_text())


async def test_the_tools_fit_the_budget() -> None:
    shown = [{k: tool[k] for k in ("name", "description", "inputSchema")} for tool in await listed("auto")]
    size = len(json.dumps(shown, ensure_ascii=False, separators=(",", ":")))
    assert size <= MAX_SCHEMA_CHARACTERS, size
    assert len(INSTRUCTIONS) < 2048
    assert all(len(tool["description"]) < 2048 for tool in shown)


async def test_every_tool_is_strict_and_annotated() -> None:
    for tool in await listed("auto"):
        assert tool["inputSchema"]["additionalProperties"] is False, tool["name"]
        hints = tool["annotations"]
        assert {"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} <= hints.keys()
        assert not {"anyOf", "oneOf", "allOf"} & tool["inputSchema"].keys(), "clients cannot take these at the root"


async def test_every_tool_is_always_there_or_can_be_searched_for() -> None:
    for tool in await listed("auto"):
        meta = tool["_meta"]
        assert meta.get("anthropic/alwaysLoad") is True or len(meta["anthropic/searchHint"]) > 20, tool["name"]


async def test_the_instructions_name_only_what_exists() -> None:
    known = {tool["name"] for tool in await listed("auto")} | {
        name for tool in await listed("auto") for name in tool["inputSchema"]["properties"]
    }
    assert set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", INSTRUCTIONS)) <= known
    for uri in re.findall(r"lab://[\w/]+", INSTRUCTIONS):
        assert uri in {address.uri for address in ADDRESSES}


async def test_the_page_about_the_tools_is_up_to_date() -> None:
    """`python -P -m lab_mcp.reference > docs/tools.md` rewrites it."""
    assert PAGE.read_text(encoding="utf-8") == markdown()


async def test_examples_are_valid_calls() -> None:
    for tool in all_tools():
        tool.check(tool.example)


if __name__ == "__main__":
    import anyio

    SNAPSHOT.write_text(json.dumps(anyio.run(listed, "auto"), indent=1, ensure_ascii=False) + "\n")
