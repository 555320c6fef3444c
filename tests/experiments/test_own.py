"""Networks and data of the user's own: used by every command, and every mistake told in one line."""

import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("safetensors")

import safetensors
from typer.testing import CliRunner

from sparseprune.experiments import models
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.data import Dataset, load
from sparseprune.experiments.models import Network

SOURCE = """
import numpy as np
import torch
from torch import nn

from sparseprune.experiments.data import Dataset


def mlp(depth=1, width=1.0):
    hidden = max(1, round(32 * width))
    layers = [nn.Flatten(), nn.Linear(12, hidden), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 3))


def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))


def sized(width=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 3))


def thin(width=1.0):
    hidden = int(32 * width)
    assert hidden > 8, "too thin"
    return nn.Sequential(nn.Flatten(), nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def vanishing(width=1.0):
    channels = int(2 * width)
    conv = nn.Conv2d(1, channels, 3)
    return nn.Sequential(nn.Unflatten(1, (1, 3)), conv, nn.Flatten(), nn.Linear(2 * channels, 3))


shared = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def the_same():
    return shared


def raises(file="none"):
    open(file)


def fails_in_torch():
    return nn.Linear(12, "3")


def nothing():
    pass


def other_shape():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))


def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))


def unflattened():
    return nn.Linear(4, 3)


def no_layers():
    return nn.Flatten()


def clouds(count=60):
    y = np.arange(count + 30) % 3
    x = 3 * np.eye(3)[y].repeat(4, axis=1).reshape(-1, 3, 4)
    x += 0.5 * np.random.default_rng(0).normal(size=x.shape)
    return x[:count], y[:count], x[count:], y[count:]


def as_tensors():
    return [torch.from_numpy(array) for array in clouds()]


def as_dataset():
    x, y, x_test, y_test = as_tensors()
    return Dataset("any", "thing", x.float(), y, x_test.float(), y_test)


def one_hot():
    x, y, x_test, y_test = clouds()
    return x, np.eye(3, dtype=int)[y], x_test, y_test


def three():
    return clouds()[:3]


def words():
    x, y, x_test, y_test = clouds()
    return x, ["a"] * len(y), x_test, y_test


def must_be_told(count):
    return clouds(count)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A current folder with mine.py and arrays.npz; what it imports is forgotten afterwards."""
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "wants.py").write_text("import no_such_package\n")
    (tmp_path / "wrong.py").write_text("def make(:\n")
    (tmp_path / "script.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)
    data = load("mine:clouds")
    np.savez("arrays.npz", x=data.train_x, y=data.train_y, x_test=data.test_x, y_test=data.test_y)
    yield tmp_path
    for name in {"mine", "wants", "wrong", "script"} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture
def run():
    threads = torch.get_num_threads()
    yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    torch.set_num_threads(threads)


def words(text):
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# Networks


def test_network_of_a_function_depends_on_arguments_width_and_seed(mine):
    network = Network("mine:mlp", (3, 4), 3, args={"depth": 2})
    model = models.build(network, 0)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [(32, 12), (32, 32), (3, 32)]
    again, other = (models.build(network, seed) for seed in (0, 1))
    assert torch.equal(model[1].weight, again[1].weight)
    assert not torch.equal(model[1].weight, other[1].weight)
    assert models.weight_count(network) == 32 * 12 + 32 * 32 + 3 * 32
    small = models.small_dense(network, 500)
    assert small.args == {"depth": 2}
    assert models.weight_count(small) == pytest.approx(500, rel=0.05)
    half = Network("mine:mlp", (3, 4), 3, width=0.5, args={"width": 0.5})
    assert models.build(half, 0)[1].out_features == 8


def test_network_in_files_has_arguments_only_where_there_are_any(mine):
    network = Network("mine:mlp", (3, 4), 3, args={"depth": 2})
    assert network.to_dict() == {
        **{"name": "mine:mlp", "sample": (3, 4), "classes": 3, "width": 1.0, "args": {"depth": 2}}
    }
    assert Network(**network.to_dict()) == network
    assert "args" not in Network("lenet_300_100", (3, 4), 3).to_dict()


def test_width_is_a_keyword_whose_default_is_1(mine):
    assert Network("mine:mlp", (3, 4), 3).has_width
    assert not Network("mine:fixed", (3, 4), 3).has_width
    assert not Network("mine:sized", (3, 4), 3).has_width
    assert models.build(Network("mine:sized", (3, 4), 3, args={"width": 5}), 0)[1].out_features == 5
    assert Network("resnet8", (1, 8, 8), 3).has_width


def test_network_is_a_copy_of_one_that_the_function_keeps(mine):
    first, second = (models.build(Network("mine:the_same", (3, 4), 3), 0) for _ in range(2))
    with torch.no_grad():
        first[1].weight.zero_()
    assert second[1].weight.any()


# Data


@pytest.mark.parametrize("name", ["mine:clouds", "mine:as_tensors", "mine:as_dataset", "arrays.npz"])
def test_data_are_float32_and_int64(mine, name):
    data = load(name)
    assert (data.name, data.sample, data.classes) == (name, (3, 4), 3)
    assert data.source == str(mine / ("arrays.npz" if name == "arrays.npz" else "mine.py"))
    assert (len(data.train_x), len(data.test_x)) == (60, 30)
    assert {data.train_x.dtype, data.test_x.dtype} == {torch.float32}
    assert {data.train_y.dtype, data.test_y.dtype} == {torch.int64}
    assert len(load(name, samples=7).train_x) == 7


def savez(**changes):
    arrays = {"x": np.zeros((4, 2)), "y": np.arange(4), "x_test": np.zeros((3, 2)), "y_test": np.arange(3)}
    arrays |= changes
    np.savez("changed.npz", **{name: array for name, array in arrays.items() if array is not None})


def test_bytes_are_scaled_and_said_to_be(mine):
    savez(
        x=np.full((4, 2), 255, np.uint8), x_test=np.zeros((3, 2), np.uint8), y=np.arange(4, dtype=np.uint16)
    )
    data = load("changed.npz")
    assert data.train_x.dense().max() == 1
    assert data.source.endswith("changed.npz, uint8 scaled to 0 ... 1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "y_test": None, "labels": np.zeros(1)}, "got x, y, labels; add x_test, y_test"),
        ({"x": np.zeros((5, 2))}, "expected y of shape (5,), a label for each sample of x, got (4,)"),
        ({"y": np.eye(4, dtype=int)}, "got (4, 4); of one-hot labels use y.argmax(1)"),
        ({"y": np.zeros((4, 1), int)}, "got (4, 1); use y.reshape(-1)"),
        (
            {"x_test": np.zeros((3, 5))},
            "expected x and x_test to have samples of one shape, got (2,) and (5,)",
        ),
        ({"x": np.zeros(4)}, "x: expected shape (samples, ...), one sample at least, got (4,)"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "one sample at least, got (0, 2)"),
        ({"x": np.zeros((4, 2), int)}, "x: expected floating numbers, or uint8 of 0 to 255, got int64"),
        (
            {"x": np.zeros((4, 2), np.uint8)},
            "expected x and x_test both uint8, both floating or both sparse, got uint8 and floating",
        ),
        ({"x": np.full((4, 2), np.nan)}, "x: expected finite numbers, as float32 too, got NaN"),
        ({"y_test": np.zeros(3)}, "y_test: expected integers as labels, got float64; use y.astype(int)"),
        ({"y": np.array([0, 1, -1, 2])}, "y: expected labels from 0, got -1"),
        ({"y": np.array(["a"] * 4)}, "y: expected a tensor or an array of numbers, got a ndarray"),
        (
            {"x": np.array([None] * 4)},
            "expected arrays of numbers, got others, or a damaged file (Object arrays",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(mine, changes, message):
    savez(**changes)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load("changed.npz")
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(mine):
    content = (mine / "arrays.npz").read_bytes()
    broken = bytearray(content)
    broken[300] ^= 255
    for damaged, message in (
        (content[: len(content) // 2], "numpy.savez, got another"),
        (bytes(broken), "damaged file"),
    ):
        (mine / "damaged.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            load("damaged.npz")
    with pytest.raises(
        FileNotFoundError, match=r"data none\.npz: there is no such file; write it with numpy"
    ):
        load("none.npz")


# Commands

OWN = ["--model", "mine:mlp", "--data", "mine:clouds", "--batch-size", 20]
DEEP = [*OWN, "--model-args", '{"depth": 2}']


def test_prune_and_train_take_them(mine, run):
    result = run("prune", *DEEP, "--sparsity", 0.5, "--out", "masks.pt", "--json")
    assert result.exit_code == 0, result.output
    network = {"name": "mine:mlp", "sample": [3, 4], "classes": 3, "width": 1.0, "args": {"depth": 2}}
    assert json.loads(result.stdout)["network"] == network
    with safetensors.safe_open("masks.pt", framework="pt") as masks:
        assert json.loads(masks.metadata()["network"]) == network
    result = run("train", *DEEP, "--masks", "masks.pt", "--epochs", 1, "--out", "trained.pt", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["data"] == "mine:clouds"
    saved = torch.load("trained.pt")
    models.build(Network(**saved["network"]), 0).load_state_dict(saved["state_dict"])
    result = run("train", *OWN, "--masks", "masks.pt")
    assert result.exit_code == 1
    assert 'was made for mine:mlp with {"depth": 2} of 3x4 inputs' in words(result.stderr)


@pytest.mark.parametrize("name", ["mlp", "fixed"])
def test_compare_has_small_dense_networks_where_there_is_a_width(mine, run, name):
    pytest.importorskip("pandas")
    own = ["--model", f"mine:{name}", "--data", "arrays.npz", "--batch-size", 20]
    result = run("compare", *own, "--methods", "snip", "--sparsities", 0.5, "--epochs", 1, "--json")
    assert result.exit_code == 0, result.output
    kinds = [made["kind"] for made in json.loads(result.stdout)["runs"]]
    assert kinds == (["dense", "small dense", "sparse"] if name == "mlp" else ["dense", "sparse"])
    assert ("mine:fixed has no keyword width=1.0" in words(result.stderr)) == (name == "fixed")


@pytest.mark.parametrize("name", ["mlp", "fixed"])
def test_frontier_has_small_dense_networks_where_there_is_a_width(mine, run, name):
    for package in ("pandas", "matplotlib", "tabulate"):
        pytest.importorskip(package)
    own = ["--model", f"mine:{name}", "--data", "arrays.npz", "--batch-size", 20, "--epochs", 1]
    some = ["--methods", "snip", "--rules", "uniform", "--blocks", 1, "--budgets", 0.5, "--seeds", 0]
    result = run("frontier", *own, *some, "--out", "out", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["settings"]["model"] == f"mine:{name}"
    kinds = [row["point"]["kind"] for row in content["rows"]]
    assert kinds == (["dense", "small dense", "sparse"] if name == "mlp" else ["dense", "sparse"])
    assert ("mine:fixed has no keyword width=1.0" in words(result.stderr)) == (name == "fixed")


def test_frontier_does_not_mix_arguments(mine, run):
    for package in ("pandas", "matplotlib", "tabulate"):
        pytest.importorskip(package)
    some = [
        "--methods",
        "snip",
        "--rules",
        "uniform",
        "--blocks",
        1,
        "--budgets",
        0.5,
        "--seeds",
        0,
        "--epochs",
        1,
    ]
    assert run("frontier", *OWN, *some, "--out", "out").exit_code == 0
    result = run("frontier", *DEEP, *some, "--out", "out")
    assert result.exit_code == 1
    assert "model_args None there, {'depth': 2} now" in words(result.stderr)


def test_cost_takes_its_shape_from_sample_or_data(mine, run):
    for shape in (["--sample", "3x4"], ["--data", "mine:clouds"]):
        result = run("cost", "mine:mlp", "--model-args", '{"depth": 2}', *shape, "--flops", "--json")
        assert result.exit_code == 0, result.output
        assert [layer["weights"] for layer in json.loads(result.stdout)["layers"]] == [384, 1024, 96]
    result = run("cost", "mine:mlp", "--flops")
    assert result.exit_code == 1
    assert "expected --sample or --data, the shape of what mine:mlp takes" in words(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "mine"], "unknown model 'mine'; known are lenet_300_100"),
        (["--model", "mine:"], "expected package.module:function, such as net:make, got 'mine:'"),
        (["--model", "mine.py:mlp"], "got 'mine.py'; write mine:mlp"),
        (["--model", "sub/mine:mlp"], "got 'sub/mine'; write sub.mine:mlp"),
        (["--model", "absent:mlp"], "found no module 'absent' in"),
        (["--model", "mine.sub:mlp"], "found no module 'mine.sub' in"),
        (
            ["--model", "wants:make"],
            "importing wants raised ModuleNotFoundError: No module named 'no_such_package' at",
        ),
        (["--model", "wrong:make"], "importing wrong raised SyntaxError: invalid syntax at wrong.py:1"),
        (["--model", "script:make"], "importing script raised SystemExit: 3 at script.py:1"),
        (["--model", "mine:mpl"], "found no 'mpl' in mine.py; did you mean mlp?"),
        (["--model", "wants_none:f"], "found no 'f' in wants_none; it has no functions"),
        (
            ["--model", "mine:shared"],
            "expected a function, got a Sequential; write a function that returns it",
        ),
        (
            ["--model", "mine:raises"],
            "raised FileNotFoundError: [Errno 2] No such file or directory: 'none' at mine.py:",
        ),
        (["--model", "mine:fails_in_torch"], "raised TypeError: empty()"),
        (["--model", "mine:nothing"], "expected a torch.nn.Module, got a NoneType; return the network"),
        (
            ["--model-args", '{"deep": 2}'],
            "fit (depth=1, width=1.0), got --model-args '{\"deep\": 2}': got an unexpected",
        ),
        (["--model-args", '{"width": "a"}'], "expected a number as width, got 'a'"),
        (
            ["--model-args", "depth=2"],
            "--model-args: expected keyword arguments as JSON, such as '{\"depth\": 3}'",
        ),
        (["--model-args", "[2]"], "--model-args: expected keyword arguments as JSON"),
        (["--model", "wide_mlp", "--model-args", '{"depth": 2}'], "wide_mlp takes no arguments"),
        (
            ["--model", "mine:other_shape"],
            "batches of shape (2, 3, 4), as the samples have it; it begins with Linear(in_features=784",
        ),
        (
            ["--model", "mine:few"],
            "logits of shape (2, 3) for samples of shape (3, 4) and 3 classes, got shape (2, 2)",
        ),
        (
            ["--model", "mine:unflattened"],
            "logits of shape (2, 3) for samples of shape (3, 4) and 3 classes, got shape (2, 3, 3)",
        ),
        (["--model", "mine:no_layers"], "expected Linear or Conv1d/2d/3d layers, found none"),
        (["--data", "clouds"], "unknown data set 'clouds'; known are fashion-mnist"),
        (["--data", "mine:cloud"], "data mine:cloud: found no 'cloud' in mine.py; did you mean clouds?"),
        (["--data", "mine:one_hot"], "of one-hot labels use y.argmax(1)"),
        (["--data", "mine:three"], "expected the function to return x, y, x_test, y_test, got 3 values"),
        (["--data", "mine:nothing"], "expected the function to return x, y, x_test, y_test, got a NoneType"),
        (["--data", "mine:words"], "y: expected a tensor or an array of numbers, got a list"),
        (
            ["--data", "mine:must_be_told"],
            "arguments that fit (count), got none: missing a required argument: 'count'",
        ),
        (
            ["--data", "mine:clouds", "--data-dir", "."],
            "data_dir is for fashion-mnist, cifar10, cifar100, mosaic only",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(mine, run, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "wants_none", types.ModuleType("wants_none"))
    result = run("prune", *OWN, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("data: "))
    assert line.startswith("Error: ")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("thin", "model mine:thin at width 0.281: raised AssertionError: too thin at mine.py:"),
        ("vanishing", "let no layer shrink to nothing: max(1, round(n * width))"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "frontier"])
def test_functions_that_fail_when_narrow_are_told_before_anything_is_trained(
    mine, run, command, name, message
):
    pytest.importorskip("pandas")
    options = ["--epochs", 1, *(["--out", "out"] if command == "frontier" else [])]
    result = run(command, "--model", f"mine:{name}", "--data", "mine:clouds", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "accuracy" not in result.stderr
    assert "after" not in result.stderr


def test_the_current_folder_comes_first_as_with_python_m(mine):
    load("mine:clouds")
    assert sys.path[0] == str(mine)


def test_networks_of_other_outputs_are_told(mine, monkeypatch):
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    import mine as module

    monkeypatch.setattr(module, "pair", lambda: Pair(4, 3), raising=False)
    with pytest.raises(ValueError, match=r"expected logits of shape .* got a tuple"):
        models.check(Network("mine:pair", (4,), 3), 3)
    models.check(Network("mine:pair", (4,), 3), None)
    models.check(Network("lenet_300_100", (4,), 3), 3)
    assert isinstance(load("mine:clouds"), Dataset)
