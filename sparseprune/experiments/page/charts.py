"""What the charts of all pages have in common."""

from __future__ import annotations

from typing import Any

import altair as alt

# Okabe and Ito's colours, which people with colour blindness can tell apart, on light and dark ground.
COLOURS = ("#3d8fd1", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8f6bc9", "#56b4e9", "#8a8f98")
NARROW = "containerSize()[0] < 600"  # phones
POINT = 70  # square pixels


def rows_chart() -> alt.Chart:
    """A chart of the rows that the page's filters let through."""
    return alt.Chart(alt.NamedData("rows"))


def hover() -> alt.Tooltip:
    """What is told of a point: the fields of its row's ``hover``, in their order."""
    return alt.Tooltip("hover:N")


def columns(wide: int, narrow: int) -> alt.ExprRef:
    """Columns of a legend on a wide and on a narrow screen."""
    return alt.ExprRef(f"{NARROW} ? {narrow} : {wide}")


def colours(field: str, values: list[str], title: str, narrow: int = 2) -> alt.Color:
    """A colour for each value, the same whichever of them the filters let through."""
    legend = alt.Legend(title=title, orient="top", columns=columns(8, narrow), labelLimit=300)
    scale = alt.Scale(domain=values, range=[COLOURS[i % len(COLOURS)] for i in range(len(values))])
    return alt.Color(f"{field}:N").scale(scale).legend(legend)


def wide(chart: alt.LayerChart, height: Any) -> alt.LayerChart:
    """As wide as the page, whichever screen that is on."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    return chart.properties(width="container", height=height, autosize=fit)
