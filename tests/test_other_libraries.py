"""Models of transformers, timm and torchvision, where installed: what docs/models.md says of them holds."""

import pytest

from bench import ledger
from bench.models.catalogue import MODELS
from bench.models.checks import CHECKS
from bench.models.libraries import load
from bench.models.model import Model
from bench.models.run import PRUNES, YES
from bench.models.trial import pruned, unscored
from bench.report.tables.models import FILE

RESULTS = {row["key"]["model"]: row["result"]["cells"] for row in ledger.read(FILE)}
# The others take tens of seconds.
COLUMNS = ("sparsifies", "equals masked dense", "saves and loads")


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(m, id=m.name)
        for m in MODELS
        if m.name in RESULTS and m.library not in ("torch", "sparseprune")
    ],
)
def test_a_model_does_what_the_table_says(model: Model) -> None:
    if not model.is_installed:
        pytest.skip(f"{model.library} is not installed")
    load(model.library)
    cells = RESULTS[model.name]
    if cells[PRUNES]["is"] == YES:
        trial, remark = pruned(model)
        assert bool(remark) == bool(cells[PRUNES]["remark"])
    else:
        with pytest.raises(ValueError, match="expected a loss that depends on every weight"):
            pruned(model)
        trial = unscored(model)
    for column in COLUMNS:
        if cells[column]["is"] == YES:
            # It counts the layers that have sparse kernels.
            assert CHECKS[column].sparse(trial) == cells[column]["remark"]
