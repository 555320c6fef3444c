"""How much is multiplied with weights where no layer of torch is called, such as those of experts."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result stands for the weight: with its mask, in another dtype, of some experts.
ALIKE = ("mul", "_to_copy", "clone", "index", "index_select")


class Products(TorchDispatchMode):
    """While a model runs, counts the multiplications of each of some parameters in products of matrices.

    Attributes:
        counts: multiplications of all elements together, by parameter.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.counts: Counter[nn.Parameter] = Counter()
        self._owners = {_memory(parameter): parameter for parameter in parameters}
        # Kept: their memory must not become that of another tensor.
        self._alike: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition(":")[2]
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        owners = [owner for tensor in tensors if (owner := self._owners.get(_memory(tensor))) is not None]
        if not owners or not isinstance(result, Tensor):
            return result
        if "mm" in name:
            left = tensors[name.startswith(("add", "badd"))]
            for owner in owners:
                self.counts[owner] += result.numel() * left.shape[-1]
        elif name in ALIKE and result.is_floating_point():
            self._owners[_memory(result)] = owners[0]
            self._alike.append(result)
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
