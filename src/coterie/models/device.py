"""Where numbers are computed, at which precision, and the class of results that are comparable bit by bit."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def pick() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def precision(requested: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """What ``auto`` means here: bf16 autocast where the hardware multiplies it faster, fp32 elsewhere.

    On a CPU that is AMX alone; with AVX-512 bf16 the casts cost more than the products save at the sizes trained here.
    """
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _has_amx() else "fp32"


def numerics(device: torch.device, precision: Precision) -> str:
    """The part of an action's key that says how floating point was done, such as ``cpu-bf16``."""
    return f"{device.type}-{precision}"


def _has_amx() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if supported is not None:
        return bool(supported())
    try:
        with open("/proc/cpuinfo") as info:
            return any("amx_bf16" in line for line in info if line.startswith("flags"))
    except OSError:
        return False
