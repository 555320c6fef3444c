"""What a model is called with where no batches are: samples of one shape, or the user's example inputs."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sparseprune.scores.batches import Batches, is_pair, items
from sparseprune.scores.losses import Loss
from sparseprune.scores.nested import described, moved, tensors_in, with_each


@dataclass(frozen=True, eq=False)
class Examples:
    """Arguments of a call of the model; their tensors have samples along dim 0.

    Attributes:
        args: positional arguments.
        kwargs: arguments by name.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any, op: str) -> "Examples":
        """What ``example_inputs=`` stands for.

        Args:
            given: a tensor, a tuple of positional arguments, a mapping of arguments by name, or a pair of
                both, (tuple, mapping).
            op: name that errors begin with.
        Raises:
            TypeError: it is none of these.
            ValueError: there is no tensor in it with samples along dim 0.
        """
        if isinstance(given, Examples):
            return given
        if isinstance(given, Tensor):
            examples = cls((given,))
        elif isinstance(given, Mapping):
            examples = cls((), dict(given))
        elif _is_pair(given):
            examples = cls(tuple(given[0]), dict(given[1]))
        elif isinstance(given, tuple):
            examples = cls(given)
        else:
            raise TypeError(
                f"{op}: expected example_inputs to be the arguments of a call of the model: a tuple, a dict "
                f"of arguments by name, or a pair of both, (args, kwargs), got {described(given)}"
            )
        if not examples.samples:
            raise ValueError(
                f"{op}: expected example_inputs with a tensor of 1 or more samples (dim 0), got {examples}"
            )
        return examples

    @property
    def samples(self) -> int:
        """Number of samples: that of the first tensor with dimensions."""
        return next((len(t) for t in tensors_in((self.args, self.kwargs)) if t.dim() > 0), 0)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors."""
        return [tuple(t.shape) for t in tensors_in((self.args, self.kwargs))]

    def repeated(self, samples: int) -> "Examples":
        """So many samples, these again and again; tensors with another dim 0 stay as they are."""
        number = self.samples

        def of(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != number:
                return leaf
            return leaf[torch.arange(samples, device=leaf.device) % number]

        return Examples(*with_each(of, (self.args, self.kwargs)))

    def channels_last(self) -> "Examples":
        """The same with images, which have four dimensions, channels innermost."""

        def of(leaf: Any) -> Any:
            is_image = isinstance(leaf, Tensor) and leaf.dim() == 4
            return leaf.contiguous(memory_format=torch.channels_last) if is_image else leaf

        return Examples(*with_each(of, (self.args, self.kwargs)))

    def on(self, device: torch.device) -> "Examples":
        """The same on a device."""
        return Examples(*moved((self.args, self.kwargs), device))

    def call(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.args, **self.kwargs)

    def __str__(self) -> str:
        parts = [_told(arg) for arg in self.args]
        parts += [f"{name}={_told(arg)}" for name, arg in self.kwargs.items()]
        return f"({', '.join(parts)})"


# The shape of one sample, or example inputs.
Sample: TypeAlias = Sequence[int] | Examples


def sample_given(op: str, input_size: Sample | None, example_inputs: Any) -> Sample | None:
    """What of ``input_size=`` and ``example_inputs=`` was given, checked; None where neither was.

    Args:
        op: name that errors begin with.
        input_size: shape of one sample; or what this function returned.
        example_inputs: see :meth:`Examples.of`.
    Raises:
        TypeError, ValueError: both were given, or one is not what it should be.
    """
    if example_inputs is None:
        if input_size is None or isinstance(input_size, Examples):
            return input_size
        return checked_size(op, input_size)
    if input_size is not None:
        raise ValueError(f"{op}: expected one of input_size and example_inputs, got both; drop input_size")
    return Examples.of(example_inputs, op)


def checked_size(op: str, input_size: Any) -> Sequence[int]:
    """The shape of one sample; ValueError for anything else."""
    if not isinstance(input_size, Sequence) or not all(is_size(size) for size in input_size):
        raise ValueError(
            f"{op}: expected input_size to be the shape of one sample, such as (3, 32, 32), "
            f"got {input_size!r}; give other inputs as example_inputs"
        )
    return input_size


def shape_of(sample: Sample, op: str) -> Sequence[int]:
    """The shape of one sample of a model that takes one floating-point tensor.

    Raises:
        ValueError: the example inputs are something else.
    """
    if not isinstance(sample, Examples):
        return sample
    tensors = tensors_in(sample.args)
    if len(tensors) != 1 or len(sample.args) != 1 or sample.kwargs or not tensors[0].is_floating_point():
        raise ValueError(f"{op}: expected one input tensor of floating point, got {sample}")
    return tuple(tensors[0].shape[1:])


def sample_in(batch: Any) -> Sample | None:
    """What the model is called with for a batch of (input, target), or of arguments by name; else None."""
    if isinstance(batch, Mapping) and tensors_in(batch):
        return Examples((), dict(batch))
    if not is_pair(batch):
        return None
    x = batch[0]
    return tuple(x.shape[1:]) if x.is_floating_point() else Examples((x,))


def sample_of_first(batches: Batches | None, loss: Loss) -> tuple[Sample, Batches]:
    """What the model is called with for the first batch, and all batches, that one too; else ValueError."""
    if batches is None:
        raise ValueError(
            "prune: expected input_size=, the shape of one sample, or batches to take it from, or "
            "example_inputs=: what a weight costs depends on it"
        )
    iterator = items("prune", batches, loss)
    first = next(iterator)
    sample = sample_in(first)
    if sample is None:
        raise ValueError(
            "prune: expected example_inputs=, the arguments of a call of the model (a tuple, a dict, or a "
            f"pair of both): what a weight costs depends on it, got none and {described(first)} as a batch"
        )
    return sample, itertools.chain([first], iterator)


def batch_of(sample: Sample, samples: int, like: Tensor, values: str = "zeros") -> Examples:
    """A call with so many samples: of zeros or of a ramp from -1 to 1, of like's dtype, or the examples.

    Nothing is random: it must not disturb the user's random numbers.
    """
    if isinstance(sample, Examples):
        return sample.repeated(samples).on(like.device)
    size = (samples, *sample)
    if values == "zeros":
        return Examples((torch.zeros(size, device=like.device, dtype=like.dtype),))
    count = torch.Size(size).numel()
    return Examples((torch.linspace(-1, 1, count, device=like.device, dtype=like.dtype).reshape(size),))


def is_size(size: object) -> bool:
    """Whether this is a whole number above 0."""
    return isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0


def _is_pair(given: Any) -> bool:
    return (
        isinstance(given, tuple | list)
        and len(given) == 2
        and isinstance(given[0], tuple | list)
        and isinstance(given[1], Mapping)
    )


def _told(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"{str(argument.dtype).removeprefix('torch.')} {list(argument.shape)}"
    return described(argument) if tensors_in(argument) else repr(argument)
