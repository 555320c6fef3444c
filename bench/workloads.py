"""What is measured: workloads as data."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ARTICLE = (40_000, 1000, 1000, 1000, 10)
# The source article counts 42.1 million weights: so many scores, in the shapes of its network.
ARTICLE_SCORES = (40_090, *ARTICLE[1:])
LENET = (784, 300, 100, 10)

STEP, FORWARD = "linear-step", "linear-forward"
BATCH_INNER = "batch-inner"


@dataclass(frozen=True)
class Workload:
    """One thing to compute; the thread count comes with the run.

    Attributes:
        kind: a key of `problems.BUILD`.
        sizes: features from the input to the output of a layer or network.
        density: fraction of the weights (or scores) that is kept.
        batch: samples; 0 where there are none.
        block: V; the mask of a layer is made of whole V x 1 blocks, V consecutive outputs by one input.
        dtype: of input, weights and output: "float32" or "bfloat16".
        layout: of input, output and their gradients, (batch, features): "row-major", or "batch-inner" with
            the strides (1, batch).
        mask: "random", "snip" (of a network: over all of it) or "snip-layer" (layer by layer).
        optimizer: of a training step: "adam-fused" or "adam" (torch's default implementation).
        quick: also in the quick suite.
    """

    kind: str
    sizes: tuple[int, ...]
    density: float
    batch: int = 0
    block: int = 1
    dtype: str = "float32"
    layout: str = "row-major"
    mask: str = "random"
    optimizer: str = ""
    quick: bool = False

    @property
    def shape(self) -> str:
        """Like ``1024x1024``: a layer's inputs x outputs, or ``784-300-10``."""
        if self.kind == "topk":
            return f"{sum(map(math.prod, itertools.pairwise(self.sizes))) / 1e6:.4g}M"
        return ("x" if len(self.sizes) == 2 else "-").join(map(str, self.sizes))

    @property
    def id(self) -> str:
        """Like ``linear-step/1024x1024/density=0.10/n=256/float32``; block, layout and mask if unusual."""
        parts = [self.kind, self.shape, f"density={self.density:.2f}"]
        parts += [f"n={self.batch}"] if self.batch else []
        parts += [f"block={self.block}"] if self.block > 1 else []
        parts += [self.dtype]
        parts += [self.layout] if self.layout == BATCH_INNER else []
        parts += [self.mask] if self.mask != "random" or self.optimizer else []
        parts += [self.optimizer] if self.optimizer else []
        return "/".join(parts)


def layers(
    kinds: Iterable[str],
    shapes: Iterable[tuple[int, int]],
    densities: Iterable[float],
    batches: Iterable[int] = (256,),
    blocks: Iterable[int] = (1,),
    **same: str,
) -> Iterator[Workload]:
    """Linear layers: every combination."""
    for shape in shapes:
        for density in densities:
            for block in blocks:
                for kind in kinds:
                    for batch in batches:
                        yield Workload(kind, shape, density, batch, block, **same)  # type: ignore[arg-type]


SQUARE, LARGE = (1024, 1024), (4096, 4096)
BOTH = (STEP, FORWARD)
DENSITIES = (0.20, 0.10, 0.05, 0.02)
# First layer of LeNet-300-100; of BERT-base and ViT-B attention and both of the MLP; of GPT-2 attention.
REAL = ((784, 300), (768, 768), (768, 3072), (3072, 768), (768, 2304))

LAYERS: tuple[Workload, ...] = (
    # half of the weights kept: where dense is as fast or faster
    *layers(BOTH, [SQUARE], (0.50, *DENSITIES)),
    *layers([FORWARD], [SQUARE], (0.50, *DENSITIES), layout=BATCH_INNER),
    *layers([FORWARD], [SQUARE], DENSITIES, blocks=[4], layout=BATCH_INNER),
    *layers([FORWARD], [SQUARE], [0.10], blocks=[2, 8, 16], layout=BATCH_INNER),
    *layers([STEP], [SQUARE], [0.10, 0.05], blocks=[4]),
    *layers([STEP], [SQUARE], [0.10, 0.05], layout=BATCH_INNER),
    *layers([STEP], [SQUARE], [0.10], batches=[64, 16]),
    *layers(BOTH, [SQUARE], [0.10, 0.05], dtype="bfloat16"),
    *layers(BOTH, [SQUARE], [0.10], blocks=[4], dtype="bfloat16"),
    *layers([FORWARD], [SQUARE], [0.10], dtype="bfloat16", layout=BATCH_INNER),
    *layers(BOTH, [LARGE], DENSITIES),
    *layers([FORWARD], [LARGE], DENSITIES, blocks=[1, 4], layout=BATCH_INNER),
    *layers([FORWARD], [LARGE], [0.10, 0.05], dtype="bfloat16"),
    *layers([FORWARD], [LARGE], [0.10], batches=[1, 4, 16, 64]),
    *layers([FORWARD], [LARGE], [0.10], batches=[1], dtype="bfloat16"),
    *layers(BOTH, REAL, [0.10]),
    *layers(BOTH, [(784, 300), (1024, 1024), (768, 3072)], [0.10], mask="snip"),
    *layers(BOTH, [(40_000, 1000)], [0.02]),
    *layers(BOTH, [(1024, 10)], [0.10]),
)

QUICK = {
    "linear-step/1024x1024/density=0.10/n=256/float32",
    "linear-step/1024x1024/density=0.05/n=256/float32",
    "linear-step/1024x1024/density=0.10/n=256/block=4/float32",
    "linear-forward/1024x1024/density=0.10/n=256/float32",
    "linear-forward/1024x1024/density=0.10/n=256/float32/batch-inner",
    "linear-forward/1024x1024/density=0.10/n=256/block=4/float32/batch-inner",
    "linear-forward/1024x1024/density=0.10/n=256/bfloat16",
    "linear-forward/4096x4096/density=0.10/n=1/float32",
}

WORKLOADS: tuple[Workload, ...] = (
    *(dataclasses.replace(workload, quick=workload.id in QUICK) for workload in LAYERS),
    Workload("model-step", LENET, 0.10, 256, mask="snip", optimizer="adam-fused"),
    Workload("model-step", ARTICLE, 0.02, 256, optimizer="adam-fused", quick=True),
    Workload("model-step", ARTICLE, 0.02, 256, mask="snip", optimizer="adam-fused"),
    Workload("model-step", ARTICLE, 0.02, 256, mask="snip-layer", optimizer="adam-fused"),
    Workload("model-step", ARTICLE, 0.02, 256, optimizer="adam"),
    Workload("prune", ARTICLE, 0.02, 256, mask="snip", optimizer="adam-fused", quick=True),
    Workload("topk", ARTICLE_SCORES, 0.02, quick=True),
)

# Largest accepted relative error (Frobenius norm) by kind and by the precision of the contender. In a network
# an activation next to zero may fall on the other side of ReLU than in float64, and takes a gradient with it.
TOLERANCES = {
    STEP: {"float32": 1e-5, "bfloat16": 2e-2},
    FORWARD: {"float32": 1e-5, "bfloat16": 2e-2},
    "model-step": {"float32": 2e-3, "bfloat16": 1e-1},
    "prune": {"float32": 1e-4},
    "topk": {"float32": 0.0},
}

# The contender that speed-ups are first of all over, where there is no other.
BASELINES = {"topk": "numpy-partition"}
DEFAULT_BASELINE = "dense-float32"
