import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sparseprune as sp
from sparseprune.cost.cache import Choice
from sparseprune.experiments import models


@pytest.fixture(autouse=True)
def hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def network() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    masks = {
        "0.weight": torch.ones(2, 1, 3, 3, dtype=torch.bool).tril(),
        "2.weight": torch.eye(5, 8, dtype=torch.bool),
    }
    return model, masks


def test_summary_of_a_dense_model() -> None:
    model, _ = network()
    result = sp.summary(model)
    assert [(row.name, row.shape, row.weights, row.kept, row.computes) for row in result.rows] == [
        ("0.weight", (2, 1, 3, 3), 18, 18, "dense"),
        ("2.weight", (5, 8), 40, 40, "dense"),
        ("4.weight", (3, 5), 15, 15, "dense"),
    ]
    assert [row.bytes for row in result.rows] == [72, 160, 60]
    assert [row.flops for row in result.rows] == [None, 80, 30]
    assert (result.weights, result.kept, result.sparsity, result.bytes) == (73, 73, 0.0, 292)
    assert result.flops is None  # a convolution's depend on the size of its input


def test_summary_of_a_sparse_model(needs_extension: None) -> None:
    model, masks = network()
    sparse = sp.sparsify(model, masks, layers="sparse")
    conv, first, second = sp.summary(sparse).rows
    assert (conv.shape, conv.weights, conv.kept, conv.block) == ((2, 1, 3, 3), 18, 12, "2x1")
    assert (conv.computes, conv.choice) == ("sparse", "")
    layer = sparse[0]
    assert conv.bytes == sum(t.nbytes for t in (layer.values, layer.crow, layer.col, *layer.pattern))
    assert (first.weights, first.kept, first.sparsity, first.flops, first.block) == (40, 5, 0.875, 10, "1x1")
    assert (first.computes, first.choice) == ("sparse", "")
    layer = sparse[2]
    stored = (layer.values, layer.crow, layer.col, *layer.pattern)
    assert first.bytes == sum(tensor.nbytes for tensor in stored)
    assert (second.kept, second.computes, second.block) == (15, "dense", "")
    assert sp.summary(sparse).kept == 12 + 5 + 15


def test_summary_of_a_masked_convolution() -> None:
    model, masks = network()
    conv, _, _ = sp.summary(sp.sparsify(model, masks, layers="dense")).rows
    assert (conv.kept, conv.computes, conv.block) == (12, "dense, masked", "2x1")
    assert conv.bytes == 18 * 4 + 18  # and a bool per weight


def test_summary_counts_flops_of_convolutions_for_an_input_size() -> None:
    model, masks = network()
    for layers in ("sparse", "dense"):
        pruned = sp.sparsify(model, masks, layers=layers)
        result = sp.summary(pruned, input_size=(1, 4, 4))
        assert [row.flops for row in result.rows] == [2 * 12 * 4, 10, 30]
        assert result.flops == 96 + 10 + 30
        assert [row.flops for row in sp.summary(pruned).rows] == [None, 10, 30]
    with pytest.raises(ValueError, match=r"^summary: expected input_size to be .* got \(1, 5, 5\)"):
        sp.summary(model, input_size=(1, 5, 5))


def test_summary_says_what_makes_a_layer_slow(needs_extension: None) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Conv1d(2, 2, 1).double())
    masks = {f"{i}.weight": torch.ones_like(layer.weight).bool() for i, layer in enumerate(model)}
    assert [row.computes for row in sp.summary(sp.sparsify(model, masks, layers="sparse")).rows] == [
        "sparse (circular padding by a copy)",
        "sparse (float64: no vector instructions)",
    ]


def test_summary_is_a_table(needs_extension: None) -> None:
    model = nn.Sequential(nn.Linear(100, 20), nn.Linear(20, 3))
    masks = {"0.weight": torch.eye(10, 100, dtype=torch.bool).repeat_interleave(2, 0)}
    sparse = sp.sparsify(model, masks, layers="dense")
    assert str(sp.summary(sparse)).split("\n") == [
        "layer         shape   block  weights  kept  sparsity  FLOPs   bytes  computes",
        "----------------------------------------------------------------------------------------------",
        "0.weight      20x100  2x1      2,000    20    99.00%     40  10,000  dense, masked (asked for)",
        "1.weight      3x20                60    60     0.00%    120     240  dense",
        "----------------------------------------------------------------------------------------------",
        "total                          2,060    80    96.12%    160  10,240",
        "not prunable                      23    23     0.00%             92",
        "model                          2,083   103    95.06%         10,332",
        "not prunable: bias 23",
    ]
    (row, _) = sp.summary(sp.sparsify(model, masks, layers="sparse")).rows
    assert (row.block, row.kept) == ("2x1", 20)


@pytest.mark.parametrize(
    ("sparse", "computes", "why"),
    [
        (0.001, "sparse", "sparse 1 ms, dense 2 ms a step, disturbed: others"),
        (0.003, "dense, masked", "dense 2 ms, sparse 3 ms a step, disturbed: others"),
    ],
)
def test_summary_says_why_a_layer_computes_as_it_does(
    sparse: float, computes: str, why: str, monkeypatch: pytest.MonkeyPatch, needs_extension: None
) -> None:
    monkeypatch.setattr("sparseprune.cost.choice.measure", lambda *_: Choice(sparse, 0.002, "others"))
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    model, masks = network()
    measured = sp.sparsify(model, masks, batch_size=4)
    _, row, _ = sp.summary(measured).rows
    assert (row.computes, row.choice) == (computes, why)
    assert f"{row.computes} ({row.choice})" in sp.summary(measured)._repr_html_()
    monkeypatch.setenv("COLUMNS", "80")
    assert "why layers compute as they do: to_dict(), or the table in a notebook" in str(sp.summary(measured))


def test_summary_of_masks() -> None:
    _, masks = network()
    result = sp.summary(masks)
    assert [(row.name, row.weights, row.kept, row.flops, row.bytes, row.computes) for row in result.rows] == [
        ("0.weight", 18, 12, None, None, "mask"),
        ("2.weight", 40, 5, 10, None, "mask"),
    ]
    assert result.bytes is None
    assert [row.block for row in result.rows] == ["2x1", "1x1"]
    assert str(result).split("\n")[-1].split() == ["total", "58", "17", "70.69%", "-", "-"]


def test_summary_counts_the_articles_network() -> None:
    with torch.device("meta"):
        model = models.article_mlp()
    result = sp.summary(model)
    assert result.weights == 40000 * 1000 + 2 * 1000 * 1000 + 1000 * 10
    assert result.parameters == sum(p.numel() for p in model.parameters())
    total, others, whole, _ = str(result).split("\n")[-4:]
    assert total.split()[:2] == ["total", "42,010,000"]
    assert others.split()[:3] == ["not", "prunable", f"{result.parameters - 42_010_000:,}"]
    assert whole.split()[:2] == ["model", f"{result.parameters:,}"]


def test_summary_is_jsonable() -> None:
    model, masks = network()
    for given in (model, masks, sp.sparsify(model, masks, layers="sparse"), nn.ReLU(), {}):
        result = json.loads(json.dumps(sp.summary(given).to_dict(), allow_nan=False))
        totals = {
            "weights",
            "kept",
            "sparsity",
            "flops",
            "bytes",
            "alive",
            "dead_units",
            "effective_sparsity",
        }
        assert set(result) == {"layers", *totals, "unpruned", "parameters"}
        assert sum(layer["kept"] for layer in result["layers"]) == result["kept"]
        assert all(0 <= layer["sparsity"] <= 1 for layer in result["layers"])


def cut_network() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The second layer uses half of the first, and a third of it leads on."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    masks = {name: torch.zeros(p.shape).bool() for name, p in model.named_parameters() if p.dim() > 1}
    masks["0.weight"][:] = True
    masks["2.weight"][:, :2] = True
    masks["4.weight"][:, :2] = True
    return model, masks


@pytest.mark.parametrize("layers", ["masks", "sparse", "dense"])
def test_summary_tells_what_is_alive(layers: str) -> None:
    model, masks = cut_network()
    if layers == "masks":
        result = sp.summary(masks, model=model, input_size=(4,))
    else:
        result = sp.summary(sp.sparsify(model, masks, layers=layers), input_size=(4,))
    assert [(row.kept, row.alive, row.dead_units) for row in result.rows] == [
        (16, 8, 2),
        (12, 4, 4),
        (4, 4, 0),
    ]
    assert (result.kept, result.alive, result.dead_units) == (32, 16, 6)
    assert result.effective_sparsity == 1 - 16 / 52
    assert result.to_dict()["effective_sparsity"] == 1 - 16 / 52
    assert [row["alive"] for row in result.to_dict()["layers"]] == [8, 4, 4]


def test_summary_shows_what_is_alive_and_marks_dead_layers() -> None:
    class Main(nn.Module):
        def __init__(self, main: nn.Module) -> None:
            super().__init__()
            self.main, self.side = main, nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.main(x)

    model, masks = cut_network()
    model = Main(model)
    masks = {f"main.{name}": mask for name, mask in masks.items()}
    assert str(sp.summary(sp.sparsify(model, masks, layers="dense"), input_size=(4,))).split("\n") == [
        "layer          shape  block  weights  kept  sparsity  alive  dead units  FLOPs  bytes  computes",
        "----------------------------------------------------------------------------------------------------",
        "main.0.weight  4x4    4x1         16    16     0.00%      8           2     32     80  "
        "dense, masked",
        "main.2.weight  6x4    2x1         24    12    50.00%      4           4     24    120  "
        "dense, masked",
        "main.4.weight  2x6    2x1         12     4    66.67%      4           0      8     60  "
        "dense, masked",
        "side.weight    2x4                 8     8     0.00%      0       all 2     16     32  dense",
        "----------------------------------------------------------------------------------------------------",
        "total                             60    40    33.33%     16           8     80    292",
        "not prunable                      14    14     0.00%                               56",
        "model                             74    54    27.03%                              348",
        "effective sparsity 73.33%: what is on no path counts as removed; dead layers: side.weight",
        "not prunable: bias 14",
        "why layers compute as they do: asked for",
    ]


def test_summary_says_where_a_network_is_cut() -> None:
    model, masks = cut_network()
    masks["2.weight"][:] = False
    result = sp.summary(masks, model=model, input_size=(4,))
    assert [row.alive for row in result.rows] == [0, 0, 0]
    assert result.effective_sparsity == 1.0
    assert str(result).endswith("counts as removed; there is none: the network is cut")


def test_summary_names_what_is_not_prunable() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.states = nn.Embedding(7, 4), nn.GRU(4, 4, bias=False)
            self.norm, self.between, self.head = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.words.weight

    model = Language()
    result = sp.summary(model)
    assert [row.name for row in result.rows] == ["between.weight"]
    assert [(of.kind, of.weights, of.bytes) for of in result.unpruned or []] == [
        ("GRU", 96, 384),
        ("shared by words.weight, head.weight", 28, 112),
        ("bias", 8, 32),
        ("LayerNorm", 4, 16),
    ]
    assert result.parameters == sum(p.numel() for p in model.parameters()) == 16 + 96 + 28 + 8 + 4
    note = "not prunable: GRU 96, shared by words.weight, head.weight 28, bias 8, LayerNorm 4"
    assert str(result).split("\n")[-1] == note
    masks = {"between.weight": torch.eye(4, dtype=torch.bool)}
    sparse = sp.summary(sp.sparsify(model, masks, layers="sparse"))
    assert (sparse.unpruned, sparse.parameters, sparse.kept) == (result.unpruned, result.parameters, 4)
    assert str(sparse).split("\n")[-2].split()[:4] == ["model", "152", "140", "7.89%"]


def test_summary_says_why_it_is_unknown_what_is_alive() -> None:
    class Largest(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.max(1, keepdim=True).values

    result = sp.summary(nn.Sequential(nn.Linear(2, 2), Largest()), input_size=(2,))
    assert [row.alive for row in result.rows] == [None]
    assert (result.alive, result.dead_units, result.effective_sparsity) == (None, None, None)
    *_, total, _, _, first, second, _ = str(result).split("\n")
    assert total.split() == ["total", "4", "4", "0.00%", "-", "-", "8", "16"]
    assert first.startswith("alive: unknown (live: expected a model through which paths can be followed")
    assert second.endswith("got Sequential: no paths can be counted through torch's max)")


def test_summary_leaves_the_model_as_it_is() -> None:
    model, masks = cut_network()
    sparse = sp.sparsify(model, masks, layers="sparse")
    before = {name: x.clone() for name, x in sparse.state_dict().items()}
    kinds = [type(module) for module in sparse.modules()]
    sp.summary(sparse, input_size=(4,))
    assert [type(module) for module in sparse.modules()] == kinds
    assert all(torch.equal(x, before[name]) for name, x in sparse.state_dict().items())


def test_summary_of_masks_refuses_half_of_what_paths_need() -> None:
    model, masks = cut_network()
    with pytest.raises(
        ValueError, match="both model and input_size beside masks, got model without input_size"
    ):
        sp.summary(masks, model=model)
    with pytest.raises(ValueError, match="beside masks, got input_size without model"):
        sp.summary(masks, input_size=(4,))
    with pytest.raises(ValueError, match=r"summary: expected input_size to be .* got \(5,\)"):
        sp.summary(masks, model=model, input_size=(5,))
    with pytest.raises(ValueError, match="summary: expected names of the model's parameters, got 'x'"):
        sp.summary({"x": masks["0.weight"]}, model=model, input_size=(4,))


def test_summary_of_nothing() -> None:
    assert str(sp.summary(nn.ReLU())).split("\n")[-1].split() == ["total", "0", "0", "0.00%", "0", "0"]
    empty = {"w": torch.zeros(0, 3, dtype=torch.bool)}
    assert sp.summary(empty).rows[0].sparsity == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "summary: expected a model, masks by parameter name or a mask file, got int"),
        ([torch.zeros(2)], "got list; a list of masks needs model= and input_size= or example_inputs="),
        ({"a": 1}, "summary: 'a': expected the mask to be a tensor or an array, got int"),
    ],
)
def test_summary_refuses(given: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        sp.summary(given)


def test_summary_takes_masks_of_any_form(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    masks = sp.prune(model, method="random", sparsity=0.5)
    expected, with_model = sp.summary(masks), sp.summary(masks, model=model, input_size=(4,))
    save_file(masks, tmp_path / "masks.safetensors")
    assert sp.summary(tmp_path / "masks.safetensors") == expected
    assert sp.summary({name: mask.numpy().astype(int) for name, mask in masks.items()}) == expected
    for given in (list(masks.values()), {f"module.{name}": mask.float() for name, mask in masks.items()}):
        assert sp.summary(given, model=model, input_size=(4,)) == with_model


def test_summary_and_sparsify_take_example_inputs_in_place_of_a_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    masks = sp.prune(model, method="random", sparsity=0.5)
    x = torch.zeros(3, 3, 8, 8)
    by_size, by_example = sp.summary(model, input_size=(3, 8, 8)), sp.summary(model, example_inputs=x)
    assert by_example == by_size
    assert sp.summary(masks, model=model, example_inputs=(x,)) == sp.summary(
        masks, model=model, input_size=(3, 8, 8)
    )
    for layers in ("measured", "sparse"):
        sparse = sp.sparsify(model, masks, batch_size=4, example_inputs={"input": x}, layers=layers)
        assert sparse(x).shape == (3, 5)
    with pytest.raises(ValueError, match="summary: expected one of input_size and example_inputs, got both"):
        sp.summary(model, input_size=(3, 8, 8), example_inputs=x)
    with pytest.raises(ValueError, match="sparsify: expected example_inputs to be arguments that the model"):
        sp.sparsify(model, masks, example_inputs=torch.zeros(2, 7))
    with pytest.raises(ValueError, match="both model and example_inputs beside masks, got example_inputs w"):
        sp.summary(masks, example_inputs=x)
