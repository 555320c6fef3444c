"""``python -m bench.speedups``: do masks for a speed-up keep what they promise?

`sparseprune.prune(speedup=)` checks itself with forward and backward passes. Here whole training steps, with
loss and optimizer, of the dense network in torch's two layouts of images and of the pruned ones take turns.
Prints a Markdown table, or writes it with --out.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor, nn

import sparseprune as sp
from bench.contenders.calls import LEARNING_RATE, OPTIMIZERS, step_of
from bench.report.markdown import pipe
from bench.timing import Step, interleaved
from sparseprune.cost import machine
from sparseprune.cost.flops import flops_per_step
from sparseprune.cost.speedup import TimedMasks
from sparseprune.experiments import models
from sparseprune.experiments.cli.options import parse_block_or_name
from sparseprune.experiments.networks import Block, block_text
from sparseprune.format import files

# Time budget for each network and block.
SECONDS = 10.0
CLASSES = 10
HEADS = (
    *("network", "blocks", "asked", "checked", "measured"),
    *("dense ms", "sparse ms", "weights %", "FLOPs %", "found in s"),
)
LEGEND = (
    "asked: `prune(method='snip', speedup=)`, scored on two batches of noise. checked: what it measured "
    "itself, forward and backward passes. measured: medians of whole training steps with loss and SGD "
    "(momentum), interleaved, over the faster of NCHW and channels_last in float32. weights, FLOPs: kept. "
    "found in: scoring, timing of layers (none where an earlier row has done it) and of the network, "
    "corrections."
)


class Setting(NamedTuple):
    """A network to prune."""

    sample: tuple[int, ...]
    batch: int


SETTINGS = {"wide_mlp": Setting((1, 28, 28), 256), "resnet18": Setting((3, 32, 32), 64)}


class Pruned(NamedTuple):
    """What was found for a target: the sparse network and its masks, or why there is none."""

    target: float
    masks: TimedMasks | None
    model: nn.Module | None
    why: str
    seconds: float


def main(
    networks: Annotated[str, typer.Option("--networks", help="Commas between.")] = ",".join(SETTINGS),
    targets: Annotated[str, typer.Option("--targets", help="Speed-ups, commas between.")] = "2,3,5",
    blocks: Annotated[str, typer.Option("--blocks", help="Rows, or auto, commas between.")] = "1,auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Markdown file to write.")] = None,
) -> None:
    """Prune for speed-ups, and time what comes out."""
    if threads is not None:
        torch.set_num_threads(threads)
    if out is not None:
        files.check(out)
    speedups = [float(target) for target in targets.split(",")]
    lines = [
        cells
        for name in networks.split(",")
        for block in map(parse_block_or_name, blocks.split(","))
        for cells in measure(name, block, speedups)
    ]
    facts = machine.facts()
    told = "{cpu}, {isa}, {threads} threads, torch {torch}, {date}.".format(**facts)
    text = "\n\n".join([pipe(HEADS, lines, texts=2), LEGEND, told]) + "\n"
    if out is None:
        print(text)
    else:
        files.write(out, text)


def measure(name: str, block: Block, targets: list[float]) -> Iterator[list[str]]:
    """A row of the table for each target."""
    setting = SETTINGS[name]
    dense = models.build(models.Network(name, setting.sample, CLASSES), 0)
    random = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(setting.batch, *setting.sample, generator=random),
            torch.randint(CLASSES, (setting.batch,), generator=random),
        )
        for _ in range(2)
    ]
    found = [_prune(dense, batches, block, target) for target in targets]
    x, y = batches[0]
    steps = {"NCHW": _step(dense, x, y), "channels_last": _step(dense, x, y, torch.channels_last)}
    steps |= {str(one.target): _step(one.model, x, y) for one in found if one.model is not None}
    times = {key: statistics.median(times) for key, times in interleaved(steps, SECONDS).seconds.items()}
    best = min(times["NCHW"], times["channels_last"])
    all_flops = flops_per_step(dense, setting.sample, setting.batch)
    for one in found:
        head = [name, block_text(block), f"{one.target:g}"]
        if one.masks is None or one.model is None:
            yield [*head, f"refused: {one.why}", "", "", "", "", "", f"{one.seconds:.0f}"]
            continue
        kept = sum(int(mask.sum()) for mask in one.masks.values())
        weights = sum(mask.numel() for mask in one.masks.values())
        seconds = times[str(one.target)]
        flops = flops_per_step(one.model, setting.sample, setting.batch)
        yield [
            *head,
            f"{one.masks.speedup.measured:.2f}",
            f"{best / seconds:.2f}",
            f"{best * 1e3:.1f}",
            f"{seconds * 1e3:.1f}",
            f"{100 * kept / weights:.1f}",
            f"{100 * flops / all_flops:.1f}",
            f"{one.seconds:.0f}",
        ]


def _prune(dense: nn.Module, batches: list[tuple[Tensor, Tensor]], block: Block, target: float) -> Pruned:
    x, _ = batches[0]
    start = time.perf_counter()
    try:
        masks = sp.prune(
            dense,
            batches,
            method="snip",
            speedup=target,
            block=block,
            batch_size=len(x),
            input_size=x.shape[1:],
            min_per_layer=1,
        )
    except ValueError as error:
        return Pruned(target, None, None, str(error), time.perf_counter() - start)
    seconds = time.perf_counter() - start
    assert isinstance(masks, TimedMasks)
    model = sp.sparsify(dense, masks, batch_size=len(x), input_size=x.shape[1:])
    return Pruned(target, masks, model, "", seconds)


def _step(
    model: nn.Module, x: Tensor, y: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Step:
    """A training step of a copy of the model."""
    own: Any = copy.deepcopy(model)
    if x.dim() == 4:
        own, x = own.to(memory_format=memory_format), x.contiguous(memory_format=memory_format)
    return Step(step_of(lambda: own(x), y, OPTIMIZERS["sgd"](own.parameters(), lr=LEARNING_RATE)))


if __name__ == "__main__":
    typer.run(main)
