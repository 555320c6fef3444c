"""The GPU: why none can be measured, and what all figures of one depend on."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

import sparseprune as sp
from bench.gpu.suite import DEFAULTS, TOLERANCES
from sparseprune.cost import machine


def why_not() -> str:
    """Why nothing can be measured here; "" if it can."""
    info = sp.ops.info()
    if not info["cuda_available"]:
        return f"torch {torch.__version__} finds no CUDA device"
    if not info["cuda_compiled"]:
        return f"sparseprune's kernels ({info['backend']}) are compiled without CUDA"
    return ""


def header(device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    """What all figures of a run depend on, for JSON."""
    return {
        "machine": machine.facts(),
        "device": device_facts(device),
        "tolerances": TOLERANCES,
        "defaults": DEFAULTS,
        "settings": settings,
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, compute capability, versions, and sizes in bytes; of the CPU the name alone."""
    if device.type != "cuda":
        return {"type": device.type, "name": machine.cpu_name()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": device.type,
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return found.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "not known"
