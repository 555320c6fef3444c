import json
import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

import safetensors.torch
from typer.testing import CliRunner

import sparseprune as sp
from sparseprune.cost import speedup as speedups
from sparseprune.cost.cache import Choice
from sparseprune.cost.seconds import MeasuredCosts
from sparseprune.cost.timer import Timed
from sparseprune.experiments import cli, models
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.data import load
from sparseprune.experiments.page import what_to_install
from sparseprune.experiments.train import evaluate
from sparseprune.scores import prunable
from sparseprune.select.budget import LayerCost

QUICK = ["--data", "digits", "--model", "lenet_300_100"]


@pytest.fixture
def run():
    """Calls the command line and returns its stdout, stderr and exit_code; restores the number of threads."""
    threads = torch.get_num_threads()
    yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    torch.set_num_threads(threads)


def words(text):
    """Rich wraps its messages and draws boxes around some: compare the words alone."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_info_tells_versions_and_instruction_sets(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", str(tmp_path / "none.json"))
    result = run("info", "--threads", 1, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["sparseprune"] == sp.__version__
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == 1
    assert facts["available_isas"] == sp.ops.info()["available_isas"]
    assert facts["backend"] == sp.ops.info()["backend"]
    assert {"isa", "cuda_compiled", "cuda_available", "build"} <= facts.keys()
    assert facts["choices"] == {"file": os.environ["SPARSEPRUNE_CHOICES"], "entries": 0}
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    assert json.loads(run("info", "--json").stdout)["choices"] == {"file": None, "entries": 0}
    table = run("info").stdout
    for name in facts:
        assert name.replace("_", " ") in table


def test_version_is_printed_by_the_module(run):
    assert run("--version").stdout.strip() == sp.__version__
    done = subprocess.run(
        [sys.executable, "-m", "sparseprune", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == sp.__version__


def test_prune_saves_masks_that_train_takes(run, tmp_path):
    file = tmp_path / "new" / "masks.pt"
    result = run(
        *("prune", *QUICK, "--method", "random", "--sparsity", 0.75),
        *("--block", "4x1", "--out", file, "--json"),
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["network"] == {"name": "lenet_300_100", "sample": [1, 8, 8], "classes": 10, "width": 1.0}
    blocks = [layer["block"] for layer in figures["summary"]["layers"]]
    assert (figures["block"], blocks) == ("4x1", ["4x1", "4x1", "1x1"])  # 10 rows are not divisible
    assert (figures["summary"]["weights"], figures["summary"]["kept"]) == (50_200, 50_200 // 4)
    masks = safetensors.torch.load_file(file)
    assert sum(int(mask.sum()) for mask in masks.values()) == 50_200 // 4

    checkpoint = tmp_path / "trained.pt"
    result = run("train", *QUICK, "--masks", file, "--epochs", 1, "--out", checkpoint, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["method"], figures["sparsity"], figures["block"]) == ("random", 0.75, "4x1")
    assert figures["result"]["steps"] == 6
    assert 0 < figures["result"]["accuracy"] < 1

    saved = torch.load(checkpoint)
    model = models.build(models.Network(**saved["network"]), 0)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(saved["state_dict"])
    for name, mask in saved["masks"].items():
        assert torch.equal(mask, masks[name])
        assert not model.state_dict()[name][~mask].any()
        assert not torch.equal(model.state_dict()[name][mask], initial[name][mask])
    test = load("digits")
    accuracy = evaluate(sp.sparsify(model, saved["masks"]), test.test_x, test.test_y)
    assert accuracy == pytest.approx(saved["accuracy"], abs=1.5 / 360)  # rounding may flip a sample
    assert saved["accuracy"] == figures["result"]["accuracy"]

    result = run("train", *QUICK, "--masks", file, "--seed", 1)
    assert result.exit_code == 1
    assert (
        "with seed 0, but the network to train is lenet_300_100 of 1x8x8 inputs and 10 classes with"
        in words(result.stderr)
    )


def test_prune_prints_the_summary(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = run("prune", *QUICK, "--method", "snip", "--sparsity", 0.5, "--prune-batches", 2, "--block", 2)
    assert result.exit_code == 0, result.output
    assert "25,100" in result.stdout
    assert re.search(r"1\.weight +300x64 +2x1 ", result.stdout)
    assert "prune: snip 50 % 2x1" in result.stderr
    assert "data: digits from Python package scikit-learn" in result.stderr
    assert "2 batches" in result.stderr


def test_train_prints_one_line(run, tmp_path):
    result = run(
        "train", *QUICK, "--method", "random", "--block", 2, "--epochs", 1, "--out", tmp_path / "a" / "b.pt"
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"random 90 % 2x1: test accuracy [\d.]+ % after 1.0 epochs, 6 steps", result.stdout)
    assert (tmp_path / "a" / "b.pt").stat().st_size > 0
    result = run("train", *QUICK, "--budget", 1e-9)
    assert re.search(r"dense: test accuracy [\d.]+ % after 0.2 epochs, 1 steps", result.stdout)


def test_compare_writes_its_report(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "report"
    arguments = ["compare", *QUICK, "--methods", "snip", "--sparsities", "0.5,0.8", "--blocks", "1,4x1"]
    result = run(*arguments, "--epochs", 1, "--budget", "dense", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert json.loads((out / "results.json").read_text()) == figures
    assert len(figures["runs"]) == 2 * 7
    assert [run_["label"] for run_ in figures["runs"][3:7]] == [
        "snip 50 %",
        "snip 50 % 4x1",
        "snip 80 %",
        "snip 80 % 4x1",
    ]
    assert [run_["block"] for run_ in figures["runs"][:5]] == [None, None, None, "1x1", "4x1"]
    assert figures["machine"]["torch"] == torch.__version__
    picture = (out / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    assert (out / "curves.html").is_file() == (not what_to_install())
    table = (out / "table.md").read_text(encoding="utf-8")
    for run_ in figures["runs"]:
        assert f"| {run_['label']} | {100 * run_['result']['accuracy']:.2f} |" in words(table)
        assert f"{run_['weights']:,}" in table
    assert "Equal epochs (1)" in table
    assert "Equal wall-clock time" in table
    assert "1,437 training and 360 test samples from Python package scikit-learn" in table


def test_compare_prints_a_table(run):
    result = run("compare", *QUICK, "--methods", "random", "--sparsities", 0.5, "--epochs", 1)
    assert result.exit_code == 0, result.output
    for heading in ("Equal epochs (1)", "network", "epochs", "weights", "MFLOP/", "random 50 %", "25,100"):
        assert heading in result.stdout
    assert "wall-clock" not in result.stdout.split("lenet_300_100")[0]
    assert "train, equal epochs: dense:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", *QUICK, "--method", "lottery"], "lottery"),
        (["prune", *QUICK, "--sparsity", "1"], "sparsity"),
        (
            ["train", "--data", "fashion-mnist", "--data-dir", "/no/such/folder"],
            "apt-get install dataset-fashion-mnist",
        ),
        (["train", *QUICK, "--masks", "/no/such/file"], "there is no file /no/such/file"),
        (["train", *QUICK, "--masks", __file__], "a file that `sparseprune prune --out` wrote"),
        (["train", *QUICK, "--lr", "0"], "lr > 0"),
        (["train", "--data", "cifar10", "--data-dir", "/no/such/folder"], "there is no such folder"),
        (["train", "--data", "cifar10"], "give --data-dir"),
        (["prune", "--data", "digits", "--model", "lenet5_caffe"], "16 pixels a side at least"),
        (["compare", *QUICK, "--methods", "lottery", "--json"], "lottery"),
        (
            ["train", "--data", "cifar"],
            "unknown data set 'cifar'; known are fashion-mnist, cifar10, cifar100, mnist5k, digits, mnist1d",
        ),
        (["train", *QUICK, "--model-args", "[" * 1200], "--model-args: expected keyword arguments as JSON"),
        (["train", *QUICK[:2], "--model", "vgg"], "unknown model 'vgg'; known are lenet_300_100"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert "Error: " in result.stderr
    assert message in words(result.stderr)
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")]
)
def test_too_little_memory_is_told(run, monkeypatch, error):
    monkeypatch.setattr(models, "build", lambda *_: (_ for _ in ()).throw(error))
    result = run("cost", "lenet_300_100", "--flops")
    assert result.exit_code == 1
    assert words(result.stderr) == "Error: not enough memory; try a smaller --batch-size, or smaller samples"


def test_bugs_keep_their_traceback(run, monkeypatch):
    monkeypatch.setattr(models, "build", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    assert isinstance(run("cost", "lenet_300_100", "--flops").exception, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--method", "snip", "--masks", "x"], "give --method or --masks, not both"),
        (["train", "--epochs", "1", "--budget", "1"], "give --epochs or --budget, not both"),
        (["train", "--threads", "0"], "--threads"),
        (["train", "--samples", "0"], "--samples"),
        (["train", "--epochs", "99999999999999999999"], "--epochs"),
        (["train", "--seed", "99999999999999999999"], "--seed"),
        (["prune", "--batch-size", "99999999999999999999"], "--batch-size"),
        (["prune", "--threads", "2000"], "--threads"),
        (["cost", "lenet_300_100", "--sample", "99999x99999x99999"], "expected the shape of a sample"),
        (["train", "--optimizer", "lion"], "'lion' is unknown; known are adam, sgd"),
        (["prune", "--sparsity", "1.5"], "--sparsity"),
        (["compare", "--sparsities", "0.9,1"], "numbers in [0, 1) with commas between, got '0.9,1'"),
        (["compare", "--sparsities", "much"], "numbers in [0, 1) with commas between, got 'much'"),
        (["compare", "--blocks", "1,3"], "expected blocks of 1, 2, 4, 8, 16 rows (4, or 4x1), got '3'"),
        (["prune", "--block", "1,4"], "expected one block, got '1,4'"),
        (["train", "--block", "4x2"], "got '4x2'"),
        (["compare", "--budget", "long"], "a number of seconds above 0, or \"dense\", got 'long'"),
        (["compare", "--budget", "-1"], "a number of seconds above 0"),
        (["compare", "--epochs", "0"], "--epochs"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_options_exit_with_code_2(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in words(result.stderr)
    assert result.stdout == ""


def test_convolutional_networks_go_through_prune_train_and_compare(run, tmp_path):
    conv = ["--data", "digits", "--model", "resnet8", "--samples", 200, "--batch-size", 64]
    result = run(
        "prune", *conv, "--method", "grasp", "--sparsity", 0.8, "--out", tmp_path / "masks", "--json"
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["network"]["sample"] == [1, 8, 8]
    assert figures["prune_batches"] == 4
    assert figures["summary"]["kept"] == round(0.2 * figures["summary"]["weights"])

    sgd = ["--optimizer", "sgd", "--epochs", 1]
    result = run("train", *conv, *sgd, "--masks", tmp_path / "masks", "--out", tmp_path / "trained", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["optimizer"], figures["lr"], figures["result"]["steps"]) == ("sgd", 0.1, 4)
    saved = torch.load(tmp_path / "trained")
    model = models.build(models.Network(**saved["network"]), 0)
    model.load_state_dict(saved["state_dict"])
    test = load("digits")
    assert evaluate(model, test.test_x, test.test_y) == pytest.approx(saved["accuracy"], abs=1.5 / 360)

    result = run("compare", *conv, *sgd, "--methods", "snip", "--sparsities", 0.8, "--shuffled", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["data"]["train"] == 200
    labels = [run_["label"] for run_ in figures["runs"]]
    assert labels[0] == "dense"
    assert labels[1].startswith("small dense, width 0.4")
    assert labels[2:] == ["snip 80 %", "snip shuffled 80 %"]


def test_train_reads_cifar_from_a_folder(run, tmp_path):
    pixels = bytes(range(256)) * 12
    records = b"".join(bytes([label]) + pixels for label in range(10))
    for stem in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (tmp_path / f"{stem}.bin").write_bytes(records)
    result = run("train", "--data", "cifar10", "--data-dir", tmp_path, "--model", "lenet5_caffe", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["data"], figures["source"], figures["network"]["sample"]) == (
        "cifar10",
        str(tmp_path),
        [3, 32, 32],
    )


@pytest.mark.parametrize("package", ["typer", "rich", "safetensors"])
def test_main_without_its_packages_says_how_to_get_them(monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    message = capsys.readouterr().err
    assert f"needs the Python package {package}" in message
    assert "pip install 'sparseprune[cli]'" in message


def test_bench_passes_its_options_on_to_the_suite(run):
    result = run("bench", "--list", "--filter", "topk", "--contender", "numpy")
    assert result.exit_code == 0, result.output
    assert words(result.stdout) == "topk/42.1M/density=0.02/float32: numpy-partition"
    assert "--seconds" in run("bench", "--help").stdout
    result = run("bench", "--threads", "1,1")
    assert result.exit_code == 2
    assert "different numbers like 1,2, got '1,1'" in words(result.stderr)


def test_bench_without_the_source_tree_says_where_it_is(run, monkeypatch, tmp_path):
    monkeypatch.setattr("sparseprune.experiments.cli.bench.ROOT", tmp_path)
    result = run("bench", "--list")
    assert result.exit_code == 1
    assert "an installed package has none; clone the repository" in words(result.stderr)


def test_compare_without_matplotlib_says_so_before_it_works(run, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else name)
    result = run("compare", *QUICK, "--out", tmp_path)
    assert result.exit_code == 1
    assert "pip install matplotlib" in words(result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_cost_prints_every_layer(run):
    result = run("cost", "lenet5_caffe", "--flops", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert [layer["name"] for layer in facts["layers"]] == ["0.weight", "3.weight", "7.weight", "9.weight"]
    assert [layer["positions"] for layer in facts["layers"]] == [576, 64, 1, 1]
    assert sum(layer["flops_share"] for layer in facts["layers"]) == pytest.approx(1)
    assert facts["layers"][0]["dense_seconds"] is None
    assert facts["weights"] == sum(layer["weights"] for layer in facts["layers"])
    assert facts["flops"] > 0
    assert facts["dense_seconds"] is facts["fixed_seconds"] is None
    table = words(run("cost", "lenet5_caffe", "--flops").stdout)
    assert "lenet5_caffe, samples of 1x28x28" in table
    assert "sparse below" not in table


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_cost_leaves_columns_out_and_cuts_no_number(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    seconds = LayerCost(1.2345e-7, 1.2345e-3, 0.12345)

    def costs(network, *_, **__):
        return MeasuredCosts(dict.fromkeys(prunable(network), seconds))

    monkeypatch.setattr("sparseprune.experiments.cli.cost.measured_costs", costs)
    table = run("cost", "resnet18", "--sample", "3x32x32").stdout.splitlines()[2:]
    lines = table[: table.index("")]
    assert max(map(len, lines)) <= columns
    assert "…" not in "".join(lines)
    assert lines[0].split()[-5:] == ["fixed", "ms", "us/weight", "sparse", "below"]
    row = next(line.split() for line in lines if line.startswith("3.conv1.weight"))
    assert row[-4:] == ["123", "1.23", "0.123", "100%"]
    assert ("36,864" in row) == (columns > 60)
    assert ("1,024" in row) == (columns == 100)


def test_cost_measures(run):
    arguments = ["cost", "lenet_300_100", "--sample", "20", "--classes", 4, "--batch-size", 3, "--block", 4]
    facts = json.loads(run(*arguments, "--json").stdout)
    assert facts["batch_size"] == 3
    for total in ("dense_seconds", "fixed_seconds"):
        assert facts[total] == pytest.approx(sum(layer[total] for layer in facts["layers"]))
    for layer in facts["layers"]:
        assert layer["dense_seconds"] > 0
        assert layer["seconds_per_weight"] > 0
        assert layer["break_even"] is None or 0 < layer["break_even"] <= 1
    table = words(run(*arguments).stdout)
    assert "samples of 20, batch 3, blocks of 4x1" in table
    assert "below the density in the last column it is faster sparse" in table


def test_cost_says_what_disturbed_it(run, monkeypatch):
    busy = "other processes kept 1.3 processors busy"
    monkeypatch.setattr("sparseprune.cost.seconds.choose", lambda *_: Choice(1.0, 2.0, busy))
    result = run("cost", "lenet_300_100")
    assert f"Not a quiet machine: {busy}; measure again." in words(result.stderr)
    assert json.loads(run("cost", "lenet_300_100", "--json").stdout)["disturbed"] == busy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown model 'nonsense'; known are lenet_300_100"),
        (
            ["wide_mlp", "--sample", "7", "--data", "digits"],
            "give --data, or --sample and --classes, not both",
        ),
        (["wide_mlp", "--sample", "1xa"], "expected the shape of a sample like 3x32x32, got '1xa'"),
        (["resnet8", "--sample", "7"], "expected samples of shape (channels, height, width)"),
    ],
)
def test_cost_says_what_is_wrong(run, arguments, message):
    result = run("cost", *arguments)
    assert result.exit_code != 0
    assert message in words(result.stderr)


def test_prune_within_a_budget(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", str(tmp_path / "choices.json"))
    busy = "other processes kept 1.3 processors busy"
    monkeypatch.setattr("sparseprune.cost.choice.measure", lambda *_: Choice(1e-4, 2e-4))
    monkeypatch.setattr(speedups, "timed_steps", lambda models, *_: Timed([1.0] * len(models), busy))
    arguments = ["prune", *QUICK, "--prune-batches", 1, "--method", "random", "--json"]
    facts = json.loads(run(*arguments, "--flops", 0.2).stdout)
    assert facts["flops"] == 0.2
    assert 0.7 < facts["sparsity"] < 0.9
    assert facts["speedup"] is None
    facts = json.loads(run(*arguments, "--speedup", 1).stdout)
    assert facts["speedup"]["promised"] == facts["speedup"]["measured"] == 1
    told = words(run(*arguments[:-1], "--speedup", 1).stdout)
    assert f"1 times faster (asked for: 1), disturbed: {busy}" in told
    facts = json.loads(run(*arguments, "--speedup", 1, "--block", "auto").stdout)
    assert facts["block"] == "auto"
    assert json.loads(run(*arguments).stdout)["sparsity"] == pytest.approx(0.9, abs=1e-3)
    result = run(*arguments, "--flops", 0.2, "--sparsity", 0.5)
    assert result.exit_code == 1
    assert "expected one of sparsity, flops and speedup, got sparsity and flops" in words(result.stderr)


def test_importing_the_library_imports_no_package_of_the_command_line():
    optional = ("typer", "rich", "safetensors", "matplotlib", "pandas", "tabulate", "sparseprune.experiments")
    code = f"import sys, sparseprune; print([name for name in {optional} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_commands_without_tables_do_not_import_pandas():
    code = "import sys, sparseprune.experiments.cli.app; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
