"""What all figures of a run on a processor depend on: the machine, its best rates, versions, settings."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from bench import peak
from sparseprune.cost import machine

# Other libraries whose versions matter.
PEERS = ("sparseprop", "sparselab", "sparse_dot_mkl", "mkl", "scipy", "numpy")


def header(settings: dict[str, Any], contender: str) -> dict[str, Any]:
    """The header of a results file; ``contender`` is the one that targets and losses are about."""
    figures, why_not = peak.measure()
    versions = {}
    for name in PEERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": machine.facts(),
        "versions": versions,
        "load": os.getloadavg()[0],
        "peak": figures,
        "no_peak": why_not,
        "contender": contender,
        "settings": settings,
    }


def machine_text(machine: Mapping[str, Any]) -> str:
    """Processor, threads and versions of a run, as tables tell them."""
    threads = machine["threads"]
    return (
        f"{machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}, {machine['isa']}, "
        f"torch {machine['torch']}, sparseprune {machine['sparseprune']}"
    )


def header_text(header: dict[str, Any]) -> Text:
    """It in two lines, for people."""
    facts = header["machine"]
    return Text(
        f"{facts['cpu']}, {facts['cores']} cores, {facts['isa']}, torch {facts['torch']}, "
        f"sparseprune {facts['sparseprune']}, {facts['date']}; load average {header['load']:.1f} before\n"
        f"{peak_text(header)}\n"
    )


def peak_text(header: dict[str, Any]) -> str:
    """What one core can do, in a line."""
    found = header["peak"]
    if found is None:
        return f"what a core can do is not known: {header['no_peak']}"
    return (
        f"one core, {found['isa']}: {found['fma_gflops']:.0f} GFLOP/s in multiply-adds, "
        f"{found['load_fma_gflops']:.0f} with a load from L1 for each; "
        f"reads {found['l1_gbs']:.0f} GB/s from L1, {found['l2_gbs']:.0f} from L2, "
        f"{found['beyond_gbs']:.0f} from beyond"
    )
