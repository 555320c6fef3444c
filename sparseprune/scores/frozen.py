"""A frozen, functional view of the model, and gradients in it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparseprune.scores.base import Masks, Scores, score_dtype
from sparseprune.scores.losses import BatchLoss, Loss, of_batch
from sparseprune.scores.nested import described, moved
from sparseprune.scores.ranks import sum_over_ranks


class Frozen:
    """The model as a function of its weights: nothing that a call writes reaches the model.

    Attributes:
        leaves: tensors that stand in for the prunable weights, by their names.
        others: copies of all other parameters, by their names.
        buffers: copies of the buffers, which calls may write to.
    """

    def __init__(
        self,
        model: nn.Module,
        leaves: dict[str, Tensor],
        others: dict[str, Tensor],
        buffers: dict[str, Tensor],
    ) -> None:
        self.model, self.leaves, self.others, self.buffers = model, leaves, others, buffers
        self._call = _Call(model)

    def __call__(self, x: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
        """The model's output with these weights, in the order of ``leaves``, in place of ``leaves``."""
        output = self.loss(lambda model, batch: model(batch), x, weights)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"scores: expected model(input) to be a tensor, got {described(output)}; use a method that "
                "scores by a loss, or a module around the model that returns its logits"
            )
        return output

    def loss(
        self,
        loss: BatchLoss,
        batch: Any,
        weights: Sequence[Tensor] | None = None,
        others: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """loss(model, batch) of the model itself, which has ``weights`` in place of its own meanwhile.

        Args:
            loss: function of the model and the batch.
            batch: object whose tensors are moved to the model's device.
            weights: tensors in the order of ``leaves``, and in place of them.
            others: tensors in place of ``others``.
        """
        given = self.leaves if weights is None else dict(zip(self.leaves, weights, strict=True))
        state = {**self.buffers, **(self.others if others is None else others), **given}
        within = {f"model.{name}": tensor for name, tensor in state.items()}
        return torch.func.functional_call(self._call, within, (loss, moved(batch, self.device)))

    @property
    def device(self) -> torch.device:
        return next(iter(self.leaves.values())).device

    @contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Within it batch-norm uses the batch's statistics, and stores them as they are in ``buffers``."""
        norms: list[Any] = [module for module in self.model.modules() if _is_batch_norm(module)]
        before = [(module, module.training, module.momentum) for module in norms]
        try:
            for module in norms:
                module.training, module.momentum = True, 1.0
            yield
        finally:
            for module, training, momentum in before:
                module.training, module.momentum = training, momentum


class _Call(nn.Module):
    """What runs while a model's weights are replaced: a function of the model, of which it is a part."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: BatchLoss, batch: Any) -> Tensor:
        return function(self.model, batch)


def differentiable_twice() -> AbstractContextManager[None]:
    """Within it attention runs in the one kernel of torch that has second derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def functional(
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    bn: str = "train",
    *,
    masks: Masks | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Frozen]:
    """Give the model as a function of leaf tensors that stand in for ``weights``.

    The leaves share the weights' memory, and everything else is a copy, so that whatever a forward pass
    writes (running statistics, a renormalised embedding) and whatever autograd accumulates is dropped.

    Args:
        model: the network.
        weights: its prunable weights; see :func:`prunable`.
        bn: statistics that batch-norm uses, ``"train"`` or ``"eval"``.
        masks: weights that are zero in the leaves, True = keep.
        change: function that every parameter and every floating-point buffer goes through first.
    """
    if bn not in ("train", "eval"):
        raise ValueError(f'bn: expected "train" or "eval", got {bn!r}')
    if not weights:
        raise ValueError("scores: expected a model with Linear or Conv weights to score, found none")
    if change is None and (half := [n for n, w in weights.items() if w.dtype == torch.float16]):
        raise TypeError(
            f"scores: expected weights in float32, float64 or bfloat16, got float16 in {half[0]!r}, whose "
            "range is too small for scores; score a float32 copy, copy.deepcopy(model).float(): its masks fit"
        )
    device = next(iter(weights.values())).device
    modes = [(module, module.training) for module in model.modules()]
    cuda = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=cuda):
        own = set(weights.values())
        leaves = {name: _changed(weight.detach(), change) for name, weight in weights.items()}
        if masks is not None:
            leaves = {name: leaf * masks[name].to(device) for name, leaf in leaves.items()}
        others = {
            n: _changed(p.detach().clone(), change) for n, p in model.named_parameters() if p not in own
        }
        buffers = {name: _changed(buffer.clone(), change) for name, buffer in model.named_buffers()}
        frozen = Frozen(model, {n: leaf.requires_grad_() for n, leaf in leaves.items()}, others, buffers)
        try:
            for module, _ in modes:
                module.training = bn == "train" and _is_batch_norm(module)
            yield frozen
        finally:
            for module, mode in modes:
                module.training = mode


def _changed(tensor: Tensor, change: Callable[[Tensor], Tensor] | None) -> Tensor:
    return change(tensor) if change is not None and tensor.is_floating_point() else tensor


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)


def gradients(value: Tensor, frozen: Frozen, create_graph: bool = False) -> list[Tensor | None]:
    """Gradient of a scalar at the leaves; None where it does not depend on one."""
    check_scalar(value)
    leaves = list(frozen.leaves.values())
    return list(torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True))


def check_scalar(value: Tensor) -> None:
    """Raise ValueError for what is no loss that can be differentiated."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = tuple(value.shape) if isinstance(value, Tensor) else described(value)
        raise ValueError(f"loss: expected a scalar tensor that depends on the weights, got {got}")


def check_used(frozen: Frozen, g: Sequence[Tensor | None]) -> None:
    """Raise ValueError where the loss has no gradient at a leaf."""
    if missing := [name for name, g_l in zip(frozen.leaves, g, strict=True) if g_l is None]:
        raise ValueError(
            f"loss: expected a loss that depends on every weight, but it does not depend on "
            f"{', '.join(map(repr, missing))}; leave them dense (exclude={missing!r}), or score batches and "
            "a loss that use them"
        )


def sum_of_gradients(
    frozen: Frozen, parts: Iterable[tuple[Any, float]], loss: Loss, *, may_vanish: bool = False
) -> list[Tensor]:
    """Gradient at the leaves, summed with signs over micro-batches and over the ranks of a distributed job.

    Args:
        frozen: the model.
        parts: (batch, share); the gradient of a micro-batch counts by its share of its batch.
        loss: function of (model(input), target) or of (model, batch) that returns a scalar.
        may_vanish: whether the loss of all batches may be independent of a weight.
    Returns:
        tensors of the leaves' shapes that may be overwritten, in float32 at least.
    Raises:
        ValueError: the loss is no scalar, or depends on a weight in no batch.
    """
    total: list[Tensor | None] = [None] * len(frozen.leaves)
    of_model = of_batch(loss)
    for batch, share in parts:
        g = gradients(frozen.loss(of_model, batch), frozen)
        fresh = _writable(g)
        for i, g_l in enumerate(fresh):
            if g_l is None:
                continue
            if share != 1:
                g_l.mul_(share)
            so_far = total[i]
            total[i] = g_l if so_far is None else so_far.add_(g_l)
    if not may_vanish:
        check_used(frozen, total)
    leaves = frozen.leaves.values()
    sums = [
        torch.zeros_like(leaf, dtype=score_dtype(leaf)) if g_l is None else g_l
        for leaf, g_l in zip(leaves, total, strict=True)
    ]
    sum_over_ranks(sums)
    return [g_l.detach() for g_l in sums]


def _writable(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The tensors themselves where in-place arithmetic is safe; autograd may return views, or one twice."""
    owners: set[int] = set()
    result: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is None:
            result.append(None)
            continue
        storage = tensor.untyped_storage().data_ptr()
        dtype = score_dtype(tensor)
        if tensor.is_contiguous() and storage not in owners:
            result.append(tensor.detach().to(dtype))
        else:
            result.append(tensor.detach().to(dtype, memory_format=torch.contiguous_format, copy=True))
        owners.add(storage)
    return result


def normalised(frozen: Frozen, scores: list[Tensor]) -> Scores:
    """Scores divided by the sum of all, in float32, or float64 for weights in float64."""
    total = sum(float(score.sum()) for score in scores)
    # All zero stays all zero; selection refuses scores that are not finite, with their name.
    if 0 < total < math.inf:
        for score in scores:
            score.div_(total)
    return dict(zip(frozen.leaves, scores, strict=True))
