"""The real Claude Code program, with a home of its own and a scripted model behind it."""

from __future__ import annotations

import json
import os
import subprocess
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
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_BASE_URL": model.url if model else "http://127.0.0.1:9",
        }
        return environment | more

    def approve(self) -> None:
        """What a user's yes to the servers of this folder leaves behind."""
        folder = self.home / ".claude"
        folder.mkdir(exist_ok=True)
        (folder / "settings.json").write_text(json.dumps({"enabledMcpjsonServers": ["lab"]}))

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

    def start(self, model: ScriptedModel, **environment: str) -> subprocess.Popen[str]:
        """A conversation, through the `.mcp.json` of the workspace."""
        arguments = ["-p", "go", "--allowedTools", "mcp__lab", "--output-format", "json"]
        return subprocess.Popen(
            [self.program, *arguments],
            cwd=self.workspace.root,
            env=self.environment(model, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def converse(self, script: Script, **environment: str) -> ScriptedModel:
        """Play a whole conversation; the model afterwards, with everything it was shown."""
        with ScriptedModel(script) as model, self.start(model, **environment) as process:
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


@pytest.fixture
def claude(program: Path, lab: Workspace, tmp_path: Path) -> Iterator[ClaudeCode]:
    home = tmp_path / "home"
    home.mkdir()
    yield ClaudeCode(program, home, lab)


Converse = Callable[..., ScriptedModel]


@pytest.fixture
def converse(claude: ClaudeCode) -> Converse:
    return claude.converse
