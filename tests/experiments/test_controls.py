"""Which runs lie side by side, and was the machine slowed? What is not known is not judged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from experiments.controls import canary_speeds, pauses, slowed
from experiments.record import Score
from workspace.clock import stamp

USUAL = [{"canary.matmul_gflops.float32": rate, "canary.bandwidth_gb_s": 10.0} for rate in (98.0, 100.0, 103.0)]


def test_ten_percent_under_the_median_is_slowed() -> None:
    assert slowed({"canary.matmul_gflops.float32": 91.0}, USUAL) is None
    said = slowed({"canary.matmul_gflops.float32": 80.0, "canary.bandwidth_gb_s": 10.0}, USUAL)
    assert said == "canary.matmul_gflops.float32 80 against 100 in the session, 20% less"
    assert slowed({"canary.bandwidth_gb_s": 5.0, "canary.matmul_gflops.float32": 100.0}, USUAL) is not None


def test_what_is_missing_is_not_judged() -> None:
    assert slowed({}, USUAL) is None
    assert slowed({"canary.matmul_gflops.bfloat16": 1.0}, USUAL) is None
    assert slowed({"canary.matmul_gflops.float32": 1.0}, USUAL[:2]) is None
    assert slowed({"canary.matmul_gflops.float32": 1.0}, [*USUAL[:2], {}, {}]) is None


def test_the_speeds_of_a_summary() -> None:
    canary = {"matmul_gflops": {"float32": 95, "bfloat16": 190.5}, "bandwidth_gb_s": 11.2, "seconds": 2.0}
    assert canary_speeds({"canary": canary}) == {
        "canary.bandwidth_gb_s": 11.2,
        "canary.matmul_gflops.float32": 95.0,
        "canary.matmul_gflops.bfloat16": 190.5,
    }
    assert canary_speeds(None) == canary_speeds({}) == canary_speeds({"canary": "broken"}) == {}
    assert canary_speeds({"canary": {"bandwidth_gb_s": 3.0, "matmul_gflops": None}}) == {"canary.bandwidth_gb_s": 3.0}


START = datetime(2026, 11, 2, 8, tzinfo=UTC)


def scores(*minutes: tuple[float, float], known: bool = True) -> list[Score]:
    """Runs from and to these minutes."""
    times = [(stamp(START + timedelta(minutes=a)), stamp(START + timedelta(minutes=b))) for a, b in minutes]
    return [
        Score(role="control", index=i, seed=i, run=f"run-{i}", value=1.0, values={}, machine="m",
              started_at=a if known else None, at=b)
        for i, (a, b) in enumerate(times)
    ]  # fmt: skip


def at(minutes: float) -> str:
    return stamp(START + timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("length", "near", "far", "runs"),
    [(0.1, 4.9, 5.1, 51), (1, 4.9, 5.1, 5), (10, 39, 41, 5), (30, 59, 61, 5), (10, 100, 120, 12), (240, 239, 241, 5)],
)
def test_a_pause_is_long_by_the_length_of_the_runs(length: float, near: float, far: float, runs: int) -> None:
    first = [(0, length), (length, 2 * length)]
    if near < 100:
        assert pauses(scores(*first, (2 * length + near, 3 * length + near)), at(3 * length + near)) == [0, 0, 0, 0]
    assert pauses(scores(*first, (2 * length + far, 3 * length + far)), at(3 * length + far)) == [0, 0, runs, 0]
    assert pauses(scores(*first), at(2 * length + far)) == [0, 0, runs], "and so is the time since the newest"


def test_runs_at_the_same_time_have_no_pause_and_old_scores_know_no_start() -> None:
    assert pauses([], at(0)) == [0]
    assert pauses(scores((0, 30), (0, 31), (31, 60), (30, 61)), at(61)) == [0, 0, 0, 0, 0]
    assert pauses(scores((0, 30), (31, 60), (200, 230), known=False), at(231)) == [0, 0, 5, 0]
