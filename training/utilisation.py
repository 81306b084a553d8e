"""Model FLOPs utilisation (MFU): what a run computes, as a part of what its devices could."""

from __future__ import annotations

from dataclasses import dataclass

from training.hardware.peak_flops import Peak


@dataclass(frozen=True)
class Utilisation:
    """`known` by its data sheet and `measured` by the canary are operations a second of one device; None: not known."""

    flops_per_token: float
    devices: int
    known: Peak | None
    measured: float | None

    @property
    def ceiling(self) -> Peak | None:
        """What MFU is a part of, on each device."""
        return self.known or (None if self.measured is None else Peak(self.measured, "measured by the canary"))

    def mfu(self, tokens_per_s: float) -> float | None:
        """Of the tokens of all devices together; None where there is no ceiling."""
        return self._part(tokens_per_s, None if self.ceiling is None else self.ceiling.flops)

    def mfu_of_canary(self, tokens_per_s: float) -> float | None:
        return self._part(tokens_per_s, self.measured)

    def _part(self, tokens_per_s: float, flops: float | None) -> float | None:
        return None if flops is None else self.flops_per_token * tokens_per_s / (flops * self.devices)
