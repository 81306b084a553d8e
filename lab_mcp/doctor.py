"""`lab-mcp doctor`: what would bite, why, and what to do. Nothing is changed, torch is not imported."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from lab_mcp import machine_checks, workspace_checks
from lab_mcp.finding import Finding, error, warn
from workspace.errors import LabError
from workspace.layout import Workspace
from workspace.settings import Settings, load

__all__ = ["Finding", "examine"]
log = logging.getLogger(__name__)


def examine(workspace: Workspace | None) -> list[Finding]:
    """Everything looked at, good or bad, machine first. Without a workspace only the machine is examined."""
    findings: list[Finding] = []
    settings = Settings.model_construct()
    if workspace is not None:
        try:
            settings = load(workspace.settings_file)
        except LabError as refusal:
            fix = refusal.fix or "correct it"
            findings.append(error(refusal.problem, f"the service does not start with it; {refusal.valid or ''}", fix))
    for check in machine_checks.CHECKS:
        findings += _made(check.__name__, lambda check=check: check(settings))  # type: ignore[misc]
    if workspace is not None:
        for look in workspace_checks.CHECKS:
            findings += _made(look.__name__, lambda look=look: look(workspace, settings))  # type: ignore[misc]
    return findings


def _made(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of one check; a check that fails is itself a finding, and the others go on."""
    try:
        return list(check())
    except Exception as problem:  # whatever is wrong with the machine must not keep the rest from being told
        log.debug("check %s failed", name, exc_info=True)
        what = f"the check {name.replace('_', ' ')!r} could not be made"
        return [warn(what, f"{type(problem).__name__}: {problem}", "look into it: something here is unusual")]
