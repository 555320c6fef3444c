"""Weights that only their position decided about: those at the threshold of a ranking, of one score."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from sparseprune.select.blocks import Blocks


def rankings(blocks: Blocks, counts: Mapping[str, int], together: bool) -> list[list[str]]:
    """The layers that were ranked together: all but those at their floors, or each alone.

    Args:
        blocks: blocks of the weights, with their floors.
        counts: number of blocks that each layer keeps.
        together: whether layers shared one ranking.
    """
    shared = [name for name in blocks.shapes if together and counts[name] > blocks.floors[name]]
    return [shared, *([name] for name in blocks.shapes if name not in shared)]


def decided_by_position(
    blocks: Blocks, masks: Mapping[str, Tensor], names: Sequence[str]
) -> tuple[int, list[str]]:
    """How many kept weights of one ranking could as well be others of the same score, and in which layers.

    t is the lowest score that was kept. Where a weights of score t are kept and r removed, position decided
    about min(a, r).

    Args:
        blocks: scored blocks.
        masks: bool, of the weights' shapes, made of whole blocks.
        names: the layers of the ranking.
    """
    kept = {name: blocks.kept(name, masks[name]) for name in names}
    scores = [blocks.scores[name][mask] for name, mask in kept.items()]
    threshold = min((float(some.min()) for some in scores if len(some)), default=None)
    if threshold is None:
        return 0, []
    sizes = blocks.sizes
    stay = go = 0
    layers = []
    for name, mask in kept.items():
        equal = blocks.scores[name] == threshold
        both, stays = int(equal.count_nonzero()), int((equal & mask).count_nonzero())
        stay, go = stay + stays * sizes[name], go + (both - stays) * sizes[name]
        if both:
            layers.append(name)
    return (min(stay, go), layers) if go else (0, [])
