"""A model, in which nothing was measured: from which sparsity on sparse beats dense on a GPU.

Times are what bytes and operations take at stated rates. Assumptions (all of them):

* Peaks and memory bandwidth are those of NVIDIA's datasheets; dense figures, not the doubled 2:4 ones.
  A100 40 GB: 19.5 TFLOP/s float32, 156 TF32, 312 float16 and bfloat16; 1555 GB/s.
  H100 SXM: 67, 494 and 989 TFLOP/s; 3350 GB/s.
* Dense layers reach 80 % of the peak of their precision at any shape. Everyone reaches 80 % of the
  memory bandwidth.
* Sparse kernels for V < 8, and for float32, compute in float32 on the ordinary cores and reach 27 % of the
  float32 peak for any V. That is what Gale, Zaharia, Young and Elsen (Sparse GPU Kernels for Deep
  Learning, 2020, arXiv:2006.10901) report for Sputnik on a V100, at V = 1. Larger V may do better.
* Half precision in blocks of 8 and 16 is computed on tensor cores, like dense at 80 % of their peak at most.
* Memory: dense reads every weight and x, and writes y, once. Sparse reads the kept weights, a 4-byte
  index for each V x 1 block and x, and writes y, once. Caches are cold.
* L2 cache: sparse kernels read, for each block, as many numbers of x as there are samples. L1 caches
  serve 60 % of that, the least that Sputnik's rate on a V100 implies (27 % of 15.7 TFLOP/s reads
  8.5 TB/s at V = 1, and its L2 cache gives 3.1). An L2 cache gives 5120 bytes a clock, as NVIDIA's
  A100 whitepaper says, 7.2 TB/s at the boost clock. An H100 is taken to give as many, 10.1 TB/s at
  1.98 GHz, which NVIDIA does not publish.
  Kernels on tensor cores copy past the L1 cache: nothing is served there.
* The slowest of computing, memory and L2 cache sets the time. Launches and the bias are free, rows are
  equally long.
* It is the forward pass of a linear layer, input and output in the layout that the kernels want.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

TERA, GIGA = 1e12, 1e9

DENSE_OF_PEAK = 0.80
OF_BANDWIDTH = 0.80
SPARSE_OF_PEAK = 0.27
L1_HITS = 0.60
# Bytes of the index of a block.
INDEX_BYTES = 4
SMALLEST_DENSITY = 1e-6

BLOCKS = (1, 4, 8, 16)
BATCHES = (1, 8, 256, 4096)
# Inputs and outputs in the printed table.
FEATURES = 4096


@dataclass(frozen=True)
class Gpu:
    """A device by its datasheet.

    Attributes:
        name: what it is called.
        peaks: operations per second in dense matrix products, by precision.
        bandwidth: bytes per second from memory.
        l2_bandwidth: bytes per second from the L2 cache.
    """

    name: str
    peaks: dict[str, float]
    bandwidth: float
    l2_bandwidth: float


def _gpu(name: str, float32: float, tf32: float, half: float, gbs: float, l2_tbs: float) -> Gpu:
    peaks = {"float32": float32 * TERA, "tf32": tf32 * TERA, "float16": half * TERA, "bfloat16": half * TERA}
    return Gpu(name, peaks, gbs * GIGA, l2_tbs * TERA)


GPUS = (_gpu("A100 40 GB", 19.5, 156, 312, 1555, 7.2), _gpu("H100 SXM", 67, 494, 989, 3350, 10.1))


class Layer(NamedTuple):
    """The forward pass of a linear layer: inputs, outputs and samples."""

    inputs: int
    outputs: int
    batch: int

    @property
    def activations(self) -> int:
        """Numbers of x and y."""
        return (self.inputs + self.outputs) * self.batch


class Case(NamedTuple):
    """Who is compared: the precision of sparse weights and activations, and that of the dense layer."""

    sparse: str
    dense: str


CASES = (Case("float32", "float32"), Case("float32", "tf32"), Case("float16", "float16"))


def _bytes_per_number(precision: str) -> int:
    return 2 if precision in ("float16", "bfloat16") else 4


def dense_seconds(gpu: Gpu, precision: str, layer: Layer) -> float:
    """max(operations / (80 % of the peak), bytes / (80 % of the bandwidth))"""
    weights = layer.inputs * layer.outputs
    operations = 2 * weights * layer.batch / (DENSE_OF_PEAK * gpu.peaks[precision])
    moved = (weights + layer.activations) * _bytes_per_number(precision)
    return max(operations, moved / (OF_BANDWIDTH * gpu.bandwidth))


def sparse_seconds(gpu: Gpu, precision: str, layer: Layer, block: int, density: float) -> float:
    """max(kept operations / rate, bytes / (80 % of the bandwidth), L2 bytes / its rate)

    Args:
        gpu: the device.
        precision: what weights and activations are in memory.
        layer: the shape.
        block: V.
        density: fraction of the weights that is kept.
    """
    size = _bytes_per_number(precision)
    kept = density * layer.inputs * layer.outputs
    tensor_cores = block >= 8 and size == 2
    rate = DENSE_OF_PEAK * gpu.peaks[precision] if tensor_cores else SPARSE_OF_PEAK * gpu.peaks["float32"]
    operations = 2 * kept * layer.batch / rate
    moved = (kept + layer.activations) * size + kept / block * INDEX_BYTES
    through_l2 = kept / block * layer.batch * size * (1 - (0 if tensor_cores else L1_HITS))
    return max(operations, moved / (OF_BANDWIDTH * gpu.bandwidth), through_l2 / gpu.l2_bandwidth)


def breakeven_model(gpu: Gpu, case: Case, layer: Layer, block: int) -> float | None:
    """Sparsity from which on sparse is predicted to be at least as fast as dense.

    The module's docstring states every assumption. Nothing in it was measured.

    Args:
        gpu: the device.
        case: precisions.
        layer: the shape.
        block: V.
    Returns:
        between 0 and 1; None if sparse is slower with no weights at all, for what its activations take.
    """
    limit = dense_seconds(gpu, case.dense, layer)

    def wins(density: float) -> bool:
        return sparse_seconds(gpu, case.sparse, layer, block, density) <= limit

    if not wins(SMALLEST_DENSITY):
        return None
    # Sparse wins at low, and its time grows with density.
    low, high = SMALLEST_DENSITY, 1.0
    if wins(high):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if wins(middle) else (low, middle)
    return 1 - low


FIRST_LINE = "A MODEL: nothing in this table was measured."


def legend() -> str:
    """The assumptions, for people: one line for each."""
    assert __doc__ is not None
    _, _, assumptions = __doc__.partition("\n\n")
    return assumptions.strip().replace("\n  ", " ")
