"""A long training, in which patterns move, are averaged, saved and loaded: memory stays as it was."""

import copy
import gc
import io

import pytest
import torch
from torch import nn

import sparseprune as sp
from sparseprune.nn.sparse import SparseLayer

STEPS, SETTLED = 20_000, 2_000
# Of 18,000 steps: 2 KB that each leaves behind would be 36 MB. The allocator's own slack is a tenth of that.
MOST_GROWTH = 16e6


def memory() -> int:
    gc.collect()
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096


def shuffled(layer: SparseLayer) -> None:
    """Another pattern with as many blocks, at random."""
    rows, cols = layer.mask.flatten(1).shape
    mask = torch.zeros(rows * cols, dtype=torch.bool)
    mask[torch.randperm(len(mask))[: layer.values.numel()]] = True
    mask = mask.view(rows, cols)
    crow = torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).int()
    layer.move_pattern(crow, mask.nonzero()[:, 1].int())


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_training(needs_extension: None) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()),
        *(nn.Linear(8 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    masks = {name: torch.rand(p.shape) < 0.2 for name, p in model.named_parameters() if p.dim() > 1}
    sparse = sp.sparsify(model, masks, layers="sparse")
    average = copy.deepcopy(sparse)
    optimizer = torch.optim.Adam(sparse.parameters(), fused=True)
    before = 0
    for step in range(STEPS):
        x, labels = torch.randn(16, 2, 6, 6), torch.randint(0, 10, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(sparse(x), labels).backward()
        optimizer.step()
        if step % 50 == 0:
            for layer in sparse.modules():
                if isinstance(layer, SparseLayer):
                    shuffled(layer)
        if step % 20 == 0:
            for old, new in zip(average.state_dict().values(), sparse.state_dict().values(), strict=True):
                old.copy_(0.99 * old + 0.01 * new)
            average.load_state_dict(sparse.state_dict())
            average(x)
        if step % 500 == 0:
            file = io.BytesIO()
            torch.save(sparse.state_dict(), file)
            file.seek(0)
            sparse.load_state_dict(torch.load(file))
            copy.deepcopy(sparse)(x).sum().backward()
        if step == SETTLED:
            before = memory()
    assert memory() - before < MOST_GROWTH
