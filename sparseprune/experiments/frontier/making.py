"""The networks of a frontier's points: built, pruned, in the faster memory layout; and what that took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from sparseprune._controls import shuffled_masks
from sparseprune.cost.flops import flops_costs
from sparseprune.cost.seconds import measured_costs
from sparseprune.cost.speedup import faster_layout
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset, FirstBatches
from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.frontier.results import Layer
from sparseprune.experiments.frontier.rules import check_budget, masks_within, small_dense, total_of
from sparseprune.experiments.models import Network
from sparseprune.scores import prunable, scorer
from sparseprune.select.budget import EXPONENT, LayerCost, scores_for


@dataclass(frozen=True)
class Made:
    """An untrained network.

    Attributes:
        model: what is trained.
        network: its shape.
        prune_seconds: seconds of scoring, of selecting masks and of building the sparse layers.
        layers: layers that were pruned.
        channels_last: whether it has this memory format of images.
    """

    model: nn.Module
    network: Network
    prune_seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    layers: tuple[Layer, ...] = ()
    channels_last: bool = False


@dataclass
class Maker:
    """Makes the network of each point; scores of the last method, seed and width are kept for the next.

    Attributes:
        data: what scores the weights.
        network: the original network.
        batch_size: samples of a training step, and of a batch that is scored.
        prune_batches: number of batches that are scored.
        rescale: whether to scale the weights that stay.
        clock: function that returns seconds.
    """

    data: Dataset
    network: Network
    batch_size: int
    prune_batches: int
    rescale: bool
    clock: Callable[[], float]
    # Operations of each layer, by the factor of the width.
    _costs: dict[float, dict[str, LayerCost]] = field(init=False, default_factory=dict)
    # Costs in seconds, by block rows.
    _timed: dict[int, dict[str, LayerCost]] = field(init=False, default_factory=dict)
    # (method, seed, width), scores, seconds.
    _scored: tuple[tuple[str, int, float], dict[str, Tensor], float] | None = field(init=False, default=None)

    def check(self, points: Sequence[Point]) -> None:
        """Raise ValueError for FLOPs that no masks, and no narrower or wider network, can meet."""
        self._wider(1.0)
        for flops in dict.fromkeys(point.flops for point in points if point.kind == "small dense"):
            small_dense(self.network, flops)
        sparse = [point for point in points if point.kind == "sparse"]
        for width in dict.fromkeys(point.width for point in sparse):
            model = models.build(self._wider(width), 0)
            shapes = {name: weight.shape for name, weight in prunable(model).items()}
            for rows, flops in dict.fromkeys((p.block_rows, p.flops) for p in sparse if p.width == width):
                check_budget(shapes, self._costs_at(width), flops, (rows or 1, 1), self._whole)

    def make(self, point: Point) -> Made:
        """Build the point's network, and prune it if it is sparse."""
        if point.kind == "sparse":
            return self._pruned(point)
        network = small_dense(self.network, point.flops) if point.kind == "small dense" else self.network
        model = models.build(network, point.seed)
        model, channels_last, _ = faster_layout(model, self.data.sample, self.batch_size)
        return Made(model, network, channels_last=channels_last)

    @property
    def _whole(self) -> float:
        """Operations of the original network."""
        return total_of(self._costs_at(1.0))

    def _wider(self, width: float) -> Network:
        factor = self.network.width * width
        if factor != 1 and not self.network.has_width:
            raise ValueError(
                f"frontier: expected a network that takes a width, to make it {factor:g} times as wide; give "
                f"{self.network.name} a keyword width=1.0, a factor of its channels and hidden features"
            )
        return replace(self.network, width=factor)

    def _costs_at(self, width: float) -> dict[str, LayerCost]:
        if width not in self._costs:
            self._costs[width] = flops_costs(models.build(self._wider(width), 0), self.data.sample)
        return self._costs[width]

    def _scores(self, method: str, seed: int, width: float) -> tuple[dict[str, Tensor], float]:
        """Scores of the initial weights, and the seconds that they took."""
        if self._scored is None or self._scored[0] != (method, seed, width):
            model = models.build(self._wider(width), seed)
            batches = FirstBatches(self.data, self.batch_size, seed, self.prune_batches)
            start = self.clock()
            scores = dict(scores_for(method, scorer(method, seed=seed)(model, batches, F.cross_entropy)))
            self._scored = (method, seed, width), scores, self.clock() - start
        return self._scored[1:]

    def _pruned(self, point: Point) -> Made:
        assert point.method is not None
        assert point.rule is not None
        assert point.block_rows is not None
        scores, score_seconds = self._scores(point.method, point.seed, point.width)
        network = self._wider(point.width)
        model = models.build(network, point.seed)
        block = (point.block_rows, 1)
        if point.rule == "time" and point.block_rows not in self._timed:
            # Not charged: once for a network and a machine, as the kernels' measurements are.
            self._timed[point.block_rows] = measured_costs(
                model, self.data.sample, self.batch_size, block=block
            )
        costs, whole = self._costs_at(point.width), self._whole
        start = self.clock()
        masks = masks_within(
            point.rule,
            scores,
            costs,
            point.flops,
            block=block,
            exponent=EXPONENT if point.exponent is None else point.exponent,
            seconds=self._timed.get(point.block_rows),
            whole=whole,
        )
        if point.shuffled:
            masks = shuffled_masks(masks, point.seed)
        if self.rescale:
            sp.rescale_weights(model, masks)
        selected = self.clock()
        sparse = sp.sparsify(model, masks, batch_size=self.batch_size, input_size=self.data.sample)
        seconds = (score_seconds, selected - start, self.clock() - selected)
        layers = tuple(
            Layer(layer.name, layer.weights, layer.kept, f"{layer.computes} ({layer.choice})")
            for layer in sp.summary(sparse).rows
        )
        return Made(sparse, network, seconds, layers)
