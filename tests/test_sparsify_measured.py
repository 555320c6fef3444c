"""Which way of computing a layer ``sparsify`` takes: what it measures, counts and assumes."""

import pytest
import torch
from small_networks import noise
from torch import nn

import sparseprune as sp
from sparseprune.cost import choice
from sparseprune.cost.cache import Choice
from sparseprune.cost.calls import Call
from sparseprune.format.memory import is_batch_inner_images
from sparseprune.nn import MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear


@pytest.mark.parametrize(("sparse", "dense", "kind"), [(1.0, 2.0, SparseLinear), (2.0, 1.0, MaskedLinear)])
def test_sparsify_takes_the_faster_way_and_measures_a_shape_once(
    sparse: float, dense: float, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(layer: SparseLinear, twin: nn.Module, batch_size: int, call: Call | None) -> Choice:
        assert call is None
        assert isinstance(twin, MaskedLinear)
        assert torch.equal(twin.weight, layer.weight)
        measured.append((layer.out_features, layer.in_features, batch_size))
        return Choice(sparse, dense)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    masks = {f"{i}.weight": torch.eye(n, 6, dtype=torch.bool) for i, n in enumerate([6, 6, 2])}
    result = sp.sparsify(model, masks, batch_size=17)
    assert [type(layer) for layer in result] == [kind] * 3
    assert measured == [(6, 6, 17), (2, 6, 17)]
    assert str(Choice(sparse, dense)) == result[0].choice


def test_sparsify_measures_convolutions_at_the_call_that_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, Call]] = []

    def measure(layer: nn.Module, twin: nn.Module, batch_size: int, call: Call) -> Choice:
        assert batch_size == 20
        measured.append((type(layer).__name__, call))
        return Choice(1.0, 2.0)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    convs = [nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), *(nn.Conv2d(4, 4, 3) for _ in range(3))]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(16, 3))
    masks = {
        name: torch.arange(p.numel()).view_as(p) % 7 == 0
        for name, p in model.named_parameters()
        if p.dim() > 1
    }
    sparse = sp.sparsify(model, masks, batch_size=20, input_size=(2, 16, 16))
    assert measured == [
        ("SparseConv2d", Call((2, 16, 16), (4, 16, 16), False)),
        ("SparseConv2d", Call((4, 8, 8), (4, 6, 6), True)),
        ("SparseConv2d", Call((4, 6, 6), (4, 4, 4), True)),
        ("SparseConv2d", Call((4, 4, 4), (4, 2, 2), True)),
        ("SparseLinear", Call((16,), (3,), True)),
    ]
    assert {row.choice for row in sp.summary(sparse).rows} == {str(Choice(1.0, 2.0))}
    measured.clear()
    sp.sparsify(model, masks, batch_size=20)
    assert [kind for kind, _ in measured] == ["SparseLinear"]


# A dense layer costs the conversion of its activations where both its neighbours are sparse.
@pytest.mark.parametrize(
    ("seconds", "converted", "batch_size", "kinds"),
    [
        ({4: (2.0, 1.0)}, 3.0, 20, "sss"),  # the first one, of 4 channels: its only neighbour is sparse
        ({4: (2.0, 1.0)}, 1.5, 20, "dss"),  # ... and it pays nevertheless
        ({5: (2.0, 1.0)}, 3.0, 20, "sss"),
        ({4: (2.0, 1.0), 5: (2.0, 1.0)}, 3.0, 20, "dds"),  # a neighbour is dense
        ({4: (2.0, 1.0), 6: (2.0, 1.0)}, 3.0, 20, "sss"),
        ({5: (2.0, 1.0)}, 3.0, 15, "sds"),  # few samples are not batch-inner
    ],
)
def test_sparsify_counts_conversions_between_sparse_convolutions(
    seconds: dict[int, tuple[float, float]],
    converted: float,
    batch_size: int,
    kinds: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(layer: nn.Module, twin: nn.Module, batch_size: int, call: Call) -> Choice:
        sparse, dense = seconds.get(call.output[0], (1.0, 2.0))
        return Choice(sparse, converted if isinstance(twin, choice.BetweenSparse) else dense)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    model = nn.Sequential(*(nn.Conv2d(n, n + 1, 3) for n in (3, 4, 5)))
    called: list[nn.Module] = []
    for conv in model:
        conv.register_forward_hook(lambda module, x, y: called.append(module))
    masks = {f"{i}.weight": torch.ones_like(conv.weight, dtype=torch.bool) for i, conv in enumerate(model)}
    result = sp.sparsify(model, masks, batch_size=batch_size, input_size=(3, 9, 9))
    assert "".join("s" if isinstance(layer, SparseConv2d) else "d" for layer in result) == kinds
    for layer, outputs in zip(result, (4, 5, 6), strict=True):
        told = layer.choice.endswith(", between sparse layers")
        assert told == (outputs in seconds and kinds != "dds" and batch_size >= 16)
    called.clear()
    result(noise(2, 3, 9, 9))
    assert called == list(result)


def test_a_dense_convolution_between_sparse_ones_is_measured_batch_inner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    dense = nn.Conv2d(3, 4, 3)
    mask = torch.ones_like(dense.weight, dtype=torch.bool)
    layouts = set()
    forward = choice.BetweenSparse.forward

    def watched(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = forward(self, x)
        y.register_hook(lambda g: layouts.add(("gradient", is_batch_inner_images(g))))
        layouts.update({("x", is_batch_inner_images(x)), ("y", is_batch_inner_images(y))})
        assert torch.equal(y, dense(x))
        return y

    monkeypatch.setattr(choice.BetweenSparse, "forward", watched)
    for first in (False, True):
        layouts.clear()
        call = Call((3, 5, 6), (4, 3, 4), not first)
        found = choice.choose(
            SparseConv2d.from_dense(dense, mask), lambda: dense, 16, call, between_sparse=True
        )
        assert min(found.sparse, found.dense) > 0
        assert layouts == {("x", not first), ("y", True), ("gradient", True)}


def test_sparsify_measures_without_calling_hooks_of_sparse_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def measure(layer: nn.Module, twin: nn.Module, batch_size: int, call: Call | None) -> Choice:
        assert not layer._forward_hooks
        return Choice(1.0, 2.0)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    model = nn.Sequential(nn.Linear(5, 4))
    model[0].register_forward_hook(lambda module, x, y: calls.append(type(module).__name__))
    sparse = sp.sparsify(model, {"0.weight": torch.eye(4, 5, dtype=torch.bool)})
    assert calls == []
    sparse(noise(2, 5))
    assert calls == ["SparseLinear"]


@pytest.mark.parametrize(
    ("density", "rows", "batch_size", "dtype", "sparse"),
    [
        (0.25, 1, 16, torch.float32, True),
        (0.5, 1, 16, torch.float32, False),
        (0.5, 4, 16, torch.float32, True),
        (0.25, 1, 16, torch.bfloat16, False),
        (0.75, 4, 16, torch.float32, False),
        (0.25, 1, 15, torch.float32, False),
        (0.25, 4, 15, torch.float32, True),
        (0.25, 1, 16, torch.float64, False),
    ],
)
def test_sparsify_assumes_by_density_where_call_are_not_known(
    density: float, rows: int, batch_size: int, dtype: torch.dtype, sparse: bool, needs_extension: None
) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3)).to(dtype)
    blocks = (torch.arange(8 // rows)[:, None] + torch.arange(36)) % 4 < density * 4
    masks = {"0.weight": blocks.repeat_interleave(rows, 0).view(8, 4, 3, 3)}
    result = sp.sparsify(model, masks, batch_size=batch_size)[0]
    assert type(result) is (SparseConv2d if sparse else MaskedConv2d)
    facts = f"density {density:.3g}, {str(dtype).removeprefix('torch.')}, batch {batch_size}"
    assert result.choice == f"assumed: {facts}; give input_size to measure"
