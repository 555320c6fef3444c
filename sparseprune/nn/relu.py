"""What stands where a sparse layer has taken over the ReLU."""

from torch import nn


class FusedReLU(nn.Identity):
    """An ``nn.ReLU`` that the :class:`SparseLinear` before it computes (``relu``): nothing is left to do.

    :func:`sparsify` puts it there, so that the names of the other modules stay what they are, and
    :func:`densify` makes it an ``nn.ReLU`` again.

    Args:
        inplace: flag of that module.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""
