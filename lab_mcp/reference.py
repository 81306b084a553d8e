"""docs/tools.md, from the tools' own schemas: `python -P -m lab_mcp.reference > docs/tools.md`."""

from __future__ import annotations

import json
from typing import Any

from lab_mcp.compose import all_tools
from tools.resources import ADDRESSES
from tools.tool import Tool


def markdown() -> str:
    """The whole page."""
    parts = [
        "# Tools",
        "What Claude Code sees. Generated from the schemas (`python -P -m lab_mcp.reference`); a test checks it.",
        "Every result is structured and complete by itself; a refused call says what was wrong, what is valid and what "
        "to do next. Calls that change something carry a key, so that a repeated call changes nothing twice.",
    ]
    for tool in all_tools():
        parts += _tool(tool)
    parts += [
        "# Resources",
        "What is only read has an address; ids are completed, and the newest of each kind are listed.",
        "\n".join(f"- `{a.uri}` {a.description}" for a in ADDRESSES),
    ]
    return "\n\n".join(parts) + "\n"


def _tool(tool: Tool[Any, Any]) -> list[str]:
    schema = tool.input_schema()
    required = set(schema.get("required", []))
    kind = (
        "read-only" if tool.read_only else ("may end or remove something" if tool.destructive else "changes something")
    )
    rows = [
        f"| `{name}` | {_type(node)} | {'yes' if name in required else _default(node)} | {_cell(node)} |"
        for name, node in schema.get("properties", {}).items()
    ]
    table = (
        "\n".join(["| argument | type | required or default | meaning |", "|---|---|---|---|", *rows])
        if rows
        else "No arguments."
    )
    results = tool.output_schema().get("properties", {})
    shown = "\n".join(
        f"- `{name}` ({_type(node)}) {node.get('description', '')}".rstrip() for name, node in results.items()
    )
    example = json.dumps(tool.example, ensure_ascii=False)
    return [
        f"## {tool.name}",
        f"*{kind}* · {tool.description}",
        table,
        f"Example: `{tool.name}({example})`",
        f"Result:\n\n{shown}",
    ]


def _type(node: dict[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(_type(choice) for choice in node["anyOf"])
    if "const" in node:
        return f"`{node['const']}`"
    if node.get("type") == "array":
        return f"list of {_type(node.get('items', {}))}"
    return str(node.get("type", "any"))


def _default(node: dict[str, Any]) -> str:
    return f"`{json.dumps(node['default'])}`" if "default" in node else "no"


def _cell(node: dict[str, Any]) -> str:
    bounds = [
        f"{word} {node[key]}"
        for key, word in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
        if key in node
    ]
    text = str(node.get("description", ""))
    return (text + (f" ({', '.join(bounds)})" if bounds else "")).replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
