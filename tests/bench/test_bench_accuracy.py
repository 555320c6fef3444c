import json

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

import typer
from typer.testing import CliRunner

from bench import accuracy, seeds

# Images of 8 x 8 leave taps of kernels unused: their scores are 0, and position decides about them.
pytestmark = pytest.mark.filterwarnings("ignore:prune. expected scores that tell weights apart")

TINY = [
    *("--models", "resnet8", "--data", "digits", "--samples", "64", "--batch-size", "32", "--epochs", "1"),
    *("--sparsities", "0.5", "--methods", "snip,random"),
]


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(accuracy.main)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def result(view, label, accuracy, seconds=10.0, weights=1000):
    return {
        "view": view,
        "label": label,
        "weights": weights,
        "total_seconds": seconds,
        "time_vs_dense": seconds / 10,
        "flops_per_step": 3_000_000,
        "result": {"accuracy": accuracy, "step_seconds": 0.004, "epochs": 2.0},
    }


def test_table_has_mean_and_deviation_of_both_views():
    comparisons = [
        {
            "settings": {"budget": "dense"},
            "runs": [
                result("epochs", "dense", 0.90 + error),
                result("epochs", "snip 90 %", 0.89 + error, 5.0, 100),
                result("time", "dense", 0.90 + error),
                result("time", "snip 90 %", 0.905, 10.0, 100),
            ],
        }
        for error in (-0.01, 0.0, 0.01)
    ]
    lines = [" ".join(line.split()) for line in seeds.table(comparisons).splitlines()]
    assert "accuracy % in dense's time" in lines[0]
    assert len(lines) == 4
    assert lines[2].startswith("| dense | 1,000 | 3 | 90.00 ± 1.00 | +0.00 | 10.0 | 1.00 | 4.00 |")
    assert lines[3] == (
        "| snip 90 % | 100 | 3 | 89.00 ± 1.00 | -1.00 | 5.0 | 0.50 | 4.00 | 90.50 ± 0.00 | 2.0 | 3 |"
    )


def test_table_of_one_seed_without_a_second_view_is_shorter():
    one = {"settings": {"budget": None}, "runs": [result("epochs", "dense", 0.9)]}
    head, _, line = seeds.table([one]).splitlines()
    assert "time" not in head
    assert head.count("|") == line.count("|")
    assert " ".join(line.split()).startswith("| dense | 1,000 | 1 | 90.00 | ")


def test_accuracy_resumes_and_writes_a_page(run, tmp_path):
    done = run(*TINY, "--seeds", 0, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    file = tmp_path / "resnet8-seed-0.json"
    first = file.read_text()
    labels = [run_["label"] for run_ in json.loads(first)["runs"] if run_["view"] == "epochs"]
    assert [label.split(",")[0] for label in labels] == [
        "dense",
        "small dense",
        "snip 50 %",
        "snip shuffled 50 %",
        "random 50 %",
    ]
    done = run(*TINY, "--seeds", "0,1", "--out", tmp_path)
    assert "resnet8-seed-0.json is there" in done.stderr
    assert file.read_text() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "resnet8-seed-0.json",
        "resnet8-seed-1.json",
    ]
    file = tmp_path / "README.md"
    page = file.read_text(encoding="utf-8")
    assert "## resnet8" in page
    for label in labels:
        assert f"| {label} " in page
    assert (
        "--models resnet8 --seeds 0,1 --methods snip,random --sparsities 0.5 --epochs 1 --samples 64" in page
    )
    assert "64 training and 360 test samples of digits" in page
    file.write_text(page.replace("# Accuracy", "Words of mine.\n\n# Accuracy").replace("| dense ", "| old "))
    accuracy.write_page(tmp_path)
    assert file.read_text(encoding="utf-8") == page.replace("# Accuracy", "Words of mine.\n\n# Accuracy")


def test_accuracy_refuses_to_mix_experiments(run, tmp_path):
    content = {
        "data": {"name": "digits"},
        "model": {"name": "resnet8"},
        "settings": dict.fromkeys(accuracy.EXPERIMENT, 1),
        "runs": [],
    }
    (tmp_path / "resnet8-seed-0.json").write_text(json.dumps(content))
    content["settings"]["epochs"] = 2
    (tmp_path / "resnet8-seed-1.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"all seeds of a model to be run alike, .* give another --out"):
        accuracy.write_page(tmp_path)
