"""A campaign killed again and again ends like its undisturbed twin: no row lost, doubled or invented."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from campaigns_bench import kills


def test_killed_three_times(tmp_path: Path) -> None:
    assert kills(tmp_path, 2, seed=1) >= 2


@pytest.mark.slow
def test_killed_at_fifteen_random_moments(tmp_path: Path) -> None:
    seed = random.SystemRandom().randint(0, 10**6)
    print(f"seed {seed}")
    assert kills(tmp_path, 15, seed) >= 15
