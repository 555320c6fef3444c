import dataclasses
import json
import re

import pytest
import torch
import typer
from rich.console import Console

from bench import peak, problems, report, rows, run, targets, timing, workloads
from bench.contenders import CONTENDERS, Contender, Runnable, linear
from bench.rows import FAILED, OK, UNAVAILABLE, WRONG
from bench.workloads import WORKLOADS, Workload

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
)
STEP = TINY[0]
BATCH_INNER = TINY[2]
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
    case = rows.case_id(workload, threads)
    return rows.Row(f"{case}/{name}", case, workload, threads, name, "", "", **more)


def honest(problem):
    return linear(problem, problem.layer)


def run_one(contenders, workload=STEP, **options):
    (found,) = rows.run([workload], contenders, [1], 0.0, fewest_blocks=1, **options)
    return {row.contender: row for row in found}


def text_of(renderable):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize("workload", TINY, ids=lambda w: w.id)
def test_every_contender_is_right_or_says_why_it_cannot_run(workload):
    fitting = [c for c in CONTENDERS.values() if c.applies(workload)]
    found = run_one(fitting, workload)
    assert set(found) == {c.name for c in fitting}
    for row in found.values():
        assert row.status in (OK, UNAVAILABLE), (row.contender, row.reason)
        assert (row.seconds is not None) == (row.status == OK)
        assert bool(row.reason) == (row.status == UNAVAILABLE)


def test_verification_catches_a_single_wrong_weight():
    def wrong(problem):
        with torch.no_grad():
            problem.layer.weight[0, 0] += 0.01
        return linear(problem, problem.layer)

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
    printed = text_of(report.case_table(list(found.values())))
    assert "missing: unavailable: not installed; needs a licence" in printed
    assert "broken: failed: RuntimeError: no such shape" in printed


def test_ids_are_unique():
    ids = [
        f"{rows.case_id(workload, threads)}/{c.name}"
        for workload in WORKLOADS
        for threads in (1, 2)
        for c in CONTENDERS.values()
        if c.applies(workload)
    ]
    assert len(set(ids)) == len(ids)
    assert "linear-step/1024x1024/density=0.10/n=256/float32/threads=2/dense-float32" in ids
    unusual = "linear-forward/4096x4096/density=0.10/n=256/block=4/float32/batch-inner"
    assert f"{unusual}/threads=1/dense-float32-batch-inner" in ids
    assert {workload.id for workload in WORKLOADS} > workloads.QUICK


def test_targets_are_about_workloads_and_contenders_that_exist():
    kinds = {workload.id: workload.kind for workload in WORKLOADS}
    for target in targets.TARGETS:
        assert target.workload in kinds
        if target.over not in (rows.best_dense("float32"), rows.best_dense("bfloat16")):
            assert kinds[target.workload] in CONTENDERS[target.over].kinds


def test_every_contender_has_a_tolerance_for_what_it_computes():
    for workload in WORKLOADS:
        assert workload.kind in problems.BUILD
        for c in CONTENDERS.values():
            if c.applies(workload):
                assert (c.dtype or workload.dtype) in workloads.TOLERANCES[workload.kind]


def test_quartiles():
    assert timing.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    assert timing.quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert timing.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_share_out_gives_each_contender_the_same_time_and_the_slow_ones_a_few_calls():
    shares = timing.share_out({"fast": 0.001, "middling": 0.05, "slow": 5.0}, seconds=3.0, fewest_blocks=2)
    assert shares["fast"].calls == 20  # 20 ms
    assert shares["fast"].blocks == timing.MOST_BLOCKS  # one call of 21 untimed
    assert shares["middling"] == (1, 10)  # 1 s in blocks of 100 ms, half of it untimed
    assert shares["slow"] == (1, 2)


def test_interleaved_takes_turns_and_measures_what_passes():
    clock = Ticker()
    order = []

    def watched(name, step):
        return timing.Step(lambda: (order.append(name), step()))

    steps = {"a": watched("a", clock.step(1.0, 2.0, 6.0)), "b": watched("b", clock.step(2.0))}
    times = timing.interleaved(steps, seconds=9.0, fewest_blocks=3, clock=clock).seconds
    # One warm-up call each, as they are slow; a has 4.5 s of 1 s each, b's 3 calls are spread over that.
    assert times == {"a": [2.0, 6.0, 1.0, 2.0], "b": [2.0, 2.0, 2.0]}
    assert "".join(order[2:]) == "aababab"


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
    (found,) = rows.run([STEP], contenders, [1], 6.0, fewest_blocks=2, clock=clock)
    by_name = {row.contender: row for row in found}
    assert by_name["slower"].seconds == 4.0
    assert by_name["slower"].q3 == by_name["slower"].q1 == 4.0
    assert by_name["slower"].speedup == {"dense-float32": 0.25, "dense-float32-other": 0.125}
    assert rows.speedup_over(by_name["slower"], rows.best_dense("float32")) == 0.125
    assert rows.speedup(by_name["faster"]) == 2.0
    assert by_name["faster"].kept_flops == 2 * 3 * 8 * 96  # two operations, three products, batch, weights
    # values, x and y, each with its gradient; an index for each weight
    assert by_name["faster"].kept_bytes == 2 * 4 * (96 + 8 * 24 + 8 * 16) + 4 * 96

    printed = text_of(report.case_table(found))
    assert re.search(r"slower +4000\.000 +0\.000 +0\.25 +0\.12", printed)
    assert "slower in 1 of 1 cases" in str(report.losses_text(found, "slower"))
    assert f"{found[0].case}: 0.12" in str(report.losses_text(found, "slower"))
    assert "faster in 0 of 1 cases" in str(report.losses_text(found, "faster"))


def test_a_busy_machine_is_reported():
    row = row_of(STEP, "a", seconds=1.0, others=0.75)
    assert "others kept 0.75 processors busy" in text_of(report.case_table([row]))
    assert "busy" not in text_of(report.case_table([dataclasses.replace(row, others=0.01)]))


def test_outcomes_hold_speed_and_memory_against_the_targets(monkeypatch):
    def row(name, facts, speedup):
        return row_of(STEP, name, 2, speedup=speedup, facts=facts)

    held = {"parameters": 10, "gradients": 10, "optimizer": 20, "buffers": 7}
    few = {"parameters": 1, "gradients": 1, "optimizer": 2, "buffers": 90}
    found = [row("dense-float32", {"bytes": held}, {}), row("own", {"bytes": few}, {"dense-float32": 3.0})]
    aims = (
        targets.Target("speed", STEP.id, "dense-float32", 3.0),
        targets.Target("too fast", STEP.id, rows.best_dense("float32"), 4.0),
        targets.Target("memory", STEP.id, "dense-float32", 10.0, targets.MEMORY),
        targets.Target("one thread", STEP.id, "dense-float32", 1.0, threads=(1,)),
        targets.Target("other", "not run", "dense-float32", 1.0),
    )
    monkeypatch.setattr(targets, "TARGETS", aims)
    outcomes = targets.outcomes(found, "own", [2])
    assert [o.measured for o in outcomes] == [3.0, 3.0, 10.0, None]
    assert [o.verdict for o in outcomes] == ["met", "missed", "met", "not measured"]
    assert "missed" in text_of(report.targets_table(outcomes, "own"))


def test_run_prints_tables_and_writes_jsonl(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "WORKLOADS", TINY[:2])
    monkeypatch.setattr(peak, "measure", lambda: NO_PEAK)
    out = tmp_path / "results.jsonl"
    before = torch.get_num_threads()
    run.main(
        threads="1,2",
        seconds=0.0,
        filter="linear-step",
        contender="dense",
        quick=False,
        out=out,
        list_only=False,
    )
    assert torch.get_num_threads() == before
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    header, *rest = lines
    assert header["type"] == "header"
    assert header["machine"]["torch"] == torch.__version__
    found = [line for line in rest if line["type"] == "row"]
    assert [row["threads"] for row in found] == [1] * 5 + [2] * 5
    assert rows.Row.from_dict({k: v for k, v in found[0].items() if k != "type"}).workload == STEP
    assert header["no_peak"] == "no compiler"
    assert found[0]["id"] == "linear-step/24x16/density=0.25/n=8/float32/threads=1/dense-float32"
    assert found[0]["status"] == OK
    assert found[0]["seconds"] > 0
    assert {line["type"] for line in rest} == {"row", "target"}
    printed = capsys.readouterr().out
    assert "linear-step/24x16/density=0.25/n=8/float32/threads=2" in printed
    assert "none of them was measured" in printed


def test_run_refuses_what_it_cannot_do():
    options = {"seconds": 0.0, "contender": "", "quick": False, "out": None, "list_only": False}
    with pytest.raises(typer.BadParameter, match="no workload or no contender is left"):
        run.main(threads="1", filter="no such workload", **options)
    with pytest.raises(typer.BadParameter, match="expected different numbers like 1,2, got '1,1'"):
        run.main(threads="1,1", filter="", **options)
    with pytest.raises(typer.BadParameter, match="is not a regular expression"):
        run.main(threads="1", filter="(", **options)


def test_a_wrong_contender_fails_the_run(monkeypatch, capsys):
    wrong = contender("wrong", lambda problem: Runnable(lambda: None, lambda _: {}))
    monkeypatch.setattr(run, "WORKLOADS", TINY)
    monkeypatch.setattr(peak, "measure", lambda: NO_PEAK)
    monkeypatch.setattr(run, "CONTENDERS", {"wrong": wrong})
    with pytest.raises(typer.Exit) as caught:
        run.main(threads="1", seconds=0.0, filter="", contender="", quick=False, out=None, list_only=False)
    assert caught.value.exit_code == 1
    assert "wrong: no answer" in capsys.readouterr().out
