"""What scores are computed from: prunable weights, batches, and a frozen, functional view of the model."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
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


def pairs(method: str, batches: Batches | None) -> Iterator[tuple[Tensor, Tensor]]:
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
def functional(
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


def gradients(value: Tensor, leaves: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: expected a scalar tensor that depends on the weights, got {shape}")
    return torch.autograd.grad(value, leaves, create_graph=create_graph, materialize_grads=True)


def sum_of_gradients(
    call: Callable[[Tensor], Tensor], leaves: list[Tensor], pairs: Iterator[tuple[Tensor, Tensor]], loss: Loss
) -> list[Tensor]:
    """Gradient at the leaves, summed with signs over the batches, in tensors that may be overwritten."""
    total: list[Tensor] = []
    for x, target in pairs:
        g = gradients(loss(call(x), target.to(leaves[0].device)), leaves)
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


def normalised(weights: dict[str, nn.Parameter], scores: list[Tensor]) -> Scores:
    """Scores in float32, divided by the sum of all."""
    scores = [score.detach().to(torch.float32) for score in scores]
    total = sum(float(score.sum()) for score in scores)
    # All zero stays all zero; selection refuses scores that are not finite, with their name.
    if 0 < total < math.inf:
        for score in scores:
            score.div_(total)
    return dict(zip(weights, scores, strict=True))
