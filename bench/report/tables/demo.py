"""The table of what `make demo` shows, from the committed results of one run of it."""

from __future__ import annotations

import json

from bench.report.tables.registry import RESULTS, table
from sparseprune.experiments.mosaic import report


@table("demo")
def demo() -> str:
    """The networks at equal epochs, what the figures depend on, and the verdict."""
    content = json.loads((RESULTS / "demo" / "results.json").read_text(encoding="utf-8"))
    return f"**{report.title(content)}**\n\n{report.table(content)}\n\n{report.verdict(content)}"
