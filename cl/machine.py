"""What a run was made on: memory, library versions, device."""

from __future__ import annotations

import os
import platform
import resource
import sys

import numpy as np
import torch

import cl


def peak_memory(device: torch.device) -> int:
    """Largest memory of the process, or of its device if that is a cuda device [bytes]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def versions() -> dict[str, str]:
    """Of everything that can move a number."""
    return {
        "cl": cl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def describe_device(device: torch.device) -> str:
    """`cpu`, or the accelerator's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def describe_cpu() -> str:
    """Kind of processor and number of cores that may be used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} core{'s' * (cores != 1)}"
