import pytest

pytest.importorskip("pandas")
pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("optuna")

from bench.ledger import Ledger
from bench.mosaic import results
from bench.mosaic.experiment import key_of
from bench.mosaic.points import BASE, CONV, DENSE_POINT, FTEST, SMALL, SNIP, Point, Run, Setting
from bench.report.plots import mosaic as plot
from bench.report.tables import mosaic as tables

SMALL_80 = SMALL[1]
ON_BASE = {DENSE_POINT: 0.5, SMALL[0]: 0.6, SMALL_80: 0.65, FTEST: 0.85, SNIP: 0.86, Point(CONV): 0.67}
JITTER = Setting(jitter=2)
# With one seed of dense.
ON_JITTER = {DENSE_POINT: 0.7, SMALL_80: 0.6, SNIP: 0.65}


def measured(point, accuracy):
    conv = point.kind == CONV
    return {
        "accuracy": accuracy,
        "lr": 1e-3,
        "trials": {"0.0001": 0.5, "0.001": 0.6},
        "at_edge": point == SNIP,
        "epochs": 20.0,
        "steps": 400,
        "wall_seconds": 1.0,
        "weights": 1000,
        "on_tile": None if conv else 0.98,
        "auc": None if conv else 0.9,
    }


@pytest.fixture
def folder(tmp_path):
    """Results of two seeds, the second a point better, but that of SNIP two."""
    runs = {Run(BASE, seed, point): accuracy for point, accuracy in ON_BASE.items() for seed in (0, 1)}
    others = {Run(JITTER, seed, point): accuracy for point, accuracy in ON_JITTER.items() for seed in (0, 1)}
    del others[Run(JITTER, 1, DENSE_POINT)]
    for name, some in (("tuned", runs), ("region", others)):
        with Ledger(tmp_path / f"{name}.jsonl") as ledger:
            for run, accuracy in some.items():
                better = 0.01 * run.seed * (2 if run.point == SNIP else 1)
                ledger.add(key_of(run), measured(run.point, accuracy + better))
    networks = {
        DENSE_POINT.label: {"step_seconds": 0.2, "prune_seconds": 0.0},
        SNIP.label: {"step_seconds": 0.01, "prune_seconds": 4.0},
    }
    with Ledger(tmp_path / "time.jsonl") as ledger:
        ledger.add({"width": 1.0}, {"networks": networks, "disturbed": None})
    return tmp_path


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tuned_has_all_networks_and_what_is_to_be_reached(folder):
    table, aims, facts = tables.tuned(results.read(folder), results.times(folder)).split("\n\n")
    rows = [cells(line) for line in table.splitlines()[2:]]
    assert rows[0] == ["dense", "50.5 ± 0.7", "1e-03", "1,000", "98 %", "0.90", "200.0", "", "1.00"]
    assert rows[3][:1] + rows[3][4:] == ["small convolutional", "", "", "", "", ""]
    # 4 + 400 * 0.01 seconds of 400 * 0.2.
    assert rows[5] == ["snip 99 %", "87.0 ± 1.4", "1e-03*", "1,000", "98 %", "0.90", "10.0", "4.0", "0.10"]
    assert aims.splitlines() == [
        "- snip 99 % above dense: +36.5 ± 0.7 points of accuracy (aim: +15 at least)",
        "- snip 99 % above the better small dense: +21.5 ± 0.7 points of accuracy (aim: +15 at least)",
        "- snip 99 % above F-test 784 + small dense: +1.5 ± 0.7 points of accuracy (aim: −1 at least)",
        "- its time over dense's, pruning included: 0.10 (aim: 0.15 at most)",
    ]
    assert "20; seeds 0, 1," in facts
    assert "; times: " in facts
    assert "the best of 2 for every network" in facts
    assert "A rate with * is the lowest or highest that was tried." in facts


def test_tuned_does_without_times(folder):
    (folder / "time.jsonl").unlink()
    table, aims, facts = tables.tuned(results.read(folder), results.times(folder)).split("\n\n")
    assert cells(table.splitlines()[2])[-3:] == ["", "", ""]
    assert "time" not in aims + facts


def test_region_has_settings_and_what_snip_is_above_dense_networks(folder):
    table, facts = tables.region(results.read(folder)).split("\n\n")
    head, _, *rows = map(cells, table.splitlines())
    assert head[:3] == ["test accuracy %", "dense", "small dense, h = 80"]
    by_name = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["test accuracy %"] for row in by_name] == ["base", "jitter 2"]
    # Above the better of the two, which is small dense, then dense, whose one seed stands for all.
    assert [row["SNIP − dense, small dense"] for row in by_name] == ["+21.5", "-4.0"]
    assert by_name[1]["dense"] == "70.0"
    assert by_name[1]["grasp 99 %"] == ""
    assert facts.endswith("; dense on other settings than the base: one seed.")


def test_means_are_of_settings_that_differ_in_one_field(folder):
    line = plot.means(results.read(folder), SNIP, "jitter")
    assert list(line.index) == [0, 2]
    assert list(line["mean"]) == pytest.approx([87.0, 66.0])
    assert list(plot.means(results.read(folder), SNIP, "samples").index) == [5000]
    dense = plot.means(results.read(folder), DENSE_POINT, "jitter")
    assert list(dense["std"]) == pytest.approx([0.5**0.5, 0.0])


def test_plot_writes_a_picture_for_light_and_one_for_dark_pages(folder):
    pictures = plot.save(results.read(folder), folder)
    assert [picture.name for picture in pictures] == ["region.png", "region-dark.png"]
    contents = [picture.read_bytes() for picture in pictures]
    assert all(content.startswith(b"\x89PNG") for content in contents)
    assert contents[0] != contents[1]
