import pytest
import torch
from torch import nn

from sparseprune import models


@pytest.mark.parametrize(
    ("make", "sizes", "weights"),
    [
        (models.lenet_300_100, (784, 300, 100, 10), 266_200),
        (models.wide_mlp, (784, 1024, 1024, 10), 1_861_632),
        (models.article_mlp, (40_000, 1000, 1000, 1000, 10), 42_010_000),
    ],
)
def test_models_have_their_layers_and_weights(make, sizes, weights):
    with torch.device("meta"):  # the article's network takes 168 MB otherwise
        model = make()
    linears = [module for module in model if isinstance(module, nn.Linear)]
    assert (linears[0].in_features, *(linear.out_features for linear in linears)) == sizes
    assert sum(linear.weight.numel() for linear in linears) == models.weight_count(sizes) == weights
    assert models.layer_sizes(make.__name__, sizes[0], sizes[-1]) == sizes


def test_models_flatten_images_and_take_other_sizes():
    assert models.lenet_300_100()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert models.wide_mlp(64, (7, 5, 3), 4)(torch.zeros(3, 8, 8)).shape == (3, 4)
    assert isinstance(models.mlp((4, 3, 2))[-1], nn.Linear)


def test_build_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    first, again, other = (models.build((6, 5, 4), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.5, 1.0])
def test_small_dense_has_about_as_many_weights(name, density):
    sizes = models.layer_sizes(name, 784, 10)
    wanted = round(models.weight_count(sizes) * density)
    small = models.small_dense(sizes, wanted)
    assert len(small) == len(sizes)
    assert (small[0], small[-1]) == (784, 10)
    # One unit more or less in the widest layer is the finest step there is.
    assert abs(models.weight_count(small) - wanted) <= 0.5 * (784 + 10 + 2 * 3 * max(small[1:-1]))
    if density == 1.0:
        assert small == sizes


def test_small_dense_keeps_the_proportions_and_breaks_ties_downwards():
    assert models.small_dense((10, 8, 4, 2), models.weight_count((10, 4, 2, 2))) == (10, 4, 2, 2)
    # (1, 1, 1) has 2 weights and (1, 2, 1) has 4: 3 lies between them.
    assert models.small_dense((1, 2, 1), 3) == (1, 1, 1)


def test_models_refuse_bad_arguments():
    with pytest.raises(ValueError, match=r"two or more sizes, each at least 1, got \(3, 0\)"):
        models.mlp((3, 0))
    with pytest.raises(
        ValueError, match="unknown model 'vgg'; known are lenet_300_100, wide_mlp, article_mlp"
    ):
        models.layer_sizes("vgg", 784, 10)
    with pytest.raises(ValueError, match=r"weights in 1 \.\.\. 24 \(the large network's\), got 25"):
        models.small_dense((4, 4, 2), 25)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        models.small_dense((4, 2), 3)
