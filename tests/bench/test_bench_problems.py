import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from bench_small import NETWORK, transformer
from bounds import assert_half_the_digits

import sparseprune as sp
from bench import problems
from bench.contenders.calls import kept_gradient
from bench.problems.transformers import BLOCKS
from bench.workloads import Workload
from sparseprune.experiments import models

# Images of 8 x 8 leave taps of kernels unused: their scores are 0, and position decides about them.
pytestmark = pytest.mark.filterwarnings("ignore:prune. expected scores that tell weights apart")


@pytest.mark.parametrize("block", [1, 4])
def test_random_masks_have_whole_blocks_and_exactly_the_density(block):
    mask = problems.build(Workload("linear-forward", (24, 16), 0.25, 8, block=block)).mask
    assert int(mask.sum()) == 96
    assert mask.shape == (16, 24)
    blocks = mask.reshape(16 // block, block, 24)
    assert torch.equal(blocks.all(1), blocks.any(1))


def test_snip_masks_have_uneven_rows_and_columns():
    mask = problems.build(Workload("linear-forward", (64, 48), 0.25, 8, mask="snip")).mask
    assert int(mask.sum()) == 64 * 48 // 4
    assert mask.sum(0).double().std() > 2 * 48**0.5 / 2  # random columns: sqrt(48 * 0.25 * 0.75) = 3
    assert mask.sum(1).double().std() > 3


def test_problems_are_in_the_precision_and_layout_of_the_workload():
    workload = Workload("linear-step", (24, 16), 0.25, 8, dtype="bfloat16", layout="batch-inner")
    problem = problems.build(workload)
    assert problem.x.dtype == problem.g.dtype == problem.layer.weight.dtype == torch.bfloat16
    assert problem.x.stride() == problem.g.stride() == (1, 8)
    expected = problem.x.double() @ problem.layer.weight.double().t() + problem.layer.bias.double()
    assert_half_the_digits(problem.expected["y"], expected)
    assert not problem.layer.weight[~problem.mask].any()
    assert problem.kept_bytes == 2 * 2 * (96 + 8 * 24 + 8 * 16) + 4 * 96


def test_convolution_problems_are_a_padded_convolution_with_exactly_the_kept_weights():
    workload = Workload("conv-step", (8, 16, 5), 0.25, 16, 4, kernel=3, stride=2, layout="batch-inner")
    problem = problems.build(workload)
    assert workload.id == "conv-step/8x16@5x5-3x3-stride2/density=0.25/n=16/block=4/float32/batch-inner"
    assert problem.mask.shape == (16, 8, 3, 3)
    assert int(problem.mask.sum()) == 16 * 8 * 9 // 4
    blocks = problem.mask.reshape(4, 4, 8, 3, 3)
    assert torch.equal(blocks.all(1), blocks.any(1))
    assert not problem.layer.weight[~problem.mask].any()
    assert problem.x.shape == (16, 8, 5, 5)
    assert problem.g.shape == (16, 16, 3, 3)
    assert problem.x.stride() == (1, 5 * 5 * 16, 5 * 16, 16)
    assert problem.g.stride() == (1, 3 * 3 * 16, 3 * 16, 16)
    expected = F.conv2d(
        problem.x.double(), problem.layer.weight.double(), problem.layer.bias.double(), stride=2, padding=1
    )
    assert_half_the_digits(problem.expected["y"], expected)
    kept = 16 * 8 * 9 // 4
    assert problem.kept_flops == 2 * 3 * kept * 16 * 3 * 3  # two operations, three products, samples, pixels
    assert problem.dense_flops == 4 * problem.kept_flops
    numbers = kept + 16 * 8 * 5 * 5 + 16 * 16 * 3 * 3
    assert problem.kept_bytes == 2 * 4 * numbers + 4 * kept // 4


def test_network_problems_leave_the_first_convolution_dense_where_masks_are_uniform():
    problem = problems.build(NETWORK)
    weights = [name for name, p in problem.model.named_parameters() if p.dim() > 1]
    assert list(problem.masks) == weights[1:]
    for mask in problem.masks.values():
        assert int(mask.sum()) == round(mask.numel() / 2)
    snip = problems.build(dataclasses.replace(NETWORK, mask="snip"))
    assert list(snip.masks) == weights
    kept = sum(int(mask.sum()) for mask in snip.masks.values())
    assert kept == round(sum(mask.numel() for mask in snip.masks.values()) / 2)


def test_network_problems_count_the_operations_of_every_layer():
    class Network(torch.nn.Sequential):
        def __init__(self, *_):
            flat = torch.nn.Flatten()
            super().__init__(torch.nn.Conv2d(2, 4, 3, stride=2), flat, torch.nn.Linear(4 * 3 * 3, 10))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", Network)
        workload = Workload("network-step", (2, 8, 8), 0.5, 4, mask="uniform", optimizer="sgd", model="tiny")
        problem = problems.build(workload)
    # No gradient of the input of the first layer: two products there and three in the other one.
    first, second = 2 * 2 * 4 * (4 * 2 * 9) * 9, 2 * 3 * 4 * (36 * 10)
    assert problem.dense_flops == first + second
    assert problem.kept_flops == first + second // 2


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("shape", [(16, 24), (16, 8, 3, 1)])
def test_kept_gradient_of_blocks_is_row_by_row(block, shape):
    problem = problems.build(Workload("linear-step", (24, 16), 0.25, 8, block=block))
    layer = sp.SparseLinear.from_dense(problem.layer, problem.mask)
    layer.values.grad = layer.values.detach().clone()
    expected = problem.layer.weight.detach()[problem.mask]
    assert torch.equal(kept_gradient(layer, problem.mask.reshape(shape)), expected)


@pytest.mark.parametrize("model", BLOCKS)
def test_blocks_of_transformers_are_those_of_torch(model):
    torch.manual_seed(0)
    block = BLOCKS[model](128).double()
    gelu = functools.partial(F.gelu, approximate="tanh" if model == "gpt2" else "none")
    sizes, options = (128, 2, 512), {"batch_first": True, "norm_first": model != "bert"}
    theirs = torch.nn.TransformerEncoderLayer(*sizes, 0.0, gelu, **options).double()
    attention, mlp = block.attention, block.mlp
    pairs = [
        (theirs.self_attn.in_proj_weight, torch.cat([layer.weight for layer in attention.projections])),
        (theirs.self_attn.in_proj_bias, torch.cat([layer.bias for layer in attention.projections])),
        *_pairs(theirs.self_attn.out_proj, attention.out),
        *_pairs(theirs.linear1, mlp.hidden),
        *_pairs(theirs.linear2, mlp.out),
    ]
    with torch.no_grad():
        for to, value in pairs:
            to.copy_(value)
    x = torch.randn(3, 7, 128, dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    mask = mask if model == "gpt2" else None
    assert_half_the_digits(block(x), theirs(x, src_mask=mask, is_causal=mask is not None))


def _pairs(to, source):
    return [(to.weight, source.weight), (to.bias, source.bias)]


@pytest.mark.parametrize("model", BLOCKS)
def test_transformer_problems_prune_every_matrix_alike_but_the_head(model):
    step = problems.build(transformer("step", model, block=4))
    forward = problems.build(transformer("forward", model))
    matrices = [name for name, p in step.model.named_parameters() if p.dim() == 2 and name != "position"]
    assert matrices[-1] == "head.weight"
    assert list(step.masks) == list(forward.masks) == matrices[:-1]
    for mask in (*step.masks.values(), *forward.masks.values()):
        assert int(mask.sum()) == mask.numel() // 4
    # Two operations; three products of a step, as every layer's input has a gradient; samples, and tokens.
    width = 128
    in_blocks, head = 12 * width**2 * 4 * 6, 10 * width * 4
    assert step.dense_flops == 2 * 3 * (in_blocks + head)
    assert forward.dense_flops == 2 * (in_blocks + head)
    assert forward.kept_flops == 2 * (in_blocks // 4 + head)
    assert forward.expected["y"].shape == (4, 10)
