"""Masks of calls that were recorded before the selection was rewritten as score, quota and mask."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import recorded_cases as cases
from selecting import select_masks, select_within
from torch import Tensor

import sparseprune as sp
from sparseprune.experiments.frontier.rules import RULES, masks_within
from sparseprune.select.budget import LayerCost, select_blocks_within

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "masks.json").read_text())
CALLS = {id: (model, given) for id, model, given in cases.calls()}

COSTS = {
    "first": LayerCost(3.0, 10.0, 900.0),
    "second": LayerCost(0.5, 40.0, 700.0),
    "third": LayerCost(9.0, 0.0, 7000.0),
    "last": LayerCost(0.0, 5.0, 5.0),
}
FLOPS = {
    name: LayerCost(weight, 0.0, weight * weights)
    for name, weight, weights in [
        ("first", 100.0, 16 * 27),
        ("second", 2.0, 32 * 64),
        ("third", 30.0, 24 * 45),
        ("last", 1.0, 320),
    ]
}


def selections() -> Iterator[tuple[str, Callable[[], Mapping[str, Tensor]]]]:
    """Calls of the functions that select, by the names under which they were recorded."""
    for negative in (False, True):
        s = cases.exact_scores(negative)
        for b in (120.0, 400.0, 1500.0, 5000.0, 1e5):
            for e in (0.0, 0.5, 1.0):
                by_rows = {
                    v: {n: LayerCost(c.per_weight / v**0.5, c.fixed, c.dense) for n, c in COSTS.items()}
                    for v in (1, 4, 16)
                }
                for v in (1, 2, 4, 8):
                    yield (
                        f"within {negative} {b} {e} {v}",
                        lambda b=b, e=e, v=v, s=s: select_within(
                            s, COSTS, b, exponent=e, block=(v, 1), min_per_layer=1
                        ),
                    )
                yield (
                    f"auto {negative} {b} {e}",
                    lambda b=b, e=e, s=s, costs=by_rows: (
                        select_blocks_within(s, costs, b, exponent=e, min_per_layer=1).masks
                    ),
                )
        for rule in RULES:
            for share in (0.03, 0.1, 0.3, 1.0):
                for v in (1, 4):
                    yield (
                        f"rule {negative} {rule} {share} {v}",
                        lambda share=share, v=v, s=s, rule=rule: masks_within(
                            rule, s, FLOPS, share, block=(v, 1), exponent=0.5, seconds=COSTS
                        ),
                    )
        for sparsity in (0.3, 0.9, 0.99):
            for scope in ("global", "layer"):
                for v in (1, 2, 4, 8, 16):
                    for floor in (0, 1, 20):
                        yield (
                            f"select {negative} {sparsity} {scope} {v} {floor}",
                            lambda sparsity=sparsity, scope=scope, v=v, floor=floor, s=s: select_masks(
                                s, sparsity, scope=scope, block=(v, 1), min_per_layer=floor
                            ),
                        )


SELECTIONS = dict(selections())


def test_every_recorded_call_is_repeated() -> None:
    assert RECORDED.keys() == CALLS.keys() | SELECTIONS.keys()


# Tiny networks have ties.
@pytest.mark.filterwarnings("ignore:prune. expected scores that tell weights apart")
@pytest.mark.parametrize("model", cases.MODELS)
@pytest.mark.parametrize("method", ["random", "magnitude", "gradient", "snip", "grasp"])
def test_masks_of_prune_are_those_that_were_recorded(model: str, method: str) -> None:
    for id, (name, given) in CALLS.items():
        if name == model and given["method"] == method:
            got = cases.outcome(
                lambda name=name, given=given: sp.prune(
                    cases.exact_model(name), cases.exact_batches(name), loss=cases.exact_loss, **given
                )
            )
            assert cases.without_remedies(got) == cases.without_remedies(RECORDED[id]), id


def test_selections_are_those_that_were_recorded() -> None:
    for id, call in SELECTIONS.items():
        got = cases.without_remedies(cases.outcome(call))
        assert got == cases.without_remedies(RECORDED[id]), id
