"""Aims beside what was reached, and the most that a named limit allows: the limits are words, kept here."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.markdown import pipe
from bench.report.tables.registry import CONV_RUN, LINEAR_RUN, table
from bench.report.tables.speed import CONV_SHAPES, HIGH, NETWORKS, network_step, percent, speed
from bench.targets import SPEED, TARGETS, Target

# What a layer is called, its workload, and what its limit is.
LINEAR = (
    (
        "forward V=1, batch-inner, 80 %",
        "linear-forward/1024x1024/density=0.20/n=256/float32/batch-inner",
        "2.5: L2 at 160 GB/s is 80 GFLOP/s; dense reaches 162",
    ),
    ("... 90 %", "linear-forward/1024x1024/density=0.10/n=256/float32/batch-inner", "4.9"),
    (
        "... 95 %",
        "linear-forward/1024x1024/density=0.05/n=256/float32/batch-inner",
        "9.9, less 0.03 ms of packing and 0.03 ms a call of Python and dispatch: 8.4",
    ),
    ("... 98 %", "linear-forward/1024x1024/density=0.02/n=256/float32/batch-inner", "25, less the same: 17"),
    (
        "forward V=4, batch-inner, 90 %",
        "linear-forward/1024x1024/density=0.10/n=256/block=4/float32/batch-inner",
        "11.7 at the 191 GFLOP/s of its instruction mix, less the same: 9.7; the kernel runs at 148",
    ),
    (
        "forward V=1, row-major, 90 %",
        "linear-forward/1024x1024/density=0.10/n=256/float32",
        "4.9, less packing and unpacking 2 MB",
    ),
    (
        "forward bfloat16, 90 %",
        "linear-forward/1024x1024/density=0.10/n=256/bfloat16",
        "0.7: dense uses AMX, 1500 GFLOP/s; without AMX the peak is 213",
    ),
    (
        "training step V=1, 90 %, over `nn.Linear`",
        "linear-step/1024x1024/density=0.10/n=256/float32",
        "6.1 with the kernels alone (0.75 + 1.1 of 3.0 ms)",
    ),
    (
        "training step V=4, 90 %, over `nn.Linear`",
        "linear-step/1024x1024/density=0.10/n=256/block=4/float32",
        "7.4 with the kernels alone",
    ),
    (
        "training step bfloat16, 90 %",
        "linear-step/1024x1024/density=0.10/n=256/bfloat16",
        "1.3 with the kernels alone",
    ),
    (
        "batch 1, 4096×4096, 90 %",
        "linear-forward/4096x4096/density=0.10/n=1/float32",
        "6.7: bytes of the weights",
    ),
)
ONE_THREAD = "... on one thread"
# {} is one of the three shapes.
CONVOLUTIONS = (
    (
        "forward V=1, 90 %",
        "conv-forward/{}-3x3/density=0.10/n=32/float32/batch-inner",
        "4.2 to 4.6: kernels alone, 62 to 76 GFLOP/s of the L2's 80; dense reaches 165",
    ),
    ("... 95 %", "conv-forward/{}-3x3/density=0.05/n=32/float32/batch-inner", "8 to 9"),
    (
        "forward V=4, 90 %",
        "conv-forward/{}-3x3/density=0.10/n=32/block=4/float32/batch-inner",
        "8: kernels alone, 130 to 148 GFLOP/s",
    ),
    ("... 95 %", "conv-forward/{}-3x3/density=0.05/n=32/block=4/float32/batch-inner", "16"),
    ("step V=1, 90 %", "conv-step/{}-3x3/density=0.10/n=32/float32/batch-inner", "6"),
    ("... 95 %", "conv-step/{}-3x3/density=0.05/n=32/float32/batch-inner", "11"),
    (
        "step V=4, 90 %",
        "conv-step/{}-3x3/density=0.10/n=32/block=4/float32/batch-inner",
        "8: gradients load each number of g for two multiply-adds, whatever V is",
    ),
    ("... 95 %", "conv-step/{}-3x3/density=0.05/n=32/block=4/float32/batch-inner", "15"),
    (
        "forward, one sample, V=1, 95 %",
        "conv-forward/{}-3x3/density=0.05/n=1/float32",
        "by the profiler: at 4×4 the kernel computes 32 numbers for 16 wanted, and looking up offsets takes "
        "12 %; at 32×32 packing, unpacking and the loops around take as long as the kernel",
    ),
    (ONE_THREAD, "conv-forward/{}-3x3/density=0.05/n=1/float32", ""),
)
NETWORK_LIMITS = {
    ("snip", 1): "2.4 / 3.3 / 5: kept multiplications",
    ("uniform", 4): "as convolution step V=4",
}


def aim(workload: str) -> Target:
    """The one target of speed of a workload."""
    (found,) = [target for target in TARGETS if target.workload == workload and target.measure == SPEED]
    return found


def reached(file: str, target: Target, threads: int) -> str:
    """The speed-up that was measured, bold where it meets the target."""
    found = speed(file, target.workload, target.over, threads)
    assert found is not None, target
    text = f"{found:.2f}" if found < 1 else f"{found:.1f}"
    return f"**{text}**" if found >= target.at_least else text


@table("limits-linear")
def linear() -> str:
    lines = []
    for words, workload, limit in LINEAR:
        target = aim(workload)
        found = [reached(LINEAR_RUN, target, threads) for threads in (1, 2)]
        lines.append([words, f"{target.at_least:g}", *found, limit])
    return _table(["1024×1024, batch 256", "aim", "1 thread", "2 threads"], lines)


@table("limits-convolutions")
def convolutions() -> str:
    lines = []
    for words, workload, limit in CONVOLUTIONS:
        targets = [aim(workload.format(shape)) for shape in CONV_SHAPES.values()]
        threads = 1 if words == ONE_THREAD else 2
        found = [reached(CONV_RUN, target, threads) for target in targets]
        lines.append([words, f"{targets[0].at_least:g}", *found, limit])
    return _table(
        ["3×3 convolution; batch-inner and batch 32, but for one sample", "aim", *CONV_SHAPES], lines
    )


@table("limits-networks")
def networks() -> str:
    lines = []
    for mask, block, words in (("uniform", 1, "uniform"), ("uniform", 4, "V=4"), ("snip", 1, "global SNIP")):
        for name, model in NETWORKS.items():
            densities = HIGH[:2] if block > 1 else HIGH
            targets = [aim(network_step(model, mask, block).format(density)) for density in densities]
            aims = " / ".join(f"{target.at_least:g}" for target in targets)
            found = " / ".join(reached(CONV_RUN, target, 2) for target in targets)
            limit = NETWORK_LIMITS.get((mask, block), "")
            lines.append([f"{name}, {words}", aims, found, limit])
    sparsities = " / ".join(map(percent, HIGH))
    return _table([f"training step, {sparsities}", "aim", "reached"], lines)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The limits in a last column, left-aligned as text."""
    rows = [list(line) for line in lines]
    return pipe([*heads, "most that the named limit allows"], rows, last_is_text=True)
