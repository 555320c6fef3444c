"""The picture of the region in which pruning before training pays: accuracy on mosaics of many settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.mosaic.points import (
    BASE,
    CONV,
    DENSE_POINT,
    FEW,
    FTEST,
    PRUNED,
    SAME,
    SETTINGS,
    SMALL,
    SNIP,
    TOLD,
    TOLD_POINT,
    Point,
)
from bench.mosaic.results import accuracies
from bench.report.plots.methods import LOOKS
from bench.report.plots.style import tidy
from sparseprune.experiments.mosaic.theme import THEMES, Theme, blank
from sparseprune.experiments.mosaic.theme import save as write

# Colour and marker of what is not pruned; "" is the page's text colour. The others are those of `LOOKS`.
OTHERS = {
    DENSE_POINT.label: ("", "*"),
    SMALL[1].label: ("", "x"),
    FTEST.label: ("#D55E00", "^"),
    CONV: ("#CC79A7", "v"),
    TOLD: ("#E69F00", "P"),
}
POINTS = (DENSE_POINT, *FEW)
# What SNIP must be above, or a dense network would have done.
TO_BEAT = (DENSE_POINT, SMALL[1])
PANELS = {
    "samples": ("training samples", lambda n: f"{n / 1000:g} k"),
    "jitter": ("images are moved in their tiles by up to ... pixels", lambda n: f"{n:g}"),
    "informative": ("tiles that carry the label", lambda n: f"{n:g}"),
}
LOGARITHMIC = ("samples", "informative")
# Beside the bars there is less room than in the legend.
SHORT = {
    SMALL[1].label: "small dense",
    FTEST.label: "F-test",
    TOLD_POINT.label: "told the tiles",
    "small convolutional": "convolutional",
}
HEADLINE = "Where pruning before training pays, and where it does not"
HEIGHT, HEAD = 7.6, 0.85  # inches: of the picture, and of the lines above the panels
SHADED = LOOKS["snip"][0]
SHADE = {"": 0.16, "-dark": 0.42}  # opacity, by theme


def save(runs: pandas.DataFrame, folder: Path) -> list[Path]:
    """Draw a panel for each thing that varies, and one for the task in which no pixel says a thing.

    Lines are means over the seeds, bars one standard deviation. Where SNIP is above both dense and small
    dense, the room between is shaded.

    Args:
        runs: see `bench.mosaic.results.read`; what has no run is left out.
        folder: of the pictures region.png and region-dark.png.
    Returns:
        the pictures.
    """
    pictures = []
    for theme in THEMES:
        figure = blank(HEIGHT, theme, HEADLINE, _note(runs))
        engine = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - HEAD / HEIGHT))
        figure.set_layout_engine(engine)
        panels = figure.subplots(2, 2).ravel()
        for panel, (name, (words, text)) in zip(panels, PANELS.items(), strict=False):
            _lines(panel, runs, name, theme)
            _axis(panel, runs, name, words, text)
        _bars(panels[3], runs, theme)
        for panel in panels:
            _coloured(panel, theme)
        handles: list[Any] = [Line2D([], [], label=point.label, **_style(point, theme)) for point in POINTS]
        shade = Patch(
            color=LOOKS["snip"][0], alpha=SHADE[theme.suffix], label="snip above dense and small dense"
        )
        figure.legend(
            handles=[*handles, shade],
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8.5,
            labelcolor=theme.text,
        )
        pictures.append(folder / f"region{theme.suffix}.png")
        write(figure, pictures[-1])
    return pictures


def means(runs: pandas.DataFrame, point: Point, name: str) -> pandas.DataFrame:
    """Accuracy in % of a network, "mean" and "std" over seeds, at the settings that differ in one field.

    Returns:
        a row for each value of the field that has runs, rising.
    """
    found = {}
    for setting in SETTINGS:
        if set(setting.differences) <= {name} and len(of := accuracies(runs, point.label, setting)):
            found[getattr(setting, name)] = {"mean": of.mean(), "std": of.std() if len(of) > 1 else 0.0}
    return pandas.DataFrame.from_dict(found, orient="index", columns=["mean", "std"]).sort_index()


def _note(runs: pandas.DataFrame) -> str:
    seeds = runs["seed"].nunique()
    return (
        "40,000 inputs, hidden layers of 1,000. One thing varies at a time, from "
        f"{BASE.samples:,} samples and one tile that says the label and stays\nin its place. "
        f"Means of {seeds} seeds (of dense, but for the start, one), with standard deviations."
    )


def _lines(panel: Axes, runs: pandas.DataFrame, name: str, theme: Theme) -> None:
    for point in POINTS:
        line, style = means(runs, point, name), _style(point, theme)
        panel.plot(line.index, line["mean"], **style)
        panel.errorbar(
            line.index, line["mean"], line["std"], fmt="none", ecolor=style["color"], elinewidth=0.8
        )
    snip = means(runs, SNIP, name)["mean"]
    others = pandas.concat([means(runs, point, name)["mean"] for point in TO_BEAT], axis=1)
    best = others.dropna().max(axis=1)
    shared = snip.index.intersection(best.index)
    panel.fill_between(
        shared,
        best[shared],
        snip[shared],
        where=snip[shared] > best[shared],
        interpolate=True,
        color=SHADED,
        alpha=SHADE[theme.suffix],
        linewidth=0,
    )


def _axis(panel: Axes, runs: pandas.DataFrame, name: str, words: str, text: Callable[[float], str]) -> None:
    if name in LOGARITHMIC:
        panel.set_xscale("log")
    places = sorted({getattr(setting, name) for setting in SETTINGS})
    panel.xaxis.set_major_locator(FixedLocator(places))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda place, _: text(place)))
    panel.set_xlabel(words)
    panel.set_ylabel("test accuracy (%)")
    panel.set_ylim(0, 100)


def _bars(panel: Axes, runs: pandas.DataFrame, theme: Theme) -> None:
    """Accuracy where the label says whether two tiles show the same class; a line at chance."""
    for place, point in enumerate(reversed(POINTS)):
        if len(found := accuracies(runs, point.label, SAME)):
            colour = _style(point, theme)["color"]
            deviation = found.std() if len(found) > 1 else 0.0
            panel.barh(place, found.mean(), color=colour, xerr=deviation, ecolor=theme.faint, height=0.7)
            panel.text(found.mean() + deviation + 1, place, f"{found.mean():.0f}", va="center", fontsize=8.5)
    panel.axvline(50, color=theme.faint, linewidth=0.9, linestyle=":")
    names = [SHORT.get(point.label, point.label) for point in reversed(POINTS)]
    panel.set_yticks(range(len(POINTS)), names)
    panel.set_xlim(0, 100)
    panel.set_xlabel("are two tiles of one class? test accuracy (%)")


def _style(point: Point, theme: Theme) -> dict[str, Any]:
    name = point.method if point.kind == PRUNED else point.kind
    label = point.label if point.label in OTHERS else name
    assert label is not None
    colour, marker = OTHERS.get(label) or LOOKS[label]
    colour = colour or theme.text
    return {
        "color": colour,
        "marker": marker,
        "markersize": 8 if marker == "*" else 5,
        "linewidth": 2.4 if point == SNIP else 1.3,
        "linestyle": "-" if point.kind in (PRUNED, DENSE_POINT.kind) else "--",
        "markerfacecolor": colour,
    }


def _coloured(panel: Axes, theme: Theme) -> None:
    tidy(panel)
    panel.set_facecolor(theme.page)
    panel.tick_params(colors=theme.text, labelsize=8.5)
    panel.xaxis.label.set_color(theme.text)
    panel.yaxis.label.set_color(theme.text)
    for text in panel.texts:
        text.set_color(theme.text)
    for side in panel.spines.values():
        side.set_color(theme.line)
