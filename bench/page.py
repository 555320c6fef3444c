"""One self-contained HTML page of a results file: ``python -m bench.page RESULTS.jsonl``."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer
from matplotlib.figure import Figure

from bench import network_plots, plots, report
from bench.rows import OK, Row
from bench.workloads import CONV_BATCH, CONVOLUTIONS, NETWORK_STEP

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 66rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; height: auto; display: block; margin: .6rem auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem .15rem 0; text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child, td.text, td.left { text-align: left; }
td.text { white-space: normal; color: #666; }
thead th { border-bottom: 1px solid #999; }
tr.case th { padding-top: .9rem; text-align: left; }
tr.own td { background: #eef5fb; }
.met { color: #00704a; } .missed { color: #b23c00; font-weight: 600; }
.warning { background: #fff4e5; border-left: 4px solid #e69f00; padding: .4rem .8rem; }
summary { cursor: pointer; margin: .5rem 0; } .scroll { overflow-x: auto; } .note { color: #555; }
"""


def write(results: Path, page: Path) -> None:
    """Write the page of a results file.

    Args:
        results: JSONL, as ``python -m bench.run --out`` writes it.
        page: HTML to write.
    Raises:
        ValueError: the file has no header.
    """
    with results.open(encoding="utf-8") as lines:
        page.write_text(html([json.loads(line) for line in lines]), encoding="utf-8")


def html(lines: Sequence[dict[str, Any]]) -> str:
    """The page, from the objects of a results file."""
    header = next((line for line in lines if line.get("type") == "header"), None)
    if header is None or "contender" not in header:
        raise ValueError("expected results of `python -m bench.run --out`, got lines without a full header")
    rows = [
        Row.from_dict({name: value for name, value in line.items() if name != "type"})
        for line in lines
        if line["type"] == "row"
    ]
    targets = [line for line in lines if line["type"] == "target"]
    threads = sorted({row.threads for row in rows})
    title = f"sparseprune benchmarks, {header['machine']['date']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _machine(header, rows),
        "<h2>Targets</h2>",
        _targets(targets, header["contender"]),
        "<h2>Speed-up against sparsity</h2>",
        _note(
            f"Linear layers, batch 256, and convolutions, batch {CONV_BATCH}: {header['contender']} over the "
            "strongest dense contender of the same precision, both axes logarithmic. The dotted line is the "
            "speed-up if time fell with the number of weights. V: weights are kept in blocks of V outputs by "
            "one input. batch-inner: activations are (features, batch) or (channels, height, width, batch) "
            "in memory, row-major: (batch, features) or (batch, channels, height, width)."
        ),
        _plots(rows, header, threads, "speedups"),
        *_networks(rows, header, threads),
        "<h2>Roofline</h2>",
        _note(
            "Operations count kept weights only: two for each weight and sample, times three in a training "
            "step. Bytes count what a call cannot do without, each once: values, one 4-byte index for each "
            "block, input and output; in a step also the gradients of values, input and output. Lines are "
            "what one core reached in a probe: fused multiply-adds in registers; one vector loaded from L1 "
            "for each of them, which limits V=1; and reading from L2 and from beyond it."
        ),
        _plots(rows, header, threads[:1], "roofline"),
        "<h2>Break-even sparsity</h2>",
        _note(
            "The sparsity at which sparse and the strongest dense of the same precision take the same time. "
            "Filled: interpolated between two measured sparsities, logarithmically. Open: sparse is faster "
            "at every measured sparsity; time is continued in proportion to the number of weights, which "
            "overstates it, so the true break-even lies further left."
        ),
        _plots(rows, header, threads, "break_evens"),
        "<h2>Losses</h2>",
        _losses(rows, header["contender"]),
        "<h2>All results</h2>",
        _note(report.LEGEND),
        _results(rows, header),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _machine(header: dict[str, Any], rows: Sequence[Row]) -> str:
    settings = header["settings"]
    words = [
        *str(report.header_text(header)).strip().split("\n"),
        f"threads {', '.join(map(str, settings['threads']))}; {settings['seconds']:g} s of timing for a case"
        + (f"; only workloads that match {settings['filter']}" if settings["filter"] else ""),
        "Every contender is verified against float64 before it is timed; they take turns; times are medians.",
        *str(report.strongest_text(rows)).strip().split("\n"),
    ]
    busy = {row.case for row in rows if _busy(row)}
    cases = len({row.case for row in rows})
    warning = (
        f'<p class="warning">{len(busy)} of {cases} cases were measured while other '
        "processes kept more than a tenth of a processor busy: do not trust their figures.</p>"
        if busy
        else ""
    )
    return warning + "<p>" + "<br>".join(map(escape, words)) + "</p>"


def _targets(targets: Sequence[dict[str, Any]], contender: str) -> str:
    """A line for each target, a column for each number of threads."""
    counts = sorted({target["threads"] for target in targets})
    by_target: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for target in targets:
        key = (target["says"], target["over"], target["at_least"])
        by_target.setdefault(key, {})[target["threads"]] = target
    head = ["target", "over", "at least", *map(_threads, counts)]
    lines = []
    for (says, over, at_least), found in by_target.items():
        cells = []
        for count in counts:
            one = found.get(count)
            measured = one and one["measured"]
            text = "" if one is None else ("not measured" if measured is None else f"{measured:.2f}×")
            kind = "" if one is None or measured is None else f' class="{one["verdict"]}"'
            cells.append(f"<td{kind}>{text}</td>")
        lines.append(
            f'<tr><td>{escape(says)}</td><td class="left">{escape(over)}</td><td>{at_least:g}×</td>'
            f"{''.join(cells)}</tr>"
        )
    met = sum(target["verdict"] == "met" for target in targets)
    known = sum(target["measured"] is not None for target in targets)
    return (
        f"<p>{escape(contender)}: {met} of {known} measured targets are met "
        f"({len(targets) - known} were not measured in this run).</p>" + _table(head, lines)
    )


def _table(head: Iterable[str], lines: Iterable[str]) -> str:
    headings = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f'<div class="scroll"><table><thead><tr>{headings}</tr></thead><tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def _plots(rows: Sequence[Row], header: dict[str, Any], threads: Sequence[int], name: str) -> str:
    """The figures of one kind, one for each number of threads, linear layers before convolutions."""
    parts = []
    groups = {"": plots.LINEAR, "convolutions, ": CONVOLUTIONS}
    for of, kinds in groups.items():
        # Convolutions are measured at high sparsities alone: too far from where they break even.
        if of and (name == "break_evens" or not any(row.workload.kind in kinds for row in rows)):
            continue
        for count in threads:
            layers = plots.layers(rows, header["contender"], count, kinds)
            if name == "roofline":
                figure = plots.roofline(layers, header["peak"])
            else:
                figure = plots.speedups(layers) if name == "speedups" else plots.break_evens(layers)
            parts.append(_figure(figure, name.replace("_", "-"), f"{of}{_threads(count)}"))
    return "".join(parts)


def _networks(rows: Sequence[Row], header: dict[str, Any], threads: Sequence[int]) -> list[str]:
    """The section of whole convolutional networks, where there are any."""
    measured = [row for row in rows if row.workload.kind == NETWORK_STEP]
    if not measured:
        return []
    parts = [
        "<h2>Convolutional networks</h2>",
        _note(
            "A whole training step: forward, backward and SGD with momentum, batch "
            f"{measured[0].workload.batch}; {header['contender']}, as sp.sparsify leaves the network, over "
            "the faster of NCHW and channels_last dense. uniform: every layer but the first convolution at "
            "that sparsity, at random. global SNIP: all weights ranked together, which keeps many weights of "
            "the early convolutions, and these cost the most operations. Dotted: the speed-up if time fell "
            "with the operations."
        ),
    ]
    for count in threads:
        if any(row.threads == count for row in measured):
            figure = network_plots.networks(measured, header["contender"], count)
            parts.append(_figure(figure, "networks", _threads(count)))
    return parts


def _figure(figure: Figure | None, name: str, words: str) -> str:
    if figure is None:
        return _note(f"{words}: this run has not measured enough for the plot.")
    return f"<h3>{words}</h3>" + image(figure, f"{name}, {words}")


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def image(figure: Figure, words: str) -> str:
    """A figure as an SVG within the page; ``words`` for those who cannot see it."""
    with matplotlib.rc_context({"svg.hashsalt": words}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(words)}" src="data:image/svg+xml;base64,{code}">'


def _losses(rows: Sequence[Row], contender: str) -> str:
    found = report.losses(rows, contender)
    words = "slower than the strongest dense contender of the same precision (topk: than numpy)"
    lines = [
        f'<tr><td>{escape(row.case)}</td><td>{factor:.2f}×</td><td class="text">{_busy(row)}</td></tr>'
        for row, factor in sorted(found, key=lambda loss: loss[1])
    ]
    if not found:
        return f"<p>{escape(contender)} is {words} in no case.</p>"
    return f"<p>{escape(contender)} is {words} in these cases:</p>" + _table(["case", "speed-up", ""], lines)


def _busy(row: Row) -> str:
    return "the machine was busy" if (row.others or 0.0) > report.BUSY else ""


def _results(rows: Sequence[Row], header: dict[str, Any]) -> str:
    """All rows: a folded table for each kind of workload and shape."""
    parts = []
    columns = report.columns(header["peak"])
    for (kind, shape), group in itertools.groupby(
        sorted(rows, key=lambda row: (row.workload.kind, row.workload.shape)),
        lambda row: (row.workload.kind, row.workload.shape),
    ):
        members = list(group)
        shown = {
            heading: show
            for heading, show in columns.items()
            if any(show(row) for row in members if row.status == OK)
        }
        lines = []
        for case, of_case in itertools.groupby(members, lambda row: row.case):
            lines.append(f'<tr class="case"><th colspan="{len(shown) + 2}">{escape(case)}</th></tr>')
            lines += [_result(row, shown) for row in of_case]
        head = ["contender", "ms", *(heading.replace("\n", " ") for heading in shown)]
        cases = len({row.case for row in members})
        parts.append(
            f"<details><summary>{escape(kind)}, {escape(shape)} ({cases} cases)</summary>"
            + _table(head, lines)
            + "</details>"
        )
    return "\n".join(parts)


def _result(row: Row, shown: dict[str, Any]) -> str:
    kind = ' class="own"' if row.family == "own" else ""
    if row.seconds is None:
        return (
            f'<tr{kind}><td>{escape(row.contender)}</td><td class="text" colspan="{len(shown) + 1}">'
            f"{escape(row.status)}: {escape(row.reason)}</td></tr>"
        )
    cells = "".join(f"<td>{escape(show(row))}</td>" for show in shown.values())
    return f"<tr{kind}><td>{escape(row.contender)}</td><td>{row.seconds * report.MILLI:.3f}</td>{cells}</tr>"


def main(
    results: Annotated[Path, typer.Argument(help="JSONL that `python -m bench.run --out` wrote.")],
    out: Annotated[Path | None, typer.Option(help="HTML to write; beside the results by default.")] = None,
) -> None:
    """Write one HTML page with the plots and tables of a benchmark run."""
    page = out or results.with_suffix(".html")
    write(results, page)
    typer.echo(page)


if __name__ == "__main__":
    typer.run(main)
