"""One self-contained HTML page: what `page.html.j2` shows, with the JavaScript libraries in it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATE = Path(__file__).with_name("page.html.j2")


class Card(NamedTuple):
    """A figure of the first screen.

    Attributes:
        figure: such as "3.2×".
        says: what it is of.
        link: id of the section that has more, or nothing.
        tone: "good", "bad", or "" for what is neither.
    """

    figure: str
    says: str
    link: str = ""
    tone: str = ""


class Filter(NamedTuple):
    """A choice that charts and tables follow.

    Attributes:
        field: of the rows, and of ``data-`` attributes of the page's elements.
        label: what it is called.
        options: text of each value, in order.
        chosen: the value at first; None: all of them, which is then an option, too.
    """

    field: str
    label: str
    options: Mapping[Any, str]
    chosen: Any = None


class Chart(NamedTuple):
    """A chart and the words around it.

    Attributes:
        title: heading of its section.
        note: what is to be seen, and how.
        chart: drawn from `charts.rows_chart`.
        rows: which rows these are, a name.
        needs: field without which a row is not drawn, or "".
    """

    title: str
    note: str
    chart: alt.TopLevelMixin
    rows: str = "rows"
    needs: str = ""


def html(
    title: str,
    cards: Sequence[Card],
    filters: Sequence[Filter],
    charts: Sequence[Chart],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    template: Path = TEMPLATE,
    **content: Any,
) -> str:
    """The page.

    Args:
        title: heading of it all.
        cards, filters, charts: what is above the tables, in this order.
        rows: what charts draw, by name.
        template: the one of this folder, or one that extends it.
        content: what blocks of the template show besides: ``facts`` (lines on what figures depend on),
            ``tables`` (each with title, headings, rows of cells, and the number of columns of texts) and
            their ``legend``; or what an extending template takes.
    """
    templates = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATE.parents[1]]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # What a chart shows of a row keeps its order.
    templates.policies["json.dumps_kwargs"] = {}
    return templates.get_template(template.name).render(
        title=title,
        cards=cards,
        filters=filters,
        charts=charts,
        data={
            "charts": [
                {"spec": chart.chart.to_dict(), "rows": chart.rows, "needs": chart.needs} for chart in charts
            ],
            "rows": rows,
        },
        library=library(),
        **content,
    )


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and vega-embed in one script, in the version that altair writes for."""
    version = "_".join(alt.SCHEMA_VERSION.split(".")[:2])
    # Its type says that it needs a snippet of JavaScript, without which it returns all three.
    bundle: Any = vl_convert.javascript_bundle
    script: str = bundle(vl_version=version)
    return script.replace("</script", "<\\/script")
