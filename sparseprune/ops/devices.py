"""What there are kernels for: devices and dtypes."""

import torch
from torch import Tensor

# In which dtype the kernels add up numbers of another.
_SUMS_ON_CPU = {torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
_SUMS_ON_CUDA = {torch.float32: torch.float32, torch.float16: torch.float32, torch.bfloat16: torch.float32}


def dtypes_of_sums(device: torch.device) -> dict[torch.dtype, torch.dtype]:
    """``{dtype of the operands: dtype in which they are added up}`` of the kernels on a device."""
    # A device is still to be chosen.
    if device.type == "meta":
        return _SUMS_ON_CPU | _SUMS_ON_CUDA
    return _SUMS_ON_CUDA if device.type == "cuda" else _SUMS_ON_CPU


def check_devices(op: str, *tensors: Tensor | None) -> None:
    # A meta tensor among others brings the operator here, where nothing would notice that data are missing.
    devices = sorted({str(t.device) for t in tensors if t is not None})
    if len(devices) > 1:
        raise ValueError(
            f"{op}: expected all tensors on one device, got {' and '.join(devices)}; move them with .to()"
        )


def widened(x: Tensor) -> Tensor:
    """bfloat16 and float16 as float32: sums are made in that and rounded once."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def under_autocast(
    x: Tensor, values: Tensor, bias: Tensor | None
) -> tuple[torch.dtype | None, Tensor, Tensor, Tensor | None]:
    """Operands of a layer as torch's own layers have them under autocast: in its dtype, unless float64.

    Returns:
        the dtype that the result is rounded to, None for the operands', and the operands. Where a dtype has
        no kernels (float16 on the CPU), they are rounded to it, and computed with in float32.
    """
    # There is no autocast of the meta device.
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return None, x, values, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    inside = dtype if dtype in dtypes_of_sums(x.device) else torch.float32

    def cast(t: Tensor) -> Tensor:
        return t if t.dtype == torch.float64 else t.to(dtype).to(inside)

    given = (cast(x), cast(values), None if bias is None else cast(bias))
    return (None if inside == dtype else dtype, *given)
