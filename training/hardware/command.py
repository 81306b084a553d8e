"""Asking a vendor's command-line tool, with a time limit: a wedged driver can make these tools hang."""

from __future__ import annotations

import os
import shutil
import subprocess

TIMEOUT_S = 15.0


class ToolFailed(Exception):
    """The tool is here and did not give an answer; the text says how it failed."""


def ask(tool: str, *arguments: str) -> str | None:
    """What the tool printed on stdout; None when it is not installed. Raises `ToolFailed`."""
    path = shutil.which(tool) or shutil.which(tool, path="/opt/rocm/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        return None
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            [path, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(f"{tool} did not answer within {TIMEOUT_S:g} s") from error
    except OSError as error:
        raise ToolFailed(f"{tool} cannot be run ({error.strerror})") from error
    if answer.returncode != 0:
        words = (answer.stderr.strip() or answer.stdout.strip() or "no message").splitlines()[-1][:200]
        raise ToolFailed(f"{tool} failed with exit code {answer.returncode}: {words}")
    return answer.stdout


def number(text: object) -> float | None:
    """12.5 from `12.5 W`, `(12.5Mhz)` or 12.5; None from `N/A`, `` and the like."""
    words = str(text).strip().strip("()").split() if text is not None else []
    if not words:
        return None
    digits = words[0].rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%/°")
    try:
        return float(digits)
    except ValueError:
        return None


def whole(text: object) -> int | None:
    value = number(text)
    return None if value is None else round(value)
