"""Checks of what prune is asked for, before the data is read."""

from collections.abc import Mapping
from numbers import Real

from sparseprune.select.quotas import Scope


def check_block_for(
    block: tuple[int, int] | str, flops: float | None, speedup: float | None
) -> tuple[int, int]:
    """The block of all layers; any that fits all where they are chosen, or are whole rows."""
    if not isinstance(block, str):
        return block
    if block not in ("auto", "channel"):
        raise ValueError(f'block: expected (V, 1), "auto" or "channel", got {block!r}')
    if block == "auto" and speedup is None:
        raise ValueError('block: expected (V, 1); "auto" chooses V by measured time, for speedup= only')
    if block == "channel" and not flops is speedup is None:
        raise ValueError(
            'block: expected (V, 1) with flops and speedup, got "channel"; a layer with fewer channels makes '
            "the next one cheaper, too, which their costs do not know: give sparsity="
        )
    return (1, 1)


def check_targets(targets: Mapping[str, float | None], scope: Scope | None) -> None:
    """Raise TypeError or ValueError unless there is one target at most, in its range, that fits the scope."""
    named = {name: value for name, value in targets.items() if value is not None}
    if len(named) > 1:
        raise ValueError(
            f"prune: expected one of sparsity, flops and speedup, got {' and '.join(named)}; choose one"
        )
    for name, value in named.items():
        if isinstance(scope, Mapping):
            raise ValueError(
                f"{name}: expected none beside scope={{layer: density}}, which says what stays, got {value}"
            )
        if name == "sparsity":
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        if name == "flops" and not 0 < value <= 1:
            raise ValueError(
                f"flops: expected the fraction of the operations that stays, in (0, 1], got {value}"
            )
        if name == "speedup" and not value >= 1:
            raise ValueError(f"speedup: expected 1 or more times as fast as dense, got {value}")
        if scope not in (None, "global"):
            raise ValueError(f'scope: expected "global" with {name} (layers share one budget), got {scope!r}')
