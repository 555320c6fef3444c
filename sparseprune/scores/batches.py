"""Batches to score on: of (input, target), or any objects that a loss of (model, batch) takes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from sparseprune.scores.losses import EXAMPLE, Loss, takes_model
from sparseprune.scores.nested import described, leaves_in, with_each

Batches = Iterable[Any]


def items(method: str, batches: Batches | None, loss: Loss) -> Iterator[Any]:
    """Yield the batches as they are, or say what is wrong with them.

    Raises:
        TypeError: they are no iterable, or one is no pair of tensors and the loss does not take the model.
        ValueError: there are none.
    """
    return _checked(method, batches, any_object=takes_model(loss))


def pairs(method: str, batches: Batches | None, remedy: str = "") -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of (input, target), or say what is wrong with them, and what to do about it."""
    return _checked(method, batches, any_object=False, remedy=remedy)


def _checked(method: str, batches: Batches | None, any_object: bool, remedy: str = "") -> Iterator[Any]:
    kind = "batches that the loss takes" if any_object else "(input, target)"
    if batches is None:
        raise ValueError(f"{method}: expected batches (an iterable of {kind}), got None; it scores on data")
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping):
        wrap = "; wrap a single batch in a list: [batch]" if isinstance(batches, Mapping) else ""
        raise TypeError(
            f"{method}: expected batches to be an iterable of {kind}, got {described(batches)}{wrap}"
        )
    count = 0
    for count, batch in enumerate(batches, start=1):  # noqa: B007
        if not any_object and not is_pair(batch):
            raise TypeError(
                f"{method}: expected each item of batches to be a pair of tensors (input, target), "
                f"got {described(batch)}; {remedy or _remedy(batch)}"
            )
        yield batch
    if count == 0:
        raise ValueError(
            f"{method}: expected at least one batch, got none; if batches is an iterator it may be "
            "exhausted: pass a list or a DataLoader, which can be iterated again"
        )


def is_pair(batch: object) -> bool:
    """Whether a batch is (input, target), two tensors."""
    return (
        isinstance(batch, tuple | list)
        and len(batch) == 2
        and all(isinstance(part, Tensor) for part in batch)
    )


def _remedy(batch: object) -> str:
    if isinstance(batch, Tensor):
        return "wrap a single batch in a list: [(input, target)]"
    example = EXAMPLE
    if isinstance(batch, tuple | list):
        inputs = ", ".join(f"batch[{i}]" for i in range(max(len(batch) - 1, 1)))
        example = f"loss=lambda model, batch: F.cross_entropy(model({inputs}), batch[-1])"
    return f"for other batches give a loss that takes the model: {example}"


def parts(
    method: str, batches: Batches | None, loss: Loss, micro_batch_size: int | None
) -> Iterator[tuple[Any, float]]:
    """Yield micro-batches of at most so many samples, each with its share of its batch; see :func:`items`.

    Tensors are divided along dim 0; anything else in a batch goes into each part.
    """
    check_micro_batch_size(micro_batch_size)
    for batch in items(method, batches, loss):
        samples = 0 if micro_batch_size is None else _samples(method, batch)
        if micro_batch_size is None or samples <= micro_batch_size:
            yield batch, 1.0
            continue
        for i in range(0, samples, micro_batch_size):
            rows = slice(i, i + micro_batch_size)
            yield _rows(batch, rows), min(micro_batch_size, samples - i) / samples


def check_micro_batch_size(size: int | None) -> None:
    """Raise ValueError for what is no number of samples."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"micro_batch_size: expected a number of samples, 1 or more, got {size!r}")


def _rows(batch: Any, rows: slice) -> Any:
    def of(leaf: Any) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf

    return with_each(of, batch)


def _samples(method: str, batch: Any) -> int:
    """How many samples a batch has, which all of its tensors have along dim 0."""
    leaves = leaves_in(batch)
    found = [len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0]
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    if len(set(found)) == 1 and not others:
        return found[0]
    if is_pair(batch) and len(found) == 2:
        raise ValueError(
            f"{method}: expected as many targets as inputs, to divide a batch, got {found[1]} targets and "
            f"{found[0]} inputs"
        )
    got = f"{described(others[0])}" if others else f"{', '.join(map(str, found)) or 'none'}"
    raise ValueError(
        f"{method}: expected tensors of as many samples each (dim 0), to divide a batch for "
        f"micro_batch_size, got {got} in {described(batch)}; score smaller batches, without micro_batch_size"
    )


def repeatable(batches: Batches | None) -> Batches | None:
    """What can be iterated again: an iterator is held in memory as a list."""
    return list(batches) if isinstance(batches, Iterator) else batches
