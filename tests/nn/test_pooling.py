import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from bounds import Sums, assert_sums, assert_within, gamma
from torch import Tensor, nn

from sparseprune.nn.pooling import CLASSES, batch_inner_pool, ordinary_pool

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, dilation=(1, 2), ceil_mode=True),
    nn.AvgPool2d(3, stride=2, padding=1),
    nn.AvgPool2d((2, 3), ceil_mode=True, count_include_pad=False, padding=(0, 1)),
    nn.AvgPool2d(2, divisor_override=3),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((1, 1)),
    nn.AdaptiveAvgPool2d((3, None)),
]


def assert_pooled(pool: nn.Module, x: Tensor, y: Tensor, g: Tensor | None = None) -> None:
    """``y`` and the gradient of ``x``: exact maxima; means and gradients as sums of few terms."""
    wide = x.detach().double().requires_grad_()
    exact = pool(wide)
    # No more terms than an image has pixels, and a division.
    count = torch.tensor(x.shape[-2:].numel() + 1.0)
    if isinstance(pool, nn.MaxPool2d):
        assert torch.equal(y.double(), exact)
    else:
        assert_sums(y, Sums(exact.detach(), pool(wide.detach().abs()), count), "y")
    if g is not None:
        assert x.grad is not None
        wide_g = g.double()
        (d_x,) = torch.autograd.grad(exact, wide, wide_g, retain_graph=True)
        (terms,) = torch.autograd.grad(exact, wide, wide_g.abs())
        # Torch adds up overlapping windows, at most the 9 of a 3 x 3 kernel, in the dtype of storage.
        assert_within(x.grad, d_x, gamma(9 + 1, x.dtype) * terms + gamma(9 + 1, torch.float64) * terms)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """All numbers differ within a window, so that there is one maximum."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def batch_inner(x: Tensor) -> Tensor:
    """The same (N, C, H, W), as [C, H, W, N] in memory."""
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def is_batch_inner(x: Tensor) -> bool:
    return x.permute(1, 2, 3, 0).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(17, 3, 7, 6), (64, 1, 8, 8), (16, 2, 9, 4), (2, 5, 6, 6)], ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools_keep_batch_inner_activations_and_gradients(
    pool: nn.Module, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    ours = batch_inner_pool(pool)
    x = batch_inner(images(*shape, dtype=dtype)).requires_grad_()
    y = ours(x)
    assert is_batch_inner(y)
    g = images(*y.shape, dtype=dtype)
    (x.grad,) = torch.autograd.grad(y, x, batch_inner(g))
    assert is_batch_inner(x.grad)
    assert_pooled(pool, x, y, g)


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools_return_the_layout_that_was_asked_for(pool: nn.Module) -> None:
    ours = batch_inner_pool(pool)
    for samples in (1, 15, 16, 33):
        x = images(samples, 3, 8, 6)
        for given in (x, batch_inner(x), x.contiguous(memory_format=torch.channels_last)):
            for wanted in (True, False):
                ours.batch_inner = wanted
                y = ours(given)
                assert is_batch_inner(y) if wanted and samples >= 16 else y.is_contiguous()
                assert_pooled(pool, x, y)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda: images(3, 8, 6),
        lambda: images(17, 3, 8, 6),
        lambda: images(0, 3, 8, 6),
        lambda: images(17, 3, 16, 12)[:, :, ::2, ::2],
        lambda: images(17, 3, 8, 6).contiguous(memory_format=torch.channels_last),
    ],
)
def test_pools_leave_other_inputs_to_torch(pool: nn.Module, make: Callable[[], Tensor]) -> None:
    x = make()
    ours, expected = batch_inner_pool(pool)(x), pool(x)
    assert torch.equal(ours, expected)
    assert ours.stride() == expected.stride()


def test_max_pool_returns_indices() -> None:
    pool = nn.MaxPool2d(2, return_indices=True)
    x = images(17, 3, 8, 6)
    for ours, expected in zip(batch_inner_pool(pool)(batch_inner(x)), pool(x), strict=True):
        assert torch.equal(ours, expected)


def test_pools_refuse_what_torch_refuses() -> None:
    for x in (images(2, 3), batch_inner(images(17, 3, 1, 1))):
        messages = []
        for pool in (nn.MaxPool2d(3), batch_inner_pool(nn.MaxPool2d(3))):
            with pytest.raises(RuntimeError) as caught:
                pool(x)
            messages.append(str(caught.value).partition(":")[0])
        assert messages[0] == messages[1]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_batch_inner_pool_copies_and_goes_back(pool: nn.Module) -> None:
    seen: list[nn.Module] = []
    pool = copy.deepcopy(pool).eval()
    pool.register_forward_hook(lambda module, x, y: seen.append(module))
    ours = batch_inner_pool(pool)
    ours.batch_inner = True
    assert type(ours) is CLASSES[type(pool)]
    assert isinstance(ours, type(pool))
    ours(images(2, 3, 8, 6))
    assert seen == [ours]
    again = ordinary_pool(ours)
    assert type(again) is type(pool)
    assert again.__dict__ == pool.__dict__


@pytest.mark.parametrize("how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_pools_survive_copies_and_compile(how: Callable[[nn.Module], nn.Module]) -> None:
    torch._dynamo.reset()
    pools = nn.Sequential(batch_inner_pool(nn.MaxPool2d(2)), batch_inner_pool(nn.AdaptiveAvgPool2d(1)))
    pools[0].batch_inner = True
    copied = how(pools)
    assert copied[0].batch_inner is True
    compiled = torch.compile(copied, backend="aot_eager", fullgraph=True)
    for x in (images(17, 3, 8, 6), batch_inner(images(17, 3, 8, 6))):
        x.requires_grad_()
        expected, y = pools(x), compiled(x)
        assert torch.equal(y, expected)
        assert is_batch_inner(y)
        gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)]
        assert torch.equal(*gradients)
