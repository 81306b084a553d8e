"""Was the machine slowed? What is not known is not judged."""

from __future__ import annotations

from experiments.controls import canary_speeds, slowed

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
