"""Checks that the operators' fake kernels share."""

from __future__ import annotations

from torch import Tensor


def check_devices(op: str, *tensors: Tensor | None) -> None:
    # A meta tensor among others brings the operator here, where nothing would notice that data are missing.
    devices = sorted({str(t.device) for t in tensors if t is not None})
    if len(devices) > 1:
        raise ValueError(
            f"{op}: expected all tensors on one device, got {' and '.join(devices)}; move them with .to()"
        )
