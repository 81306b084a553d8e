"""Claude Code proposes, headless: `claude -p` with this lab's reading tools and nothing else, answering in JSON.

Off unless lab.toml says otherwise. It runs as the user's own client does, with the user's own account.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.proposers.asking import Asking, Paid
from experiments.proposers.port import Answer, Question
from workspace import durable
from workspace.chat import Message, Reply
from workspace.errors import Refused, Unavailable
from workspace.interpreter import python_command, service_environment
from workspace.layout import Workspace
from workspace.secrets import mask

SERVER = "lab"
READING_TOOLS = ("lab_overview", "list_experiments", "list_runs", "tail_log", "rag_search", "gpu_status")
OTHER_TOOLS = "Bash Edit Write NotebookEdit WebFetch WebSearch Task Agent".split()  # what it must not use


class ClaudeCodeProposer:
    def __init__(self, workspace: Workspace, asking: Asking) -> None:
        self.workspace = workspace
        self.asking = asking
        self.settings = asking.settings

    def check(self, question: Question) -> None:
        self._switched_on()
        if shutil.which(self.settings.claude_command) is None:
            raise Refused(
                f"there is no command {self.settings.claude_command!r}",
                fix="install Claude Code, or set [proposer] claude_command in lab.toml",
            )

    def propose(self, question: Question) -> Answer:
        self._switched_on()
        return self.asking.proposal(question, "claude-code", self._ask)

    def _switched_on(self) -> None:
        if not self.settings.claude_code:
            raise Refused(
                "asking Claude Code is switched off: nothing leaves the premises",
                fix="to allow it, set [proposer] claude_code = true in lab.toml",
            )

    def _ask(self, messages: Sequence[Message]) -> tuple[Reply, float]:
        text = "\n\n".join(f"Your answer was:\n{m.text}" if m.role == "assistant" else m.text for m in messages)
        with tempfile.TemporaryDirectory(prefix="claude-", dir=self.workspace.cache_dir) as folder:
            servers = Path(folder) / "servers.json"
            durable.write_json(servers, {"mcpServers": {SERVER: self._server()}})
            content = _result(self._run(self._command(servers), text))
        usage = content.get("usage") or {}
        model = next(iter(content.get("modelUsage") or {}), "claude-code")
        given = sum(int(usage.get(f"{kind}input_tokens") or 0) for kind in ("", "cache_creation_", "cache_read_"))
        reply = Reply(
            text=str(content.get("result") or ""),
            model=str(model),
            finished=True,
            input_tokens=given,
            output_tokens=int(usage.get("output_tokens") or 0),
            seconds=float(content.get("duration_ms") or 0) / 1000,
        )
        return reply, float(content.get("total_cost_usd") or 0.0)

    def _server(self) -> dict[str, Any]:
        command, *arguments = python_command("lab_mcp", "mcp", "--workspace", str(self.workspace.root))
        return {"type": "stdio", "command": command, "args": arguments}

    def _command(self, servers: Path) -> list[str]:
        tools = ",".join(f"mcp__{SERVER}__{name}" for name in READING_TOOLS)
        return [
            self.settings.claude_command, "-p", "--output-format", "json", "--mcp-config", str(servers),
            "--strict-mcp-config", "--allowedTools", tools, "--disallowedTools", ",".join(OTHER_TOOLS),
        ]  # fmt: skip

    def _run(self, command: Sequence[str], text: str) -> str:
        """Its standard output. Raises `Unavailable` when it cannot be asked now."""
        s = self.settings
        key = os.environ.get(s.key_variable, "") if s.key_variable and s.api == "anthropic" else ""
        environment = {k: v for k, v in service_environment().items() if not k.startswith("LAB_")}
        environment |= {"ANTHROPIC_API_KEY": key} if key else {}
        environment |= {"ANTHROPIC_BASE_URL": s.url} if s.url and s.api == "anthropic" else {}
        try:
            process = subprocess.Popen(
                command, cwd=self.workspace.root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"Claude Code cannot be started ({error.strerror})") from error
        try:
            output, errors = process.communicate(text, timeout=s.timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise _perhaps_paid(f"Claude Code gave no answer within {s.timeout_seconds:.0f} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):  # its own children too: the bridge it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode != 0 and not output.strip():
            words = mask(" ".join(errors.split()))[-300:]
            raise _perhaps_paid(f"Claude Code ended with {process.returncode}: {words or 'without a word'}")
        return output


def _result(output: str) -> dict[str, Any]:
    try:
        content = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise _perhaps_paid("Claude Code answered in a form that is not known") from error
    if not isinstance(content, dict) or content.get("is_error"):
        words = mask(str(content.get("result") if isinstance(content, dict) else content))[:300]
        raise _failed(f"Claude Code could not answer: {words}", content)
    return content


def _failed(words: str, content: Any) -> Unavailable:
    """With what it cost, where that is told."""
    cost = content.get("total_cost_usd") if isinstance(content, dict) else None
    if not isinstance(cost, int | float):
        return _perhaps_paid(words)
    error = Paid(words)
    error.money = float(cost)
    return error


def _perhaps_paid(words: str) -> Unavailable:
    error = Unavailable(words)
    error.may_have_worked = True
    return error
