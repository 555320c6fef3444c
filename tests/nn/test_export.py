"""``torch.export`` of pruned networks for any number of samples."""

import io
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.nn.conv import FEW_SAMPLES

SAMPLES = (1, 2, FEW_SAMPLES - 1, FEW_SAMPLES, FEW_SAMPLES + 1, 40)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.pool, self.head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.head(self.pool(x).flatten(1))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), (2, 6)),
    "residual": (Residual, (3, 6, 6)),
    "down to one pixel": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 4, 2)),
        (3, 6, 6),
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0),
        (5, 8),
    ),
}  # fmt: skip


def pruned(name: str) -> nn.Module:
    torch.manual_seed(0)
    dense = NETWORKS[name][0]()
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    masks = sp.prune(dense, method="random", sparsity=0.5, scope="layer")
    return sp.sparsify(dense, masks, layers="sparse", batch_size=32).eval()


def saved_and_loaded(program: torch.export.ExportedProgram) -> Any:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize(
    ("name", "samples", "strict"),
    [*((name, 20, False) for name in NETWORKS), ("residual", 4, False), ("residual", 20, True)],
)
def test_a_network_exports_for_any_number_of_samples(name: str, samples: int, strict: bool) -> None:
    model, shape = pruned(name), NETWORKS[name][1]
    batch = torch.export.Dim("batch", min=1)
    given = (torch.randn(samples, *shape),)
    program = torch.export.export(model, given, dynamic_shapes=({0: batch},), strict=strict)
    module = saved_and_loaded(program)
    for n in SAMPLES:
        x = torch.randn(n, *shape)
        assert_half_the_digits(module(x), model(x))


@pytest.mark.parametrize("name", ["linear", "residual"])
def test_a_network_exports_for_a_dynamic_dimension(name: str) -> None:
    """Where torch would otherwise silently narrow the dimension to what the example takes."""
    model, shape = pruned(name), NETWORKS[name][1]
    given = (torch.randn(20, *shape),)
    program = torch.export.export(model, given, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for n in SAMPLES:
        x = torch.randn(n, *shape)
        assert_half_the_digits(program.module()(x), model(x))


def test_a_fixed_number_of_samples_keeps_the_layout_of_the_kernels() -> None:
    model = pruned("residual")
    text = {}
    for n in (FEW_SAMPLES - 1, FEW_SAMPLES):
        x = torch.randn(n, 3, 6, 6)
        program = torch.export.export(model, (x,))
        assert_half_the_digits(program.module()(x), model(x))
        calls = [node for node in program.graph.nodes if node.target == torch.ops.sparseprune.conv2d.default]
        text[n] = {node.args[-1] for node in calls}
    assert text == {FEW_SAMPLES - 1: {False}, FEW_SAMPLES: {True}}


def test_compiled_graphs_still_choose_by_the_number_of_samples() -> None:
    torch._dynamo.reset()
    model = pruned("residual")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (3, 20, 1):
        x = torch.randn(n, 3, 6, 6)
        assert_half_the_digits(compiled(x), model(x))
