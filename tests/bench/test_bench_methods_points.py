import dataclasses

import pytest
import torch

pytest.importorskip("pandas")

from bench.methods import results, tiny_transformers
from bench.methods.networks import contiguous, scored_batches
from bench.methods.points import DENSE, EXPERIMENTS, TICKET, TINY, runs
from bench.methods.run import Work
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset, load
from sparseprune.scores import METHODS


def test_scored_batches_are_the_first_samples_of_the_order():
    x = torch.arange(48.0).view(48, 1)
    data = Dataset("clouds", "a test", x, torch.arange(48) % 4, x[:4], torch.arange(4))
    found = scored_batches(data, 20, 16, seed=3)
    assert [len(x) for x, _ in found] == [16, 4]
    ((first, labels),) = scored_batches(data, 10, 16, seed=3)
    assert torch.equal(first, found[0][0][:10])
    assert torch.equal(labels, found[0][1][:10])
    assert sum(len(x) for x, _ in scored_batches(data, 1000, 16, seed=3)) == 48


def test_contiguous_copies_the_network_as_it_is_made():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)).to(memory_format=torch.channels_last)
    copied = contiguous(model)
    assert copied[0].weight.is_contiguous()
    assert not model[0].weight.is_contiguous()
    assert torch.equal(copied[0].weight, model[0].weight)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_every_run_once_and_complete_seeds_first(name):
    found = runs(EXPERIMENTS[name], [0, 1, 1])
    assert len({results.key_of(run) for run in found}) == len(found)
    assert [run.seed for run in found] == sorted(run.seed for run in found)
    assert len({run.label for run in found}) == len(found)
    assert all(run.training.model.startswith(TINY) or run.training.model in models.MODELS for run in found)


def test_resnet8_has_every_method_and_tickets_of_the_sparsities():
    (points,) = EXPERIMENTS["resnet8"].values()
    assert {point.method for point in points} == {None, *METHODS}
    rounds = {point.round: point.sparsity for point in points if point.kind == TICKET}
    assert rounds[4] == 0.9
    assert rounds[8] == 0.99


def test_recall_has_the_value_of_the_key_that_is_asked_for():
    x, y, x_test, y_test = tiny_transformers.recall()
    assert (len(x), len(x_test)) == (tiny_transformers.SAMPLES, tiny_transformers.TEST_SAMPLES)
    keys, values = tiny_transformers.KEYS, tiny_transformers.VALUES
    for tokens, answer in zip(x_test[:50].long().tolist(), y_test[:50].tolist(), strict=True):
        *pairs, question = tokens
        told = dict(divmod(pair, values) for pair in pairs)
        assert len(told) == tiny_transformers.PAIRS
        assert told[question - keys * values] == answer
    assert set(y.tolist()) == set(range(values))


@pytest.mark.filterwarnings("ignore")
def test_every_network_of_transformers_runs_and_is_pruned_in_each_way():
    pytest.importorskip("transformers")
    for training, points in EXPERIMENTS["scopes"].items():
        data = load(training.data)
        small = dataclasses.replace(
            data, train_x=data.train_x[:64], train_y=data.train_y[:64], test_x=data.test_x[:9]
        )
        small = dataclasses.replace(small, test_y=data.test_y[:9])
        work = Work(dataclasses.replace(training, epochs=1), small)
        assert points[0].kind == DENSE
        dense, balanced = (work.measure(point, 0).weights for point in (points[0], points[-1]))
        assert balanced == round(0.1 * dense)
