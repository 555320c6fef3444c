"""Networks as they are served, from a committed run of ``bench.run --filter 'resnet50|bert@12'``."""

from __future__ import annotations

from bench.report.markdown import factor, pipe
from bench.report.tables.registry import RESULTS, SERVING_RUN, run, table
from bench.report.tables.speed import machine
from bench.results_file import Results
from bench.rows import OK, best_dense, speedup_over
from bench.suite import case_id
from bench.workloads import NETWORK_FORWARD, Workload, served

NAMES = {"resnet50": "ResNet-50, 224×224", "bert": "BERT-base, 128 tokens"}
# The engines, and the contenders of which the faster one stands for it.
ENGINES = {
    "PyTorch": ("dense-float32", "dense-float32-nhwc", "dense-float32-onednn", "dense-float32-mkl"),
    "onnxruntime": ("dense-float32-onnxruntime",),
    "openvino": ("dense-float32-openvino",),
}
# Density and V.
OURS = {"90 %": (0.10, 1), "95 %": (0.05, 1), "90 % in 4×1 blocks": (0.10, 4)}
HEADS = ("one forward pass, ms", *(f"dense, {engine}" for engine in ENGINES), *OURS)


def of_run(results: Results) -> list[list[str]]:
    """A line for each network and batch that was measured."""
    threads, own = max(results.header["settings"]["threads"]), results.header["contender"]
    rows = {row.id: row for row in results.rows if row.status == OK}
    cases: dict[tuple[str, int], dict[tuple[float, int], Workload]] = {}
    for workload in sorted(served(), key=lambda w: (w.model != "resnet50", w.batch)):
        cases.setdefault((workload.model, workload.batch), {})[workload.density, workload.block] = workload
    lines = []
    for (model, batch), workloads in cases.items():

        def seconds(workload: Workload, contender: str) -> float:
            row = rows.get(f"{case_id(workload, threads)}/{contender}")
            return row.seconds if row is not None and row.seconds else float("inf")

        def ours(workload: Workload) -> str:
            ending = "-frozen" if workload.kind == NETWORK_FORWARD else ""
            row = rows.get(f"{case_id(workload, threads)}/{own}{ending}")
            if row is None or not row.seconds:
                return ""
            return f"{1e3 * row.seconds:.0f} ({factor(speedup_over(row, best_dense('float32')))})"

        first = workloads[OURS["90 %"]]
        dense = [min(seconds(first, name) for name in names) for names in ENGINES.values()]
        cells = [f"{1e3 * of:.0f}" if of < float("inf") else "" for of in dense]
        cells += [ours(workloads[key]) for key in OURS.values()]
        if any(cells):
            lines.append([f"{NAMES[model]}, batch {batch}", *cells])
    return lines


@table("serving")
def serving() -> str:
    """The networks, and the machine that they ran on."""
    if not (RESULTS / SERVING_RUN).exists():
        return pipe(HEADS, [["not measured yet", *[""] * (len(HEADS) - 1)]])
    return f"{pipe(HEADS, of_run(run(SERVING_RUN)))}\n\n{machine(SERVING_RUN)}."
