"""The effective fingerprint of a recipe, taken in a child process: the service never imports torch."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from experiments import recipe
from experiments.ports import Fingerprint, RecipeFailure
from training import extras
from training.config import TrainingConfig
from workspace import durable
from workspace.errors import Unavailable
from workspace.interpreter import python_command, service_environment
from workspace.layout import Workspace

TIMEOUT_S = 300


class ChildFingerprint:
    """`python -P -s -m training.fingerprint` on a configuration and a recipe's code; the same one is asked for once."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._taken: dict[str, Fingerprint] = {}

    def __call__(self, config: TrainingConfig, recipe_dir: Path) -> Fingerprint:
        """Raises `RecipeFailure` when the recipe cannot be built, `Unavailable` when a package is missing or the child
        gives no answer.
        """
        extras.check_packages(config)
        name = recipe.digest(config, recipe_dir)
        if name not in self._taken:
            self._taken[name] = self._take(config, recipe_dir)
        return self._taken[name]

    def _take(self, config: TrainingConfig, recipe_dir: Path) -> Fingerprint:
        self.workspace.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fingerprint-", dir=self.workspace.cache_dir) as folder:
            file = Path(folder) / "config.json"
            durable.write_json(file, config.model_dump(mode="json"))
            folders = ["--recipe-dir", str(recipe_dir), "--cache-dir", str(self.workspace.cache_dir)]
            command = python_command("training.fingerprint", str(file), *folders)
            try:
                answer = subprocess.run(
                    command,
                    cwd=self.workspace.root,
                    env=service_environment(),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise RecipeFailure(
                    f"three steps took longer than {TIMEOUT_S} s", kind="stalled", fix="take a smaller model"
                ) from error
        if answer.returncode < 0:
            raise RecipeFailure("the recipe's process was killed, often for memory", kind="signal")
        try:
            content = json.loads(answer.stdout.strip().splitlines()[-1])
            if "error" in content:
                raise RecipeFailure(str(content["error"])[:600], kind=str(content.get("class") or "exit"))
            return Fingerprint(structural=str(content["structural"]), behavioural=str(content["behavioural"]))
        except (ValueError, KeyError, IndexError) as error:
            last = (answer.stderr.strip().splitlines() or ["no output"])[-1][:300]
            raise Unavailable(f"the fingerprint could not be taken ({last})") from error
