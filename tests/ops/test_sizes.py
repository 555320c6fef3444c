"""Sizes that overflow, or that nothing could hold: refused by name, in C++ and in plain torch."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from conv_problems import Case, check_operators, problem
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import ops
from sparseprune.format.bsr import bsr_from_mask
from sparseprune.format.geometry import ARGUMENTS, Geometry
from sparseprune.ops import plain

PLAIN = plain.convolution

# ---- plans of long strides ----


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 2, (20003, 3), stride=(20000, 20000), pad=(0, 0, 0, 0)),
        Case(17, 2, 2, (5, 45), kernel=(2, 3), stride=(7, 19), pad=(1, 0, 2, 3), groups=2, block_rows=2),
        Case(3, 2, 2, (9, 14), kernel=(3, 2), stride=(6, 4), pad=(4, 3, 5, 0), dilation=(2, 6)),
        Case(2, 1, 1, (1, 1), kernel=(1, 1), stride=(2**31 - 1, 2**31 - 1), pad=(0, 0, 0, 0)),
        Case(16, 3, 1, (4, 5), kernel=(1, 1), stride=(2, 3), pad=(0, 0, 0, 0), pattern="no_weight"),
    ],
)
def test_convolutions_of_long_strides(case: Case, isa: str) -> None:
    # What is expected comes from torch in float64: its gradient in float32 does not end with such strides.
    check_operators(problem(case))
    check_operators(problem(case._replace(dtype=torch.float64)))


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 1000, 20000, 2**31 - 1])
def test_plans_do_not_grow_with_the_stride(stride: int, needs_extension: None) -> None:
    layer = sp.SparseConv2d(5, 4, 3, stride=stride)
    longest = torch.ops.sparseprune.conv2d_plan(
        layer.crow, layer.col, list(Geometry(5, 3, 3, 3, 3)), 1
    ).numel()
    plan = torch.ops.sparseprune.conv2d_plan(layer.crow, layer.col, list(layer.geometry), 1)
    assert plan.numel() <= longest == 16 + 5 * 9 + 1


def test_a_layer_of_a_long_stride_trains_as_the_dense_one() -> None:
    layer = sp.SparseConv2d.from_dense(
        nn.Conv2d(1, 2, 3, stride=20000), torch.rand(2, 1, 3, 3) < 0.7
    ).double()
    x = torch.randn(1, 1, 20003, 3, dtype=torch.float64, requires_grad=True)
    dense = layer.to_dense()
    of_sparse, of_dense = (torch.autograd.grad(model(x).pow(2).sum(), x)[0] for model in (layer, dense))
    assert_half_the_digits(of_sparse, of_dense)


# ---- arguments of layers ----

BAD = (-1, 2**31, 2**32, 2**63, 2**70)


@pytest.mark.parametrize("number", BAD)
@pytest.mark.parametrize(
    "name", ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
)
@pytest.mark.parametrize("kind", [sp.SparseConv1d, sp.SparseConv2d])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_convolution_layers_refuse_sizes(kind: Any, name: str, number: int, device: str) -> None:
    sizes = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, name: number}
    message = rf"{kind.__name__}: expected {name} of at least \d and below 2\^31, got {number}"
    with pytest.raises(ValueError, match=message):
        kind(**sizes, device=device)
    if name not in ("in_channels", "out_channels", "groups") and kind is sp.SparseConv2d:
        with pytest.raises(ValueError, match=message):
            kind(**{**sizes, name: (1, number)}, device=device)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "dilation", "groups"])
def test_convolution_layers_refuse_zeros(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} of at least 1 and below 2.31, got 0"):
        sp.SparseConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, name: 0})


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_convolution_layers_refuse_products(device: str) -> None:
    with pytest.raises(ValueError, match=r"weights of an output channel, .* got 4 / 1 x 65536 x 65536"):
        sp.SparseConv2d(4, 4, 2**16, device=device)
    with pytest.raises(
        ValueError, match=r"dilation x \(kernel_size - 1\) \+ 1, got 1073741824 x \(3 - 1\) \+ 1"
    ):
        sp.SparseConv2d(4, 4, 3, dilation=2**30, device=device)


def test_plans_refuse_products(needs_extension: None) -> None:
    make = torch.ops.sparseprune.conv2d_plan
    crow, col = torch.zeros(2**16 + 1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    with pytest.raises(
        ValueError, match=r"weights of an input channel, out_channels .* got 65536 x 256 x 256"
    ):
        make(crow, col, list(Geometry(1, 256, 256)), 1)
    many = list(Geometry(2**28, 4, 4, 4, 4, groups=2**28))
    with pytest.raises(ValueError, match=r"2\^31 in_channels x phases .* got 268435456 x 16"):
        make(torch.zeros(1, dtype=torch.int32), col, many, 1)


@pytest.mark.parametrize("number", BAD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_linear_layers_refuse_sizes(number: int, device: str) -> None:
    for sizes, name in (((number, 4), "in_features"), ((4, number), "out_features")):
        with pytest.raises(ValueError, match=f"SparseLinear: expected {name} of at least 0 .*, got {number}"):
            sp.SparseLinear(*sizes, device=device)


# ---- inputs that pretend to be large ----


def huge(*shape: int) -> Tensor:
    """One number in memory."""
    return torch.empty(1).expand(shape)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (
            lambda: sp.SparseLinear(0, 4),
            (2**60 - 1, 0),
            r"a result of fewer than 2^60 numbers, got a shape of [4, ",
        ),
        (lambda: sp.SparseLinear(4, 0), (2**60, 4), " of fewer than 2^60 numbers, got a shape of [4, "),
        (lambda: sp.SparseConv2d(1, 1, 1), (1, 1, 2**31, 1), "below 2^31 in height, got 2147483648"),
        (lambda: sp.SparseConv2d(1, 1, 1), (0, 1, 1, 2**40), "below 2^31 in width, got 1099511627776"),
        (
            lambda: sp.SparseConv2d(1, 1, 1, padding=2**30),
            (1, 1, 1, 1),
            "below 2^31 in height, got 1 with padding",
        ),
        (
            lambda: sp.SparseConv2d(4, 0, 1),
            (2**29, 4, 2**15, 2**15),
            "x of fewer than 2^60 numbers, got a shape",
        ),
        (
            lambda: sp.SparseConv2d(0, 4, 1),
            (2**33, 0, 2**15, 2**15),
            "2^60 numbers, got a shape of [8589934592, ",
        ),
        (lambda: sp.SparseConv1d(1, 1, 1), (1, 1, 2**31), "below 2^31 in width, got 2147483648"),
    ],
)
def test_layers_refuse_inputs(make: Callable[[], nn.Module], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()(huge(*shape))


def test_no_numbers_of_many_samples_take_no_time() -> None:
    x = huge(2**45, 4)
    assert sp.SparseLinear(4, 0)(x).shape == (2**45, 0)
    nothing = huge(0, 2**45)
    pattern = ops.plans(torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), 0)
    values = torch.zeros(0, 1)
    assert ops.spmm_t(nothing, values, pattern, 0).shape == (0, 2**45)
    assert ops.sddmm(nothing, nothing, pattern).shape == (0, 1)
    d_x, d_values, d_bias = ops.spmm_backward(nothing, nothing, values, pattern)
    assert (d_x.shape, d_values.shape, d_bias.shape) == ((0, 2**45), (0, 1), (0,))


@pytest.mark.parametrize("size", [[-1, 3], [3, -1], [2**31, 3], [3, 2**62]])
@pytest.mark.parametrize("operator", [torch.ops.sparseprune.conv2d_t, PLAIN.conv2d_t])
def test_input_gradients_refuse_sizes(operator: Any, size: list[int]) -> None:
    geometry = Geometry(1, 1, 1, pad_top=2, pad_left=2)
    crow, col = bsr_from_mask(torch.ones(1, 1, dtype=torch.bool))
    pattern = ops.conv_pattern(crow, col, geometry)
    with pytest.raises(
        ValueError, match=r"expected an input of at least 0 and below 2\^31 in (height|width), got"
    ):
        operator(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1), *pattern, list(geometry), size)


@pytest.mark.parametrize("cols", [-1, 2**31, 2**40])
def test_plain_products_refuse_sizes(cols: int) -> None:
    crow, col = bsr_from_mask(torch.ones(2, 1, dtype=torch.bool))
    empty = col.new_empty(0)
    for call in (
        lambda: plain.products.plan(crow, col, cols, 1, False),
        lambda: plain.products.spmm_t(torch.zeros(2, 3), torch.zeros(2, 1), crow, col, empty, empty, cols),
    ):
        with pytest.raises(ValueError, match=r"fewer than 2\^31 rows and columns"):
            call()


def test_topk_masks_refuse_sizes() -> None:
    with pytest.raises(ValueError, match=r"topk_masks: expected k in 0\.\.3 \(number of scores\), got 118"):
        sp.topk_masks([torch.zeros(3)], 2**70)
    with pytest.raises(ValueError, match=r"topk_masks: expected k in 0\.\.3 \(number of scores\), got -1"):
        sp.topk_masks([torch.zeros(3)], -1)
    with pytest.raises(ValueError, match=r"fewer than 2\^60 scores"):
        sp.topk_masks([huge(2**62), huge(2**62), huge(2**62)], 1)


def test_batch_norm_refuses_sizes(needs_extension: None) -> None:
    layer = torch.ops.sparseprune.batch_norm_act
    with pytest.raises(
        ValueError, match=r"x of fewer than 2\^60 numbers, got a shape of \[1, 1, 2147483648, "
    ):
        layer(huge(1, 1, 2**31, 2**30), None, None, None, 1e-5, False)


# ---- any numbers at all ----

NUMBERS = st.one_of(
    st.integers(-1, 5),
    st.sampled_from([2**k + d for k in (15, 16, 30, 31, 32, 62) for d in (-1, 0, 1)] + [2**63 - 1, -(2**63)]),
)


@given(
    usual=st.tuples(*[st.integers(1, 3)] * (len(ARGUMENTS) - 1)),
    changes=st.dictionaries(st.integers(0, len(ARGUMENTS) - 1), NUMBERS, max_size=4),
    size=st.tuples(NUMBERS, NUMBERS),
)
def test_any_geometry_is_refused_in_the_same_words_or_computes(
    usual: tuple[int, ...], changes: dict[int, int], size: tuple[int, int]
) -> None:
    """The operators refuse what Python does, in its words; what neither refuses they plan, and compute."""
    numbers = [changes.get(i, number) for i, number in enumerate((*usual, 1))]
    col = torch.zeros(0, dtype=torch.int32)
    crow = torch.zeros(1, dtype=torch.int32)

    def made(make: Callable[[], Any]) -> str:
        try:
            make()
        except ValueError as error:
            said = str(error)
        else:
            return ""
        assert ": expected " in said
        return said

    refused = made(lambda: Geometry.checked("conv2d_plan", numbers))
    # A plan has room for all channels: 8 GB of honest ones.
    assume(refused or numbers[0] * min(numbers[1], numbers[3]) * min(numbers[2], numbers[4]) < 2**20)
    assert made(lambda: torch.ops.sparseprune.conv2d_plan(crow, col, list(numbers), 1)) == refused
    # Torch's dense convolutions want at least one channel.
    if refused or ops.extension is None:
        return
    geometry = Geometry(*numbers)
    x = torch.zeros(1).expand(0, geometry.in_channels, max(size[0], 0), max(size[1], 0))
    outside = made(lambda: geometry.output_size(x.shape[2], x.shape[3]))
    pattern = ops.conv_pattern(crow, col, geometry)
    said = made(lambda: ops.conv2d(x, torch.zeros(0, 1), pattern, geometry))
    assert said == outside or "numbers" in said
