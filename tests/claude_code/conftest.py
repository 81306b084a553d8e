"""The real Claude Code program, with a home of its own and a scripted model behind it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scripted_model import Script, ScriptedModel

from workspace.layout import Workspace

PLACE = Path(os.environ.get("LAB_CLAUDE_CODE") or Path(__file__).parents[2] / ".venv" / "claude-code")
LIMIT_S = 150  # for one conversation; far more than any of them needs


def find_program(place: Path) -> Path | None:
    """The native program at `place`: itself, or below a folder npm installed into."""
    if place.is_file():
        return place
    return next(iter(sorted(place.glob("node_modules/@anthropic-ai/claude-code-*/claude"))), None)


@pytest.fixture(scope="session")
def program() -> Path:
    found = find_program(PLACE)
    if found is None:
        reason = f"Claude Code is not in {PLACE.name} (run .ci/install-claude-code, or set LAB_CLAUDE_CODE)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@dataclass
class ClaudeCode:
    """Claude Code for one user who has never used it, in the folder of one workspace."""

    program: Path
    home: Path
    workspace: Workspace

    def environment(self, model: ScriptedModel | None, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LAB_LEASE_DIR") if name in os.environ}
        environment = {
            **kept,
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "CLAUDE_CODE_TMPDIR": str(self.home),
            "LANG": "C.UTF-8",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            # a conversation begins with the lab connected, however busy the machine is
            "MCP_CONNECTION_NONBLOCKING": "false",
            "MCP_CONNECT_TIMEOUT_MS": "120000",
            "MCP_TIMEOUT": "120000",
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_BASE_URL": model.url if model else "http://127.0.0.1:9",
        }
        return environment | more

    def approve(self) -> None:
        """What a user's yes to the servers of this folder leaves behind."""
        self.settings(enabledMcpjsonServers=["lab"])

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`claude mcp list` and the like."""
        return subprocess.run(
            [self.program, *arguments],
            cwd=self.workspace.root,
            env=self.environment(None),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def settings(self, **content: object) -> None:
        """The user's own settings file."""
        folder = self.home / ".claude"
        folder.mkdir(exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(content))

    def start(
        self, model: ScriptedModel, *more: str, said: str = "go", allowed: str = "mcp__lab", **environment: str
    ) -> subprocess.Popen[str]:
        """A conversation, through the `.mcp.json` of the workspace; `more` are arguments of the program."""
        arguments = ["-p", said, "--allowedTools", allowed, "--output-format", "json"]
        return subprocess.Popen(
            [self.program, *arguments, *more],
            cwd=self.workspace.root,
            env=self.environment(model, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def converse(self, script: Script, *more: str, **options: str) -> ScriptedModel:
        """Play a whole conversation; the model afterwards, with everything it was shown."""
        with ScriptedModel(script) as model, self.start(model, *more, **options) as process:
            try:
                output, errors = process.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if model.failure is not None:
            raise model.failure
        assert process.returncode == 0, errors + output
        assert json.loads(output)["subtype"] == "success", output
        return model

    @contextlib.contextmanager
    def at_a_terminal(self, model: ScriptedModel, said: str = "go") -> Iterator[Terminal]:
        """An interactive conversation that begins with `said`, in a terminal of its own."""
        (self.home / ".claude.json").write_text(
            json.dumps(
                {
                    "hasCompletedOnboarding": True,
                    "theme": "dark",
                    "customApiKeyResponses": {"approved": ["none"], "rejected": []},
                    "projects": {
                        str(self.workspace.root): {
                            "hasTrustDialogAccepted": True,
                            "hasCompletedProjectOnboarding": True,
                            "enabledMcpjsonServers": ["lab"],
                        }
                    },
                }
            )
        )
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (50, 160))
        process = subprocess.Popen(
            [self.program, said, "--allowedTools", "mcp__lab"],
            cwd=self.workspace.root,
            env=self.environment(model, TERM="xterm-256color"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        terminal = Terminal(ours)
        try:
            yield terminal
        finally:
            process.kill()
            process.wait()
            terminal.close()


class Terminal:
    """The other side of a pseudo-terminal: everything shown so far, and a keyboard."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.shown = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO once the program has gone
            while data := os.read(self.descriptor, 65536):
                self.shown += data.decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def settle(self, quiet_s: float = 1.0, at_most_s: float = 20.0) -> None:
        """Wait until nothing more is drawn for a while: a key typed earlier may be lost."""
        deadline = time.monotonic() + at_most_s
        seen, since = len(self.shown), time.monotonic()
        while time.monotonic() < min(deadline, since + quiet_s):
            time.sleep(0.05)
            if len(self.shown) != seen:
                seen, since = len(self.shown), time.monotonic()

    def close(self) -> None:
        self._reader.join(timeout=10)
        os.close(self.descriptor)


@pytest.fixture
def claude(program: Path, lab: Workspace, tmp_path: Path) -> Iterator[ClaudeCode]:
    home = tmp_path / "home"
    home.mkdir()
    yield ClaudeCode(program, home, lab)


Converse = Callable[..., ScriptedModel]


@pytest.fixture
def converse(claude: ClaudeCode) -> Converse:
    return claude.converse
