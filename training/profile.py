"""A look inside some steps: torch.profiler's trace in `profile/trace.json`, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from training.report import say

FIRST = 2  # steps left out: caches fill and allocators settle
FOLDER = "profile"


class Profiler:
    """Call `between_steps` after every step; `steps` of them are recorded, none when it is 0."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder, self._left, self._seen = folder / FOLDER, steps, 0
        self._profile: Any = None

    def between_steps(self) -> None:
        if not self._left:
            return
        self._seen += 1
        if self._profile is not None:
            self._left -= 1
            if not self._left:
                self.close()
        elif self._seen >= FIRST:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()

    def close(self) -> None:
        """Write what has been recorded."""
        found, self._profile, self._left = self._profile, None, 0
        if found is not None:
            found.stop()
            self._folder.mkdir(exist_ok=True)
            found.export_chrome_trace(str(self._folder / "trace.json"))
            say(f"Profile: {FOLDER}/trace.json")
