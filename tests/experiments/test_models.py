import math

import pytest
import torch
from torch import nn

from sparseprune.experiments import models
from sparseprune.experiments.models import Network

GRAY, COLOUR = (1, 28, 28), (3, 32, 32)


def count(name, sample):
    with torch.device("meta"):
        model = models.MODELS[name](sample, 10, 1.0)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "sample", "sizes", "weights"),
    [
        ("lenet_300_100", GRAY, (784, 300, 100, 10), 266_200),
        ("wide_mlp", GRAY, (784, 1024, 1024, 10), 1_861_632),
        ("article_mlp", (40_000,), (40_000, 1000, 1000, 1000, 10), 42_010_000),
    ],
)
def test_perceptrons_have_their_layers_and_weights(name, sample, sizes, weights):
    with torch.device("meta"):  # the article's network takes 168 MB otherwise
        model = models.MODELS[name](sample, 10, 1.0)
    linears = [module for module in model if isinstance(module, nn.Linear)]
    assert (linears[0].in_features, *(linear.out_features for linear in linears)) == sizes
    assert models.weight_count(Network(name, sample, 10)) == weights


@pytest.mark.parametrize(
    ("name", "sample", "weights", "others"),
    [
        # SNIP's table: 431 thousand. 20·25 + 50·20·25 + 800·500 + 500·10.
        ("lenet5_caffe", GRAY, 430_500, 20 + 50 + 500 + 10),
        # 32 x 32 leave 5 x 5 in place of 4 x 4 positions.
        ("lenet5_caffe", COLOUR, 3 * 500 + 25_000 + 1250 * 500 + 5_000, 20 + 50 + 500 + 10),
        # 200 x 200 become 50 x 50 by the stride, and 12 x 12 by the pools.
        # Batch norm has two numbers a channel.
        ("small_conv", (1, 200, 200), 8 * 49 + 32 * 8 * 25 + 32 * 144 * 10, 3 * (8 + 32) + 10),
    ],
)
def test_convolutional_networks_have_their_weights(name, sample, weights, others):
    assert models.weight_count(Network(name, sample, 10)) == weights
    assert count(name, sample) == weights + others


@pytest.mark.parametrize(
    ("name", "weights", "parameters"),
    [
        # Parameters as published for these networks on CIFAR-10; weights by hand.
        ("resnet20", 432 + 6 * 2304 + (4608 + 5 * 9216 + 512) + (18_432 + 5 * 36_864 + 2048) + 640, 272_474),
        ("resnet32", 432 + 10 * 2304 + (4608 + 9 * 9216 + 512) + (18_432 + 9 * 36_864 + 2048) + 640, 466_906),
        ("resnet18", 11_164_352, 11_173_962),
        # Those of ImageNet, 25,557,032, with 10 in place of 1000 classes; 26,560 channels of batch-norm.
        ("resnet50", 23_475_392, 25_557_032 - 990 * 2049),
        # 14,710,464 in the convolutions, 4,224 channels with two parameters of batch-norm each.
        ("vgg16_bn", 14_710_464 + 5120, 14_710_464 + 5120 + 10 + 2 * 4224),
        # SNIP's table: 15.0 million.
        ("vgg_like", 14_710_464 + 512 * 512 + 5120, 14_977_728 + 10 + 2 * (4224 + 512)),
        # The paper's table: 2.7, 11.0 and 17.2 million.
        ("wrn_16_4", 2_745_264, 2_748_890),
        ("wrn_16_8", 10_954_160, 10_961_370),
        ("wrn_22_8", 17_147_312, 17_158_106),
    ],
)
def test_convolutional_networks_have_their_weights_on_cifar(name, weights, parameters):
    assert models.weight_count(Network(name, COLOUR, 10)) == weights
    assert count(name, COLOUR) == parameters


def test_resnet8_has_its_weights():
    weights = 288 + 2 * 9216 + (18_432 + 36_864 + 2048) + (73_728 + 147_456 + 8192) + 1280
    assert models.weight_count(Network("resnet8", GRAY, 10)) == weights


@pytest.mark.parametrize("sample", [GRAY, COLOUR], ids=["28x28x1", "32x32x3"])
@pytest.mark.parametrize("name", models.MODELS)
def test_networks_take_both_kinds_of_images_and_can_be_traced(name, sample):
    # Narrow, so that this takes no time; shapes depend on the width in channels alone.
    model = models.build(Network(name, sample, 7, 0.1), seed=0)
    x = torch.randn(2, *sample, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
    with torch.no_grad():
        assert not torch.equal(model(x)[0], model(x)[1])


def test_stages_halve_the_images():
    """Sizes before the average: what the published networks compute at, and 28 x 28 rounded up."""
    for name, sizes in {
        "resnet20": (8, 7),
        "resnet18": (4, 4),
        "resnet50": (1, 1),
        "resnet8": (4, 4),
        "vgg16_bn": (1, 1),
        "wrn_16_4": (8, 7),
    }.items():
        for sample, size in zip(((3, 32, 32), (3, 28, 28)), sizes, strict=True):
            with torch.device("meta"):
                model = models.MODELS[name](sample, 10, 1.0)
                average = next(i for i, m in enumerate(model) if isinstance(m, nn.AdaptiveAvgPool2d))
                assert model[:average](torch.empty(2, *sample)).shape[2:] == (size, size)


def test_blocks_add_their_shortcut():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for block in (models.resnet((4, 6, 6), 2, (4,), 1)[3], models.wrn(10, 1, (4, 6, 6), 2, 0.25)[1]):
        assert type(block).__name__ in ("BasicBlock", "PreActivationBlock")
        nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
        expected = x.relu() if isinstance(block.shortcut, nn.Sequential) else x
        assert torch.equal(block(x), expected)


def test_convolutions_start_with_the_variance_of_he_et_al():
    model = models.build(Network("resnet18", COLOUR, 10), seed=0)
    weight = model[-4].conv2.weight
    assert weight.shape == (512, 512, 3, 3)
    of_std = 1 / math.sqrt(2 * weight.numel())  # the relative deviation of a sample's
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (512 * 9)), rel=5 * of_std)


def test_build_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    network = Network("lenet_300_100", (6,), 4)
    first, again, other = (models.build(network, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("density", [0.02, 0.1, 1.0])
def test_small_dense_has_about_as_many_weights(name, density):
    network = Network(name, GRAY, 10)
    wanted = round(models.weight_count(network) * density)
    small = models.small_dense(network, wanted)
    assert (small.name, small.sample, small.classes) == (name, GRAY, 10)
    # The 16 channels of the narrowest networks are a coarse measure: 5 channels for 10 %.
    coarse = density != 0.1 or name == "small_conv"
    assert models.weight_count(small) == pytest.approx(wanted, rel=0.1 if coarse else 0.02)
    if density == 1.0:
        assert small == network


def test_small_dense_breaks_ties_downwards(monkeypatch):
    monkeypatch.setitem(
        models.MODELS, "thin", lambda sample, classes, width: models.mlp((1, max(1, round(2 * width)), 1))
    )
    thin = Network("thin", (1,), 1)
    # (1, 1, 1) has 2 weights and (1, 2, 1) has 4: 3 lies between them, and 1 below.
    for wanted, found in ((1, 2), (2, 2), (3, 2), (4, 4)):
        assert models.weight_count(models.small_dense(thin, wanted)) == found


def test_models_refuse_bad_arguments():
    with pytest.raises(ValueError, match=r"two or more sizes, each at least 1, got \(3, 0\)"):
        models.mlp((3, 0))
    with pytest.raises(ValueError, match="unknown model 'vgg'; known are lenet_300_100, wide_mlp"):
        Network("vgg", (784,), 10)
    with pytest.raises(ValueError, match="width > 0, got 0"):
        Network("vgg_like", COLOUR, 10, 0)
    with pytest.raises(ValueError, match=r"weights in 1 \.\.\. 266200 \(the large network's\), got 266201"):
        models.small_dense(Network("lenet_300_100", GRAY, 10), 266_201)
    with pytest.raises(ValueError, match=r"resnet: expected samples of shape .* got \(40,\)"):
        models.build(Network("resnet20", (40,), 10), 0)
    with pytest.raises(ValueError, match=r"lenet5_caffe: .* 16 pixels a side at least, got \(1, 8, 8\)"):
        models.build(Network("lenet5_caffe", (1, 8, 8), 10), 0)
    with pytest.raises(ValueError, match=r"a depth of 6n \+ 4 \(10, 16, 22, ...\), got 18"):
        models.wrn(18, 4, COLOUR)
