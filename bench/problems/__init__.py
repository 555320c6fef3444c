"""The problem that each workload poses: its tensors and the known answers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.problems.base import CPU, Problem
from bench.problems.layers import LayerProblem, batch_inner, build_layer
from bench.problems.networks import NetworkProblem, build_network, build_prune
from bench.problems.topk import ScoresProblem, build_topk
from bench.workloads import Workload

__all__ = ["BUILD", "LayerProblem", "NetworkProblem", "Problem", "ScoresProblem", "batch_inner", "build"]

BUILD: dict[str, Callable[[Workload, torch.device], Problem]] = {
    "linear-step": build_layer,
    "linear-forward": build_layer,
    "rewire-step": build_layer,
    "conv-step": build_layer,
    "conv-forward": build_layer,
    "model-step": build_network,
    "network-step": build_network,
    "network-forward": build_network,
    "transformer-step": build_network,
    "transformer-forward": build_network,
    "prune": build_prune,
    "topk": build_topk,
}


def build(workload: Workload, device: torch.device = CPU) -> Problem:
    """The tensors of a workload on a device (networks: on the processor), the same at every call."""
    with torch.random.fork_rng(devices=[]):
        return BUILD[workload.kind](workload, device)
