import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from browser import look

pytest.importorskip("typer")
pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from rich.console import Console
from test_frontier import record

from sparseprune.experiments import page
from sparseprune.experiments.cli import tables
from sparseprune.experiments.compare.page import html as compare_page
from sparseprune.experiments.compare.results import Comparison, Run, View
from sparseprune.experiments.frontier.page import html as frontier_page
from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.train import CurvePoint, TrainResult

MACHINE = {"cpu": "<c>", "isa": "i", "threads": 2, "torch": "t", "sparseprune": "s", "date": "d"}
BYTES = {"parameters": 8, "gradients": 8, "optimizer": 16, "buffers": 0}


def run(view: View, label: str, kind: str, accuracy: float, seconds: float, block: str | None = None) -> Run:
    """A run of two passes."""
    curve = (CurvePoint(1.0, seconds / 2, accuracy - 0.1), CurvePoint(2.0, seconds, accuracy))
    result = TrainResult(accuracy, 2.0, 8, seconds, 0.1, seconds / 8, curve, BYTES)
    pruned = ("snip", 0.9, block, 100) if kind == "sparse" else (None, None, None, 1000)
    return Run(view, label, kind, *pruned, 0.5, seconds + 0.5, seconds / 4, 10, (), 0.001, result)


def comparison() -> Comparison:
    views: tuple[View, ...] = ("epochs", "time")
    runs = [
        of_run
        for view in views
        for of_run in (
            run(view, "dense", "dense", 0.9, 4.0),
            run(view, "small dense, width 0.1", "small dense", 0.8, 1.0),
            run(view, "snip 90 %", "sparse", 0.85, 2.0, "1x1"),
            run(view, "snip 90 % 4x1", "sparse", 0.84, 1.5, "4x1"),
        )
    ]
    data = {"name": "clouds", "train": 60, "test": 30, "source": "this test"}
    settings = {"epochs": 2, "budget_seconds": 4.0, "batch_size": 16, "optimizer": "Adam", "lr": 0.001}
    settings |= {"seed": 0, "prune_batches": 2, "scope": "global"}
    return Comparison(data, {"name": "small"}, settings, MACHINE, tuple(runs))


def records() -> list[Any]:
    points = [
        (Point("dense", 0), 0.9, 10.0),
        (Point("small dense", 0, 0.2), 0.8, 3.0),
        (Point("small dense", 0, 0.1), 0.7, 2.0),
        (Point("sparse", 0, 0.2, "snip", "erk", None, 1), 0.85, 4.0),
        (Point("sparse", 0, 0.1, "snip", "cost", 0.5, 4), 0.2, 2.5),
    ]
    return [
        record(replace(point, seed=seed), accuracy + seed / 1000, seconds)
        for seed in (0, 1)
        for point, accuracy, seconds in points
    ]


def data_of(text: str) -> dict[str, Any]:
    """What the charts of a page are drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def options_of(text: str) -> list[str]:
    return re.findall(r'<option value="([^"]*)"', text)


def figures_of(text: str) -> list[tuple[str, str]]:
    """Tone and figure of the first screen."""
    return re.findall(r'class="card (\w*)"[^>]*><b>([^<]*)</b>', text)


def test_page_of_a_comparison() -> None:
    text = compare_page(comparison())
    rows = data_of(text)["rows"]["rows"]
    assert len(rows) == 2 * 8
    assert [row["seconds"] for row in rows[:2]] == [2.5, 4.5]
    assert [row["accuracy"] for row in rows[:2]] == [pytest.approx(80), pytest.approx(90)]
    assert "block" not in rows[0]
    assert rows[4]["block"] == "1x1"
    assert list(rows[4]["hover"])[:3] == ["title", "at this point", "acc. %"]
    # A choice of one sparsity is none.
    assert options_of(text) == [
        "Equal epochs (2)",
        "Equal wall-clock time (4.0 s, pruning included)",
        *("", "1x1", "4x1"),
    ]
    assert figures_of(text) == [("", "90.00 %"), ("good", "85.00 %"), ("", "80.00 %")]
    assert "&lt;c&gt;" in text
    assert text.count("<thead>") == 2


def test_page_of_a_frontier() -> None:
    text = frontier_page(records())
    rows = data_of(text)["rows"]["rows"]
    assert [row["method"] for row in rows] == ["dense", "small dense", "small dense", "snip", "snip"]
    assert "rule" not in rows[0]
    low, high = rows[0]["accuracy_low"], rows[0]["accuracy_high"]
    assert low < rows[0]["accuracy"] < high
    assert (low + high) / 2 == pytest.approx(rows[0]["accuracy"])
    assert rows[3]["hover"]["title"] == "snip erk V=1 20 % FLOPs"
    assert options_of(text) == ["", "erk", "cost^0.5", "", "1x1", "4x1"]
    assert [tone for tone, _ in figures_of(text)] == ["", "bad", ""]
    assert text.count("<thead>") == 1


def test_a_page_of_one_seed_has_no_deviations() -> None:
    rows = data_of(frontier_page([of for of in records() if of.point.seed == 0]))["rows"]["rows"]
    assert not any("accuracy_low" in row for row in rows)


def test_what_is_missing_for_a_page_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> list[str]:
        console = Console(file=StringIO(), width=200)
        tables.print_files(console, ["table.md", "frontier.png"], "frontier.html", Path("there"), "more")
        assert isinstance(console.file, StringIO)
        return console.file.getvalue().splitlines()

    assert said() == ["table.md, frontier.png and frontier.html are in there; more"]
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None if name == "altair" else name)
    assert said() == [
        "table.md and frontier.png are in there; more",
        "for frontier.html, which is interactive: pip install altair",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "scheme"),
    [(lambda: compare_page(comparison()), "dark"), (lambda: frontier_page(records()), "light")],
    ids=["compare", "frontier"],
)
def test_pages_in_a_browser(made: Any, scheme: str, tmp_path: Path) -> None:
    seen = look(made(), scheme, tmp_path)
    assert (seen.charts, seen.of_choice) == (1, 1)
    # Dense is compared with whatever is chosen.
    assert seen.row.startswith("dense")
