"""Random networks, sparsified and fused, beside the dense ones with zeros in place."""

import copy
from typing import Any

import torch
from bounds import assert_half_the_digits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparseprune as sp


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(x + self.inner(x))
        return y


def shifted(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """So that no channel is 0 but for roundings everywhere, where a ReLU might do either."""
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@st.composite
def convolutional(draw: st.DrawFn, channels: int, size: int) -> tuple[list[nn.Module], int, int]:
    """Some blocks of convolution, batch norm, ReLU, pooling, with channels and size of what comes out."""
    modules: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kernel = draw(st.sampled_from([1, 3]))
        out = draw(st.sampled_from([2, 4, 6]))
        stride = draw(st.sampled_from([1, 1, 2])) if size >= 4 else 1
        groups = draw(st.sampled_from([1, 1, 2])) if channels % 2 == 0 else 1
        bias = draw(st.booleans())
        modules.append(nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias))
        channels, size = out, (size - 1) // stride + 1
        if draw(st.booleans()):
            modules.append(shifted(nn.BatchNorm2d(channels)))
        if draw(st.booleans()):
            modules.append(nn.ReLU(inplace=draw(st.booleans())))
        if draw(st.booleans()):
            inner = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
            if draw(st.booleans()):
                inner.append(shifted(nn.BatchNorm2d(channels)))
            modules.append(Residual(inner, draw(st.sampled_from([nn.ReLU, nn.Identity]))()))
        if size >= 4 and draw(st.booleans()):
            modules.append(draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(2))
            size //= 2
    return modules, channels, size


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    modules: list[nn.Module] = []
    if draw(st.booleans()):
        size = draw(st.integers(3, 9))
        sample: tuple[int, ...] = (2, size, size)
        modules, channels, size = draw(convolutional(2, size))
        modules.append(nn.Flatten())
        features = channels * size * size
    else:
        features = draw(st.integers(1, 30))
        sample = (features,)
    for _ in range(draw(st.integers(0, 3))):
        out = draw(st.sampled_from([1, 5, 16, 32]))
        modules.append(nn.Linear(features, out, draw(st.booleans())))
        if draw(st.booleans()):
            modules.append(nn.ReLU())
        if draw(st.integers(0, 4)) == 0:
            modules.append(nn.LayerNorm(out))
        features = out
    return nn.Sequential(*modules, nn.Linear(features, 3)), sample


# In one vector each: some numbers are 0 but for roundings of the others.


def gradients(network: nn.Module, x: Tensor) -> Tensor:
    """Of the input and of all parameters that sparse layers leave as they are."""
    vectors = [p for p in network.parameters() if p.dim() == 1]
    return torch.cat([t.grad.flatten() for t in (x, *vectors) if t.grad is not None])


def statistics(network: nn.Module) -> Tensor:
    """Of batch norms."""
    found = [buffer.flatten() for name, buffer in network.named_buffers() if "running" in name]
    return torch.cat([torch.zeros(1, dtype=torch.float64), *found])


@given(st.data())
def test_random_networks_compute_as_dense_ones(data: st.DataObject) -> None:
    model, sample = data.draw(networks())
    model = model.double()
    density = data.draw(st.sampled_from([0.05, 0.3, 0.9]))
    masks = {
        name: torch.rand(p.shape) < density
        for name, p in model.named_parameters()
        if p.dim() > 1 and data.draw(st.integers(0, 4)) > 0
    }
    training, samples = data.draw(st.booleans()), data.draw(st.sampled_from([2, 5, 16, 19]))
    dense = copy.deepcopy(model).train(training)
    sp.apply_masks(dense, masks)
    options: dict[str, Any] = {"layers": data.draw(st.sampled_from(["sparse", "dense"]))}
    options["fuse"] = data.draw(st.booleans())
    sparse = sp.sparsify(model.train(training), masks, **options)
    results = []
    for network in (sparse, dense):
        x = torch.randn(samples, *sample, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y = network(x.requires_grad_())
        y.square().sum().backward()
        results.append({"y": y, "gradients": gradients(network, x), "statistics": statistics(network)})
    for name, expected in results[1].items():
        assert_half_the_digits(results[0][name], expected, name)
    for (name, parameter), expected in zip(
        sp.densify(sparse).named_parameters(), dense.parameters(), strict=True
    ):
        assert torch.equal(parameter, expected), name
