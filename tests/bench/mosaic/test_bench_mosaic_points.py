import itertools
import re

import pytest

pytest.importorskip("pandas")

from bench.mosaic.experiment import key_of
from bench.mosaic.points import (
    BASE,
    EXPERIMENTS,
    FEW,
    FULL,
    QUICK,
    SAME,
    SETTINGS,
    SNIP,
    TUNED,
    Point,
    Setting,
    Size,
    rates_of,
    those_like,
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_every_run_once_and_the_first_seed_first(name):
    runs = EXPERIMENTS[name]([3, 0, 3])
    keys = [key_of(run) for run in runs]
    assert all(one != other for one, other in itertools.combinations(keys, 2))
    assert [run.seed for run in runs] == sorted((run.seed for run in runs), reverse=True)
    assert len({run.label for run in runs}) == len(runs)


def test_region_has_dense_of_one_seed_and_leaves_the_base_to_tuned():
    runs = EXPERIMENTS["region"]([0, 1, 2])
    assert {run.seed for run in runs if run.point.kind == "dense"} == {0}
    assert BASE not in {run.setting for run in runs}
    assert {run.setting for run in runs} == set(SETTINGS) - {BASE}
    assert set(FEW) < set(TUNED)


def test_settings_differ_from_the_base_in_one_thing():
    assert [len(setting.differences) for setting in SETTINGS] == [0] + [1] * 13
    assert [setting.label for setting in SETTINGS[:5]] == [
        "base",
        "task same",
        "jitter 2",
        "5 informative tiles",
        "20,000 samples",
    ]


def test_epochs_are_whole_passes_of_about_as_many_steps_and_not_too_few():
    assert [FULL.epochs(samples) for samples in (1000, 5000, 20_000, 60_000)] == [100, 20, 5, 5]


def test_rates_are_as_many_for_all_and_lower_with_many_inputs():
    assert {len(FULL.rates(point)) for point in TUNED} == {5}
    assert FULL.rates(SNIP) == pytest.approx([3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2], rel=1e-3)
    assert FULL.rates(Point("dense")) == pytest.approx([1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2], rel=1e-3)


def test_rates_of_settings_are_those_of_the_base_but_for_another_task():
    assert {rates_of(setting) for setting in SETTINGS} == {BASE, SAME}
    assert rates_of(Setting(samples=1000)) == BASE


def test_cut_keeps_what_is_small_enough():
    assert Size(samples=100).cut(Setting(jitter=2)) == Setting(samples=100, jitter=2)
    assert Size(samples=100).cut(Setting(samples=50)) == Setting(samples=50)
    assert FULL.cut(BASE) == BASE


def test_keys_tell_sizes_apart():
    run = EXPERIMENTS["tuned"]([0])[0]
    assert key_of(run) == {
        "samples": 5000,
        "jitter": 0,
        "informative": 1,
        "task": "tile",
        "network": "dense",
        "epochs": 20,
        "width": 1.0,
        "seed": 0,
    }
    assert key_of(run, QUICK) != key_of(run)


def test_those_like_are_found_by_their_labels():
    found = those_like(EXPERIMENTS["region"]([0, 1]), re.compile("jitter [12], seed 0: (dense|snip)"))
    assert [run.label for run in found] == [
        "jitter 2, seed 0: dense",
        "jitter 2, seed 0: snip 99 %",
        "jitter 1, seed 0: dense",
        "jitter 1, seed 0: snip 99 %",
    ]
