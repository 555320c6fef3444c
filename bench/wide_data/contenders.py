"""What is compared: networks, dense and pruned, and the linear models that are usual on such data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparseprune.experiments.networks import label_of
from sparseprune.experiments.tuning import grid

DENSE, SMALL_DENSE, SCREENED, SPARSE, LINEAR = "dense", "small dense", "F-test", "pruned", "linear"
# Trials on the validation samples, as many for each contender.
TRIALS = 6
# Adam's learning rate: the middle of the range that is tried. The fewer weights, the larger rates are good.
DENSE_ADAM, SMALL_ADAM, SPARSE_ADAM = 2.5e-4, 1e-3, 2e-3
HIDDEN = (20, 80, 300)
WIDE = 1000  # hidden units of a layer of the article's network
# Inputs that the F-test picks; the validation samples say which number.
SCREENED_INPUTS = (1000, 4000)
SPARSITIES = {"snip": (0.9, 0.95, 0.98, 0.99), "grasp": (0.98,), "magnitude": (0.98,), "random": (0.98,)}
# Of linear models, by name: the middle of the range that is tried.
LEARNERS = {
    "logistic regression, L1": 4.0,
    "logistic regression, L2": 4.0,
    "linear SVM": 0.3,
    "complement naive Bayes": 0.2,
}


@dataclass(frozen=True)
class Contender:
    """A way to learn, with what is tuned of it.

    Attributes:
        label: name in tables and plots.
        kind: "dense", "small dense", "F-test" (small dense on inputs that were picked), "pruned" or "linear".
        variants: settings beside the rate, of which the validation samples choose: "inputs", how many the
            F-test picks; one without settings for all others.
        rates: tried with each variant: learning rates, or of linear models C (of naive Bayes, alpha).
        hidden: hidden units of each of the three layers.
        method, sparsity: how it is pruned, see `sparseprune.prune`; what is kept is rescaled.
    """

    label: str
    kind: str
    variants: tuple[Mapping[str, Any], ...]
    rates: tuple[float, ...]
    hidden: int = WIDE
    method: str | None = None
    sparsity: float | None = None


def contenders() -> list[Contender]:
    """All, with the same number of trials for each."""
    screened = tuple({"inputs": count} for count in SCREENED_INPUTS)
    return [
        Contender("dense", DENSE, ({},), rates(DENSE_ADAM, 1)),
        *(
            Contender(f"small dense, {hidden} hidden units", SMALL_DENSE, ({},), rates(SMALL_ADAM, 1), hidden)
            for hidden in HIDDEN
        ),
        Contender(
            f"F-test, then small dense, {HIDDEN[-1]} hidden units",
            SCREENED,
            screened,
            rates(SMALL_ADAM, 2),
            HIDDEN[-1],
        ),
        *(
            Contender(
                label_of(method, sparsity, (1, 1)),
                SPARSE,
                ({},),
                rates(SPARSE_ADAM, 1),
                method=method,
                sparsity=sparsity,
            )
            for method, sparsities in SPARSITIES.items()
            for sparsity in sparsities
        ),
        *(
            Contender(name, LINEAR, ({},), tuple(grid(centre, 4, TRIALS)))
            for name, centre in LEARNERS.items()
        ),
    ]


def rates(centre: float, variants: int) -> tuple[float, ...]:
    """Rates for each of the variants, so that all have `TRIALS` trials over about the same range."""
    trials = TRIALS // variants
    assert trials * variants == TRIALS
    return tuple(grid(centre, 2.0**variants, trials))
