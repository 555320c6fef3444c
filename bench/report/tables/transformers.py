"""Blocks of transformers, from committed runs of ``bench.run --filter ^transformer``, one for each model."""

from __future__ import annotations

from collections.abc import Callable

from bench.report.markdown import factor, pipe
from bench.report.tables.registry import RESULTS, run, table, transformer_run
from bench.report.tables.speed import machine
from bench.report.terminal import strongest
from bench.results_file import Results
from bench.rows import OK, Row, best_dense, speedup_over
from bench.suite import case_id
from bench.targets import TRANSFORMER_BLOCKS
from bench.workloads import SEQUENCES, TRANSFORMER_FORWARD, TRANSFORMER_STEP, Workload, transformers

MODELS = {"bert": "BERT", "vit": "ViT-B/16", "gpt2": "GPT-2"}
KINDS = {TRANSFORMER_STEP: "training step", TRANSFORMER_FORWARD: "evaluation"}
DENSITIES = (0.10, 0.05)
HEADS = (f"{TRANSFORMER_BLOCKS} blocks", "90 %", "95 %", "90 % in 4×1 blocks", "95 % in 4×1 blocks")

# The row of a contender whose name is sparseprune's and an ending, or that of another one.
Find = Callable[[str], Row | None]


def _over(over: str, ending: str = "") -> Callable[[Find], str]:
    def cell(own: Find) -> str:
        row = own(ending)
        return "" if row is None else factor(speedup_over(row, over))

    return cell


def _over_own_float32(own: Find) -> str:
    other, row = own(""), own("-bfloat16")
    if other is None or row is None or not other.seconds or not row.seconds:
        return ""
    return factor(other.seconds / row.seconds)


def _milliseconds(own: Find) -> str:
    row = own("")
    return "" if row is None or not row.seconds else f"{1e3 * row.seconds:.0f} ms"


CELLS: dict[str, Callable[[Find], str]] = {
    "float32": _milliseconds,
    "... over dense float32 as it is by default": _over("dense-float32"),
    "... over the fastest dense float32": _over(best_dense("float32")),
    "... over the fastest dense bfloat16": _over(best_dense("bfloat16")),
    "with torch.compile, over the fastest dense float32": _over(best_dense("float32"), "-compiled"),
    "in bfloat16, over the fastest dense bfloat16": _over(best_dense("bfloat16"), "-bfloat16"),
    "in bfloat16, over the same in float32": _over_own_float32,
}


def of_run(results: Results) -> list[list[str]]:
    """A line for each model, what it does and what that is compared with; none for what was not measured."""
    threads, own = max(results.header["settings"]["threads"]), results.header["contender"]
    rows = {row.id: row for row in results.rows if row.status == OK}

    def of(workload: Workload) -> Find:
        return lambda ending: rows.get(f"{case_id(workload, threads)}/{own}{ending}")

    lines = []
    for model, name in MODELS.items():
        found = list(transformers(model, TRANSFORMER_BLOCKS, DENSITIES))
        batch, tokens = SEQUENCES[model]
        for kind, does in KINDS.items():
            head = f"{name}, {batch} × {tokens} tokens, {does}, "
            for words, cell in CELLS.items():
                cells = [cell(of(workload)) for workload in found if workload.kind == kind]
                if any(cells):
                    lines.append([words if words.startswith("...") else head + words, *cells])
    return lines


@table("transformers")
def transformer_blocks() -> str:
    """The runs of all models, the machines that they ran on, and which dense contenders were the fastest."""
    files = [file for model in MODELS if (RESULTS / (file := transformer_run(model))).exists()]
    if not files:
        return pipe(HEADS, [["not measured yet", *[""] * (len(HEADS) - 1)]])
    lines = [line for file in files for line in of_run(run(file))]
    machines = "; ".join(dict.fromkeys(machine(file) for file in files))
    fastest = strongest([row for file in files for row in run(file).rows], "float32")
    counts = ", ".join(f"`{name}` in {count} cases" for name, count in fastest.items())
    return f"{pipe(HEADS, lines)}\n\n{machines}. The fastest dense float32: {counts}."
