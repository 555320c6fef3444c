"""``python -m bench.profile WORKLOAD``: where the time of a call goes, and what it copies and fills.

Operators are counted and timed by torch.profiler. Counts and bytes are those of any machine, shares of time
want a quiet one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
import typer

import sparseprune as sp
from bench import command, problems
from bench.contenders import CONTENDERS, Runnable
from bench.report.markdown import pipe
from bench.workloads import WORKLOADS

WARM_UP_CALLS = 2
# Copies and fills of fewer bytes are not listed.
FEW = 100_000

# The first pattern that an operator's name matches says what it does.
GROUPS = {
    "sparse products": r"^sparseprune::",
    "attention": r"scaled_dot_product|softmax",
    "dense products": r"^aten::(addmm|mm|bmm|baddbmm|matmul|linear)$|^(mkl|mkldnn)::|convolution",
    "activations and norms": r"gelu|relu|silu|tanh|sigmoid|dropout|threshold|_norm",
    "optimizer": r"^aten::_(fused|foreach)|^Optimizer",
    "copies": r"^aten::(copy_|cat)$",
    "fills": r"^aten::(fill_|zero_)$",
    "sums": r"^aten::(add|add_|mul|mul_|div|div_|sum|mean|mean_out)$",
}
REST = "the rest: Python, autograd, views, memory"
# What copies and fills many numbers; others, such as clone and zero_, call these.
MOVES = ("aten::copy_", "aten::cat", "aten::fill_")


class Used(NamedTuple):
    """An operator with inputs of some shapes, over all profiled calls.

    Attributes:
        name: as torch.profiler names it.
        shapes: shapes of its inputs.
        ran: how often it ran.
        seconds: without what it called.
        allocated: bytes, likewise, less those that it freed.
    """

    name: str
    shapes: list[Any]
    ran: int
    seconds: float
    allocated: int = 0

    @property
    def group(self) -> str:
        """What it does: a key of `GROUPS`, or `REST`."""
        return next((group for group, pattern in GROUPS.items() if re.search(pattern, self.name)), REST)

    def written(self, item_bytes: int) -> int:
        """Bytes that copies and fills of numbers of so many bytes write: those of the first input.

        Of lists of tensors, as `cat` joins them, the profiler keeps no shapes.
        """
        if self.name == "aten::cat":
            return self.allocated
        return math.prod(self.shapes[0]) * item_bytes * self.ran if self.shapes else 0


def operators(call: Callable[[], object], calls: int = 1) -> list[Used]:
    """The operators of some calls, after calls that warm up."""
    for _ in range(WARM_UP_CALLS):
        call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, record_shapes=True, profile_memory=True, acc_events=True
    ) as found:
        for _ in range(calls):
            call()
    return [
        Used(
            event.key,
            event.input_shapes,
            event.count,
            event.self_cpu_time_total / 1e6,
            event.self_cpu_memory_usage,
        )
        for event in found.key_averages(group_by_input_shape=True)
    ]


def moves(used: Iterable[Used], item_bytes: int, at_least: int = FEW) -> list[Used]:
    """Copies and fills that write at least so many bytes each, those that write the most in all first."""
    large = [one for one in used if one.name in MOVES and one.written(item_bytes) >= at_least * one.ran]
    return sorted(large, key=lambda one: -one.written(item_bytes))


def by_group(used: Sequence[Used], calls: int) -> str:
    """A Markdown table: operators and milliseconds a call, and share of the time, of each group."""
    total = sum(one.seconds for one in used)
    lines = []
    for group in (*GROUPS, REST):
        found = [one for one in used if one.group == group]
        seconds, count = sum(one.seconds for one in found), sum(one.ran for one in found)
        if found:
            cells = [f"{count / calls:.0f}", f"{1e3 * seconds / calls:.1f}", f"{100 * seconds / total:.0f} %"]
            lines.append([group, *cells])
    return pipe(["", "operators", "ms", "share"], lines)


def by_shape(used: Sequence[Used], calls: int, item_bytes: int) -> str:
    """A Markdown table of the large copies and fills."""
    lines = [
        [
            one.name,
            str(one.shapes[0] or ""),
            f"{one.ran / calls:.0f}",
            f"{one.written(item_bytes) / calls / 1e6:.1f}",
        ]
        for one in moves(used, item_bytes)
    ]
    return pipe(["copies and fills", "shape", "operators", "MB written"], lines, texts=2)


def main(
    workload: Annotated[str, typer.Argument(help="Regular expression: the first workload whose id matches.")],
    contender: Annotated[str, typer.Option(help="Its contender, by name; sparseprune by default.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 2,
    calls: Annotated[int, typer.Option(min=1, help="Calls that are profiled.")] = 3,
) -> None:
    """Where the time of a call goes, and what it copies and fills."""
    name = contender or f"sparseprune-{sp.ops.info()['isa']}"
    (chosen, *_), taking_part = command.choose(
        WORKLOADS, CONTENDERS.values(), workload, f"^{re.escape(name)}$", False, lambda w: w.id
    )
    if not taking_part[0].applies(chosen):
        raise typer.BadParameter(f"--contender: {name} does not compute {chosen.id}")
    torch.set_num_threads(threads)
    runnable = taking_part[0].make(problems.build(chosen))
    if not isinstance(runnable, Runnable):
        raise typer.BadParameter(f"--contender: {name} cannot run here: {'; '.join(runnable)}")
    with runnable.around():
        used = operators(runnable.call, calls)
    precision = getattr(torch, taking_part[0].dtype or chosen.dtype)
    typer.echo(f"{chosen.id}, {name}, threads {threads}; figures of one call, the mean of {calls}\n")
    typer.echo(by_group(used, calls) + "\n")
    typer.echo(by_shape(used, calls, precision.itemsize))


if __name__ == "__main__":
    typer.run(main)
