"""What a rewiring costs beside a training step: seconds, taking turns, and the memory that it adds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

import sparseprune as sp
from bench.ledger import Ledger
from bench.rewire import timing
from bench.rewire.points import Method
from bench.rewire.training import Trainer
from sparseprune.cost.speedup import faster_layout
from sparseprune.experiments import models
from sparseprune.experiments.models import Network
from sparseprune.scores import prunable

FILE = "cost.jsonl"
METHODS: tuple[Method, ...] = get_args(Method)
ROUNDS = 15  # of timed blocks
EVERY = 100  # steps between rewirings, of which the cost is a part
CLASSES = 10
TIMEOUT = 600.0  # seconds that a child process may take


@dataclass(frozen=True)
class Case:
    """A network and its batch.

    Attributes:
        name: what tables call it.
        model: one of `sparseprune.experiments.models.MODELS`, or features from input to output.
        sample: shape of a sample.
        batch_size, optimizer: of a step.
        sparsity: of every layer but those that stay dense.
        whole: how many of the first layers stay dense.
    """

    name: str
    model: str | tuple[int, ...]
    sample: tuple[int, ...]
    batch_size: int
    optimizer: str
    sparsity: float
    whole: int = 0

    def dense(self) -> nn.Module:
        """The whole network."""
        if isinstance(self.model, str):
            return models.build(Network(self.model, self.sample, CLASSES), 0)
        with models.seeded(0):
            return models.mlp(self.model)

    def trainer(self, method: Method | None) -> Trainer:
        """A dense network in the faster layout, or a sparse one that rewires, ready to be timed."""
        random = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch_size, *self.sample, generator=random)
        y = torch.randint(CLASSES, (self.batch_size,), generator=random)
        model = self.dense()
        if method is None:
            model, _, _ = faster_layout(model, self.sample, self.batch_size)
        else:
            masks = sp.prune(
                model,
                method="random",
                sparsity=self.sparsity,
                scope="layer",
                exclude=list(prunable(model))[: self.whole],
            )
            model = sp.sparsify(model, masks, batch_size=self.batch_size, input_size=self.sample)
        return timing.trainer(model, itertools.repeat((x, y)), self.optimizer, method)


CASES = {
    case.name: case
    for case in (
        Case("resnet18", "resnet18", (3, 32, 32), 64, "sgd", 0.9, whole=1),
        Case("wide_mlp", "wide_mlp", (1, 28, 28), 256, "adam", 0.9),
        Case("article", (40_000, 1000, 1000, 10), (40_000,), 512, "adam", 0.98),
    )
}


def perform(
    file: Path,
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None],
) -> None:
    """Measure all cases, and add a line for each that the file does not have.

    A line's result has "dense" and each method's `bench.rewire.timing.Timed`, "memory" of each method, see
    `added_memory`, and "disturbed", the processors that others kept busy; None on a quiet machine.
    """
    with Ledger(file) as book:
        for case in CASES.values():
            key = {"case": case.name, "batch_size": case.batch_size, "sparsity": case.sparsity}
            if book.get(key) is not None:
                say(f"{file} has {case.name} already; delete its line to measure it again")
                continue
            say(f"{case.name}: memory")
            memory = {method: added_memory(case.name, method) for method in METHODS}
            trainers = {"dense": case.trainer(None)}
            trainers |= {it: case.trainer(it) for it in METHODS}
            layers = [row.computes for row in sp.summary(trainers["rigl"].model).rows]
            say(f"{case.name}: seconds")
            found, others = timing.take_turns(trainers, rounds, clock=clock, say=say)
            result: dict[str, Any] = {name: timed.to_dict() for name, timed in found.items()}
            book.add(
                key,
                {
                    **result,
                    "memory": memory,
                    "layers": layers,
                    "optimizer": case.optimizer,
                    "disturbed": timing.disturbed(others, say),
                },
            )
            for method in METHODS:
                step, rewiring = found[method]
                assert rewiring is not None
                say(
                    f"{case.name}, {method}: {1e3 * step.median:.2f} ms a step, "
                    f"{1e3 * rewiring.median:.1f} ms a rewiring, {100 * part(result[method]):.1f} % of "
                    f"{EVERY} steps, "
                    f"{rewiring.median / found['dense'].step.median:.2f} dense steps"
                )


def part(timed: dict[str, Any], every: int = EVERY) -> float:
    """Seconds of a rewiring over those of the steps between two."""
    return timed["rewiring"]["median"] / (every * timed["step"]["median"])


# ---- memory ------------------------------------------------------------------------------------------------


def added_memory(case: str, method: Method) -> dict[str, Any]:
    """By how many bytes the peak of a step is higher that ends with a rewiring, in a process of its own.

    Returns:
        "bytes", and the peaks, "step" and "rewiring"; or all None and "why", where the system does not tell.
    """
    command = [sys.executable, "-m", "bench.rewire.cost", case, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        *_, last = done.stderr.strip().splitlines() or [""]
        return {"bytes": None, "step": None, "rewiring": None, "why": last}
    return json.loads(done.stdout)


def measured_memory(case: Case, method: Method) -> dict[str, Any]:
    """What `added_memory` returns, of this process."""
    trainer = case.trainer(method)
    peaks: list[int] = []
    for _ in range(timing.BLOCK):
        _forget_peak()
        trainer.step()
        peaks.append(_peak())
    # The first steps make the optimizer's state and fill pools.
    step, rewiring = max(peaks[2:-1]), peaks[-1]
    return {"bytes": max(rewiring - step, 0), "step": step, "rewiring": rewiring}


def _forget_peak() -> None:
    # Linux: the peak of resident memory is the present one again.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    name, by = sys.argv[1:]
    print(json.dumps(measured_memory(CASES[name], METHODS[METHODS.index(by)])))
