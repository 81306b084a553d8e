"""Rules on how a run ended: its final record, and the exception its log ends with. Never words within a log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.runs import outcome
from training.runs.alerts.alert import Alert, write_once
from training.runs.place import read
from training.runs.progress import progress

CREDENTIAL_CLASSES = {
    "GatedRepoError", "LocalTokenNotFoundError", "AuthenticationError", "NoCredentialsError", "RefreshError",
    "CredentialRetrievalError", "UnauthorizedSSOTokenError", "TokenRetrievalError", "DefaultCredentialsError",
}  # fmt: skip
# as HTTP libraries, huggingface_hub, boto3, git hosts and wandb word it
CREDENTIAL_MESSAGE = re.compile(
    r"\b40[13](?: Client Error)?: ?(?:Unauthorized|Forbidden)|HTTP Error 40[13]\b|\(ExpiredToken\w*\)"
    r"|\(InvalidClientTokenId\)|\btoken (?:has |is )?expired|\bInvalid (?:user )?token\b|\bBad credentials\b"
    r"|\baccess a gated repo\b|\bapi_key not configured\b|\bInvalid username or password\b",
    re.IGNORECASE,
)
TEXTS = {
    "oom": "it ran out of memory",
    "signal": "it was killed by a signal",
    "import_error": "something it imports is missing or broken",
    "data": "a file it needs is missing",
    "nan": "the loss was no longer a number",
    "credential": "a credential was refused or has expired",
}
log = logging.getLogger(__name__)


def end_alert(folder: Path, final: Mapping[str, Any]) -> Alert | None:
    """What the end of the run in `folder` calls for; `final` is its exit.json. None for an end that explains itself,
    or that an alert brought about.
    """
    if final.get("alert"):
        return None
    if final.get("state") != "failed":
        return _compile_fell_back(folder)
    log_file = folder / "train.log"
    rule = {"import": "import_error"}.get(str(final.get("class")), str(final.get("class")))
    if rule in ("exit", "data") and _credential(outcome.last_exception(log_file)):
        rule = "credential"
    if rule not in TEXTS:
        return None
    newest = progress(folder, None, None) or {}
    numbers = {
        "exit_code": final.get("exit_code"),
        "signal": final.get("signal"),
        "elapsed_s": final.get("elapsed_s"),
        **{name: newest.get(name) for name in ("step", "loss", "memory_bytes")},
    }
    reason = str(final.get("reason") or "")
    text = f"{TEXTS[rule]}: {reason}" if reason else TEXTS[rule]
    known = {name: value for name, value in numbers.items() if value is not None}
    return Alert(rule, text, known, tuple(outcome.last_traceback(log_file)) or (f"exit.json: {reason}",))


def _compile_fell_back(folder: Path) -> Alert | None:
    """What the trainer's summary says of torch.compile."""
    choice = read(folder / "summary.json").get("compile")
    if not isinstance(choice, dict) or not choice.get("fell_back"):
        return None
    evidence = (f"summary.json: compile = {json.dumps(choice, ensure_ascii=False)}",)
    text = f"torch.compile was not used: {choice.get('reason')}"
    return Alert("compile_fell_back", text, {"used": choice.get("used")}, evidence)


def record_end(folder: Path, final: Mapping[str, Any], policies: Mapping[str, str]) -> None:
    """Write the alert of a run's end, once. A disk that is full must not keep the end from being recorded."""
    try:
        alert = end_alert(folder, final)
        if alert is not None:
            write_once(folder, alert, policies[alert.rule])
    except OSError as error:
        log.warning("%s: the alert of its end could not be written: %s", folder.name, error.strerror)


def _credential(exception: tuple[str, str] | None) -> bool:
    if exception is None:
        return False
    name, message = exception
    return name.rpartition(".")[2] in CREDENTIAL_CLASSES or CREDENTIAL_MESSAGE.search(message) is not None
