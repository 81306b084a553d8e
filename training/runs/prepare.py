"""From a request to everything a run needs, checked before anything is written. A refusal changes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import os
import platform
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.runs import placement, source
from training.runs.placement import GB, Device, Need
from training.runs.records import RunRequest
from training.runs.screen import clean
from workspace import clock, durable
from workspace.errors import NotFound, Refused, Unavailable, closest
from workspace.interpreter import passed_variables, python_command
from workspace.layout import Workspace
from workspace.process import TAG_VARIABLE
from workspace.settings import Settings

if TYPE_CHECKING:
    from training.config import TrainingConfig

MAX_HOURS = 24 * 31
MAX_NAME = 80
MAX_ARGUMENTS = 1000
WATCH_FOLDER = Path(__file__).resolve().parent.parent / "watch"  # holds lab_watch.py alone, for users' scripts
SPACE_BYTES = 64 * 2**20  # a run is refused when the disk has less
RECIPE_FILE_BYTES = 2**20
RECIPE_SUFFIXES = (".py", ".toml")
WRITING = ".writing-"  # before the id of a run that is being written down


@dataclass
class Prepared:
    """A run that could be started: what its folder will hold. `discard` when it is not wanted after all."""

    run: dict[str, Any]  # run.json, without id and what follows from the id
    need: Need
    config: dict[str, Any] | None = None
    arguments: tuple[str, ...] = ()  # the user's, appended to the command as they are
    recipe: dict[str, bytes] = field(default_factory=dict)
    checkout: source.Checkout | None = None

    def write(self, folder: Path, run_id: str, key: str | None) -> dict[str, Any]:
        """Make the run folder, whole or not at all: it is written aside. Returns run.json."""
        aside = folder.with_name(f"{WRITING}{run_id}")
        shutil.rmtree(aside, ignore_errors=True)  # of a service that was killed here: its id is given out again
        try:
            run = self._write(aside, folder, run_id, key)
            aside.rename(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        durable.sync_folder(folder.parent)
        return run

    def _write(self, aside: Path, folder: Path, run_id: str, key: str | None) -> dict[str, Any]:
        aside.mkdir(parents=True)
        if self.config is not None:
            durable.write_json(aside / "config.json", self.config)
        for name, content in self.recipe.items():
            (aside / "recipe").mkdir(exist_ok=True)
            durable.write_bytes(aside / "recipe" / name, content)
        if self.checkout:
            shutil.move(self.checkout.folder, aside / "source")
        place = {"{run_dir}": str(folder), "{source}": str(folder / "source")}
        environment = {"LAB_RUN_DIR": str(folder), TAG_VARIABLE: f"{run_id}:{uuid.uuid4().hex}"}
        run = {
            "id": run_id,
            **self.run,
            "key": key,
            "command": [*(_fill(part, place) for part in self.run["command"]), *self.arguments],
            "cwd": _fill(self.run["cwd"], place),
            **({"recipe_dir": _fill(self.run["recipe_dir"], place)} if "recipe_dir" in self.run else {}),
            "environment": {**self.run["environment"], **environment},
            "need": self.need.as_json(),
            "devices": [],
        }
        durable.write_json(aside / "run.json", run)
        return run

    def discard(self) -> None:
        if self.checkout:
            self.checkout.discard()


def prepare(request: RunRequest, workspace: Workspace, settings: Settings, devices: Sequence[Device]) -> Prepared:
    """Check `request` and gather what it needs. Raises `LabError`; only caches have changed then."""
    need = placement.need_of(request, devices)
    limit_s = _time_limit(request, settings)
    _check_space(workspace)
    common = {
        "kind": request.kind,
        "purpose": request.purpose,
        "priority": request.priority,
        "experiment": request.experiment,
        "session": request.session,
        "created_at": clock.now(),
        "time_limit_s": limit_s,
        "grace_s": settings.runs.grace_seconds,
        "log_cap_bytes": int(settings.runs.log_gigabytes * GB),
        "log_policy": settings.alerts.log,
        "versions": versions(),
        "settings_hash": hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16],
    }
    if request.kind == "recipe":
        return _recipe(request, workspace, devices, need, common)
    return _script(request, workspace, settings, need, common)


def _recipe(
    request: RunRequest, workspace: Workspace, devices: Sequence[Device], need: Need, common: dict[str, Any]
) -> Prepared:
    for name in ("script", "repo", "branch", "python"):
        if getattr(request, name) is not None:
            raise Refused(f"{name} belongs to a run of kind script", valid="overrides, config and recipe_dir")
    if request.args:
        raise Refused("args belong to a run of kind script", valid="overrides, config and recipe_dir")
    from training import config as configs
    from training import extras, size
    from training.hardware.cpu import memory_bytes
    from training.runs import resuming

    folder = request.recipe_dir or workspace.recipe_dir
    config: Any = request.config
    resumed: dict[str, Any] = {}
    if request.resume is not None:
        if config is not None or request.recipe_dir is not None:
            raise Refused("a run that goes on from another has its configuration and recipe", valid="overrides")
        config, folder, resumed = resuming.source_of(request.resume, request.overrides, workspace)
    elif config is None:
        config = configs.apply(configs.load_recipe(folder), request.overrides)
    configs.check(config)
    accelerator = next((d.backend for d in devices if d.trains), "cuda") if need.count else "cpu"
    extras.check(config, accelerator)
    _check_devices(config, need.count)
    for name in config.data.files:
        if not workspace.confine(name, what="data.files").exists():
            raise NotFound(f"data.files: there is no {name!r} in the workspace", fix="correct data.files")
    budget = config.budget.model_dump(mode="json")
    run = common | {
        "name": _name(request.name, resumed.pop("name", "recipe")),
        "command": python_command("training.train", "{run_dir}"),
        "cwd": str(workspace.root),
        "environment": {"PYTHONUNBUFFERED": "1"},
        "budget": budget,
        "workspace": str(workspace.root),
        "recipe_dir": "{run_dir}/recipe",
        "source": None,
        **resumed,
    }
    files = _recipe_files(folder)
    if need.count:
        need = replace(need, predicted_bytes=size.predict_memory(config, accelerator).total)
    elif "model.py" not in files:  # what may be killed for want of memory can tell nothing itself
        need = replace(need, predicted_bytes=size.predict_memory(config).total)
        run["memory_advice"] = size.memory_advice(config, "cpu", memory_bytes() // max(1, config.parallel.processes))
    return Prepared(run, need, config=config.model_dump(mode="json"), recipe=files)


def _check_devices(config: TrainingConfig, count: int) -> None:
    """Whether the recipe makes sense on `count` accelerators, 0 = the CPU. Raises `Refused`."""
    from training import shares

    parallel = config.parallel
    if parallel.kind == "none":
        if count > 1:
            raise Refused(
                f"gpu_count = {count}: this recipe trains on one accelerator",
                valid="gpu_count = 1",
                fix='set parallel.kind = "ddp" or "fsdp", or drop gpu_count',
            )
        return
    if count and parallel.processes not in (0, count):
        raise Refused(
            f"parallel.processes = {parallel.processes} on {count} accelerator{'s' if count > 1 else ''}",
            valid="one process for each",
            fix=f"gpu_count = {parallel.processes}, or parallel.processes = 0: as many as there are",
        )
    shares.check(config, parallel.processes or max(1, count))


def _recipe_files(folder: Path) -> dict[str, bytes]:
    """The recipe as it is now: the run uses this copy, whatever happens to the recipe while it waits."""
    if not folder.is_dir():
        return {}
    files = sorted(p for p in folder.iterdir() if p.suffix in RECIPE_SUFFIXES and p.is_file())
    for path in files:
        if path.stat().st_size > RECIPE_FILE_BYTES:
            raise Refused(f"recipe/{path.name} is larger than {RECIPE_FILE_BYTES // 2**20} MiB", fix="make it smaller")
    return {path.name: path.read_bytes() for path in files}


def _script(
    request: RunRequest, workspace: Workspace, settings: Settings, need: Need, common: dict[str, Any]
) -> Prepared:
    if request.resume is not None:
        raise Refused("resume belongs to the built-in trainer", fix="let the script go on from what it wrote itself")
    if request.overrides or request.config is not None or request.recipe_dir is not None:
        raise Refused("overrides, config and recipe_dir belong to the built-in trainer", valid="script with args")
    if not request.script or not request.script.strip():
        raise Refused("a run of kind script names no script", valid='for example script="train.py"')
    if request.branch is not None and request.repo is None:
        raise Refused("branch without repo", valid="repo and branch, or a script of the workspace")
    if len(request.args) > MAX_ARGUMENTS or any("\0" in argument for argument in request.args):
        raise Refused("args: too many, or one holds a NUL byte", valid=f"at most {MAX_ARGUMENTS} texts")
    checkout = None
    if request.repo is not None:
        checkout = source.check_out(request.repo, request.branch, workspace, network=settings.network.git)
    try:
        root = checkout.folder if checkout else workspace.root
        script = _find_script(request.script, root, workspace, checkout)
        shown = "{source}" if checkout else str(root)
        command, environment = _command(request, script, root, shown, workspace, settings)
    except BaseException:
        if checkout:
            checkout.discard()
        raise
    run = common | {
        "name": _name(request.name, script.stem),
        "script": script.relative_to(root).as_posix(),
        "command": command,
        "cwd": shown,
        "environment": environment,
        "passed": sorted(passed_variables(settings.runs.environment)),
        "source": checkout.as_json() if checkout else None,
    }
    return Prepared(run, need, arguments=request.args, checkout=checkout)


def _find_script(name: str, root: Path, workspace: Workspace, checkout: source.Checkout | None) -> Path:
    if checkout:
        if "\0" in name:
            raise Refused("script contains a NUL byte")
        path = (root / name).resolve()
        if root.resolve() not in path.parents:
            raise Refused(f"script {name[:200]!r} lies outside the repository", valid="a path within repo")
        path = root / path.relative_to(root.resolve())
    else:
        path = workspace.confine(name, what="script")
    if path.is_file():
        return path
    where = checkout.repo if checkout else "the workspace"
    if path.is_dir():
        raise Refused(f"script {name[:200]!r} is a folder", valid="a file: .py, .sh, or executable")
    near: list[str] = []
    with contextlib.suppress(OSError):
        near = [p.relative_to(root).as_posix() for p in path.parent.iterdir() if p.name in _near(path)]
    valid = "closest " + ", ".join(near) if near else None
    raise NotFound(f"there is no script {name[:200]!r} in {where}", valid=valid)


def _near(path: Path) -> list[str]:
    return closest(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])


def _command(
    request: RunRequest, script: Path, root: Path, shown: str, workspace: Workspace, settings: Settings
) -> tuple[list[str], dict[str, str]]:
    """Command and environment additions, as the user would run it. Unbuffered, or the log would lag behind."""
    environment = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(WATCH_FOLDER)}
    python = find_python(request.python, workspace, settings)
    venv = Path(python).parent
    if (venv.parent / "pyvenv.cfg").exists():
        environment["VIRTUAL_ENV"] = str(venv.parent)
        environment["PATH"] = os.pathsep.join([str(venv), os.environ.get("PATH", os.defpath)])
    target = f"{shown}/{script.relative_to(root).as_posix()}"
    if script.suffix == ".py":
        return [python, target], environment
    if request.python:
        raise Refused(f"python is for .py scripts, not {script.name!r}", fix="drop python, or give a .py script")
    if script.suffix == ".sh":
        return [shutil.which("bash") or "sh", target], environment
    if os.access(script, os.X_OK):
        return [target], environment
    raise Refused(
        f"it is not clear how to run {script.name!r}", valid=".py, .sh, or a file with its executable bit set"
    )


def find_python(wish: str | None, workspace: Workspace, settings: Settings) -> str:
    """The interpreter for a user's script: the argument, the setting, the workspace's .venv, ours."""
    import sys

    for text, origin in ((wish, "python"), (settings.runs.python, "runs.python in lab.toml")):
        if text:
            path = Path(text).expanduser()
            found = shutil.which(str(workspace.root / path)) if path.parent != Path() else shutil.which(text)
            if not found:
                raise NotFound(f"{origin}: there is no interpreter {text[:200]!r}", fix="give the path of a python")
            return os.path.abspath(found)  # noqa: PTH100  (resolving the link would leave its virtual environment)
    own = workspace.root / ".venv" / "bin" / "python"
    return str(own) if os.access(own, os.X_OK) else sys.executable


def _name(wish: str | None, default: str) -> str:
    text = re.sub(r"\s+", " ", clean(wish or "")).strip() or default
    return text[:MAX_NAME]


def _time_limit(request: RunRequest, settings: Settings) -> float:
    hours = settings.runs.time_limit_hours if request.time_limit_hours is None else request.time_limit_hours
    if not (math.isfinite(hours) and 0 < hours <= MAX_HOURS):
        raise Refused(f"time_limit_hours = {hours} is not possible", valid=f"above 0, at most {MAX_HOURS}")
    return hours * 3600.0


def _check_space(workspace: Workspace) -> None:
    try:
        free = shutil.disk_usage(workspace.runs_dir).free  # often a disk of its own
    except OSError as error:
        raise Unavailable(f"runs/ cannot be read: {error.strerror}") from error
    if free < SPACE_BYTES:
        raise Unavailable(
            f"the disk of runs/ has {free / 2**20:.0f} MiB left; a run needs some room",
            fix="free some space, for example old folders under runs/",
        )


def _fill(text: str, place: dict[str, str]) -> str:
    for mark, value in place.items():
        if text == mark or text.startswith(mark + "/"):
            return value + text[len(mark) :]
    return text


def versions() -> dict[str, str]:
    """python, torch, lab_mcp; torch's without importing it."""
    found = {"python": platform.python_version()}
    for name, package in (("torch", "torch"), ("lab_mcp", "lab-mcp")):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(package)
    return found
