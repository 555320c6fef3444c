import dataclasses
import functools
import re

import pytest
import torch
from bench_small import (
    BATCH_INNER,
    NETWORK,
    STEP,
    TINY,
    Ticker,
    contender,
    honest,
    run_one,
    text_of,
    transformer,
)

import sparseprune as sp
from bench import rows, suite
from bench.contenders import CONTENDERS, Runnable, dense, one_layer, own
from bench.report import terminal
from bench.rows import FAILED, OK, UNAVAILABLE, WRONG
from bench.timing import HostClock

# Images of 8 x 8 leave taps of kernels unused: their scores are 0, and position decides about them.
OWN = f"sparseprune-{sp.ops.info()['isa']}"

pytestmark = pytest.mark.filterwarnings("ignore:prune. expected scores that tell weights apart")


@pytest.mark.parametrize("workload", TINY, ids=lambda w: w.id)
def test_every_contender_is_right_or_says_why_it_cannot_run(workload):
    fitting = [c for c in CONTENDERS.values() if c.applies(workload)]
    found = run_one(fitting, workload)
    assert set(found) == {c.name for c in fitting}
    for row in found.values():
        assert row.status in (OK, UNAVAILABLE), (row.contender, row.reason)
        assert (row.seconds is not None) == (row.status == OK)
        assert bool(row.reason) == (row.status == UNAVAILABLE)


@pytest.fixture
def all_sparse(monkeypatch):
    """Tiny layers are faster dense; here they are sparse."""
    monkeypatch.setattr(sp, "sparsify", functools.partial(sp.sparsify, layers="sparse"))


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("model", ["bert", "vit", "gpt2"])
@pytest.mark.parametrize("does", ["step", "forward"])
def test_transformers_of_sparse_layers_are_right(does, model, block):
    found = run_one([CONTENDERS[OWN]], transformer(does, model, block=block))[OWN]
    assert found.status == OK, found.reason
    if does == "step":
        *layers, head = found.facts["layers"]
        assert (set(layers), head) == ({"sparse"}, "dense")


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("does", ["step", "forward"])
def test_transformers_in_bfloat16_are_right_or_say_why_not(does, monkeypatch):
    workload = transformer(does, "vit")
    names = {"dense-bfloat16", "dense-bfloat16-autocast", f"{OWN}-bfloat16"}
    contenders = [CONTENDERS[name] for name in names]
    reason = "no bfloat16 on this processor"
    for home in (dense, own):
        monkeypatch.setattr(home, "no_bfloat16", lambda: [reason])
    assert {row.reason for row in run_one(contenders, workload).values()} == {reason}
    for home in (dense, own):
        monkeypatch.setattr(home, "no_bfloat16", list)
    found = run_one(contenders, workload)
    assert set(found) == names
    for row in found.values():
        assert row.status == OK, (row.contender, row.reason)
        # What float32 is verified with is refused: it is bfloat16 indeed.
        assert max(row.errors.values()) > 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("all_sparse")
# Torch's own, of what it imports to compile.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_transformers_are_right():
    workload = dataclasses.replace(transformer("step", "bert"), sizes=(2, 6, 128))
    names = ("dense-float32-compiled", f"{OWN}-compiled")
    assert not any(CONTENDERS[name].applies(transformer("step", "bert")) for name in names)
    for row in run_one([CONTENDERS[name] for name in names], workload).values():
        assert row.status in (OK, UNAVAILABLE), row.reason
        assert row.status == OK or "needs a C++ compiler" in row.reason


@pytest.mark.usefixtures("all_sparse")
def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler --flag")
    workload = dataclasses.replace(transformer("step", "bert"), sizes=(2, 6, 128))
    names = ("dense-float32-compiled", f"{OWN}-compiled")
    for row in run_one([CONTENDERS[name] for name in names], workload).values():
        assert row.status == UNAVAILABLE
        assert row.reason == "torch.compile needs a C++ compiler; there is no no-such-compiler"


def test_verification_catches_a_single_wrong_weight():
    def wrong(problem):
        with torch.no_grad():
            problem.layer.weight[0, 0] += 0.01
        return one_layer(problem, problem.layer)

    row = run_one([contender("wrong", wrong)])["wrong"]
    assert row.status == WRONG
    assert row.seconds is None
    assert re.match(r"y: relative error \d\.\de-0\d, accepted are 1e-05", row.reason)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.full((8, 16), torch.nan), "relative error nan"),
        (torch.zeros(8, 1), r"expected shape \[8, 16\], got \[8, 1\]"),
        (torch.zeros(16, 8).t(), r"expected a row-major tensor, got strides \[1, 8\]"),
    ],
)
def test_verification_says_what_is_wrong(answer, message):
    row = run_one([contender("wrong", lambda problem: Runnable(lambda: None, lambda _: {"y": answer}))])[
        "wrong"
    ]
    assert row.status == WRONG
    assert re.search(message, row.reason)


def test_the_layout_asked_for_is_that_of_the_workload_and_dense_contenders_are_free():
    def make(problem):
        runnable = honest(problem)
        return dataclasses.replace(
            runnable, answer=lambda y: {k: v.contiguous() for k, v in runnable.answer(y).items()}
        )

    found = run_one(
        [contender("own", honest), contender("peer", make), contender("dense", make, family="dense")],
        BATCH_INNER,
    )
    assert found["own"].status == WRONG  # nn.Linear returns row-major y whatever x is
    assert "y: expected a batch-inner tensor, got strides [16, 1]" in found["peer"].reason
    assert "d_x: expected a batch-inner tensor" in found["peer"].reason
    assert found["dense"].status == OK
    assert CONTENDERS["dense-float32-batch-inner"].applies(BATCH_INNER)
    assert not CONTENDERS["dense-float32-batch-inner"].applies(STEP)


def test_a_contender_without_an_answer_is_wrong():
    row = run_one([contender("silent", lambda problem: Runnable(lambda: None, lambda _: {}))])["silent"]
    assert (row.status, row.reason) == (WRONG, "no answer")


def test_a_contender_that_cannot_run_is_a_row_with_its_reasons():
    def missing(problem):
        return ["not installed", "needs a licence"]

    def broken(problem):
        raise RuntimeError("no such shape")

    found = run_one([contender("missing", missing), contender("broken", broken), contender("honest", honest)])
    assert (found["missing"].status, found["missing"].reason) == (
        UNAVAILABLE,
        "not installed; needs a licence",
    )
    assert (found["broken"].status, found["broken"].reason) == (FAILED, "RuntimeError: no such shape")
    assert found["honest"].status == OK
    printed = text_of(terminal.case_table(list(found.values())))
    assert "missing: unavailable: not installed; needs a licence" in printed
    assert "broken: failed: RuntimeError: no such shape" in printed


def test_slow_workloads_run_with_the_most_threads_alone():
    same = contender("same", lambda problem: ["not here"], kinds=("network-step", "linear-step"))
    cases = [found[0].case for found in suite.run([NETWORK, STEP], [same], [2, 1], 0.0)]
    assert cases == [f"{NETWORK.id}/threads=2", f"{STEP.id}/threads=2", f"{STEP.id}/threads=1"]


def test_rows_have_the_median_of_a_known_clock_and_the_speedup_over_dense():
    clock = Ticker()

    def taking(*seconds):
        def make(problem):
            runnable = honest(problem)
            wait = clock.step(*seconds)
            return dataclasses.replace(runnable, call=lambda: (wait(), runnable.call())[1])

        return make

    contenders = [
        contender("dense-float32", taking(1.0), family="dense"),
        contender("dense-float32-other", taking(0.5), family="dense"),
        contender("slower", taking(4.0)),
        contender("faster", taking(0.25)),
    ]
    (found,) = suite.run([STEP], contenders, [1], 6.0, fewest_blocks=2, clock=HostClock(clock))
    by_name = {row.contender: row for row in found}
    assert by_name["slower"].seconds == 4.0
    assert by_name["slower"].q3 == by_name["slower"].q1 == 4.0
    assert by_name["slower"].speedup == {"dense-float32": 0.25, "dense-float32-other": 0.125}
    assert rows.speedup_over(by_name["slower"], rows.best_dense("float32")) == 0.125
    assert rows.speedup(by_name["faster"]) == 2.0
    assert by_name["faster"].kept_flops == 2 * 3 * 8 * 96  # two operations, three products, batch, weights
    # values, x and y, each with its gradient; an index for each weight
    assert by_name["faster"].kept_bytes == 2 * 4 * (96 + 8 * 24 + 8 * 16) + 4 * 96

    printed = text_of(terminal.case_table(found))
    assert re.search(r"slower +4000\.000 +0\.000 +0\.25 +0\.12", printed)
    assert "slower in 1 of 1 cases" in str(terminal.losses_text(found, "slower"))
    assert f"{found[0].case}: 0.12" in str(terminal.losses_text(found, "slower"))
    assert "faster in 0 of 1 cases" in str(terminal.losses_text(found, "faster"))
