"""Where numbers are computed, at which precision, and the class of results that are comparable bit by bit.

Asked by every verb before anything is known to be missing, so it does not bring torch with it where there is no GPU.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Literal

Precision = Literal["fp32", "bf16"]
Requested = Literal["auto", "fp32", "bf16"]


@cache
def pick() -> str:
    """``cuda`` if torch can compute on a GPU here, else ``cpu``."""
    if not _has_driver():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(requested: Requested, device: str) -> Precision:
    """What ``auto`` means here: bf16 autocast where the hardware multiplies it faster, fp32 elsewhere.

    On a CPU that is AMX alone; with AVX-512 bf16 the casts cost more than the products save at the sizes trained here.
    """
    if requested != "auto":
        return requested
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _has_amx() else "fp32"


def numerics(device: str, precision: Precision) -> str:
    """The part of an action's key that says how floating point was done, such as ``cpu-bf16``."""
    return f"{device}-{precision}"


def _has_driver() -> bool:
    """Whether NVIDIA's driver is there; without it torch finds no GPU either."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _has_amx() -> bool:
    try:
        with open("/proc/cpuinfo") as info:
            return any("amx_bf16" in line for line in info if line.startswith("flags"))
    except OSError:
        return False
