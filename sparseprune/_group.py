"""Order hidden units so that rows with similar scores share blocks."""

import copy
import warnings
from collections.abc import Mapping
from numbers import Real

from torch import Tensor, nn

from sparseprune import scores as scoring
from sparseprune.format.bsr import check_block
from sparseprune.rewrite.permute import hidden_layers, permute_units
from sparseprune.select.grouping import order_of_rows
from sparseprune.select.topk import topk_named


def group_rows(
    model: nn.Module, scores: Mapping[str, Tensor], block: tuple[int, int] = (4, 1), *, sparsity: float = 0.9
) -> nn.Module:
    """Order the hidden units of a network so that blocks of V rows × 1 column lose less of the scores.

    Which V rows of a weight share blocks is a matter of the order of the layer's outputs, and hidden units
    may stand in any order: the same permutation of the next layer's inputs gives the same function. So rows
    are put together whose best scores lie in the same columns, before blocks are formed::

        scores = sp.scores.snip(model, batches, loss)
        model = sp.group_rows(model, scores, block=(4, 1), sparsity=0.9)
        masks = sp.prune(model, batches, block=(4, 1), sparsity=0.9)

    No layer's best blocks have a smaller sum of scores than before. Layers whose units another layer alone
    sees are permuted, through pointwise functions, dropout, batch-norm, pooling and flattening; all others
    stay: outputs, units that a residual addition or several layers see, grouped convolutions, and whatever
    torch.fx cannot follow. The model is taken to get batches of samples.

    Args:
        model: the network; left untouched.
        scores: ``{parameter name: score of the weight's shape}``, floating point, higher = keep, finite. A
            layer without a score is not permuted.
        block: ``(V, 1)``, V in 2, 4, 8, 16. A layer whose rows V does not divide is not permuted.
        sparsity: fraction of the weights with scores that is to be removed, in [0, 1): what a layer's best
            scores are follows from one ranking of all.
    Returns:
        a new model, equal as a function (what dropout drops is drawn for other units), whose units are in
        another order; weights, biases, batch-norm and gradients with them. With a RuntimeWarning where no
        layer can be permuted.
    Raises:
        TypeError: the scores are no floating-point tensors, the sparsity is no number, or the model is not a
            module.
        ValueError: a name is no prunable weight of the model, a shape differs, or a score is not finite; the
            block or the sparsity is out of range.
    """
    block_rows = check_block(block, "group_rows")
    if block_rows == 1:
        raise ValueError(
            "group_rows: expected block == (V, 1) with V in 2, 4, 8, 16, got (1, 1); single weights need no "
            "groups"
        )
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"group_rows: expected a number in [0, 1) as sparsity, got {type(sparsity).__name__}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"group_rows: expected the fraction removed, in [0, 1), got {sparsity}")
    _check_scores(model, scores)
    best = topk_named(scores, round(sum(score.numel() for score in scores.values()) * (1 - sparsity)))
    result = copy.deepcopy(model)
    hidden = hidden_layers(result)
    if not hidden:
        warnings.warn(
            "group_rows: expected hidden units that one other layer alone sees, found none that torch.fx can "
            "follow; the model is returned as it is",
            RuntimeWarning,
            stacklevel=2,
        )
    for name, of_layer in hidden.items():
        score = scores.get(f"{name}.weight")
        if score is not None and len(score) % block_rows == 0:
            count = int(best[f"{name}.weight"].count_nonzero())
            permute_units(result, of_layer, order_of_rows(score.flatten(1), block_rows, count))
    return result


def _check_scores(model: nn.Module, scores: Mapping[str, Tensor]) -> None:
    weights = scoring.prunable(model)
    for name, score in scores.items():
        if name not in weights:
            raise ValueError(
                f"group_rows: expected scores of prunable weights ({', '.join(map(repr, weights))}), got "
                f"{name!r}; were they made for another model?"
            )
        if not isinstance(score, Tensor) or not score.is_floating_point():
            got = f"{score.dtype}" if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"group_rows: expected a floating-point score of {name!r}, got {got}")
        if score.shape != weights[name].shape:
            raise ValueError(
                f"group_rows: expected a score of shape {list(weights[name].shape)} (the weight's) for "
                f"{name!r}, got {list(score.shape)}; were they made for another model?"
            )
