"""`lab-mcp install CLIENT`: registers the lab with a program, and shows that it answers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lab_mcp import registration
from lab_mcp.terminal import console
from workspace.errors import LabError
from workspace.layout import discover

ANSWER_WITHIN_S = 30.0


def install(
    client: Annotated[str, typer.Argument(help=", ".join(registration.CLIENTS))],
    workspace: Annotated[Path | None, typer.Option("--workspace", help="workspace folder")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be written")] = False,
) -> None:
    """Register the lab with Claude Code, Codex, Cursor, VS Code or Claude Desktop; a second time changes nothing."""
    root = discover(workspace).root
    done = registration.register(client, root, dry_run=dry_run)
    place = escape(str(done.file))
    if done.outcome == "another entry":
        raise LabError(
            f"{done.file.name} has another server named {registration.SERVER_NAME!r}; it was kept",
            fix=f"remove that entry from {done.file} and run this again",
        )
    if done.outcome == "already there":
        console.print(f"{place}: already there, nothing was changed")
    else:
        console.print(f"{place}: {'would be written' if dry_run else 'written'}")
    if dry_run:
        return
    console.print(f"the registered command answers with {_answers(root)} tools")
    for line in _known(done.client, root):
        console.print(escape(f"  {line}"))
    console.print(f"next: {escape(done.client.next)}")


def _answers(root: Path) -> int:
    """Start the very command that was registered, as a client would; how many tools it has. Raises `LabError`."""
    import anyio
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client

    entry = registration.server_entry(root)
    server = StdioServerParameters(command=entry["command"], args=entry["args"], env=entry["env"], cwd=str(root))

    async def ask() -> int:
        with anyio.fail_after(ANSWER_WITHIN_S):
            async with Client(stdio_client(server)) as client:
                return len((await client.list_tools()).tools)

    try:
        return anyio.run(ask)
    except TimeoutError as error:
        raise LabError(
            f"the registered command did not answer within {ANSWER_WITHIN_S:.0f} s", fix="`lab-mcp doctor`"
        ) from error


def _known(client: registration.Client, root: Path) -> list[str]:
    """What the client's own command says about the lab, where it is installed and has such a command."""
    if not client.check:
        return []
    program = shutil.which(client.check[0])
    if program is None:
        return [f"{client.check[0]} is not on PATH here, so its own view was not checked"]
    try:
        said = subprocess.run(
            [program, *client.check[1:]],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"`{' '.join(client.check)}` could not be asked: {error}"]
    return [f"{' '.join(client.check)}:", *((said.stdout or said.stderr).strip().splitlines()[:12])]
