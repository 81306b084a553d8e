"""`lab-mcp service install`: keep a workspace's service running from systemd (Linux) or launchd (macOS).

Without it the service starts with the first command or conversation and ends when it is idle.
"""

from __future__ import annotations

import hashlib
import os
import platform
import plistlib
import re
from pathlib import Path

from workspace import durable
from workspace.errors import Refused, Unavailable
from workspace.interpreter import python_command
from workspace.layout import Workspace

MARK = "written by lab-mcp"
# what a session started at log-in lacks and training needs; no secrets, no proxies with passwords
CARRIED = (
    "PATH",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "ROCM_PATH",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "SSL_CERT_FILE",
)


def install(workspace: Workspace, *, dry_run: bool = False, system: str | None = None) -> list[str]:
    """Write the unit for `workspace`; returns what was done and what to run next, as lines.

    Raises `Refused` when a file of that name is not ours, `Unavailable` where there is neither systemd nor launchd.
    """
    system = system or platform.system()
    if system == "Darwin":
        path, content = launchd_agent(workspace)
        after = [f"launchctl bootstrap gui/$(id -u) {_shell(path)}"]
        before = [f"launchctl bootout gui/$(id -u)/{path.stem}"]
    elif system == "Linux":
        path, content = systemd_unit(workspace)
        after = ["systemctl --user daemon-reload", f"systemctl --user enable --now {path.name}"]
        after.append("loginctl enable-linger    # to keep it running when you are not logged in")
        before = [f"systemctl --user disable --now {path.name}"]
    else:
        raise Unavailable(f"there is no service manager for {system} here", fix="the lab starts its service by itself")
    if dry_run:
        return [f"would write {path}:", "", content]
    if system == "Linux" and not Path("/run/systemd/system").is_dir():
        raise Unavailable(
            "systemd does not run on this machine",
            fix="nothing: any command, or Claude Code, starts the service by itself",
        )
    present = path.read_text(encoding="utf-8") if path.exists() else None
    if present is not None and MARK not in present:
        raise Refused(f"{path.name} is there and was not written by lab-mcp", fix="move it away, then try again")
    if present == content:
        return [f"{path} is there already and up to date"]
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, content)
    return [
        f"wrote {path}",
        "start it:",
        *(f"  {line}" for line in after),
        "and to undo:",
        *(f"  {line}" for line in before),
    ]


def unit_name(workspace: Workspace) -> str:
    """`lab-mcp-my-lab-1f3a9c02`: readable, and different for two workspaces of the same name."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", workspace.root.name).strip("-").lower()[:40] or "lab"
    return f"lab-mcp-{readable}-{hashlib.sha256(str(workspace.root).encode()).hexdigest()[:8]}"


def systemd_unit(workspace: Workspace) -> tuple[Path, str]:
    """Where the systemd user unit goes, and its text."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    environment = [f"Environment={_quote(f'{key}={value}', exec_line=False)}" for key, value in _environment().items()]
    root = str(workspace.root)
    lines = [
        f"# {MARK}; `lab-mcp service install` writes it again",
        "[Unit]",
        f"Description=lab-mcp for {_percent(workspace.root.name)}",
        f"ConditionPathExists={_percent(str(workspace.settings_file))}",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={_command(python_command('lab_mcp.keeper', root))}",
        f"ExecStop={_command(python_command('lab_mcp', 'shutdown', '--workspace', root))}",
        *environment,
        "Restart=on-failure",
        "RestartSec=5",
        "# runs live in this unit's control group: stopping the service must leave them alone",
        "KillMode=process",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return base / "systemd" / "user" / f"{unit_name(workspace)}.service", "\n".join(lines) + "\n"


def launchd_agent(workspace: Workspace) -> tuple[Path, str]:
    """Where the launchd agent goes, and its text."""
    name = unit_name(workspace)
    content = {
        "Label": name,
        "ProgramArguments": python_command("lab_mcp.keeper", str(workspace.root)),
        "EnvironmentVariables": _environment(),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "AbandonProcessGroup": True,  # stopping the service must leave the runs alone
        "StandardOutPath": str(workspace.service_log),
        "StandardErrorPath": str(workspace.service_log),
    }
    text = plistlib.dumps(content).decode()
    text = text.replace("<plist ", f"<!-- {MARK} -->\n<plist ", 1)
    return Path.home() / "Library" / "LaunchAgents" / f"{name}.plist", text


def _environment() -> dict[str, str]:
    carried = {key: os.environ[key] for key in CARRIED if os.environ.get(key)}
    return {**carried, "LAB_SERVICE__IDLE_MINUTES": "0"}  # the service manager decides when it ends


def _command(words: list[str]) -> str:
    return " ".join(_quote(word) for word in words)


def _quote(word: str, *, exec_line: bool = True) -> str:
    """A word for systemd: quotes, and its own % and (in commands) $ doubled."""
    if "\n" in word:
        raise Refused("a line break in a path or variable cannot be written into a systemd unit")
    text = _percent(word).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + (text.replace("$", "$$") if exec_line else text) + '"'


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _shell(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
