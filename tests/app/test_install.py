"""`lab-mcp install`: each client's file gets one entry, once, and everything else in it stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lab_mcp import registration
from lab_mcp.initialise import init
from workspace.errors import NotFound, Refused
from workspace.layout import Workspace

JSON_CLIENTS = {
    "claude-code": ".mcp.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".vscode/mcp.json",
    "claude-desktop": "home/.config/Claude/claude_desktop_config.json",
}
KEYS = {"vscode": "servers"}
CODEX = """\
# mine
model = "o9"   # the good one

[mcp_servers.other]
command = "npx"
args = ["-y", "other"]

[profiles.fast]
model = "small"
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose path needs escaping in every format, and a home of its own."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path / "la\"b 'ü" / "home"))
    for name in ("CODEX_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "la\"b 'ü"
    folder.mkdir()
    return folder


def entry_of(client: str, file: Path) -> Any:
    if client == "codex":
        return tomllib.loads(file.read_text())["mcp_servers"]["lab"]
    return json.loads(file.read_text())[KEYS.get(client, "mcpServers")]["lab"]


@pytest.mark.parametrize("client", registration.CLIENTS)
def test_a_new_file_holds_the_whole_command_and_a_second_time_changes_nothing(root: Path, client: str) -> None:
    first = registration.register(client, root)
    assert first.outcome == "written"
    entry = entry_of(client, first.file)
    assert [entry["command"], *entry["args"]] == registration.server_command()
    assert entry["env"] == {"LAB_WORKSPACE": str(root)}
    assert Path(entry["command"]).is_absolute()
    before = first.file.read_bytes(), first.file.stat().st_ino
    assert registration.register(client, root).outcome == "already there"
    assert (first.file.read_bytes(), first.file.stat().st_ino) == before


@pytest.mark.parametrize(("client", "name"), JSON_CLIENTS.items())
def test_other_servers_and_settings_stay(root: Path, client: str, name: str) -> None:
    file, key = root / name, KEYS.get(client, "mcpServers")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"theme": "dark", key: {"other": {"command": "npx"}}}))
    file.chmod(0o600)
    assert registration.register(client, root).file == file
    content = json.loads(file.read_text())
    assert content["theme"] == "dark" and content[key]["other"] == {"command": "npx"} and "lab" in content[key]
    assert file.stat().st_mode & 0o777 == 0o600


def test_codex_keeps_comments_and_other_tables(root: Path) -> None:
    file = root / "home" / ".codex" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(CODEX)
    registration.register("codex", root)
    text = file.read_text()
    assert 'model = "o9"   # the good one' in text and text.startswith("# mine\n")
    content = tomllib.loads(text)
    assert content["profiles"] == {"fast": {"model": "small"}} and content["mcp_servers"]["other"]["args"] == [
        "-y",
        "other",
    ]
    assert content["mcp_servers"]["lab"]["tool_timeout_sec"] > 600, "wait_for_run may wait for ten minutes"


@pytest.mark.parametrize("client", registration.CLIENTS)
def test_another_server_of_that_name_is_kept(root: Path, client: str) -> None:
    file = registration.register(client, root).file
    text = file.read_text().replace("LAB_WORKSPACE", "ELSEWHERE")
    file.write_text(text)
    assert registration.register(client, root).outcome == "another entry"
    assert file.read_text() == text


@pytest.mark.parametrize("client", registration.CLIENTS)
def test_a_file_that_cannot_be_understood_is_left_alone(root: Path, client: str) -> None:
    file = registration.register(client, root, dry_run=True).file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{ // a comment\n")
    with pytest.raises(Refused, match=file.name):
        registration.register(client, root)
    assert file.read_text() == "{ // a comment\n"


def test_a_linked_file_stays_a_link(root: Path) -> None:
    real = root / "dotfiles.json"
    real.write_text("{}")
    (root / ".mcp.json").symlink_to(real)
    registration.register("claude-code", root)
    assert (root / ".mcp.json").is_symlink() and "lab" in json.loads(real.read_text())["mcpServers"]


def test_dry_run_writes_nothing(root: Path) -> None:
    assert registration.register("cursor", root, dry_run=True).outcome == "written"
    assert list(root.iterdir()) == []


def test_an_unknown_client_is_named_with_the_closest(root: Path) -> None:
    with pytest.raises(NotFound, match="claude-code"):
        registration.register("claude", root)


def test_init_and_install_write_the_same(tmp_path: Path) -> None:
    init(tmp_path / "lab")
    assert registration.register("claude-code", tmp_path / "lab").outcome == "already there"


def test_the_command_starts_what_it_registered(lab: Workspace) -> None:
    def install(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "lab_mcp", "install", *more],
            cwd=lab.root,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = install("vscode")
    assert done.returncode == 0, done.stderr
    assert "mcp.json: written" in done.stdout and "answers with 1" in done.stdout
    assert "nothing was changed" in install("vscode").stdout
    refused = install("emacs")
    assert refused.returncode == 2 and "claude-code" in refused.stderr and "Traceback" not in refused.stderr
