"""``sparseprune show``: what mask files keep, layer by layer, and what they have in common."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparseprune._summary import table
from sparseprune.experiments import models
from sparseprune.experiments.cli import mask_file, options, tables
from sparseprune.experiments.networks import label_of
from sparseprune.experiments.show.layers import Layer, layers_of, pixels_of
from sparseprune.format import files
from sparseprune.select.overlap import Overlap, overlap

WIDTH = 120  # of tables, where the output is no terminal
LEAST = ("shape", "weights", "log10 paths", "alive", "kept")  # columns that go first where there is no room


@dataclass(frozen=True)
class Shown:
    """One file: its name in tables and pictures, content and layers; why their paths are unknown, or ""."""

    path: Path
    label: str
    content: Mapping[str, Any]
    layers: Sequence[Layer]
    why_unknown: str

    @property
    def masks(self) -> Mapping[str, Tensor]:
        return self.content["masks"]


def show(
    masks: Annotated[
        list[Path], typer.Argument(metavar="MASKS...", help="Files from `sparseprune prune --out`.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Picture to write (PNG).")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODULE:FUNCTION",
            help="Your function that made the network, if it is one of yours: it is called, which no file "
            "may decide.",
        ),
    ] = None,
    paths: Annotated[
        bool, typer.Option("--paths/--no-paths", help="Run the network to count what is on a path.")
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Print what mask files keep in each layer, what of it is alive, and how much they have in common.

    A weight is alive if it lies on a path from the input to the output of the pruned network. The overlap of
    two files is the number of weights that both keep over that of weights that either keeps, beside what
    random masks of the same densities have in common. No data are needed.
    """
    if out is not None:
        files.check(out)
    contents = [mask_file.read(path, model) for path in masks]
    for path, content in zip(masks, contents, strict=True):
        _check_same(masks[0], contents[0], path, content)
    shown = [
        _shown(path, label, content, paths)
        for path, label, content in zip(masks, _labels(masks, contents), contents, strict=True)
    ]
    pairs = [(a, b, *overlap(a.masks, b.masks)) for a, b in itertools.combinations(shown, 2)]
    if out is not None:
        _draw(shown, out)
    if as_json:
        typer.echo(json.dumps(_json(shown, pairs, out)))
        return
    console = tables.console(WIDTH)
    for one in shown:
        _print(one, console)
        if one.why_unknown:
            tables.print_line(console, f"alive: unknown ({one.why_unknown})")
        console.print()
    if pairs:
        tables.print_line(console, "overlap: kept by both / kept by either (random masks)")
        console.print(_overlaps(pairs, [layer.name for layer in shown[0].layers]))
    if out is not None:
        typer.echo(f"picture saved in {tables.shown(out)}")


def _check_same(first: Path, wanted: Mapping[str, Any], path: Path, content: Mapping[str, Any]) -> None:
    def shapes(of: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(mask.shape) for name, mask in of["masks"].items()}

    if wanted["text"] != content["text"] or shapes(wanted) != shapes(content):
        raise ValueError(
            f"show: expected masks of one network, got {wanted['text']} in {first} and {content['text']} in "
            f"{path}, which cannot be compared layer by layer; show them one by one"
        )


def _labels(paths: Sequence[Path], contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Methods and sparsities; names of files too where these are the same."""
    labels = [label_of(of["method"], of["sparsity"], of["block"]) for of in contents]
    often = Counter(labels)
    return [
        f"{label} ({tables.shown(path.name)})" if often[label] > 1 else label
        for path, label in zip(paths, labels, strict=True)
    ]


def _shown(path: Path, label: str, content: Mapping[str, Any], paths: bool) -> Shown:
    network = content["network"]
    if network is None:
        layers, _ = layers_of(content["masks"], None, ())
        return Shown(
            path,
            label,
            content,
            layers,
            "give the function that made the network as --model" if paths else "",
        )
    built = models.build(network, 0) if paths else None
    return Shown(path, label, content, *layers_of(content["masks"], built, network.sample))


def _draw(shown: Sequence[Shown], out: Path) -> None:
    from sparseprune.experiments.show.plot import save_picture

    images = [pixels_of(one.masks, one.content["sample"]) for one in shown]
    known = [image for image in images if image is not None]
    sets = [(one.label, one.layers) for one in shown]
    save_picture(sets, known if len(known) == len(shown) else [], shown[0].content["text"], out)


def _json(
    shown: Sequence[Shown],
    pairs: Sequence[tuple[Shown, Shown, dict[str, Overlap], Overlap]],
    out: Path | None,
) -> dict[str, Any]:
    return {
        "files": [
            {
                "file": str(one.path),
                "label": one.label,
                "network": one.content["text"],
                "layers": [dataclasses.asdict(layer) for layer in one.layers],
                "why_unknown": one.why_unknown or None,
            }
            for one in shown
        ],
        "overlaps": [
            {
                "files": [str(a.path), str(b.path)],
                "layers": {name: of._asdict() for name, of in layers.items()},
                "all": total._asdict(),
            }
            for a, b, layers, total in pairs
        ],
        "out": None if out is None else str(out),
    }


def _print(one: Shown, console: Console) -> None:
    """A line for each layer, red where the network is cut."""
    layers = one.layers
    weights, kept = sum(layer.weights for layer in layers), sum(layer.kept for layer in layers)
    alive = [layer.alive for layer in layers if layer.alive is not None]
    dead = [layer.dead_units for layer in layers if layer.dead_units is not None]
    total = sum(alive) if len(alive) == len(layers) else None
    columns = {
        "layer": [*(layer.name for layer in layers), "total"],
        "shape": [*("x".join(map(str, layer.shape)) for layer in layers), ""],
        "weights": [*(f"{layer.weights:,}" for layer in layers), f"{weights:,}"],
        "kept": [*(f"{layer.kept:,}" for layer in layers), f"{kept:,}"],
        "density": [*(_percent(layer.kept, layer.weights) for layer in layers), _percent(kept, weights)],
        "alive": [*(table.count(layer.alive) for layer in layers), table.count(total)],
        "density alive": [
            *(_percent(layer.alive, layer.weights) for layer in layers),
            _percent(total, weights),
        ],
        "dead units": [
            *(
                f"all {layer.dead_units:,}" if layer.alive == 0 else table.count(layer.dead_units)
                for layer in layers
            ),
            f"{sum(dead):,}" if len(dead) == len(layers) else "-",
        ],
        "log10 paths": [
            *("-" if layer.log10_paths is None else f"{layer.log10_paths:.2f}" for layer in layers),
            "",
        ],
    }
    tables.print_line(console, f"{one.path}: {one.label}, {one.content['text']}")
    shown = table.Table(columns, len(layers), [], whole="--json")
    lines = table.text(shown, shown, console.width, least=LEAST).split("\n")
    cut = [layer.kept == 0 or layer.alive == 0 for layer in layers]
    for line, red in itertools.zip_longest(lines, [False, False, *cut], fillvalue=False):
        console.print(line, style="bold red" if red else None, highlight=False, markup=False, soft_wrap=True)


def _overlaps(
    pairs: Sequence[tuple[Shown, Shown, dict[str, Overlap], Overlap]], names: Sequence[str]
) -> Table:
    """A line for each pair and layer would be long: a column for each pair."""
    shown = Table(box=SIMPLE_HEAD, show_footer=True, show_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("layer", footer="total")
    for a, b, _, total in pairs:
        shown.add_column(f"{a.label},\n{b.label}", justify="right", footer=_overlap(total))
    for name in names:
        shown.add_row(name, *(_overlap(layers[name]) for _, _, layers, _ in pairs))
    return shown


def _overlap(of: Overlap) -> str:
    return f"{of.jaccard:.3f} ({of.expected:.3f})"


def _dead(layer: Layer) -> str:
    return f"all {layer.dead_units:,}" if layer.alive == 0 else table.count(layer.dead_units)


def _percent(part: int | None, whole: int) -> str:
    return "-" if part is None else f"{part / max(whole, 1):.2%}"
