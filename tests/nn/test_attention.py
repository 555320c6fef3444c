"""Attention with sparse projections: equal to ``nn.MultiheadAttention``, with whatever arguments."""

import copy
import pickle
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from hypothesis import given
from hypothesis import strategies as st
from small_networks import check_unchanged, masked, noise, state
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.nn.attention import ProjectedAttention

KINDS = ["sparse", "dense"]


def pruned(model: nn.Module, layers: Any, sparsity: float = 0.5) -> tuple[nn.Module, nn.Module]:
    """Sparse or masked, and the dense reference."""
    masks = sp.prune(model, method="random", sparsity=sparsity)
    return sp.sparsify(model, masks, layers=layers), masked(model, masks)


class Attends(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attention(*args, **kwargs)


@given(st.data())
def test_attention_is_torchs(data: st.DataObject) -> None:
    def draw(values: list[Any]) -> Any:
        return data.draw(st.sampled_from(values))

    samples, queries, heads = draw([1, 3]), draw([1, 4]), draw([1, 2, 3])
    batched, batch_first, is_self = draw([True, False]), draw([True, False]), draw([True, False])
    keys = queries if is_self else draw([1, 5])
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, heads, bias=draw([True, False]), batch_first=batch_first).double()
    sparse, dense = pruned(Attends(attention), draw(KINDS))
    assert type(sparse.attention) is ProjectedAttention

    def tokens(count: int, seed: int) -> Tensor:
        shape = (samples, count, 6) if batch_first else (count, samples, 6)
        return noise(*(shape if batched else (count, 6)), seed=seed).double().requires_grad_()

    x = tokens(queries, 0)
    key = x if is_self else tokens(keys, 1)
    value = key if draw([True, False]) else tokens(keys, 2)
    causal = is_self and draw([True, False])
    pairs = None
    if causal:
        pairs = nn.Transformer.generate_square_subsequent_mask(queries, dtype=torch.float64)
    elif draw([True, False]):
        shape = (samples if batched else 1) * heads, queries, keys
        pairs = noise(*draw([shape, shape[1:]]), seed=3).double()
        # The first key stays.
        pairs = (pairs > 0) & (torch.arange(keys) > 0) if draw([True, False]) else pairs
    padding = None
    if draw([True, False]):
        padding = (torch.arange(keys) > 0).expand(samples, keys) & (noise(samples, keys, seed=4) > 0)
        padding = padding if batched else padding[0]
        if pairs is not None and pairs.dtype != torch.bool:
            padding = torch.zeros(padding.shape).double().masked_fill(padding, -torch.inf)
    options = {
        "attn_mask": pairs,
        "key_padding_mask": padding,
        "is_causal": causal,
        "need_weights": draw([True, False]),
        "average_attn_weights": draw([True, False]),
    }
    for training in (True, False):
        found = []
        for model in (sparse.train(training), dense.train(training)):
            y, weights = model(x, key, value, **options)
            g = torch.autograd.grad(y.square().sum(), [x, key, value], materialize_grads=True)
            found.append([y, *([] if weights is None else [weights]), *g])
        assert len(found[0]) == len(found[1])
        for actual, expected in zip(*found, strict=True):
            assert_half_the_digits(actual, expected)


def test_attention_drops_as_much_as_torchs() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
    sparse, dense = pruned(Attends(attention), "dense")
    x = noise(2, 200, 4)
    share = [float((model(x, x, x)[1] == 0).float().mean()) for model in (sparse, dense)]
    # Of both heads: a quarter, with a standard deviation of 0.002 each.
    assert abs(share[0] - 0.25) < 0.01
    assert abs(share[1] - 0.25) < 0.01
    dropped, whole = (sparse.train(train)(x, x, x, need_weights=False)[0] for train in (True, False))
    assert not torch.equal(dropped, whole)


@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize(
    ("arguments", "projected"),
    [({}, True), ({"bias": False}, True), ({"kdim": 3, "vdim": 2}, False), ({"add_bias_kv": True}, False)],
)
def test_attention_comes_back(arguments: dict[str, Any], projected: bool, layers: Any) -> None:
    torch.manual_seed(0)
    model = Attends(nn.MultiheadAttention(4, 2, batch_first=True, **arguments)).double().eval()
    sparse, dense = pruned(model, layers)
    assert isinstance(sparse.attention, ProjectedAttention) == projected
    x = [noise(2, 3, width).double() for width in (4, arguments.get("kdim", 4), arguments.get("vdim", 4))]
    assert_half_the_digits(sparse(*x)[0], dense(*x)[0])
    back = sp.densify(sparse)
    assert type(back.attention) is nn.MultiheadAttention
    assert type(back.attention.out_proj) is type(model.attention.out_proj)
    assert list(back.attention._parameters) == list(model.attention._parameters)
    check_unchanged(back, state(dense))
    assert_half_the_digits(back(*x)[0], dense(*x)[0])
    assert [row.name for row in sp.summary(sparse).rows] == [row.name for row in sp.summary(model).rows]


@pytest.mark.parametrize("names", [["attention.in_proj_weight"], ["attention.out_proj.weight"]])
def test_one_projection_may_stay_dense(names: list[str]) -> None:
    model = Attends(nn.MultiheadAttention(4, 2, batch_first=True)).double()
    masks = {name: noise(*model.get_parameter(name).shape) > 0 for name in names}
    sparse = sp.sparsify(model, masks, layers="sparse")
    x = noise(2, 3, 4).double()
    assert_half_the_digits(sparse(x, x, x)[0], masked(model, masks)(x, x, x)[0])
    check_unchanged(sp.densify(sparse), state(masked(model, masks)))
    assert sum(isinstance(m, sp.SparseLinear) for m in sparse.modules()) == 1


def test_a_class_of_ones_own_comes_back() -> None:
    class Mine(nn.MultiheadAttention):
        note = "mine"

    sparse, _ = pruned(Attends(Mine(4, 2)), "sparse")
    assert type(sparse.attention) is ProjectedAttention
    assert type(sp.densify(sparse).attention) is Mine


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_attention_copies_and_pickles(how: Any) -> None:
    sparse, _ = pruned(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), "sparse")
    copied = how(sparse).eval()
    x = noise(2, 3, 4)
    assert torch.equal(copied(x), sparse.eval()(x))
    check_unchanged(sp.densify(copied), state(sp.densify(sparse)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"is_causal": True}, RuntimeError, "expected attn_mask beside is_causal=True"),
        (
            {"attn_mask": torch.zeros(2, 3)},
            ValueError,
            r"expected attn_mask.shape == \[3, 3\] or \[4, 3, 3\]",
        ),
        ({"key_padding_mask": torch.zeros(2, 2)}, ValueError, r"expected key_padding_mask.shape == \[2, 3\]"),
    ],
)
def test_attention_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    sparse, _ = pruned(Attends(nn.MultiheadAttention(4, 2, batch_first=True)), "sparse")
    x = noise(2, 3, 4)
    with pytest.raises(error, match=message):
        sparse(x, x, x, **arguments)


# ---- torch's transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [*KINDS, "measured"])
@pytest.mark.parametrize("exclude", [[], ["self_attn"], ["linear1", "linear2"]])
def test_encoder_layer_takes_no_fast_path(layers: Any, exclude: list[str]) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True).double()
    masks = sp.prune(model, method="random", sparsity=0.5, exclude=exclude)
    assert len(masks) == (4 if not exclude else 2)
    sparse, dense = sp.sparsify(model, masks, layers=layers, batch_size=2), masked(model, masks)
    x = noise(3, 5, 8).double()
    for train in (True, False):
        with torch.no_grad(), torch.profiler.profile() as profile:
            y = sparse.train(train)(x)
        assert not any("encoder_layer_fwd" in event.key for event in profile.key_averages())
        assert_half_the_digits(y, dense.train(train)(x))
    back = sp.densify(sparse)
    assert vars(back).keys() == vars(model).keys()
    assert back.activation_relu_or_gelu == 1
    with torch.no_grad(), torch.profiler.profile() as profile:
        back.eval()(x)
    assert any("encoder_layer_fwd" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("layers", KINDS)
def test_encoder_takes_no_fast_path_with_padding(layers: Any) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).double().eval()
    masks = sp.prune(model, method="random", sparsity=0.5, exclude=["layers.0"])
    sparse, dense = sp.sparsify(model, masks, layers=layers), masked(model, masks)
    x, padding = noise(2, 4, 8).double(), torch.tensor([[False] * 4, [False, False, True, True]])
    with torch.no_grad():
        y = sparse(x, src_key_padding_mask=padding)
    # With a gradient torch takes the ordinary path, too.
    assert_half_the_digits(y, dense(x, src_key_padding_mask=padding))
    assert sp.densify(sparse).use_nested_tensor
    assert vars(sp.densify(sparse)).keys() == vars(model).keys()


@pytest.mark.parametrize("layers", KINDS)
def test_whole_transformer(layers: Any) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=True).double()
    sparse, dense = pruned(model, layers)
    given = noise(2, 5, 8).double(), noise(2, 3, 8, seed=1).double()
    for train in (True, False):
        assert_half_the_digits(sparse.train(train)(*given), dense.train(train)(*given))
    check_unchanged(sp.densify(sparse), state(dense))


def test_costs_of_attention_count_its_projections() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    rows = {row.name: row.flops for row in sp.summary(model, input_size=(5, 8)).rows}
    assert rows == {
        "self_attn.in_proj_weight": 2 * 5 * 192,
        "self_attn.out_proj.weight": 2 * 5 * 64,
        "linear1.weight": 2 * 5 * 96,
        "linear2.weight": 2 * 5 * 96,
    }
    masks = sp.prune(model, method="magnitude", flops=0.5, input_size=(5, 8))
    sparse = sp.sparsify(model, masks, layers="sparse")
    assert sp.summary(sparse, input_size=(5, 8)).flops == 2 * 5 * sum(
        int(mask.sum()) for mask in masks.values()
    )


@pytest.mark.parametrize("layers", KINDS)
def test_encoder_layer_compiles_in_one_graph(layers: Any) -> None:
    sparse, _ = pruned(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).double().eval(), layers)
    x = noise(2, 3, 4).double()
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(sparse, backend="eager", fullgraph=True)
        assert_half_the_digits(compiled(x), sparse(x))
        assert_half_the_digits(torch.export.export(sparse, (x,)).module()(x), sparse(x))


def test_attention_loads_what_torchs_saved() -> None:
    model = Attends(nn.MultiheadAttention(4, 2))
    masks = {"attention.out_proj.weight": torch.eye(4, dtype=torch.bool)}
    sparse = sp.sparsify(model, masks, layers="dense")
    given = {name: t for name, t in state(model).items() if "in_proj" in name}
    given |= {name: t for name, t in state(sparse).items() if "out_proj" in name}
    with torch.no_grad():
        sparse.attention.in_proj.weight.zero_()
    sparse.load_state_dict(given)
    assert torch.equal(sparse.attention.in_proj.weight, model.attention.in_proj_weight)
    assert list(given) == ["attention.in_proj_weight", "attention.in_proj_bias", *list(given)[2:]]
