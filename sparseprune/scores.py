"""Scores of the prunable weights of a network, one function a method: higher score = keep.

Every function returns ``{parameter name: float32 tensor of the weight's shape}`` and leaves the model as it
was: weights, buffers, gradients, ``requires_grad``, modes and torch's random state are bit-identical
afterwards, also after an error. Forward passes run with dropout off (everything but normalisation is in
evaluation mode), so a score depends on the model and the data alone; ``bn`` says which statistics
batch-norm uses, the batch's (``"train"``, as in the training that follows) or the running ones
(``"eval"``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Scores = dict[str, Tensor]


def prunable(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """List the weights of the Linear and Conv1d/2d/3d layers, in module order.

    A weight shared by several layers is listed once, under its first name. A weight that is computed from
    other parameters (a parametrisation) is not listed.

    Args:
        model: the network.
        exclude: names of parameters, or of modules with all they contain, to leave out; a shared weight is
            left out if any of its names is.
    Returns:
        ``{parameter name: parameter}``.
    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``exclude`` names nothing in the model, or a lazy layer has no weight yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prunable: expected model to be a torch.nn.Module, got {type(model).__name__}")
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)
    modules = dict(model.named_modules(remove_duplicate=False))
    known = set(modules) | {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if unknown := [name for name in excluded if name not in known or name == ""]:
        raise ValueError(
            "exclude: expected names of parameters or modules of the model, "
            f"got {', '.join(map(repr, unknown))}; see model.named_parameters() and model.named_modules()"
        )
    names: dict[nn.Parameter, list[str]] = {}
    for prefix, module in modules.items():
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        name = f"{prefix}.weight" if prefix else "weight"
        weight = module._parameters.get("weight")
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"prunable: expected a weight, got none yet in lazy {name!r}; run one batch first"
            )
        if weight is not None:
            names.setdefault(weight, []).append(name)

    def is_excluded(name: str) -> bool:
        return any(name == out or name.startswith(f"{out}.") for out in excluded)

    return {aliases[0]: weight for weight, aliases in names.items() if not any(map(is_excluded, aliases))}


def random(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    seed: int = 0,
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by uniform noise in [0, 1) from ``seed``: the control that every method should beat.

    Args:
        model: the network.
        batches: not used.
        loss: not used.
        seed: of the noise, 0 or more; the same seed gives the same scores on every device. They are
            independent of weights that torch or NumPy drew from the same seed.
        exclude: parameters or modules to leave out.
    Returns:
        ``{parameter name: float32 tensor of the weight's shape}``.
    Raises:
        ValueError: ``seed`` is negative.
    """
    if seed < 0:
        raise ValueError(f"random: expected seed >= 0, got {seed}")
    # Not torch's numbers of this seed: of weights drawn from the same ones, the largest would be kept.
    generator = numpy.random.default_rng([*b"sparseprune", seed])
    return {
        name: torch.from_numpy(generator.random(tuple(weight.shape), dtype=numpy.float32)).to(weight.device)
        for name, weight in prunable(model, exclude).items()
    }


def magnitude(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by magnitude, |w|.

    Args:
        model: the network.
        batches: not used.
        loss: not used.
        exclude: parameters or modules to leave out.
    Returns:
        ``{parameter name: float32 tensor of the weight's shape}``.
    """
    return {name: weight.detach().abs().float() for name, weight in prunable(model, exclude).items()}


def gradient(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    bn: str = "train",
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by the normalised magnitude of their gradient, |g| / Σ|g|.

    g is the sum, with signs, over all batches of the gradient of ``loss`` (cross-entropy: the mean over a
    batch, so that every batch counts alike, a smaller last one too; for a sum over samples pass a loss that
    sums). Σ runs over all prunable weights.

    Args:
        model: the network.
        batches: iterable of (input, target); moved to the model's device one at a time.
        loss: ``loss(model(input), target)`` is a scalar.
        bn: statistics that batch-norm uses, ``"train"`` or ``"eval"``.
        exclude: parameters or modules to leave out; they do not count in Σ.
    Returns:
        ``{parameter name: float32 tensor of the weight's shape}``.
    Raises:
        ValueError: no batches, or ``loss`` is not a scalar that depends on the weights.
        TypeError: ``batches`` is not an iterable of (input, target).
    """
    weights = prunable(model, exclude)
    with _functional(model, weights, bn) as (call, leaves):
        g = _sum_of_gradients(call, leaves, _pairs("gradient", batches), loss)
        return _normalised(weights, [_as_float32(g_l.abs_()) for g_l in g])


def snip(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    bn: str = "train",
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by SNIP's connection sensitivity, |g ⊙ w| / Σ|g ⊙ w|.

    g = ∂L/∂w is the sum, with signs, over all batches of the gradient of ``loss`` (cross-entropy: the mean
    over a batch, so that every batch counts alike, a smaller last one too). Σ runs over all prunable
    weights. The paper
    uses one batch of 100 (MNIST) or 128 (CIFAR-10) samples. The authors' code has batch-norm in inference
    mode: ``bn="eval"``.

    Args:
        model: the network.
        batches: iterable of (input, target); moved to the model's device one at a time.
        loss: ``loss(model(input), target)`` is a scalar.
        bn: statistics that batch-norm uses, ``"train"`` or ``"eval"``.
        exclude: parameters or modules to leave out; they do not count in Σ.
    Returns:
        ``{parameter name: float32 tensor of the weight's shape}``.
    Raises:
        ValueError: no batches, or ``loss`` is not a scalar that depends on the weights.
        TypeError: ``batches`` is not an iterable of (input, target).
    Reference:
        Lee, Ajanthan, Torr, "SNIP: Single-shot network pruning based on connection sensitivity", 2019,
        arXiv:1810.02340.
    """
    weights = prunable(model, exclude)
    with _functional(model, weights, bn) as (call, leaves):
        g = _sum_of_gradients(call, leaves, _pairs("snip", batches), loss)
        with torch.no_grad():
            scores = [_as_float32(g_l.mul_(w_l).abs_()) for g_l, w_l in zip(g, leaves, strict=True)]
        return _normalised(weights, scores)


def grasp(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    temperature: float = 200.0,
    bn: str = "train",
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by what their removal does to the gradient flow (GraSP), θ ⊙ Hg.

    The paper's S(−θ) = −θ ⊙ Hg removes the highest; this is −S(−θ), so that the highest stay. g is the
    gradient and H the Hessian of L = Σ over batches of ``loss(model(input) / T, target)``; Hg is computed
    as ∂/∂θ (stopgrad(g)ᵀ ∂L/∂θ), batch by batch. The paper scores 10 samples a class (25 for Tiny-ImageNet)
    and keeps batch-norm in training mode.

    Args:
        model: the network.
        batches: iterable of (input, target); moved to the model's device one at a time. Iterated twice; an
            iterator, which can be used only once, is first held in memory as a list.
        loss: ``loss(model(input) / temperature, target)`` is a scalar.
        temperature: T, above 0.
        bn: statistics that batch-norm uses, ``"train"`` or ``"eval"``.
        exclude: parameters or modules to leave out; g does not include them either.
    Returns:
        ``{parameter name: float32 tensor of the weight's shape}``.
    Raises:
        ValueError: no batches, ``temperature`` is not positive, or ``loss`` is not a scalar that depends on
            the weights.
        TypeError: ``batches`` is not an iterable of (input, target).
    Reference:
        Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow", 2020,
        arXiv:2002.07376.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"grasp: expected temperature > 0, got {temperature}")

    def tempered(output: Tensor, target: Tensor) -> Tensor:
        return loss(output / temperature, target)

    if isinstance(batches, Iterator):
        batches = list(batches)
    weights = prunable(model, exclude)
    with _functional(model, weights, bn) as (call, leaves):
        # With one batch, g is the gradient at hand in the second pass, and the first would compute it twice.
        one = isinstance(batches, list | tuple) and len(batches) == 1
        g = None if one else _sum_of_gradients(call, leaves, _pairs("grasp", batches), tempered)

        def flow(output: Tensor, target: Tensor) -> Tensor:
            g_batch = _gradients(tempered(output, target), leaves, create_graph=True)
            total = leaves[0].new_zeros(
                (), requires_grad=True
            )  # so that a loss without curvature gives Hg = 0
            for g_l, fixed in zip(g_batch, g_batch if g is None else g, strict=True):
                total = total + (fixed.detach() * g_l).sum()
            return total

        hg = _sum_of_gradients(call, leaves, _pairs("grasp", batches), flow)
        with torch.no_grad():
            scores = [_as_float32(hg_l.mul_(w_l)) for hg_l, w_l in zip(hg, leaves, strict=True)]
        return dict(zip(weights, scores, strict=True))


def _pairs(method: str, batches: Batches | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches, or say what is wrong with them."""
    if batches is None:
        raise ValueError(
            f"{method}: expected batches (an iterable of (input, target)), got None; it scores on data"
        )
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"{method}: expected batches to be an iterable of (input, target), got {_kind(batches)}"
        )
    count = 0
    for count, batch in enumerate(batches, start=1):  # noqa: B007
        is_pair = isinstance(batch, tuple | list) and len(batch) == 2
        if not is_pair or not all(isinstance(part, Tensor) for part in batch):
            raise TypeError(
                f"{method}: expected each item of batches to be a pair of tensors (input, target), "
                f"got {_kind(batch)}; wrap a single batch in a list: [(input, target)]"
            )
        yield batch[0], batch[1]
    if count == 0:
        raise ValueError(
            f"{method}: expected at least one batch, got none; if batches is an iterator it may be "
            "exhausted: pass a list or a DataLoader, which can be iterated again"
        )


def _kind(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(type(part).__name__ for part in value)})"
    return f"a {type(value).__name__}"


@contextmanager
def _functional(
    model: nn.Module, weights: dict[str, nn.Parameter], bn: str
) -> Iterator[tuple[Callable[[Tensor], Tensor], list[Tensor]]]:
    """Give ``call(input)`` and the leaf tensors that stand in for ``weights`` in it.

    The model runs on leaves that share the weights' memory, and on copies of everything else, so that
    whatever a forward pass writes (running statistics, a renormalised embedding) and whatever autograd
    accumulates is dropped.
    """
    if bn not in ("train", "eval"):
        raise ValueError(f'bn: expected "train" or "eval", got {bn!r}')
    if not weights:
        raise ValueError("scores: expected a model with Linear or Conv weights to score, found none")
    device = next(iter(weights.values())).device
    modes = [(module, module.training) for module in model.modules()]
    cuda = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=cuda):
        leaf_of = {weight: weight.detach().requires_grad_() for weight in weights.values()}
        state = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for name, parameter in model.named_parameters():
            state[name] = leaf_of[parameter] if parameter in leaf_of else parameter.detach().clone()

        def call(x: Tensor) -> Tensor:
            return torch.func.functional_call(model, state, (x.to(device),))

        try:
            for module, _ in modes:
                module.training = bn == "train" and isinstance(module, nn.modules.batchnorm._NormBase)
            yield call, list(leaf_of.values())
        finally:
            for module, mode in modes:
                module.training = mode


def _gradients(value: Tensor, leaves: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: expected a scalar tensor that depends on the weights, got {shape}")
    return torch.autograd.grad(value, leaves, create_graph=create_graph, materialize_grads=True)


def _sum_of_gradients(
    call: Callable[[Tensor], Tensor], leaves: list[Tensor], pairs: Iterator[tuple[Tensor, Tensor]], loss: Loss
) -> list[Tensor]:
    """Gradient at the leaves, summed with signs over the batches, in tensors that may be overwritten."""
    total: list[Tensor] = []
    for x, target in pairs:
        g = _gradients(loss(call(x), target.to(leaves[0].device)), leaves)
        if total:
            for total_l, g_l in zip(total, g, strict=True):
                total_l.add_(g_l)
        else:
            total = _writable(g)
    return total


def _writable(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors themselves where in-place arithmetic is safe; autograd may return views, or one twice."""
    owners: set[int] = set()
    result = []
    for tensor in tensors:
        storage = tensor.untyped_storage().data_ptr()
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        if tensor.is_contiguous() and storage not in owners:
            result.append(tensor.to(dtype))
        else:
            result.append(tensor.to(dtype, memory_format=torch.contiguous_format, copy=True))
        owners.add(storage)
    return result


def _as_float32(score: Tensor) -> Tensor:
    return score.detach().to(torch.float32)


def _normalised(weights: dict[str, nn.Parameter], scores: list[Tensor]) -> Scores:
    total = sum(float(score.sum()) for score in scores)
    if (
        0 < total < math.inf
    ):  # all zero stays all zero; selection refuses scores that are not finite, with their name
        for score in scores:
            score.div_(total)
    return dict(zip(weights, scores, strict=True))
