"""Making the lab known to the programs that talk to it: one entry in each one's documented configuration file.

Where the formats are from (looked up 2026-11): Claude Code and Cursor `{"mcpServers": {...}}`; VS Code's MCP
configuration reference `{"servers": {...}}`; Codex' configuration reference `[mcp_servers.NAME]`; Claude Desktop
`claude_desktop_config.json`. A file is read, given one entry more and replaced atomically; an entry of another making
stays as it is.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workspace import durable
from workspace.errors import Refused, unknown
from workspace.interpreter import python_command

SERVER_NAME = "lab"
CODEX_STARTUP_S = 30  # its default of 10 s is short for a machine that imports Python from a slow disk
CODEX_TOOL_S = 660  # its default of 60 s would cut wait_for_run, which may wait for 600 s
Outcome = Literal["written", "already there", "another entry"]


def server_command() -> list[str]:
    """The absolute command of this installation's MCP server."""
    script = Path(sysconfig.get_path("scripts")) / "lab-mcp"
    if script.is_file():
        return [str(script), "mcp"]
    return python_command("lab_mcp", "mcp")


def server_entry(root: Path) -> dict[str, Any]:
    """The entry that Claude Code's `.mcp.json` and its likes take."""
    command = server_command()
    return {"type": "stdio", "command": command[0], "args": command[1:], "env": {"LAB_WORKSPACE": str(root)}}


def register_command(root: Path) -> str:
    """The line for a shell that registers the lab at `root` with Claude Code for this user."""
    variable = f"LAB_WORKSPACE={root}"
    return shlex.join(["claude", "mcp", "add", SERVER_NAME, "--env", variable, "--", *server_command()])


@dataclass(frozen=True)
class Change:
    """What a configuration file becomes: `text` is None when it stays as it is."""

    outcome: Outcome
    text: str | None


@dataclass(frozen=True)
class Client:
    """One program. `file` and `change` take the workspace; `check` is its own command that shows what it knows."""

    name: str
    title: str
    file: Callable[[Path], Path]
    change: Callable[[Path, Path], Change]  # (file, workspace)
    check: tuple[str, ...] = ()
    next: str = ""


def json_entry(file: Path, key: str, entry: dict[str, Any]) -> Change:
    """One more server under `key`. Raises `Refused` for a file that is no such JSON."""
    content: Any = {}
    if file.exists():
        try:
            content = json.loads(file.read_text(encoding="utf-8") or "{}")
        except (OSError, ValueError) as error:
            raise Refused(
                f"{file.name} is there and cannot be read as JSON ({error})",
                valid=f"under {key!r}: {json.dumps({SERVER_NAME: entry})}",
                fix=f"mend or move {file.name} and try again, or add that entry yourself",
            ) from error
    if not isinstance(content, dict) or not isinstance(content.get(key, {}), dict):
        raise Refused(
            f'{file.name} is there and has not the form {{"{key}": {{...}}}}', fix=f"mend or move {file.name}"
        )
    servers = content.setdefault(key, {})
    present = servers.get(SERVER_NAME)
    if present is not None:
        return Change("already there" if present == entry else "another entry", None)
    servers[SERVER_NAME] = entry
    return Change("written", json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def claude_code_file(root: Path) -> Path:
    return root / ".mcp.json"


def claude_code(file: Path, root: Path) -> Change:
    return json_entry(file, "mcpServers", server_entry(root))


def _without_type(file: Path, root: Path) -> Change:
    """Cursor and Claude Desktop: a command needs no type."""
    entry = {name: value for name, value in server_entry(root).items() if name != "type"}
    return json_entry(file, "mcpServers", entry)


def _vscode(file: Path, root: Path) -> Change:
    return json_entry(file, "servers", server_entry(root))


def _codex(file: Path, root: Path) -> Change:
    """One table more in Codex' TOML; comments and order of the rest stay."""
    import tomlkit

    try:
        document = tomlkit.parse(file.read_text(encoding="utf-8")) if file.exists() else tomlkit.document()
        servers = document.setdefault("mcp_servers", tomlkit.table(is_super_table=True))
        present = servers.get(SERVER_NAME)
    except (tomlkit.exceptions.TOMLKitError, AttributeError, UnicodeDecodeError) as error:
        raise Refused(f"{file.name} of Codex cannot be understood: {error}", fix="mend it, then try again") from error
    entry = {name: value for name, value in server_entry(root).items() if name != "type"}
    entry |= {"startup_timeout_sec": CODEX_STARTUP_S, "tool_timeout_sec": CODEX_TOOL_S}
    if present is not None:
        return Change("already there" if present == entry else "another entry", None)
    servers[SERVER_NAME] = entry
    return Change("written", tomlkit.dumps(document))


def _codex_file(root: Path) -> Path:
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex") / "config.toml"


def _desktop_file(root: Path) -> Path:
    name = "claude_desktop_config.json"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "Claude" / name
    if sys.platform == "win32":
        return Path(os.environ["APPDATA"]) / "Claude" / name
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "Claude" / name


CLIENTS: Mapping[str, Client] = {
    client.name: client
    for client in (
        Client(
            "claude-code",
            "Claude Code",
            claude_code_file,
            claude_code,
            check=("claude", "mcp", "get", SERVER_NAME),
            next="start `claude` in the workspace and approve the server once",
        ),
        Client(
            "codex",
            "Codex",
            _codex_file,
            _codex,
            check=("codex", "mcp", "get", SERVER_NAME),
            next="start `codex`; /mcp shows the lab",
        ),
        Client(
            "cursor",
            "Cursor",
            lambda root: root / ".cursor" / "mcp.json",
            _without_type,
            next="open the workspace in Cursor and switch the server on under Settings > MCP",
        ),
        Client(
            "vscode",
            "VS Code",
            lambda root: root / ".vscode" / "mcp.json",
            _vscode,
            next="open the workspace in VS Code, trust it, and start the server from the file's code lens",
        ),
        Client("claude-desktop", "Claude Desktop", _desktop_file, _without_type, next="restart Claude Desktop"),
    )
}


@dataclass(frozen=True)
class Registration:
    client: Client
    file: Path
    outcome: Outcome


def register(name: str, root: Path, *, dry_run: bool = False) -> Registration:
    """Write the lab's entry into the client's file; a second time nothing is written.

    Raises `NotFound` for an unknown client, `Refused` for a file that cannot be understood.
    """
    client = CLIENTS.get(name)
    if client is None:
        raise unknown("client", name, CLIENTS)
    file = client.file(root)
    change = client.change(file, root)
    if change.text is not None and not dry_run:
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
        file.parent.mkdir(parents=True, exist_ok=True)
        # a link (dotfiles in a repository) is followed, so that it stays one
        durable.write_text(file.resolve(), change.text, mode=mode)
    return Registration(client, file, change.outcome)
