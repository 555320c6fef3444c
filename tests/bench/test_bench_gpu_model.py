import pytest

from bench.gpu import model

SHAPES = [model.Layer(4096, 4096, batch) for batch in (1, 8, 256, 4096)]


@pytest.mark.parametrize("gpu", model.GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("case", model.CASES, ids="-".join)
@pytest.mark.parametrize("layer", SHAPES, ids=lambda layer: f"n={layer.batch}")
def test_model_is_monotone_and_its_break_even_is_where_the_times_meet(gpu, case, layer):
    crossings = []
    for block in model.BLOCKS:
        times = [
            model.sparse_seconds(gpu, case.sparse, layer, block, density)
            for density in (0.01, 0.02, 0.1, 0.5, 1.0)
        ]
        assert times == sorted(times)  # more weights are never predicted to be faster
        found = model.breakeven_model(gpu, case, layer, block)
        assert 0 < found < 1
        there = model.sparse_seconds(gpu, case.sparse, layer, block, 1 - found)
        assert there == pytest.approx(model.dense_seconds(gpu, case.dense, layer))
        crossings.append(found)
    assert crossings == sorted(crossings, reverse=True)  # larger blocks are never predicted to be slower


def test_model_by_hand():
    gpu, layer = model.GPUS[0], model.Layer(4096, 4096, 4096)
    # Both compute: 1 - (27 % of float32) / (80 % of the dense peak)
    found = model.breakeven_model(gpu, model.Case("float32", "float32"), layer, 1)
    assert found == pytest.approx(1 - 0.27 / 0.80, abs=1e-6)
    found = model.breakeven_model(gpu, model.Case("float16", "float16"), layer, 1)
    assert found == pytest.approx(1 - 0.27 * 19.5 / (0.80 * 312), abs=1e-6)
    # Both read weights: 4 bytes each, or 4 and an index
    one = model.Layer(4096, 4096, 1)
    found = model.breakeven_model(gpu, model.Case("float32", "float32"), one, 1)
    assert found == pytest.approx(0.5, abs=1e-6)


def test_model_says_never_where_activations_alone_take_longer():
    case = model.Case("float32", "float16")  # twice the bytes for x and y
    wide = model.Layer(16, 16, 100_000)
    assert model.breakeven_model(model.GPUS[0], case, wide, 1) is None
