"""Which inputs a network looks at: kept weights of its first layer, and what a statistician would pick."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.wide_data.prepared import Prepared
from sparseprune.experiments.data.screening import f_statistics

# Inputs with the largest F of which the share of the kept weights is measured.
BEST = 1000
# Inputs that results name of each class, where there are few classes.
NAMED = 10
FEW_CLASSES = 10


def looked_at(
    kept: NDArray[np.int64], data: Prepared, worth: NDArray[np.float64] | None = None
) -> dict[str, Any]:
    """What the kept weights of the first layer look at.

    Args:
        kept: number of kept weights of each input, (inputs,).
        data: what the network is trained on.
        worth: what inputs are named by, (inputs,); by default the number of kept weights.
    Returns:
        "inputs": how many keep a weight; "first layer": kept weights; "share of best": part of these at the
        `BEST` inputs with the largest F; "names": see `names`, empty where there are many classes.
    """
    samples = data.dataset("wide")
    best = np.argsort(-f_statistics(samples.train_x, samples.train_y), kind="stable")[:BEST]
    return {
        "inputs": int((kept > 0).sum()),
        "first layer": int(kept.sum()),
        "share of best": float(kept[best].sum() / max(kept.sum(), 1)),
        "names": names(kept if worth is None else worth, data) if len(data.classes) <= FEW_CLASSES else {},
    }


def names(worth: NDArray[Any], data: Prepared) -> dict[str, list[list[Any]]]:
    """The inputs of most worth that speak for each class, best first, as [name, worth].

    An input speaks for the class whose training samples have the largest mean of it.
    """
    means = [np.asarray(data.train_x[data.train_y == i].mean(0)).ravel() for i in range(len(data.classes))]
    of_class = np.stack(means).argmax(0)
    order = np.argsort(-worth, kind="stable")
    found = {name: order[of_class[order] == i][:NAMED] for i, name in enumerate(data.classes)}
    return {name: [[data.inputs[j], float(worth[j])] for j in chosen] for name, chosen in found.items()}
