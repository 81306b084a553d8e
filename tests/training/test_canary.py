"""What the machine gives, measured before a run."""

from __future__ import annotations

import pytest
import torch
from training_support import small

from training import canary
from training.canary import Canary

CPU = torch.device("cpu")


def test_it_measures_products_and_copies() -> None:
    found = canary.measure(CPU, 0.2)
    assert set(found.matmul_gflops) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in found.matmul_gflops.values()) and found.bandwidth_gb_s > 0
    assert found.as_json().keys() == {"matmul_gflops", "bandwidth_gb_s", "seconds"}
    assert found.peak_flops("float32") == found.matmul_gflops["float32"] * 1e9


def test_a_format_the_device_cannot_multiply_in_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")  # as torch says it
        return real(x, w)

    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", refuse)
    assert canary.product_gflops(CPU, "bfloat16", 0.05) is None
    assert Canary({"float32": 1.0}, 1.0, 0.1).peak_flops("bfloat16") is None


@pytest.mark.parametrize(
    ("kind", "amount", "seconds"),
    [
        ("seconds", 300, 2.0),
        ("seconds", 10, 1.0),
        ("seconds", 1, 0.2),
        ("steps", 6, 0.2),
        ("tokens", 1e12, 2.0),
        ("flops", 2e11, 1.0),
    ],
)
def test_a_short_run_has_a_short_canary(kind: str, amount: float, seconds: float) -> None:
    assert canary.length_s(small(budget__kind=kind, budget__amount=amount)) == pytest.approx(seconds)
