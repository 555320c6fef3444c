"""SparseConv2d and SparseConv1d beside the layers of torch that they replace."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from layers import LAYOUTS, check_step, laid_out
from torch import Tensor, nn

from sparseprune.nn import SparseConv1d, SparseConv2d

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch's

CASES = {
    "usual": {"kernel_size": 3, "padding": 1},
    "pointwise": {"kernel_size": 1},
    "pointwise, strided": {"kernel_size": 1, "stride": 2, "bias": False},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "rectangular": {"kernel_size": (3, 5), "padding": (0, 2), "stride": (2, 1)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even kernel": {"kernel_size": (2, 4), "padding": "same", "dilation": (1, 2)},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate"},
    "circular, same": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 8},
    "large stride": {"kernel_size": 2, "stride": 3, "padding": 1},
}


def make(block: int = 1, **arguments: object) -> tuple[nn.Conv2d, Tensor]:
    """A dense convolution from 8 to 16 channels, its pruned weights zero, and its mask of whole blocks."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(8, 16, **arguments)  # type: ignore[arg-type]
    matrix = torch.rand(16 // block, conv.weight[0].numel(), generator=generator) < 0.3
    mask = matrix.repeat_interleave(block, 0).reshape(conv.weight.shape)
    with torch.no_grad():
        conv.weight.mul_(mask)
    return conv, mask


def assert_same_as_dense(sparse: nn.Module, dense: nn.Module, x: Tensor) -> None:
    """Output and all gradients agree with those of the dense layer."""
    sparse.zero_grad()
    x = x.detach().requires_grad_()
    y = sparse(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    y.backward(g)
    check_step(sparse, dense, x, y, g)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_conv2d_is_the_dense_layer_with_fewer_weights(case: str, layout: str) -> None:
    conv, mask = make(**CASES[case])
    for samples in (1, 17, 32):
        x = laid_out(torch.randn(samples, 8, 9, 11), layout)
        assert_same_as_dense(SparseConv2d.from_dense(conv, mask), conv, x)


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("samples", [0, 1, 15, 16, 64])
def test_conv2d_computes_blocks_at_any_batch_size(samples: int, block: int) -> None:
    conv, mask = make(block=block, kernel_size=3, padding=1)
    sparse = SparseConv2d.from_dense(conv, mask)
    assert sparse.block == (block, 1)
    assert_same_as_dense(sparse, conv, torch.randn(samples, 8, 5, 6))


def test_conv2d_takes_one_unbatched_sample() -> None:
    conv, mask = make(**CASES["usual"])
    assert_same_as_dense(SparseConv2d.from_dense(conv, mask), conv, torch.randn(8, 5, 6))


def test_conv2d_computes_bfloat16_as_storage() -> None:
    conv, mask = make(**CASES["usual"])
    conv = conv.bfloat16()
    x = torch.randn(32, 8, 9, 11).bfloat16()
    sparse = SparseConv2d.from_dense(conv, mask)
    assert sparse(x).dtype == torch.bfloat16
    assert_same_as_dense(sparse, conv, x)


@pytest.mark.parametrize("case", ["usual", "groups", "circular, same"])
@pytest.mark.parametrize("samples", [16, 33])
@pytest.mark.parametrize(
    ("batch_inner", "given", "expected"),
    [
        (None, "contiguous", "contiguous"),
        (None, "batch-inner", "batch-inner"),
        (True, "contiguous", "batch-inner"),
        (False, "batch-inner", "contiguous"),
    ],
)
def test_conv2d_lays_its_output_out_as_asked(
    batch_inner: bool | None, given: str, expected: str, samples: int, case: str
) -> None:
    conv, mask = make(**CASES[case])
    sparse = SparseConv2d.from_dense(conv, mask)
    sparse.batch_inner = batch_inner
    y = sparse(laid_out(torch.randn(samples, 8, 9, 11), given))
    assert y.stride() == laid_out(torch.empty(y.shape), expected).stride()


def test_conv2d_returns_ordinary_memory_for_few_samples() -> None:
    conv, mask = make(**CASES["usual"])
    sparse = SparseConv2d.from_dense(conv, mask)
    sparse.batch_inner = True
    assert sparse(torch.randn(15, 8, 9, 11)).is_contiguous()


def test_conv2d_of_frozen_input_gives_weight_gradients() -> None:
    conv, mask = make(**CASES["strided"])
    sparse = SparseConv2d.from_dense(conv, mask)
    x = torch.randn(20, 8, 9, 11)
    y = sparse(x)
    y.square().sum().backward()
    check_step(sparse, conv, x, y, 2 * y)


def test_conv2d_of_frozen_weights_gives_input_gradients() -> None:
    conv, mask = make(**CASES["strided"])
    conv.weight.requires_grad_(False)
    sparse = SparseConv2d.from_dense(conv, mask)
    assert not sparse.values.requires_grad
    x = torch.randn(20, 8, 9, 11).requires_grad_()
    y = sparse(x)
    y.square().sum().backward()
    assert sparse.values.grad is None
    check_step(sparse, conv, x, y, 2 * y)


@pytest.mark.parametrize("case", CASES)
def test_to_dense_gives_the_layer_back(case: str) -> None:
    conv, mask = make(**CASES[case])
    conv.eval()
    back = SparseConv2d.from_dense(conv, mask).to_dense()
    assert str(back) == str(conv)
    assert back.training is False
    assert torch.equal(back.weight, conv.weight)
    assert (back.bias is None and conv.bias is None) or torch.equal(back.bias, conv.bias)


def test_mask_weight_and_repr_tell_what_is_stored() -> None:
    conv, mask = make(block=4, **CASES["strided"])
    sparse = SparseConv2d.from_dense(conv, mask)
    assert torch.equal(sparse.mask, mask)
    assert torch.equal(sparse.weight, conv.weight)
    kept = int(mask.sum())
    assert repr(sparse) == (
        "SparseConv2d(8, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False, "
        f"nnz={kept}, sparsity={1 - kept / mask.numel():.4f}, block=(4, 1))"
    )


def test_from_dense_takes_blocks_that_do_not_cross_groups() -> None:
    conv, mask = make(block=16, kernel_size=3, groups=4)
    assert SparseConv2d.from_dense(conv, mask).block == (4, 1)
    with pytest.raises(ValueError, match="out_channels / groups divisible by 8"):
        SparseConv2d.from_dense(conv, mask, block=(8, 1))


def test_a_checkpoint_brings_its_pattern() -> None:
    arguments = CASES["groups"]
    conv, mask = make(block=2, **arguments)
    other = SparseConv2d.from_dense(conv, mask)
    sparse = SparseConv2d.from_dense(nn.Conv2d(8, 16, **arguments), torch.ones_like(mask))  # type: ignore[arg-type]
    values = sparse.values
    sparse.load_state_dict(other.state_dict())
    assert sparse.values is values
    assert sparse.block == (2, 1)
    assert_same_as_dense(sparse, conv, torch.randn(18, 8, 9, 11))
    crossing = SparseConv2d.from_dense(*make(block=16, kernel_size=3, padding=1)).state_dict()
    with pytest.raises(RuntimeError, match="a block cannot cross groups"):
        SparseConv2d(8, 16, **arguments).load_state_dict(crossing)  # type: ignore[arg-type]


def test_layers_move_between_devices_and_dtypes() -> None:
    conv, mask = make(**CASES["strided"])
    sparse = SparseConv2d.from_dense(conv, mask)
    x = torch.randn(18, 8, 9, 11)
    check_step(sparse, conv, x, sparse.double()(x.double()))
    state = sparse.float().state_dict()
    other = SparseConv2d(8, 16, **CASES["strided"], device="meta").to_empty(device="cpu")  # type: ignore[arg-type]
    other.load_state_dict(state)
    assert torch.equal(other(x), sparse(x))
    assert sparse.to("meta")(x.to("meta")).shape == other(x).shape


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "state_dict"])
def test_copies_compute_the_same(copied: str) -> None:
    conv, mask = make(**CASES["groups"])
    sparse = SparseConv2d.from_dense(conv, mask)
    if copied == "deepcopy":
        other = copy.deepcopy(sparse)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(sparse))
    else:
        other = SparseConv2d(8, 16, **CASES["groups"])  # type: ignore[arg-type]
        other.load_state_dict(sparse.state_dict())
    assert list(sparse.state_dict()) == ["values", "bias", "crow", "col"]
    x = torch.randn(18, 8, 9, 11)
    assert torch.equal(other(x), sparse(x))


def test_float16_is_refused_and_changes_nothing() -> None:
    conv, mask = make(**CASES["usual"])
    sparse = SparseConv2d.from_dense(conv, mask)
    with pytest.raises(TypeError, match=r"SparseConv2d: expected float32 or bfloat16 .* got torch.float16"):
        sparse.half()
    assert sparse.values.dtype == torch.float32


@pytest.mark.parametrize("shape", [(8,), (2, 7, 5, 5), (7, 5, 5), (1, 2, 8, 5, 5)])
def test_wrong_input_is_an_error(shape: tuple[int, ...]) -> None:
    conv, mask = make(**CASES["usual"])
    with pytest.raises(ValueError, match=r"expected x.shape == \[samples, 8 \(in_channels\), height, width"):
        SparseConv2d.from_dense(conv, mask)(torch.randn(shape))


def test_input_smaller_than_the_kernel_is_an_error() -> None:
    conv, mask = make(kernel_size=5)
    with pytest.raises(ValueError, match="expected a padded input of at least 5"):
        SparseConv2d.from_dense(conv, mask)(torch.randn(2, 8, 4, 9))


def test_dtypes_must_agree() -> None:
    conv, mask = make(**CASES["usual"])
    with pytest.raises(ValueError, match="conv2d: expected values to be float64, got float32"):
        SparseConv2d.from_dense(conv, mask)(torch.randn(2, 8, 5, 5).double())


def test_half_a_pattern_and_other_shapes_are_errors() -> None:
    crow = torch.zeros(5, dtype=torch.int32)
    with pytest.raises(ValueError, match="SparseConv2d: expected both crow and col, or neither"):
        SparseConv2d(3, 4, 3, crow=crow)
    with pytest.raises(
        ValueError, match=r"expected crow.shape == \[4\] \(out_channels / 1 \+ 1\), got \[5\]"
    ):
        SparseConv2d(3, 3, 3, crow=crow, col=crow[:0])
    with pytest.raises(ValueError, match=r"out_channels divisible by 8 \(rows of a block\), got 12"):
        SparseConv2d(3, 12, 3, block=(8, 1))
    with pytest.raises(ValueError, match="groups"):
        SparseConv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match=r"expected a mask of shape \[4, 3, 3, 3\] \(the weight's\)"):
        SparseConv2d.from_dense(nn.Conv2d(3, 4, 3), torch.ones(4, 27, dtype=torch.bool))


@pytest.mark.parametrize("samples", [0, 3, 20])
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 5, "stride": 2, "dilation": 2, "bias": False},
        {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
        {"kernel_size": 3, "groups": 2},
    ],
)
def test_conv1d_is_the_dense_layer_with_fewer_weights(arguments: dict[str, object], samples: int) -> None:
    conv = nn.Conv1d(6, 8, **arguments)  # type: ignore[arg-type]
    mask = torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        conv.weight.mul_(mask)
    sparse = SparseConv1d.from_dense(conv, mask)
    assert str(sparse.to_dense()) == str(conv)
    assert_same_as_dense(sparse, conv, torch.randn(samples, 6, 23))
    assert_same_as_dense(sparse, conv, torch.randn(6, 23))


def test_conv1d_keeps_batch_inner_memory() -> None:
    conv = nn.Conv1d(6, 8, 3, padding=1)
    sparse = SparseConv1d.from_dense(conv, torch.ones_like(conv.weight, dtype=torch.bool))
    x = torch.randn(6, 23, 20).permute(2, 0, 1)
    y = sparse(x)
    assert y.stride() == (1, 23 * 20, 20)
    check_step(sparse, conv, x, y)


@pytest.mark.parametrize("shape", [(20, 8, 9, 11), (8, 9, 11)])
def test_outputs_can_be_changed_in_place(shape: tuple[int, ...]) -> None:
    conv, mask = make(**CASES["usual"])
    sparse = SparseConv2d.from_dense(conv, mask)
    x = torch.randn(shape)
    before = sparse(x).detach()
    y = sparse(x)
    y.relu_().sum().backward()
    assert torch.equal(y, before.relu())
    check_step(sparse, conv, x, before, (before > 0).float())


def test_gradients_of_the_module_check_numerically() -> None:
    conv, mask = make(kernel_size=3, stride=2, padding=1, dtype=torch.float64)
    sparse = SparseConv2d.from_dense(conv, mask)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparse, (x,))


def test_conv2d_exports_for_any_batch() -> None:
    conv, mask = make(**CASES["usual"])
    sparse = SparseConv2d.from_dense(conv, mask)
    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(sparse, (torch.randn(17, 8, 9, 11),), dynamic_shapes=({0: batch},))
    assert "sparseprune.conv2d" in str(program.graph)
    for n in (3, 17, 64):
        x = torch.randn(n, 8, 9, 11)
        assert torch.equal(program.module()(x), sparse(x))


def test_conv2d_compiles_to_the_same_numbers() -> None:
    conv, mask = make(**CASES["strided"])
    sparse = SparseConv2d.from_dense(conv, mask)
    x = torch.randn(20, 8, 9, 11, requires_grad=True)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), sparse(x))
    compiled(x).sum().backward()
    gradient = x.grad
    x.grad = None
    sparse(x).sum().backward()
    assert torch.equal(gradient, x.grad)
