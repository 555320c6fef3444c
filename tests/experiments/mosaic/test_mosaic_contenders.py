"""The networks of the demo, at a hundredth of their width."""

import pytest
import torch

pytest.importorskip("sklearn")

import sparseprune as sp
from sparseprune.experiments.data.mosaic import SIDE, mosaic
from sparseprune.experiments.models import Network, build
from sparseprune.experiments.mosaic import contenders
from sparseprune.experiments.mosaic.contenders import make_all

WIDTH, PIXELS = 0.05, SIDE * SIDE  # 50 hidden features
WEIGHTS = 40_000 * 50 + 2 * 50 * 50 + 50 * 10


@pytest.fixture(scope="module")
def data():
    return mosaic(120, 20, seed=1)


@pytest.fixture(scope="module")
def made(data):
    return make_all(data, 784, methods=("magnitude", "random", "snip"), width=WIDTH, batch_size=50)


def test_make_all_makes_each_network_with_its_weights(made):
    layerwise = 20_000 + 2 * 25 + 500  # 1 % of each layer, the last one whole
    assert [(one.contender.label, one.contender.kind, one.contender.weights) for one in made] == [
        ("dense", "dense", WEIGHTS),
        ("small dense, h = 1", "small dense", 40_000 + 1 + 1 + 10),
        ("small dense, h = 4", "small dense", 160_000 + 16 + 16 + 40),
        ("F-test 784 + small dense", "screened", 784 * 15 + 2 * 15 * 15 + 150),
        ("small convolutional", "conv", 49 + 2 * 25 + 2 * 144 * 10),  # of 1 and 2 channels
        ("magnitude 99 %", "sparse", layerwise),
        ("random 99 %", "sparse", layerwise),
        ("snip 99 %", "sparse", round(WEIGHTS * 0.01)),
    ]


def test_make_all_builds_networks_that_take_their_view_of_the_data(made, data):
    for one in made:
        view = one.contender.data or data
        assert one.contender.make()(view.train_x[:3].dense()).shape == (3, 10)


def test_make_all_prunes_the_network_that_dense_is(made):
    # Where weights stay they are the dense network's own, scaled to the norm of all of them.
    whole, pruned = made[0].contender.make(), sp.densify(made[-1].contender.make())
    stays = pruned[1].weight != 0
    scale = whole[1].weight.norm() / whole[1].weight[stays].norm()
    torch.testing.assert_close(pruned[1].weight[stays], scale * whole[1].weight[stays])
    torch.testing.assert_close(pruned[-1].weight, whole[-1].weight)


def test_kept_counts_first_layer_weights_per_pixel(made):
    kept = {one.contender.label: one.kept for one in made}
    assert kept["small convolutional"] is None
    assert torch.equal(kept["dense"], torch.full((PIXELS,), 50))
    assert torch.equal(kept["small dense, h = 4"], torch.full((PIXELS,), 4))
    assert kept["F-test 784 + small dense"].unique().tolist() == [0, 15]
    assert int((kept["F-test 784 + small dense"] > 0).sum()) == 784
    assert int(kept["magnitude 99 %"].sum()) == int(kept["random 99 %"].sum()) == 20_000
    first = sp.densify(made[-1].contender.make())[1].weight
    assert torch.equal(kept["snip 99 %"], (first != 0).sum(0))


def test_rescaled_weights_have_the_norm_of_all(data):
    def first_norm(rescale):
        one = make_all(data, 784, methods=("random",), width=WIDTH, batch_size=50, rescale=rescale)[-1]
        return sp.densify(one.contender.make())[1].weight.norm()

    whole = build(Network("article_mlp", data.sample, 10, width=WIDTH), 0)[1].weight.norm()
    assert first_norm(True).item() == pytest.approx(whole.item(), rel=1e-5)
    assert first_norm(False) < 0.2 * whole


def test_each_network_has_its_rate(data, monkeypatch):
    monkeypatch.setattr(contenders, "RATES", {"dense": 0.25, "random": 0.5})
    made = make_all(data, 784, methods=("random",), width=WIDTH, batch_size=50)
    assert [one.contender.lr for one in made] == [0.25, None, None, None, None, 0.5]
