import pytest
import torch
from torch import nn

import sparseprune as sp
from sparseprune._controls import shuffled_masks
from sparseprune.cost.flops import flops_per_step
from sparseprune.experiments import models, networks
from sparseprune.experiments.models import Network


@pytest.mark.parametrize("block_rows", [1, 4])
def test_shuffled_masks_keep_as_many_weights_and_blocks_in_every_layer(block_rows):
    generator = torch.Generator().manual_seed(0)
    masks = {
        "conv": (torch.rand(8 // block_rows, 3, 5, 5, generator=generator) < 0.3).repeat_interleave(
            block_rows, dim=0
        ),
        "head": torch.rand(10, 8, generator=generator) < 0.3,  # 4 does not divide 10 rows
    }
    shuffled, again, other = (shuffled_masks(masks, seed) for seed in (0, 0, 1))
    for name, mask in masks.items():
        assert shuffled[name].shape == mask.shape
        assert shuffled[name].sum() == mask.sum()
        assert not torch.equal(shuffled[name], mask)
        assert torch.equal(shuffled[name], again[name])
        assert not torch.equal(shuffled[name], other[name])
    blocks = shuffled["conv"].flatten(1).unflatten(0, (-1, block_rows))
    assert torch.equal(blocks.any(1), blocks.all(1))


def test_shuffled_masks_spread_over_the_whole_layer():
    mask = torch.zeros(20, 50, dtype=torch.bool)
    mask[0] = True
    shuffled = shuffled_masks({"w": mask}, 0)["w"]
    assert shuffled.any(0).sum() > 20
    assert shuffled.any(1).sum() > 15


@pytest.mark.parametrize("name", ["lenet5_caffe", "resnet8"])
@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_pruned_convolutional_networks_keep_their_weights(name, method):
    network = Network(name, (1, 16, 16), 3, 0.25)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(9, 1, 16, 16, generator=generator), torch.arange(9) % 3
    made = networks.pruned(
        network,
        [batch],
        method,
        0.9,
        (1, 1),
        scope="global",
        batch_size=9,
        seed=0,
        shuffled=True,
        clock=lambda: 0.0,
    )
    assert [contender.label for contender in made] == [f"{method} 90 %", f"{method} shuffled 90 %"]
    weights = models.weight_count(network)
    kept = []
    for contender in made:
        assert contender.weights == round(weights * 0.1)
        model = contender.make()
        rows = sp.summary(model).rows
        assert sum(row.kept for row in rows) == contender.weights
        assert all(row.kept > 0 for row in rows)
        model(batch[0]).sum().backward()
        kept.append([row.kept for row in rows])
    assert kept[0] == kept[1]


def test_flops_per_step_counts_kept_weights_of_linear_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    assert flops_per_step(model, (2, 3), 8) == 2 * 8 * (2 * 30 + 3 * 20)
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[:, 1] = True
    for layers in ("sparse", "dense"):
        pruned = sp.sparsify(model, {"1.weight": mask}, layers=layers)
        assert flops_per_step(pruned, (2, 3), 8) == 2 * 8 * (2 * 5 + 3 * 20)


def test_flops_per_step_counts_every_position_of_convolutions():
    model = models.resnet((1, 6, 6), 2, (4, 8), 1)
    # 36 positions, then 9: the stem has no input gradient; 1 x 1 in the shortcut; the head has one position.
    positions = 36 * (2 * 36 + 3 * 2 * 144) + 9 * 3 * (288 + 576 + 32) + 3 * 16
    assert flops_per_step(model, (1, 6, 6), 5) == 2 * 5 * positions
    half = torch.arange(576).view(8, 8, 3, 3) % 2 == 0
    masked = sp.sparsify(model, {"4.conv2.weight": half})
    assert flops_per_step(masked, (1, 6, 6), 5) == 2 * 5 * (positions - 9 * 3 * 288)


def test_flops_per_step_leaves_the_model_as_it_is():
    model = models.resnet((1, 6, 6), 2, (4,), 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        flops_per_step(model, (1, 6, 6), 5)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
