import pytest
import torch

pytest.importorskip("pandas")

from bench.methods import results
from bench.methods.networks import contiguous, scored_batches
from bench.methods.points import EXPERIMENTS, TICKET, runs
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset
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
    assert all(run.training.model in models.MODELS for run in found)


def test_resnet8_has_every_method_and_tickets_of_the_sparsities():
    (points,) = EXPERIMENTS["resnet8"].values()
    assert {point.method for point in points} == {None, *METHODS}
    rounds = {point.round: point.sparsity for point in points if point.kind == TICKET}
    assert rounds[4] == 0.9
    assert rounds[8] == 0.99
