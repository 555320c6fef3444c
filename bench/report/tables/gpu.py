"""The table of the model of a GPU, in which nothing was measured."""

from __future__ import annotations

from bench.gpu import model
from bench.report.markdown import pipe
from bench.report.tables.registry import table

COLUMNS = {
    "float32 over true float32": (model.Case("float32", "float32"), 1),
    "over TF32": (model.Case("float32", "tf32"), 1),
    "float16 over float16, V = 1": (model.Case("float16", "float16"), 1),
    "V = 8": (model.Case("float16", "float16"), 8),
    "V = 16": (model.Case("float16", "float16"), 16),
}


@table("gpu-model")
def gpu_model() -> str:
    """Break-even sparsities on the first device of the model."""
    lines = []
    for batch in (1, 256):
        layer = model.Layer(model.FEATURES, model.FEATURES, batch)
        found = [model.breakeven_model(model.GPUS[0], case, layer, block) for case, block in COLUMNS.values()]
        lines.append([str(batch), *("never" if one is None else f"{100 * one:.0f} %" for one in found)])
    return pipe(["batch", *COLUMNS], lines)
