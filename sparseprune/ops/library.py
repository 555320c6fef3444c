"""The library behind ``torch.ops.sparseprune``, of which there is exactly one.

The compiled ``sparseprune._C``, the one built by :func:`sparseprune.jit.load`, or plain torch
(:mod:`sparseprune.ops.plain`).
"""

import contextlib
import importlib
import os
import platform
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sparseprune._version import __version__
from sparseprune.ops import batch_norm, convolution, flops, plain, products, topk
from sparseprune.ops.devices import check_devices

_registrations: list[torch.library.Library] = []

extension: Any = None


def has_kernels(device: torch.device) -> bool:
    """Whether the operators have compiled kernels for a device; otherwise they are plain torch there."""
    return extension is not None and (
        device.type == "cpu" or (device.type == "cuda" and extension.has_cuda())
    )


def forget_with(plan: Tensor) -> None:
    """Let the kernels, which keep the memory of plans that they know, give it back when the plan goes."""
    if extension is not None and not plan.is_meta:
        weakref.finalize(plan, extension.forget_plan, plan.data_ptr()).atexit = False


def _register() -> None:
    library = torch.library.Library("sparseprune", "FRAGMENT")
    _registrations.append(library)
    for device in ("CPU", "CUDA"):
        plain.implement(library, device)
    fakes = {**topk.FAKES, **products.FAKES, **convolution.FAKES, **batch_norm.FAKES}
    for name, fake in fakes.items():
        torch.library.register_fake(f"sparseprune::{name}", _with_devices(name, fake), lib=library)
    for name, backward, save in [*products.GRADIENTS, *convolution.GRADIENTS, *batch_norm.GRADIENTS]:
        torch.library.register_autograd(f"sparseprune::{name}", backward, setup_context=save, lib=library)
    flops.register()


def _with_devices(op: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """A fake kernel that refuses tensors of several devices."""

    def checked(*inputs: Any) -> Any:
        check_devices(op, *(t for t in inputs if isinstance(t, Tensor)))
        return fake(*inputs)

    return checked


@contextlib.contextmanager
def replaced_library() -> Iterator[None]:
    """Take the plain-torch operators away while an extension that defines the same names is loaded."""
    while _registrations:
        _registrations.pop()._destroy()
    try:
        yield
    except BaseException:
        _registrations.append(plain.define())
        _register()
        raise
    _register()


def _load() -> None:
    global extension
    forced = os.environ.get("SPARSEPRUNE_FALLBACK", "") not in ("", "0")
    if not forced:
        try:
            compiled = importlib.import_module("sparseprune._C")
            # A bad SPARSEPRUNE_ISA is an error here, not within the first operator.
            compiled.isa()
            extension = compiled
        except ImportError as error:
            warnings.warn(
                f"sparseprune: the C++ extension is not available ({error}); everything works in plain "
                "torch, but sparse layers are no faster than dense ones. Build it with "
                "`pip install -e . --no-build-isolation`, or call sparseprune.jit.load()",
                RuntimeWarning,
                stacklevel=4,
            )
    if extension is None:
        _registrations.append(plain.define())
    _register()


_load()


def info() -> dict[str, Any]:
    """What is behind the operators on this machine: JSON-able facts."""

    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": "plain torch (fallback)" if extension is None else extension.__name__,
        "isa": None if extension is None else extension.isa(),
        "available_isas": [] if extension is None else extension.available_isas(),
        "threads": torch.get_num_threads(),
        "cuda_compiled": extension is not None and extension.has_cuda(),
        "cuda_available": torch.cuda.is_available(),
        "build": {} if extension is None else extension.build_info(),
    }
