"""What the project has set out to reach, as data, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.rows import Row, best_dense, speedup_over
from bench.workloads import (
    BATCH_INNER,
    CONV_FORWARD,
    CONV_SHAPES,
    CONV_STEP,
    FORWARD,
    SEQUENCES,
    STEP,
    STEPS,
    TRANSFORMER_STEP,
    Workload,
    convolutions,
    networks,
    transformers,
)

SPEED = "speed"
MEMORY = "memory"


@dataclass(frozen=True)
class Target:
    """A factor that the contender is to reach.

    Attributes:
        says: the target in words.
        workload: its id.
        over: what the factor is over: a contender, or `best_dense` of a precision.
        at_least: the factor.
        measure: SPEED, or MEMORY: bytes of parameters, gradients and optimizer state.
        threads: numbers of threads that it is for.
    """

    says: str
    workload: str
    over: str
    at_least: float
    measure: str = SPEED
    threads: tuple[int, ...] = (1, 2)


SQUARE, LARGE = (1024, 1024), (4096, 4096)
ARTICLE_STEP = "model-step/40000-1000-1000-1000-10/density=0.02/n=256/float32"


def _forward(block: int, dtype: str, layout: str, at_least: dict[float, float]) -> Iterator[Target]:
    """Forward pass of the squares: ``{density: factor}`` over the best dense of the same precision."""
    for shape in (SQUARE, LARGE):
        for density, factor in at_least.items():
            yield _layer(FORWARD, shape, density, factor, block=block, dtype=dtype, layout=layout)


def _layer(
    kind: str,
    shape: tuple[int, int],
    density: float,
    at_least: float,
    over: str = "",
    *,
    batch: int = 256,
    block: int = 1,
    dtype: str = "float32",
    layout: str = "row-major",
) -> Target:
    workload = Workload(kind, shape, density, batch, block, dtype, layout)
    words = _words(workload, *([f"batch {batch}"] if batch != 256 else []))
    return Target(words, workload.id, over or best_dense(dtype), at_least)


def _words(workload: Workload, *more: str) -> str:
    words = [
        f"{'step' if workload.kind in STEPS else 'forward'} {workload.shape}, {_percent(workload)}",
        *([f"V={workload.block}"] if workload.block > 1 else []),
        *([workload.dtype] if workload.dtype != "float32" else []),
        *([workload.layout] if workload.layout != "row-major" else []),
    ]
    return ", ".join([*words, *more])


def _percent(workload: Workload) -> str:
    return f"{100 * (1 - workload.density):.0f} %"


def _convolutions(kind: str, block: int, at_least: dict[float, float], **more: Any) -> Iterator[Target]:
    """The three 3 x 3 convolutions: ``{density: factor}`` over the best dense."""
    for shape in CONV_SHAPES:
        for workload in convolutions([kind], at_least, [shape], blocks=[block], **more):
            batch = ["batch 1"] if workload.batch == 1 else []
            factor = at_least[workload.density]
            yield Target(_words(workload, *batch), workload.id, best_dense("float32"), factor)


# By V and density, over what torch does unless told otherwise.
TRANSFORMER_FACTORS = {1: {0.10: 5.5, 0.05: 8.0}, 4: {0.10: 7.0, 0.05: 10.0}}
TRANSFORMER_BLOCKS = 3


def _transformers() -> Iterator[Target]:
    """Training steps of transformers, with the largest number of threads."""
    for model in SEQUENCES:
        for workload in transformers(model, TRANSFORMER_BLOCKS, TRANSFORMER_FACTORS[1]):
            if workload.kind == TRANSFORMER_STEP:
                block = f", V={workload.block}" if workload.block > 1 else ""
                says = f"step of {TRANSFORMER_BLOCKS} blocks of {model}, {_percent(workload)}{block}"
                factor = TRANSFORMER_FACTORS[workload.block][workload.density]
                yield Target(says, workload.id, "dense-float32", factor, threads=(2,))


NETWORK_FACTORS = {
    ("uniform", 1): {0.10: 2.5, 0.05: 3.5, 0.02: 4.5},
    ("uniform", 4): {0.10: 3.5, 0.05: 4.5},
    ("snip", 1): {0.10: 1.2, 0.05: 1.5, 0.02: 2.2},
}


def _networks() -> Iterator[Target]:
    """Training steps of convolutional networks, with the largest number of threads."""
    for workload in (*networks("vgg16_bn"), *networks("resnet18")):
        factor = NETWORK_FACTORS[workload.mask, workload.block][workload.density]
        mask = "global SNIP" if workload.mask == "snip" else workload.mask
        block = f", V={workload.block}" if workload.block > 1 else ""
        says = f"step {workload.model}, {_percent(workload)} {mask}{block}"
        yield Target(says, workload.id, best_dense("float32"), factor, threads=(2,))


TARGETS: tuple[Target, ...] = (
    *_forward(1, "float32", BATCH_INNER, {0.20: 2.3, 0.10: 4.5, 0.05: 8.0, 0.02: 16.0}),
    *_forward(4, "float32", BATCH_INNER, {0.20: 4.4, 0.10: 8.5, 0.05: 16.0}),
    *_forward(1, "float32", "row-major", {0.10: 3.5}),
    *_forward(1, "bfloat16", "row-major", {0.10: 2.7, 0.05: 5.0}),
    _layer(STEP, SQUARE, 0.10, 7.0, "dense-float32"),
    _layer(STEP, SQUARE, 0.10, 12.0, "dense-float32", block=4),
    _layer(STEP, SQUARE, 0.10, 1.8, dtype="bfloat16"),
    _layer(FORWARD, LARGE, 0.10, 5.0, batch=1),
    *(
        target
        for mask in ("random", "snip")
        for target in (
            Target(
                f"article's network, 98 % {mask}, step",
                f"{ARTICLE_STEP}/{mask}/adam-fused",
                "dense-float32",
                10.0,
            ),
            Target(
                f"article's network, 98 % {mask}, memory",
                f"{ARTICLE_STEP}/{mask}/adam-fused",
                "dense-float32",
                15.0,
                MEMORY,
            ),
        )
    ),
    Target(
        "pruning it, against three dense steps",
        "prune/40000-1000-1000-1000-10/density=0.02/n=256/float32/snip/adam-fused",
        "dense-float32",
        1.0,
    ),
    Target(
        "top-k masks of 42.1 M scores",
        "topk/42.1M/density=0.02/float32",
        "numpy-partition",
        2.0,
        threads=(2,),
    ),
    *_convolutions(CONV_FORWARD, 1, {0.10: 3.8, 0.05: 7.0}, layout=BATCH_INNER),
    *_convolutions(CONV_FORWARD, 4, {0.10: 7.0, 0.05: 12.0}, layout=BATCH_INNER),
    *_convolutions(CONV_STEP, 1, {0.10: 3.3, 0.05: 6.0}, layout=BATCH_INNER),
    *_convolutions(CONV_STEP, 4, {0.10: 6.0, 0.05: 10.0}, layout=BATCH_INNER),
    *_convolutions(CONV_FORWARD, 1, {0.05: 2.0}, batches=[1]),
    *_convolutions(CONV_FORWARD, 4, {0.05: 2.0}, batches=[1]),
    *_networks(),
    *_transformers(),
)


@dataclass(frozen=True)
class Outcome:
    """A target at one number of threads: the factor that was measured, None where it was not."""

    target: Target
    threads: int
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.measured >= self.target.at_least else "missed"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self.target),
            "threads": self.threads,
            "measured": self.measured,
            "verdict": self.verdict,
        }


def outcomes(rows: Sequence[Row], contender: str, threads: Sequence[int]) -> list[Outcome]:
    """Hold the rows of one contender against every target, at every number of threads."""
    by_id = {row.id: row for row in rows}
    found = []
    for target in TARGETS:
        for count in (count for count in threads if count in target.threads):
            case = f"{target.workload}/threads={count}"
            row, other = by_id.get(f"{case}/{contender}"), by_id.get(f"{case}/{target.over}")
            measured = None
            if row is not None and target.measure == SPEED:
                measured = speedup_over(row, target.over)
            elif row is not None and other is not None and training_bytes(row) and training_bytes(other):
                measured = training_bytes(other) / training_bytes(row)
            found.append(Outcome(target, count, measured))
    return found


def training_bytes(row: Row) -> int:
    """Bytes of parameters, gradients and optimizer state; 0 where they were not counted."""
    held = row.facts.get("bytes", {})
    return sum(held.get(name, 0) for name in ("parameters", "gradients", "optimizer"))
