"""What works with models of other libraries, from committed results of ``python -m bench.models``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench import ledger
from bench.ledger import Row
from bench.models.catalogue import MODELS
from bench.models.run import YES
from bench.report.machine import machine_text
from bench.report.markdown import pipe
from bench.report.tables.registry import RESULTS, table

FILE = RESULTS / "models" / "models.jsonl"
SPARSIFIES = "sparsifies"  # its remark counts layers: it is shown in place of "yes"


def models(rows: Sequence[Row]) -> str:
    """A line for each model and a cell for each column, "yes" or a reason below the table."""
    order = {model.name: place for place, model in enumerate(MODELS)}
    rows = sorted(rows, key=lambda row: order.get(row["key"]["model"], len(order)))
    columns = list(rows[0]["result"]["cells"])
    notes: dict[str, int] = {}
    lines = []
    for row in rows:
        result = row["result"]
        line = [f"`{row['key']['model']}`", f"{result['weights']:,} of {result['parameters']:,}"]
        for column in columns:
            cell = result["cells"][column]
            if column == SPARSIFIES and cell["is"] == YES:
                line.append(_layers(cell["remark"]))
                continue
            note = ""
            if remark := _without_names(cell["remark"]):
                note = f" [{notes.setdefault(remark, len(notes) + 1)}]"
            line.append(f"{cell['is']}{note}")
        lines.append(line)
    below = [f"{number}. {_escaped(remark)}" for remark, number in notes.items()]
    return "\n\n".join([pipe(["model", "prunable", *columns], lines), "\n".join(below), _facts(rows)])


def _layers(remark: str) -> str:
    """ "13 of 14 layers sparse; 1 depthwise" as "13 of 14"."""
    return remark.partition(" layers")[0]


def _without_names(remark: str) -> str:
    """An error of prune up to the layers that it lists, which are others in each model."""
    return re.sub(r"'.*", "...", remark) if "as typed" in remark else remark


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def _facts(rows: Sequence[Row]) -> str:
    """Processor and versions, each that occurs."""
    versions = dict.fromkeys(
        f"{library} {row['result']['version']}"
        for row in rows
        if (library := row["key"]["model"].partition("/")[0]) not in ("torch", "sparseprune")
    )
    machines = dict.fromkeys(machine_text(row["machine"]) for row in rows)
    return f"{', '.join(versions)}. {'; '.join(machines)}, {max(row['machine']['date'] for row in rows)}."


_rows = ledger.read(FILE)
if _rows:
    table("models")(lambda: models(_rows))
