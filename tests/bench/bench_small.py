"""Workloads that take milliseconds, contenders, and a clock that stands still, for the tests of bench."""

from rich.console import Console

from bench import rows, suite
from bench.contenders import Contender, one_layer
from bench.workloads import Workload


def transformer(does, model, **more):
    sizes, optimizer = (1, 6, 128), "adamw-fused" if does == "step" else ""
    same = {"mask": "random-layer", "optimizer": optimizer, "model": model, "slow": True}
    return Workload(f"transformer-{does}", sizes, 0.25, 4, **same, **more)


TINY = (
    Workload("linear-step", (24, 16), 0.25, 8),
    Workload("linear-forward", (24, 16), 0.25, 8),
    Workload("linear-step", (24, 16), 0.25, 8, layout="batch-inner"),
    Workload("linear-forward", (24, 16), 0.25, 8, layout="batch-inner", mask="snip"),
    Workload("model-step", (40, 24, 16, 4), 0.5, 8, optimizer="adam-fused"),
    Workload("model-step", (40, 24, 16, 4), 0.5, 8, mask="snip-layer", optimizer="adam"),
    Workload("prune", (40, 24, 16, 4), 0.5, 8, mask="snip", optimizer="adam-fused"),
    Workload("topk", (40, 24, 16, 4), 0.25),
    Workload("linear-step", (24, 16), 0.25, 8, block=4),
    Workload("linear-forward", (24, 16), 0.25, 1, block=16, layout="batch-inner"),
    Workload("linear-step", (24, 16), 0.25, 8, dtype="bfloat16"),
    Workload("linear-forward", (24, 16), 0.25, 8, dtype="bfloat16", layout="batch-inner"),
    Workload("conv-step", (8, 16, 5), 0.25, 16, kernel=3, layout="batch-inner"),
    Workload("conv-step", (8, 16, 5), 0.25, 16, kernel=3),
    Workload("conv-step", (8, 16, 5), 0.25, 16, block=4, kernel=1, layout="batch-inner"),
    Workload("conv-step", (8, 16, 5), 0.25, 16, kernel=3, dtype="bfloat16", layout="batch-inner"),
    Workload("conv-forward", (8, 16, 5), 0.25, 16, kernel=3, stride=2, layout="batch-inner"),
    Workload("conv-forward", (8, 16, 5), 0.25, 1, kernel=3),
    Workload("network-step", (1, 8, 8), 0.5, 4, mask="uniform", optimizer="sgd", model="resnet8", slow=True),
    Workload("network-step", (1, 8, 8), 0.5, 4, 2, mask="uniform", optimizer="sgd", model="resnet8"),
    Workload("network-step", (1, 8, 8), 0.5, 4, mask="snip", optimizer="sgd", model="resnet8"),
    Workload("network-forward", (1, 8, 8), 0.5, 4, mask="uniform", model="resnet8", slow=True),
    transformer("step", "bert"),
    transformer("step", "gpt2", block=4),
    transformer("forward", "vit"),
    Workload("rewire-step", (24, 16), 0.25, 8),
)

STEP = TINY[0]

BATCH_INNER = TINY[2]

CONV = next(w for w in TINY if w.kind == "conv-step" and w.layout == "batch-inner")

NETWORK = next(w for w in TINY if w.kind == "network-step")

NO_PEAK = (None, "no compiler")


class Ticker:
    """A clock that stands still unless a contender moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def step(self, *seconds):
        """A call that takes these times in turn."""
        turns = iter(seconds * 1000)
        return lambda: setattr(self, "now", self.now + next(turns))


def contender(name, make, family="peer", kinds=("linear-step",)):
    return Contender(name, kinds, make, family)


def row_of(workload, name, threads=1, **more):
    case = suite.case_id(workload, threads)
    more = {"family": "", "note": "", "threads": threads, **more}
    return rows.Row(id=f"{case}/{name}", case=case, workload=workload, contender=name, **more)


def honest(problem):
    return one_layer(problem, problem.layer)


def run_one(contenders, workload=STEP, **options):
    (found,) = suite.run([workload], contenders, [1], 0.0, fewest_blocks=1, **options)
    return {row.contender: row for row in found}


def text_of(renderable, width=200):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()
