"""Networks traced by ``torch.jit`` while gradients are enabled, beside the eager ones."""

import pytest
import torch
from transformed_networks import NETWORKS, like, noise


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_traced_networks_compute_and_train_as_eager_ones(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make().to(dtype)
    traced = torch.jit.trace(model, (noise(*shape, dtype=dtype),))

    for samples in (shape[0], shape[0] + 2) if "one image" not in name else (shape[0],):
        x = noise(samples, *shape[1:], seed=4, dtype=dtype).requires_grad_()
        inputs = (x, *model.parameters())
        y, eager = traced(x), model(x)
        assert torch.equal(y, eager)
        g = like(y, 5)
        of_traced, of_eager = torch.autograd.grad(y, inputs, g), torch.autograd.grad(eager, inputs, g)
        for one, other in zip(of_traced, of_eager, strict=True):
            assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_tracing_a_sparse_layer_warns_of_nothing(kind: str) -> None:
    make, shape = NETWORKS[kind]
    traced = torch.jit.trace(make(), (noise(*shape, dtype=torch.float32),))
    assert "sparseprune::" in str(traced.graph)
