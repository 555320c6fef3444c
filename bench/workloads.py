"""What is measured: workloads as data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

ARTICLE = (40_000, 1000, 1000, 1000, 10)
# The source article counts 42.1 million weights: so many scores, in the shapes of its network.
ARTICLE_SCORES = (40_090, *ARTICLE[1:])
LENET = (784, 300, 100, 10)

STEP, FORWARD = "linear-step", "linear-forward"
CONV_STEP, CONV_FORWARD = "conv-step", "conv-forward"
CONVOLUTIONS = (CONV_STEP, CONV_FORWARD)
# A step of a linear layer after which RigL moves its pattern.
REWIRE_STEP = "rewire-step"
MOVED = 0.3  # part of its weights that does, at every call
STEPS = (STEP, CONV_STEP, REWIRE_STEP)
NETWORK_STEP, NETWORK_FORWARD = "network-step", "network-forward"
TRANSFORMER_STEP, TRANSFORMER_FORWARD = "transformer-step", "transformer-forward"
TRANSFORMERS = (TRANSFORMER_STEP, TRANSFORMER_FORWARD)
# Evaluation of whole networks.
FORWARDS = (NETWORK_FORWARD, TRANSFORMER_FORWARD)
BATCH_INNER = "batch-inner"
# A mask that keeps two of each four neighbouring inputs, and the density that it has.
TWO_OF_FOUR, HALF = "2:4", 0.50


@dataclass(frozen=True)
class Workload:
    """One thing to compute; the thread count comes with the run.

    Attributes:
        kind: a key of `problems.BUILD`.
        sizes: features from the input to the output of a linear layer or perceptron; (input channels, output
            channels, height and width of the input) of a convolution; (channels, height, width) of a
            convolutional network's input; (blocks, tokens, width) of a transformer.
        density: fraction of the weights (or scores) that is kept.
        batch: samples (of a transformer: sequences); 0 where there are none.
        block: V; the mask of a layer is made of whole V x 1 blocks, V consecutive outputs by one input.
        dtype: precision of input, weights and output: "float32" or "bfloat16".
        layout: how input, output and their gradients lie, which are (batch, features) or (batch, channels,
            height, width): "row-major" (NCHW), or "batch-inner" with the batch innermost, strides (1, batch)
            or (1, height * width * batch, width * batch, batch).
        mask: "random", "snip" (of a network: over all of it), "random-layer", "snip-layer" (layer by layer),
            "uniform" (of a network: random, every layer but the first alike, the first dense) or "2:4".
        optimizer: what a training step ends with: "adam-fused", "adam" (torch's default implementation),
            "adamw-fused" or "sgd" (with momentum).
        quick: also in the quick suite.
        kernel: height and width of a convolution's kernel, padded by half of it.
        stride: that of a convolution.
        model: name of a convolutional network in `sparseprune.experiments.models`, or of a transformer in
            `bench.problems.transformers`.
        slow: runs with the largest number of threads alone.
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
    kernel: int = 0
    stride: int = 1
    model: str = ""
    slow: bool = False

    @property
    def shape(self) -> str:
        """Like ``1024x1024``: inputs x outputs, ``64x64@32x32-3x3``, ``784-300-10``, ``bert@3x128x768``."""
        if self.model:
            return "{}@{}x{}x{}".format(self.model, *self.sizes)
        if self.kind in CONVOLUTIONS:
            inputs, outputs, image = self.sizes
            stride = f"-stride{self.stride}" if self.stride > 1 else ""
            return f"{inputs}x{outputs}@{image}x{image}-{self.kernel}x{self.kernel}{stride}"
        if self.kind == "topk":
            return f"{sum(cols * rows for cols, rows in itertools.pairwise(self.sizes)) / 1e6:.4g}M"
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
    shapes: Iterable[tuple[int, ...]],
    densities: Iterable[float],
    batches: Iterable[int] = (256,),
    blocks: Iterable[int] = (1,),
    **same: Any,
) -> Iterator[Workload]:
    """Layers: every combination."""
    for shape in shapes:
        for density in densities:
            for block in blocks:
                for kind in kinds:
                    for batch in batches:
                        yield Workload(kind, shape, density, batch, block, **same)


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
    *layers([REWIRE_STEP], [SQUARE, LARGE], [0.10, 0.05, 0.02]),
)

# 3 x 3 convolutions of VGG-16 and ResNet-18 with CIFAR stems, and the other kinds of those networks.
CONV_SHAPES = ((64, 64, 32), (256, 256, 16), (512, 512, 4))
CONV_BATCH = 32


def convolutions(
    kinds: Iterable[str],
    densities: Iterable[float],
    shapes: Iterable[tuple[int, ...]] = CONV_SHAPES,
    **more: Any,
) -> Iterator[Workload]:
    """Convolutions, 3 x 3 and of 32 samples unless said otherwise: every combination."""
    return layers(kinds, shapes, densities, **{"batches": [CONV_BATCH], "kernel": 3, **more})


BOTH_CONV = (CONV_FORWARD, CONV_STEP)
CONV_LAYERS: tuple[Workload, ...] = (
    *convolutions(BOTH_CONV, (0.10, 0.05, 0.02), layout=BATCH_INNER),
    *convolutions(BOTH_CONV, (0.10, 0.05), blocks=[4], layout=BATCH_INNER),
    *convolutions(BOTH_CONV, (0.10,), blocks=[1, 4]),
    *convolutions([CONV_FORWARD], (0.05,), batches=[1], blocks=[1, 4]),
    *convolutions(BOTH_CONV, (0.10,), [(256, 256, 16)], kernel=1, layout=BATCH_INNER),
    *convolutions(BOTH_CONV, (0.10,), [(128, 256, 16)], stride=2, layout=BATCH_INNER),
    *convolutions(BOTH_CONV, (0.10,), [(256, 256, 16)], dtype="bfloat16", layout=BATCH_INNER),
)


def networks(model: str) -> Iterator[Workload]:
    """Training steps of a convolutional network with the masks of the targets."""
    for mask, block, densities in (
        ("uniform", 1, (0.10, 0.05, 0.02)),
        ("uniform", 4, (0.10, 0.05)),
        ("snip", 1, (0.10, 0.05, 0.02)),
    ):
        for density in densities:
            yield Workload(
                NETWORK_STEP,
                (3, 32, 32),
                density,
                64,
                block,
                mask=mask,
                optimizer="sgd",
                model=model,
                slow=True,
            )


class Sequences(NamedTuple):
    """A batch that a transformer is usually trained with: its size, and the tokens of a sequence."""

    batch: int
    tokens: int


# BERT's and GPT-2's short sequences; images of ViT-B/16: 14 x 14 patches and the class.
SEQUENCES = {"bert": Sequences(16, 128), "vit": Sequences(16, 197), "gpt2": Sequences(8, 256)}
BASE_WIDTH = 768


def transformers(
    model: str, blocks: int, densities: Iterable[float], block_rows: Iterable[int] = (1, 4), **more: Any
) -> Iterator[Workload]:
    """Training steps and evaluation of a few blocks of the base width, all matrices of one sparsity."""
    batch, tokens = SEQUENCES[model]
    for block in block_rows:
        for density in densities:
            for kind, optimizer in ((TRANSFORMER_STEP, "adamw-fused"), (TRANSFORMER_FORWARD, "")):
                yield Workload(
                    kind,
                    (blocks, tokens, BASE_WIDTH),
                    density,
                    batch,
                    block,
                    mask="random-layer",
                    optimizer=optimizer,
                    model=model,
                    slow=True,
                    **more,
                )


IMAGENET = (3, 224, 224)


def served() -> Iterator[Workload]:
    """Networks as they are served: ResNet-50 for ImageNet, and BERT-base with 128 tokens."""
    for batch in (1, 16, 64):
        for block, densities in ((1, (0.10, 0.05)), (4, (0.10,))):
            for density in densities:
                yield Workload(
                    NETWORK_FORWARD,
                    IMAGENET,
                    density,
                    batch,
                    block,
                    mask="uniform",
                    model="resnet50",
                    slow=True,
                )
                yield Workload(
                    TRANSFORMER_FORWARD,
                    (12, SEQUENCES["bert"].tokens, BASE_WIDTH),
                    density,
                    batch,
                    block,
                    mask="random-layer",
                    model="bert",
                    slow=True,
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
    "conv-forward/256x256@16x16-3x3/density=0.10/n=32/float32/batch-inner",
    "conv-step/256x256@16x16-3x3/density=0.10/n=32/float32/batch-inner",
    "conv-step/256x256@16x16-3x3/density=0.10/n=32/block=4/float32/batch-inner",
}

WORKLOADS: tuple[Workload, ...] = (
    *(dataclasses.replace(workload, quick=workload.id in QUICK) for workload in (*LAYERS, *CONV_LAYERS)),
    Workload("model-step", LENET, 0.10, 256, mask="snip", optimizer="adam-fused"),
    Workload("model-step", ARTICLE, 0.02, 256, optimizer="adam-fused", quick=True),
    Workload("model-step", ARTICLE, 0.02, 256, mask="snip", optimizer="adam-fused"),
    Workload("model-step", ARTICLE, 0.02, 256, mask="snip-layer", optimizer="adam-fused"),
    Workload("model-step", ARTICLE, 0.02, 256, optimizer="adam"),
    Workload("prune", ARTICLE, 0.02, 256, mask="snip", optimizer="adam-fused", quick=True),
    Workload("topk", ARTICLE_SCORES, 0.02, quick=True),
    *networks("vgg16_bn"),
    *networks("resnet18"),
    # One block, for a quick look.
    *transformers("bert", 1, [0.10], [1], quick=True),
    *(workload for model in SEQUENCES for workload in transformers(model, 3, (0.10, 0.05))),
    *served(),
)

# Largest accepted relative error (Frobenius norm) by kind and by the precision of the contender. In a network
# an activation next to zero may fall on the other side of ReLU than in float64, and takes a gradient with it:
# in a deep one that is 1 % of the gradients in float32, and half of them in bfloat16 (a gradient that has
# nothing to do with the right one is off by 140 %).
TOLERANCES = {
    STEP: {"float32": 1e-5, "bfloat16": 2e-2},
    FORWARD: {"float32": 1e-5, "bfloat16": 2e-2},
    REWIRE_STEP: {"float32": 1e-5},
    CONV_STEP: {"float32": 1e-5, "bfloat16": 2e-2},
    CONV_FORWARD: {"float32": 1e-5, "bfloat16": 2e-2},
    "model-step": {"float32": 2e-3, "bfloat16": 1e-1},
    NETWORK_STEP: {"float32": 2e-2, "bfloat16": 0.8},
    NETWORK_FORWARD: {"float32": 1e-4, "bfloat16": 1e-1},
    TRANSFORMER_STEP: {"float32": 1e-5, "bfloat16": 1e-1},
    TRANSFORMER_FORWARD: {"float32": 1e-5, "bfloat16": 5e-2},
    "prune": {"float32": 1e-4},
    "topk": {"float32": 0.0},
}

# The contender that speed-ups are first of all over, where there is no other.
BASELINES = {"topk": "numpy-partition"}
DEFAULT_BASELINE = "dense-float32"
