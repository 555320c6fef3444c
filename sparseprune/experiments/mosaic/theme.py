"""Colours of pictures for a light and for a dark page, and how a figure becomes a PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparseprune.format import files

# Inches and dots per inch: 1660 pixels, sharp where 830 are shown.
WIDTH, DOTS = 8.3, 200
FIGURE_SPACE = "\u2007"  # as wide as a digit
MARGIN = 0.06  # inches left of the first lines


@dataclass(frozen=True)
class Theme:
    """What a picture is drawn in, so that it looks well on a page of that colour.

    Attributes:
        suffix: end of the file's name, before ".png".
        page, text, faint, line: background, words, lesser words, and lines that divide.
        accent: colour of what matters.
    """

    suffix: str
    page: str
    text: str
    faint: str
    line: str
    accent: str


THEMES = (
    Theme("", "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#d6453d"),
    Theme("-dark", "#0d1117", "#f0f6fc", "#9198a1", "#3d444d", "#ff7b72"),
)


def blank(height: float, theme: Theme, headline: str, note: str) -> Figure:
    """A figure that is empty but for its first lines, `WIDTH` inches wide and so many high."""
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS, facecolor=theme.page)
    FigureCanvasAgg(figure)
    left = MARGIN / WIDTH
    figure.text(left, 1 - 0.1 / height, headline, color=theme.text, fontsize=12.5, weight="bold", va="top")
    figure.text(left, 1 - 0.41 / height, note, color=theme.faint, fontsize=8.2, va="top", linespacing=1.3)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    figure.savefig(picture := io.BytesIO(), format="png", facecolor=figure.get_facecolor())
    files.write(path, picture.getvalue())
