"""Which V rows of a layer share blocks: rows whose best scores lie in the same columns.

A block of V rows × 1 column is worth the sum of its scores. Hidden units may stand in any order, so rows are
put together that agree on where their scores are high: a clustering into groups of V.
"""

import torch
from torch import Tensor


def order_of_rows(score: Tensor, block_rows: int, count: int) -> Tensor:
    """An order of a layer's rows in which blocks of V consecutive rows capture much of the score.

    Groups are built one by one: the strongest row that is left, then those that are most like the group so
    far. How alike two rows are is the number of columns in which both have one of the layer's best scores.
    The order that there is stays where this captures no more.

    Args:
        score: ``(rows, cols)`` floating point, higher = keep, finite; V divides the rows.
        block_rows: V.
        count: number of weights that the layer is to keep: so many scores are its best, and count / V blocks
            (one at least) are what is captured.
    Returns:
        int64 ``(rows,)``: the row that comes to each place.
    """
    score = score.detach().to(torch.float32)
    order = torch.arange(len(score), device=score.device)
    count = min(max(count, block_rows), score.numel())
    if len(score) <= block_rows or count == 0:
        return order
    grouped = _grouped(score, block_rows, count)
    better = captured(score[grouped], block_rows, count) > captured(score, block_rows, count)
    return grouped if better else order


def captured(score: Tensor, block_rows: int, count: int) -> float:
    """Sum of the scores in the best count / V blocks of V consecutive rows × 1 column."""
    sums = score.double().unflatten(0, (-1, block_rows)).sum(1).flatten()
    return float(sums.topk(count // block_rows).values.sum())


def _grouped(score: Tensor, block_rows: int, count: int) -> Tensor:
    least = score.flatten().topk(count).values[-1]
    best = (score >= least).to(torch.float32)
    alike = best @ best.t()
    strength = (score * best).sum(1)
    taken = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    order: list[int] = []
    for _ in range(len(score) // block_rows):
        wanted = strength
        for _ in range(block_rows):
            row = int(wanted.masked_fill(taken, -torch.inf).argmax())
            taken[row] = True
            order.append(row)
            wanted = alike[row] if wanted is strength else wanted + alike[row]
    return torch.tensor(order, device=score.device)
