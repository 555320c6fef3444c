"""RigL and SET written out on dense weights, masks and plain lists: what rewired layers are compared with."""

import math

import numpy
import torch
from torch import Tensor, nn


class Twin:
    """Dense layers whose weights are multiplied by masks, and an optimizer of dense weights.

    Each block's |w| and gradient are means over V rows of ``weight.flatten(1)``. The gradient is that of the
    masked weight, which a hook on the product takes.
    """

    def __init__(self, model: nn.Sequential, masks: dict[str, Tensor], block_rows: dict[str, int]) -> None:
        self.model = model
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.block_rows = block_rows
        self.gradient: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, mask in self.masks.items():
                model.get_parameter(name).mul_(mask)

    def __call__(self, x: Tensor) -> Tensor:
        weights = {}
        for name, mask in self.masks.items():
            product = self.model.get_parameter(name) * mask
            product.register_hook(lambda g, name=name: self.gradient.__setitem__(name, g))
            weights[name] = product
        result: Tensor = torch.func.functional_call(self.model, weights, (x,))
        return result

    def move(
        self,
        optimizer: torch.optim.Optimizer,
        method: str,
        step: int,
        until: int,
        fraction: float = 0.3,
        seed: int = 0,
    ) -> None:
        part = fraction / 2 * (1 + math.cos(math.pi * step / until))
        for i, (name, mask) in enumerate(self.masks.items()):
            weight, v = self.model.get_parameter(name), self.block_rows[name]
            blocks = (len(mask) // v, v, -1)
            kept = mask.reshape(blocks)[:, 0].flatten().tolist()
            worth = weight.detach().reshape(blocks).abs().mean(1).flatten().tolist()
            if method == "rigl":
                growth = self.gradient[name].reshape(blocks).abs().mean(1).flatten().tolist()
            else:
                state = numpy.random.SeedSequence([*b"sparseprune", seed, step, i]).generate_state(1)
                generator = torch.Generator().manual_seed(int(state[0]))
                growth = torch.rand(len(kept), generator=generator, dtype=torch.float64).tolist()
            own = [at for at, is_kept in enumerate(kept) if is_kept]
            moved = int(part * len(own))
            stay = sorted(own, key=lambda at: (-worth[at], at))[: len(own) - moved]
            free = sorted(set(range(len(kept))) - set(stay), key=lambda at: (-growth[at], not kept[at], at))
            new = torch.zeros(len(kept), dtype=torch.bool)
            new[stay + free[:moved]] = True
            new = new.view(len(mask) // v, 1, -1).expand(-1, v, -1).reshape(mask.shape)
            born = new & ~mask
            with torch.no_grad():
                for tensor in (weight, *optimizer.state[weight].values()):
                    if tensor.shape == weight.shape:
                        tensor[~new | born] = 0
            mask.copy_(new)
