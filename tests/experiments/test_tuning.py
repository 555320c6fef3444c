"""Tuning of rates: every rate is tried once, kept at once, and the best one is found."""

import math

import pytest

from sparseprune.experiments.tuning import grid, tune_rate

pytest.importorskip("optuna")


def test_grid_is_geometric_around_its_centre():
    assert grid(1.0, 2.0, 5) == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert grid(1.0, 2.0, 4) == [0.25, 0.5, 1.0, 2.0]
    assert grid(3.0, trials=1) == [3.0]


@pytest.mark.parametrize("arguments", [(0.0, 2.0, 3), (1.0, 1.0, 3), (1.0, 2.0, 0), (math.nan, 2.0, 3)])
def test_grid_tells_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="expected a centre above 0, a factor above 1 and a trial at least"):
        grid(*arguments)


def test_tune_rate_finds_the_best():
    tuned = tune_rate(lambda lr: -abs(lr - 2.0), rates=[4.0, 1.0, 2.0], name="dense")
    assert (tuned.lr, tuned.score, tuned.at_edge) == (2.0, 0.0, False)
    assert list(tuned.trials.items()) == [(1.0, -1.0), (2.0, 0.0), (4.0, -2.0)]


def test_tune_rate_tells_a_best_rate_at_the_edge():
    assert tune_rate(lambda lr: lr, rates=[1.0, 2.0], name="dense").at_edge
    assert not tune_rate(lambda lr: lr, rates=[1.0], name="dense").at_edge


def test_tune_rate_takes_diverged_training_as_the_worst():
    tuned = tune_rate(lambda lr: math.nan if lr > 1 else lr, rates=[0.5, 1.0, 2.0], name="dense")
    assert (tuned.lr, tuned.trials[2.0]) == (1.0, -math.inf)


def test_tune_rate_goes_on_where_it_was_killed(tmp_path):
    file, tried = tmp_path / "rates.log", []

    def score(lr):
        if lr == 2.0 and len(tried) == 1:
            raise KeyboardInterrupt
        tried.append(lr)
        return lr

    with pytest.raises(KeyboardInterrupt):
        tune_rate(score, rates=[1.0, 2.0], name="dense", file=file)
    said = []
    tried.append(None)
    tuned = tune_rate(score, rates=[1.0, 2.0], name="dense", file=file, say=said.append)
    assert tried == [1.0, None, 2.0]
    assert (tuned.lr, said) == (2.0, ["dense: lr 2 scores 2.0000"])
    # Another study of the same file has trials of its own.
    tune_rate(score, rates=[1.0], name="sparse", file=file)
    assert tried == [1.0, None, 2.0, 1.0]


@pytest.mark.parametrize("rates", [[], [0.0], [-1.0], [math.nan], [1e3]])
def test_tune_rate_tells_rates_out_of_range(rates):
    with pytest.raises(ValueError, match="expected rates from 1e-07 to 100"):
        tune_rate(lambda lr: lr, rates=rates, name="dense")
