"""What measured figures depend on, to be stored beside them."""

import datetime
import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

from sparseprune import ops
from sparseprune._version import __version__


def facts() -> dict[str, Any]:
    """Processor, threads, instruction set, versions and date.

    Returns:
        plain strings and integers, for JSON.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": ops.info().get("isa"),
        "sparseprune": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.date.today().isoformat(),
    }


def key(device: torch.device | None = None) -> str:
    """What the speed of the kernels on a device (the CPU by default) depends on, in one line."""
    kernels = f"torch {torch.__version__}, sparseprune {__version__}{_build()}"
    if device is not None and device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, {kernels}" + (
            "" if ops.has_kernels(device) else ", plain torch"
        )
    threads = torch.get_num_threads()
    return (
        f"{cpu_name()}, {ops.info()['isa'] or 'plain torch'}, {kernels}, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )


def _build() -> str:
    """Which build of the operators is loaded."""
    return "" if ops.extension is None else f", build {_digest(ops.extension.__file__)}"


@functools.cache
def _digest(file: str) -> str:
    """First digits of a file's SHA-256; it takes 20 ms, and is only needed where layers are measured."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    except OSError:
        return "unknown"


@functools.cache
def cpu_name() -> str:
    """The processor's own name."""
    # platform.processor() is empty, or no more than "x86_64", on Linux.
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
