"""Options that commands share: their names, limits and help texts, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer

from sparseprune.experiments.data import DATASETS
from sparseprune.experiments.models import MODELS
from sparseprune.experiments.networks import Block
from sparseprune.experiments.optimizers import OPTIMIZERS
from sparseprune.experiments.rewiring import REWIRE
from sparseprune.format.bsr import BLOCK_ROWS
from sparseprune.scores import METHODS, ROUNDS


def one_of(known: Iterable[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in known:
            raise typer.BadParameter(f"{value!r} is unknown; known are {', '.join(known)}")
        return value

    return check


def _set_threads(count: int | None) -> int | None:
    if count is not None:
        torch.set_num_threads(count)
    return count


def parse_blocks(text: str) -> list[tuple[int, int]]:
    """``"1,4x1"`` as [(1, 1), (4, 1)]: rows x columns of each, one column if not said."""
    known = {name: (rows, 1) for rows in BLOCK_ROWS for name in (f"{rows}", f"{rows}x1")}
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in known]:
        raise typer.BadParameter(
            f"expected blocks of {', '.join(map(str, BLOCK_ROWS))} rows (4, or 4x1), got {unknown[0]!r}"
        )
    return [known[word] for word in words]


def parse_rewire(text: str | None) -> list[str]:
    """``"rigl,set"`` as its words; none where nothing was given."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in REWIRE]:
        raise typer.BadParameter(f"expected --rewire of {', '.join(REWIRE)}, got {unknown[0]!r}")
    return list(dict.fromkeys(words))


def parse_block_or_name(text: str) -> Block:
    """Leave ``"auto"`` and ``"channel"`` as they are, read ``"4"`` or ``"4x1"`` as (4, 1)."""
    if text == "auto":
        return "auto"
    return "channel" if text == "channel" else parse_blocks(text)[0]


def _one_block(text: str) -> str:
    if len(parse_blocks(text)) > 1:
        raise typer.BadParameter(f"expected one block, got {text!r}")
    return text


def _one_block_or_name(text: str) -> str:
    return text if text in ("auto", "channel") else _one_block(text)


# Numbers that are larger than any use, but fit into what computes with them.
MOST, MOST_THREADS = 2**31 - 1, 1024
SEEDS = (-(2**63), 2**64 - 1)  # torch's

INPUTS = "Network and data"
OWN_MODEL = (
    "package.module:function, a function of your own (in the current folder) that returns a torch module"
)
OWN_DATA = (
    "package.module:function, a function of your own that returns x, y, x_test, y_test; or a file .npz with "
    "these arrays; x may be sparse"
)

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME",
        rich_help_panel=INPUTS,
        help=f"Data set: {', '.join(DATASETS)}; or {OWN_DATA}.",
    ),
]
DataArgs = Annotated[
    str,
    typer.Option(
        "--data-args",
        metavar="JSON",
        rich_help_panel=INPUTS,
        show_default=False,
        help="Keyword arguments of that function, or of mosaic, such as '{\"jitter\": 2}'.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        rich_help_panel=INPUTS,
        help="Folder with the files of cifar10 or cifar100, or with the four IDX files of fashion-mnist in "
        "place of the system's, also for mosaic.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        min=1,
        max=MOST,
        rich_help_panel=INPUTS,
        help="Train on so many samples, drawn at random; all by default.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        rich_help_panel=INPUTS,
        help=f"Network: {', '.join(MODELS)}; or {OWN_MODEL}.",
    ),
]
ModelArgs = Annotated[
    str,
    typer.Option(
        "--model-args",
        metavar="JSON",
        rich_help_panel=INPUTS,
        show_default=False,
        help="Keyword arguments of that function, such as '{\"depth\": 3}'.",
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option(
        "--sparsity",
        min=0.0,
        max=1.0,
        help="Fraction of the weights to remove; 0.9 if there is no other target.",
    ),
]
OneBlock = Annotated[
    str,
    typer.Option(
        "--block",
        callback=_one_block,
        metavar="V",
        help="Keep or remove blocks of so many rows x 1 column: 1, 2, 4, 8 or 16 (or 4x1).",
    ),
]
BlockOrName = Annotated[
    str,
    typer.Option(
        "--block",
        callback=_one_block_or_name,
        metavar="V",
        help="Keep or remove blocks of so many rows x 1 column: 1, 2, 4, 8 or 16 (or 4x1); channel: whole "
        "output channels; with --speedup also auto: of 1, 4 and 16, what suits each layer.",
    ),
]
SCOPE_HELP = (
    "Rank the scores of all layers together (global) or within each layer (layer), or give layers the "
    "densities of erk, balanced or smart_ratio"
)
Scope = Annotated[str, typer.Option("--scope", help=f"{SCOPE_HELP}.")]
ScopeOrNone = Annotated[
    str | None,
    typer.Option(
        "--scope", help=f"{SCOPE_HELP}; by default global, or balanced where that would leave a layer empty."
    ),
]
MethodName = Annotated[str, typer.Option("--method", help=f"Pruning method: {', '.join(METHODS)}.")]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        min=1,
        max=MOST,
        help="Score so many times, each time in the network that is left; by default "
        + ", ".join(f"{rounds} for {name}" for name, rounds in ROUNDS.items())
        + ", else 1.",
    ),
]
Preset = Annotated[
    str,
    typer.Option("--preset", help="The method as in its paper (paper) or in its authors' code (authors)."),
]
Pattern = Annotated[
    str | None,
    typer.Option(
        "--pattern",
        metavar="N:M|fan_in",
        help="Keep N of every M consecutive inputs, such as 2:4, in place of a sparsity; or equally many "
        "weights in all rows of a layer (fan_in).",
    ),
]
Keep = Annotated[
    list[str],
    typer.Option(
        "--keep", metavar="NAME", help="Layer that keeps all its weights, or first or last; may be repeated."
    ),
]
MinPerLayer = Annotated[
    int, typer.Option("--min-per-layer", min=0, max=MOST, help="Weights that each layer keeps at least.")
]
Rewire = Annotated[
    str | None,
    typer.Option(
        "--rewire",
        metavar="METHODS",
        help="Add networks that start with random masks, which move while they are trained: rigl (to the "
        "largest gradients), set (at random), commas between.",
    ),
]
RewireEvery = Annotated[
    int, typer.Option("--rewire-every", min=1, max=MOST, help="Steps from one move to the next.")
]
PruneBatches = Annotated[
    int,
    typer.Option(
        "--prune-batches", min=1, max=MOST, help="Number of training batches that score the weights."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=MOST, help="Samples per batch.")]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        help="Learning rate at the start, from which it decays to 0; by default "
        + ", ".join(f"{known.lr:g} for {name}" for name, known in OPTIMIZERS.items())
        + ".",
    ),
]
OptimizerName = Annotated[
    str,
    typer.Option(
        "--optimizer",
        callback=one_of(OPTIMIZERS),
        help="adam, or sgd with momentum 0.9 and weight decay 5e-4.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        min=SEEDS[0],
        max=SEEDS[1],
        help="Seed of the initial weights and of the order of the samples.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=MOST_THREADS,
        callback=_set_threads,
        help="Processor threads; torch's choice by default.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON on standard output, and nothing else there (seconds, bytes)."),
]
