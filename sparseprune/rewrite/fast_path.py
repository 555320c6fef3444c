"""Torch's fast path of ``nn.TransformerEncoder`` in evaluation, which computes with dense weights."""

from torch import nn

from sparseprune.nn.kinds import Sparse
from sparseprune.nn.masked import Masked

# The attribute by which a module takes the path, and its value without.
SWITCHES: dict[type[nn.Module], tuple[str, int]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
BEFORE = "fast_path_before"


def without_fast_path(model: nn.Module) -> None:
    """Switch it off, in place, in all encoders and layers of them that have a sparse or masked layer."""
    for encoder in list(model.modules()):
        if isinstance(encoder, tuple(SWITCHES)) and _has_masks(encoder):
            # All layers of an encoder: its first one decides for those after it.
            for module in encoder.modules():
                for kind, (switch, off) in SWITCHES.items():
                    if isinstance(module, kind) and getattr(module, switch, off) != off:
                        vars(module)[BEFORE] = getattr(module, switch)
                        setattr(module, switch, off)


def with_fast_path(model: nn.Module) -> None:
    """Switch it on again, in place, where :func:`without_fast_path` has switched it off."""
    for module in model.modules():
        for kind, (switch, _) in SWITCHES.items():
            if isinstance(module, kind) and BEFORE in vars(module):
                setattr(module, switch, vars(module).pop(BEFORE))


def _has_masks(module: nn.Module) -> bool:
    return any(isinstance(part, Sparse | Masked) for part in module.modules())
