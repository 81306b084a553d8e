"""Peak arithmetic of known accelerators, from their makers' data sheets. An unknown device has no peak: never a guess.

Dense (no structured sparsity), one device as the framework counts devices, floating-point operations a second.
No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Peak operations a second and where the figure stands."""

    flops: float
    source: str


_HOPPER = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_AMPERE = "https://www.nvidia.com/en-us/data-center/a100/"
_BLACKWELL = "https://www.nvidia.com/en-us/data-center/dgx-b200/"
_L40S = "https://www.nvidia.com/en-us/data-center/l40s/"
_L4 = "https://www.nvidia.com/en-us/data-center/l4/"
_ADA = "NVIDIA Ada GPU architecture white paper, GeForce RTX 4090, table 2 (FP32 accumulate)"
_GEFORCE_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture white paper, GeForce RTX 5090 (FP32 accumulate)"
_GEFORCE_AMPERE = "NVIDIA Ampere GA102 GPU architecture white paper, GeForce RTX 3090 (FP32 accumulate)"
_MI300X = "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html"
_MI325X = "https://www.amd.com/en/products/accelerators/instinct/mi300/mi325x.html"
_MI250X = "https://www.amd.com/en/products/accelerators/instinct/mi200/mi250x.html"

# (parts of the name, all of which must occur; bfloat16; float32), first match wins: the narrower name stands first.
# float32 is the plain rate without tensor cores, which is what PyTorch uses unless told otherwise.
_TABLE: tuple[tuple[tuple[str, ...], float, float | None, str], ...] = (
    (("GB200",), 2.5e15, None, _BLACKWELL),
    (("B200",), 2.25e15, None, _BLACKWELL),
    (("H200", "NVL"), 835.5e12, 60e12, _H200),
    (("H200",), 989.5e12, 67e12, _H200),
    (("H100", "NVL"), 835.5e12, 60e12, _HOPPER),
    (("H100", "PCIE"), 756e12, 51e12, _HOPPER),
    (("H100",), 989.5e12, 67e12, _HOPPER),
    (("A100",), 312e12, 19.5e12, _AMPERE),
    (("L40S",), 362e12, 91.6e12, _L40S),
    (("L4",), 121e12, 30.3e12, _L4),
    (("RTX 5090",), 209.5e12, 104.8e12, _GEFORCE_BLACKWELL),
    (("RTX 4090",), 165.2e12, 82.6e12, _ADA),
    (("RTX 3090",), 71e12, 35.6e12, _GEFORCE_AMPERE),
    (("MI325X",), 1307.4e12, 163.4e12, _MI325X),
    (("MI300X",), 1307.4e12, 163.4e12, _MI300X),
    (("MI250X",), 191.5e12, 23.95e12, _MI250X + " (halved: a card is two devices)"),
)
# names that contain a shorter one of the table and are something else
_NOT = {
    "A100": ("A1000",),
    "L4": ("L40", "L400"),
    "RTX 5090": ("LAPTOP", " D"),
    "RTX 4090": ("LAPTOP", " D"),
    "RTX 3090": (" TI", "LAPTOP"),
}


def peak_flops(name: str, dtype: str) -> Peak | None:
    """The peak of the device called `name` ("NVIDIA H100 80GB HBM3") for "bfloat16" or "float32"; None when unknown."""
    upper = name.upper()
    for parts, bfloat16, float32, source in _TABLE:
        excluded = any(other in upper for part in parts for other in _NOT.get(part, ()))
        if all(part in upper for part in parts) and not excluded:
            flops = {"bfloat16": bfloat16, "float32": float32}.get(dtype)
            return None if flops is None else Peak(flops, source)
    return None
