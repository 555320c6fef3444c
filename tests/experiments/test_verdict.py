"""What a comparison concludes and what it says was saved, from made-up figures."""

import dataclasses

import pytest

from sparseprune.experiments.compare.results import Run
from sparseprune.experiments.compare.savings import savings
from sparseprune.experiments.compare.verdict import better, verdict
from sparseprune.experiments.train import TrainResult

ONE_SEED = "This is one seed: another one may decide otherwise."


def run(label, kind, accuracy, seconds, view="epochs", **more):
    """A run of so many seconds in all; `more` are fields of its result."""
    result = TrainResult(accuracy / 100, 1.0, 1, seconds, 0.0, 0.1, (), {"parameters": 4_000_000})
    result = dataclasses.replace(result, **more)
    return Run(view, label, kind, None, None, None, 9, 0.0, seconds, 1.0, 9, (), 1e-3, result, 0.0, 0.0)


def dense(accuracy, seconds, **more):
    return run("dense", "dense", accuracy, seconds, **more)


def small(accuracy, seconds, **more):
    return run("small dense, width 0.1", "small dense", accuracy, seconds, **more)


def snip(accuracy, seconds, label="snip 90 %", **more):
    return run(label, "sparse", accuracy, seconds, **more)


def test_verdict_tells_to_take_a_narrower_network_that_does_better():
    told = verdict([dense(89, 9), small(89.1, 1.2), snip(87, 4), snip(86, 3.5, "snip 95 %")])
    assert told == [
        "In this comparison a narrower dense network does better at equal epochs: "
        "small dense, width 0.1: 89.1 % in 1.2 s; best sparse (snip 90 %): 87.0 % in 4.0 s. Take it.",
        ONE_SEED,
    ]


def test_verdict_tells_to_take_a_sparse_network_that_does_better():
    # Slower than the narrow one, but no slower than the dense one that it improves on.
    told = verdict([dense(53.6, 25.5), small(63.7, 12.8), snip(85, 13.3), snip(82.6, 14, "snip 98 %")])
    assert told == [
        "In this comparison a sparse network does better at equal epochs: snip 90 %: 85.0 % in 13.3 s; "
        "best dense (small dense, width 0.1): 63.7 % in 12.8 s. Take it.",
        ONE_SEED,
    ]


@pytest.mark.parametrize(
    ("runs", "who"),
    [
        # As accurate in the time of dense, less accurate in a quarter of it, more accurate in twice the time.
        ([dense(89, 9), snip(89.1, 9)], "there is no clear difference between sparse and dense networks"),
        ([dense(89, 8), snip(88, 2)], "there is no clear difference between sparse and dense networks"),
        ([dense(89, 8), snip(90, 16)], "there is no clear difference between sparse and dense networks"),
        # More accurate by 0.3 points in as much time, and as accurate in 0.8 of it, are enough; less is not.
        ([dense(89, 9), snip(89.3, 9)], "a sparse network does better"),
        ([dense(89, 9), snip(89.29, 9)], "there is no clear difference between sparse and dense networks"),
        ([dense(89, 10), snip(88.8, 8)], "a sparse network does better"),
        ([dense(89, 10), snip(88.8, 8.1)], "there is no clear difference between sparse and dense networks"),
        # Sparse is slower than dense, and no better.
        ([dense(89, 4), snip(88, 5)], "the dense network does better"),
        # Sparse beats dense, but a narrow one is as accurate, and faster.
        ([dense(89, 9), small(89.1, 1), snip(89, 4)], "a narrower dense network does better"),
        # Narrow beats the most accurate sparse network, but is beaten by another.
        (
            [dense(80, 9), small(89.2, 3), snip(89, 4), snip(88.95, 2, "snip 95 %")],
            "a sparse network does better",
        ),
    ],
)
def test_verdict_weighs_accuracy_and_time(runs, who):
    first, last = verdict(runs)
    assert first.startswith(f"In this comparison {who} at equal epochs: ")
    assert first.endswith(" Take it.") is ("no clear" not in who)
    assert last == ONE_SEED


def test_verdict_of_two_views_that_agree():
    told = verdict(
        [
            *(dense(89, 9), small(88, 1.2), snip(89.1, 4)),
            *(dense(89, 9, view="time"), small(89, 9, view="time"), snip(90, 9, view="time")),
        ]
    )
    assert told == [
        "In this comparison a sparse network does better at equal epochs: snip 90 %: 89.1 % in 4.0 s; "
        "best dense (dense): 89.0 % in 9.0 s.",
        "At equal time too: snip 90 %: 90.0 % in 9.0 s; best dense (dense): 89.0 % in 9.0 s. Take it.",
        ONE_SEED,
    ]


def test_verdict_of_two_views_that_disagree_tells_to_take_none():
    told = verdict(
        [
            *(dense(89, 9), small(88, 1.2), snip(89.1, 4)),
            *(dense(89, 9, view="time"), small(91, 9, view="time"), snip(90, 9, view="time")),
        ]
    )
    assert told[1] == (
        "At equal time a narrower dense network does better: small dense, width 0.1: 91.0 % in 9.0 s; "
        "best sparse (snip 90 %): 90.0 % in 9.0 s."
    )
    assert not any("Take it" in sentence for sentence in told)


def test_verdict_names_what_is_beside_the_networks():
    screened = run("F-test 784 + small dense", "screened", 86, 1.9)
    conv = run("convolutional", "conv", 67.1, 8)
    told = verdict([dense(53.6, 25.5), screened, conv, snip(85, 13.3)])
    assert told[0].endswith("best dense (dense): 53.6 % in 25.5 s.")
    assert told[1:] == [
        "A dense network on inputs chosen beforehand is more accurate than the best sparse network: "
        "F-test 784 + small dense: 86.0 % in 1.9 s.",
        "A convolutional network is less accurate than the best sparse network: "
        "convolutional: 67.1 % in 8.0 s.",
        ONE_SEED,
    ]
    told = verdict([dense(53.6, 25.5), dataclasses.replace(screened, total_seconds=14), snip(86.1, 13.3)])
    assert told[0].endswith(" Take it.")
    assert "is as accurate as the best sparse network" in told[1]


@pytest.mark.parametrize("runs", [[], [dense(89, 9), small(88, 1)], [snip(88, 1)]])
def test_verdict_is_silent_without_two_sides(runs):
    assert verdict(runs) == []


def test_better_allows_for_a_step_more_of_time():
    assert better(dense(89.3, 10.5), dense(89, 10))
    assert not better(dense(89.3, 10.6), dense(89, 10))


def test_savings_compares_all_that_was_measured_with_dense():
    whole = dense(89, 10, cpu_seconds=18.0, joules=200.0, energy="RAPL package-0")
    pruned = snip(
        *(88, 4),
        cpu_seconds=6.5,
        joules=70.0,
        bytes={"parameters": 300_000, "gradients": 200_000, "optimizer": 250_000, "buffers": 250_000},
    )
    pruned = dataclasses.replace(pruned, prune_cpu_seconds=0.7, prune_joules=10.0)
    assert savings([whole, small(88, 1), pruned, dense(89, 10, view="time")]) == [
        "snip 90 %: 6.0 s less (-60 %), 10.8 CPU-s less (-60 %), 3.0 MB less (-75 %), 120.0 J less (-60 %)",
        "energy: RAPL package-0, of all that ran there",
    ]


def test_savings_says_what_cost_more_and_what_was_not_measured():
    whole = dense(89, 4, energy="not measured: no RAPL here")
    assert savings([whole, snip(88, 5)]) == [
        "snip 90 %: 1.0 s more (+25 %), as many MB",
        "energy: not measured (no RAPL here)",
    ]
    assert savings([dense(89, 4), snip(88, 5)])[-1] == "energy: not measured"


@pytest.mark.parametrize("runs", [[], [dense(89, 9), small(88, 1)], [snip(88, 1)]])
def test_savings_is_silent_without_two_sides(runs):
    assert savings(runs) == []


def test_savings_leaves_energy_out_that_only_a_part_was_measured_of():
    whole = dense(89, 10, joules=200.0, energy="RAPL package-0")
    pruned = dataclasses.replace(snip(88, 4, joules=70.0), prune_joules=None)
    assert savings([whole, pruned])[0] == "snip 90 %: 6.0 s less (-60 %), as many MB"
