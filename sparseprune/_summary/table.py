"""Tables of text that fit a width, and the same in HTML."""

import textwrap
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

LEFT = ("layer", "shape", "block", "computes")  # the others are numbers
# Columns that go first where there is no room, and how many of a name are worth one.
LEAST = ("weights", "block", "bytes", "shape", "FLOPs", "dead units", "alive")  # of a summary
NAME, SHORTEST = 32, 12

# Colours are the notebook's own, light or dark.
STYLE = """<style>
.sparseprune-summary { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.sparseprune-summary :is(th, td) { padding: 0.2em 0.8em; text-align: right; white-space: nowrap; }
.sparseprune-summary :is(th, td).left { text-align: left; }
.sparseprune-summary :is(thead, tbody) { border-bottom: 1px solid rgba(128, 128, 128, 0.6); }
.sparseprune-notes { margin: 0.4em 0.8em; }
</style>"""


class Table(NamedTuple):
    """Cells of text.

    Attributes:
        columns: cells by heading, names first.
        rows: how many cells of a column are those of layers; totals follow.
        notes: sentences below.
        whole: what has the columns for which there is no room.
    """

    columns: dict[str, list[str]]
    rows: int
    notes: list[str]
    whole: str = "to_dict()"


def count(n: int | None) -> str:
    return "-" if n is None else f"{n:,}"


def rounded(n: int | None) -> str:
    """Three digits of a large number: 23,592,960 is 23.6 M."""
    if n is None or n < 10_000:
        return count(n)
    power = next(power for power in range(1, 7) if n < 999.5 * 1000**power)
    return f"{n / 1000**power:.3g} {' kMGTPE'[power]}"


def shortened(names: list[str], width: int) -> list[str]:
    """Dotted names with initials in place of their first parts, as many as bring them to a width.

    What tells layers apart mostly stands at the end; numbers stay, and names of as many parts have as many
    initials. What is still too long is cut in the middle.
    """
    short = {name: name.split(".") for name in names}
    for size in {len(parts) for parts in short.values()}:
        alike = [name for name, parts in short.items() if len(parts) == size]
        for initials in range(size):
            if max(len(".".join(short[name])) for name in alike) <= width:
                break
            short |= {name: _with_initials(name.split("."), initials) for name in alike}
    return [_cut(".".join(short[name]), width) for name in names]


def _with_initials(parts: list[str], first: int) -> list[str]:
    return [part if part.isdigit() else part[:1] for part in parts[:first]] + parts[first:]


def _cut(name: str, width: int) -> str:
    end = (width - 1) * 2 // 3
    return name if len(name) <= width else f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def text(full: Table, brief: Table, width: int, least: Sequence[str] = LEAST) -> str:
    """The full table if it fits, otherwise as much of the brief one as fits.

    Args:
        full, brief: two forms of a table.
        width: characters of a line.
        least: headings of the columns that go first.
    """
    table = full if _width(full.columns) <= width else _narrowed(brief, width, least)
    widths = [_cells_width(head, cells) for head, cells in table.columns.items()]
    sides = ["<" if head in LEFT else ">" for head in table.columns]
    lines = [
        "  ".join(f"{cell:{side}{size}}" for cell, side, size in zip(line, sides, widths, strict=True))
        for line in zip(*([head, *cells] for head, cells in table.columns.items()), strict=True)
    ]
    rule = "-" * len(lines[0])
    notes = [line for note in table.notes for line in textwrap.wrap(note, width, subsequent_indent="  ")]
    lines = [lines[0], rule, *lines[1 : 1 + table.rows], rule, *lines[1 + table.rows :], *notes]
    return "\n".join(line.rstrip() for line in lines)


def html(table: Table) -> str:
    sides = [' class="left"' if head in LEFT else "" for head in table.columns]

    def line(cells: tuple[str, ...], tag: str) -> str:
        inside = (f"<{tag}{side}>{escape(cell)}</{tag}>" for cell, side in zip(cells, sides, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    lines = [line(cells, "td") for cells in zip(*table.columns.values(), strict=True)]
    parts = [
        STYLE,
        '<table class="sparseprune-summary">',
        f"<thead>{line(tuple(table.columns), 'th')}</thead>",
        "<tbody>",
        *lines[: table.rows],
        "</tbody>",
        "<tfoot>",
        *lines[table.rows :],
        "</tfoot>",
        "</table>",
        *(f'<p class="sparseprune-notes">{escape(note)}</p>' for note in table.notes),
    ]
    return "\n".join(parts)


def _narrowed(table: Table, width: int, least: Sequence[str]) -> Table:
    columns, left_out = dict(table.columns), []
    wanted = min(_cells_width("layer", columns["layer"]), NAME)

    def room() -> int:
        """What the other columns leave to names."""
        return width - _width({head: cells for head, cells in columns.items() if head != "layer"}) - 2

    for head in least:
        if room() >= wanted:
            break
        if columns.pop(head, None) is not None:
            left_out.append(head)
    names = columns["layer"]
    columns["layer"] = [*shortened(names[: table.rows], max(room(), SHORTEST)), *names[table.rows :]]
    note = [f"no room for {', '.join(left_out)}: {table.whole} has all"] if left_out else []
    return table._replace(columns=columns, notes=[*table.notes, *note])


def _width(columns: dict[str, list[str]]) -> int:
    """Of a line, with two spaces between columns."""
    return sum(_cells_width(head, cells) for head, cells in columns.items()) + 2 * (len(columns) - 1)


def _cells_width(head: str, cells: list[str]) -> int:
    return max(map(len, (head, *cells)))
