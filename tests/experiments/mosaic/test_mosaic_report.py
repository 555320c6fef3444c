"""What the demo prints, writes and draws."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("pandas")
pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.image import imread

from sparseprune.experiments.compare.results import Comparison
from sparseprune.experiments.mosaic import report, theme
from sparseprune.experiments.mosaic.curves import save_curves, spread
from sparseprune.experiments.mosaic.picture import Panel, save_picture
from sparseprune.experiments.mosaic.run import Demo


def run(label, kind, accuracy, seconds, *, selected=0.0, on_tiles=0.02, method=None, lr=0.001):
    return {
        **{"label": label, "kind": kind, "method": method, "weights": 1_234_567, "lr": lr},
        **{"prune_seconds": selected, "total_seconds": selected + seconds, "on_tiles": on_tiles},
        "time_vs_dense": (selected + seconds) / 50,
        "result": {
            "accuracy": accuracy,
            "step_seconds": 0.0254,
            "bytes": {"parameters": 1e6, "gradients": 1e6, "optimizer": 2e6, "buffers": 3e5},
            "curve": [
                {"epoch": 1.0, "seconds": seconds / 2, "accuracy": accuracy / 2},
                {"epoch": 2.0, "seconds": seconds, "accuracy": accuracy},
            ],
        },
    }


RUNS = [
    run("dense", "dense", 0.536, 50),
    run("small dense, h = 20", "small dense", 0.589, 4),
    run("small dense, h = 80", "small dense", 0.637, 6),
    run("F-test 784 + small dense", "screened", 0.86, 1, selected=1, on_tiles=0.98),
    run("small convolutional", "conv", 0.671, 25, on_tiles=None),
    run("random 99 %", "sparse", 0.619, 4, selected=1, method="random"),
    run("snip 99 %", "sparse", 0.85, 4, selected=5, on_tiles=0.976, method="snip"),
]
CONTENT = {
    "data": {"train": 5000, "test": 2000, "source": "images"},
    "model": {"name": "article_mlp"},
    "settings": {
        **{"epochs": 10, "batch_size": 256, "optimizer": "Adam", "rescale": False},
        "scopes": {"random": "layer", "snip": "global"},
    },
    "machine": {
        **{"cpu": "a processor", "threads": 2, "isa": "avx512", "torch": "2", "sparseprune": "0"},
        "date": "today",
    },
    "runs": [{key: value for key, value in one.items() if key != "on_tiles"} for one in RUNS],
    "mosaic": {"tiles": [24]},
    "on_tiles": {one["label"]: one["on_tiles"] for one in RUNS},
}


def kept(where):
    found = torch.zeros(200, 200, dtype=torch.int64)
    found[where] = 100
    return found


def test_table_has_a_line_for_each_network():
    table = report.texts(CONTENT)
    assert list(table.columns[:4]) == ["network", "acc.\n%", "on the\ntile %", "select\ns"]
    assert table.iloc[-1].tolist() == [
        *("snip 99 %", "85.0", "98", "5.0", "25.4", "9.0", "0.18", "1,234,567", "4.3")
    ]
    assert table.iloc[4].tolist()[2:4] == ["", ""]  # a convolution looks everywhere and selects nothing


def test_verdict_says_what_the_figures_say():
    assert report.verdict(CONTENT) == (
        "snip 99 %, the most accurate of the pruned networks, reaches 85.0 %: 31.4 points above dense, in "
        "0.18 of dense's time with pruning included, 21.3 points above small dense, h = 80, and 17.9 points "
        "above the small convolutional network. Before the first training step 98 % of its first layer's "
        "weights looked at what matters, of dense's 2 %. An F-test that is told how many inputs matter, and "
        "a small dense network on these, reach 86.0 % in 0.04 of dense's time."
    )


def test_verdict_says_where_pruning_loses():
    content = copy.deepcopy(CONTENT)
    content["runs"][-1]["result"]["accuracy"] = content["runs"][-2]["result"]["accuracy"] = 0.5
    assert "reaches 50.0 %: 3.6 points below dense" in report.verdict(content)


def test_facts_name_the_rates_that_differ():
    assert "; lr 0.001; the last layer keeps all weights; random within each layer; a processor" in (
        report.facts(CONTENT)
    )
    content = copy.deepcopy(CONTENT)
    content["runs"][0]["lr"] = 0.1
    content["settings"]["rescale"] = True
    assert "; lr 0.1 for dense; lr 0.001 for small dense, h = 20, small" in report.facts(content)
    assert "; weights that stay are rescaled; " in report.facts(content)


def test_title_counts():
    assert report.title(CONTENT) == (
        "article_mlp on mosaics in which 1 of 49 tiles says the label, 10 epochs"
    )
    content = {**CONTENT, "mosaic": {"tiles": [1, 2]}, "settings": {"epochs": 1}}
    assert report.title(content).endswith("2 of 49 tiles say the label, 1 epoch")


def test_spread_keeps_order_and_gaps_and_moves_no_more_than_it_must():
    assert spread([], 0.1) == []
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.5, 0.5, 0.55], 0.2) == pytest.approx(
        [0.0, 0.9 / 3 + 0.05 / 3, 0.5 + 1 / 60, 0.71666667]
    )


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn of images, titles and lines, each in order."""
    calls = {"imshow": [], "set_title": [], "plot": []}
    for name, found in calls.items():
        plain = getattr(Axes, name)

        def kept_call(self, *arguments, _plain=plain, _found=found, **options):
            _found.append((arguments, options))
            return _plain(self, *arguments, **options)

        monkeypatch.setattr(Axes, name, kept_call)
    return calls


def test_picture_shows_the_sample_and_a_panel_for_each_network(drawn, tmp_path):
    sample = torch.arange(40_000).view(200, 200) % 256
    panels = [Panel("one", "1 %", kept((90, 90))), Panel("two", "2 %", kept((0, 5)) * 5)]
    for colours in theme.THEMES:
        save_picture(sample, panels, [(86, 86)], "a", "b", "c", tmp_path / f"x{colours.suffix}.png", colours)
    assert [arguments[0] for arguments, _ in drawn["set_title"]][:3] == ["a training sample", "one", "two"]
    images = [np.asarray(arguments[0]) for arguments, _ in drawn["imshow"]][:3]
    for image, expected in zip(images, (sample, *(panel.pixels for panel in panels)), strict=True):
        assert np.array_equal(image, expected.numpy())
    # One scale, to the most of all panels.
    (first, second) = (options["norm"] for _, options in drawn["imshow"][1:3])
    assert first is second
    assert (first.vmin, first.vmax) == (1, 500)
    light, dark = (imread(tmp_path / name) for name in ("x.png", "x-dark.png"))
    assert light.shape == dark.shape
    assert light.shape[1] == 1660
    assert light[-1, 0, :3].min() == 1.0
    assert dark[-1, 0, :3].max() < 0.1


def test_picture_has_a_row_for_every_four_panels(tmp_path, monkeypatch):
    monkeypatch.setattr(theme, "DOTS", 20)

    def height(count):
        panels = [Panel("one", "1 %", kept((90, 90)))] * count
        save_picture(torch.zeros(200, 200), panels, [], "a", "b", "c", tmp_path / "x.png")
        return imread(tmp_path / "x.png").shape[0]

    assert height(1) == height(3) < height(4) == height(7) < height(8)


def test_curves_start_when_pruning_ends(drawn, tmp_path):
    save_curves(RUNS, "a", "b", tmp_path / "x.png")
    lines = [arguments for arguments, _ in drawn["plot"]]
    assert lines[0][:2] == ([25.0, 50.0], [26.8, 53.6])
    assert lines[-2][:2] == ([7.0, 9.0], [42.5, 85.0])
    assert imread(tmp_path / "x.png").shape[1] == 1660


def test_write_writes_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(theme, "DOTS", 20)
    facts = {key: CONTENT[key] for key in ("data", "model", "settings", "machine")}
    demo = Demo(
        Comparison(**facts, runs=()),
        CONTENT["mosaic"],
        CONTENT["on_tiles"],
        {"snip 99 %": kept((90, 90))},
        torch.zeros(200, 200, dtype=torch.uint8),
    )
    object.__setattr__(demo, "to_dict", lambda: CONTENT)
    report.write(demo, tmp_path / "new")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(report.FILES)
    page = (tmp_path / "new" / "table.md").read_text()
    assert page.startswith(
        "**article_mlp on mosaics in which 1 of 49 tiles says the label, 10 epochs**\n\n| "
    )
    assert "| snip 99 %" in page
    assert page.endswith(report.verdict(CONTENT) + "\n")
