"""What measured figures depend on, to be stored beside them."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

import torch

import sparseprune as sp


def facts() -> dict[str, Any]:
    """Processor, threads, instruction set, versions and date.

    Returns:
        plain strings and integers, for JSON.
    """
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": sp.ops.info().get("isa"),
        "sparseprune": sp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.date.today().isoformat(),
    }


def _cpu_name() -> str:
    # platform.processor() is empty, or no more than "x86_64", on Linux.
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
