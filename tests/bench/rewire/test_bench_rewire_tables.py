import pytest

pytest.importorskip("pandas")
pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("optuna")

from bench.ledger import Ledger
from bench.report.plots import rewire as plot
from bench.report.tables import rewire as tables
from bench.rewire import cost, run
from bench.rewire.points import EPOCHS, STUDIES, TIME, Run

STUDY = STUDIES["resnet8"]
RANDOM, DENSE = "random 90 %, uniform", "dense"
SMALL = ("small dense, width 0.25", "small dense, width 0.5")
# Accuracy in equal epochs and in equal time, of seed 0.
FOUND = {DENSE: (0.9, 0.86), SMALL[0]: (0.8, 0.85), SMALL[1]: (0.84, 0.84), RANDOM: (0.85, 0.855)}
RIGL = 0.87


def result(accuracy, **more):
    return {
        "accuracy": accuracy,
        "lr": 0.1,
        "trials": {"0.05": 0.8, "0.1": 0.9},
        "at_edge": True,
        "steps": 4690,
        "passes": 12.5,
        "budget": None,
        "weights": 32_000,
        "wall_seconds": 1.0,
        "on_tile": None,
        **more,
    }


@pytest.fixture
def folder(tmp_path):
    points = {point.label: point for point in STUDY.points}
    with Ledger(tmp_path / run.RUNS) as book:
        for seed in (0, 1):
            for name, accuracies in FOUND.items():
                for view, accuracy in zip((EPOCHS, TIME), accuracies, strict=True):
                    key = run.key_of(STUDY, Run(view, 10, seed, points[name]))
                    book.add(key, result(accuracy + 0.01 * seed))
            key = run.key_of(STUDY, Run(EPOCHS, 10, seed, STUDY.rigl))
            # Its lead is 2 points with seed 0, 3 with seed 1.
            book.add(key, result(RIGL + 0.02 * seed))
    with Ledger(tmp_path / run.TIMES) as book:
        of = {"step": {"q1": 0.01, "median": 0.01, "q3": 0.01}, "prune_seconds": 1.0, "weights": 1}
        moves = {"q1": 0.4, "median": 0.4, "q3": 0.4}
        names = [*FOUND, STUDY.rigl.label]
        networks = {name: {**of, "rewiring": moves if "RigL" in name else None} for name in names}
        book.add({"study": STUDY.name, "networks": names}, {"networks": networks, "disturbed": None})
    return tmp_path


def cells(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_study_has_pairs_of_seeds_in_brackets(folder):
    epochs, time, *rest = tables.study_table(STUDY, folder).split("\n\n")
    assert cells(epochs, RANDOM) == [
        *(RANDOM, "32,000", "0.1*", "10.0", "85.50 ± 0.71", "48"),
        "+2.50 [+2.00, +3.00]",
    ]
    assert cells(epochs, STUDY.rigl.label)[3:] == ["10.0 + 400 a rewiring", "88.00 ± 1.41", "62", ""]
    assert cells(time, RANDOM)[4:] == ["86.00 ± 0.71", "12.5", "+2.00 [+1.50, +2.50]"]
    assert rest[0].splitlines() == [
        "- 10 epochs: RigL above the static random mask that it starts from: "
        "+2.50 [+2.00, +3.00] points (aim: +1)",
        "- the seconds of 10 epochs: RigL above the best small dense network (small dense, width 0.25): "
        "+2.50 [+2.00, +3.00] points (aim: +0.8)",
    ]
    assert rest[1].startswith("Seeds 0, 1;")


def test_study_without_runs_says_how_to_run_it(tmp_path):
    assert tables.study_table(STUDY, tmp_path) == "Not run yet: `python -m bench.rewire run --model resnet8`."


def test_difference_below_zero_has_a_minus_sign(folder):
    gain = tables.above(tables.frame(folder, STUDY.name), STUDY, DENSE, EPOCHS, 10)
    assert gain == pytest.approx((-2.5, -3.0, -2.0))
    assert tables._interval(*gain) == "−2.50 [−3.00, −2.00]"


def test_plot_is_drawn(folder):
    plot.save(STUDY, folder, folder / "picture.png")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_plot_needs_runs(tmp_path):
    with pytest.raises(ValueError, match="expected runs and times of resnet8"):
        plot.save(STUDY, tmp_path, tmp_path / "picture.png")


def test_cost_is_beside_steps_of_both_kinds(tmp_path):
    assert tables.cost(tmp_path) == "Not measured yet: `python -m bench.rewire cost`."

    def quartiles(median):
        return {"q1": 0.9 * median, "median": median, "q3": 1.1 * median}

    timed = {"step": quartiles(0.002), "rewiring": quartiles(0.006)}
    with Ledger(tmp_path / cost.FILE) as book:
        book.add(
            {"case": "article"},
            {
                "dense": {"step": quartiles(0.01), "rewiring": None},
                "rigl": timed,
                "set": timed,
                "memory": {"rigl": {"bytes": 123_000_000}, "set": {"bytes": None}},
                "disturbed": None,
            },
        )
    text = tables.cost(tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("| article")]
    rigl, set_ = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert rigl == [
        *("article, batch 512, 98 %", "RigL", "2.00 [1.80, 2.20]", "10.0 [9.00, 11.0]"),
        *("6.00 [5.40, 6.60]", "3.0", "0.60", "123"),
    ]
    assert set_[-1] == ""
    assert "others kept" not in text
