import dataclasses
import json
import re

import pytest
import torch
import torch.nn.functional as F
import typer
from bounds import assert_half_the_digits
from rich.console import Console

import sparseprune as sp
from bench import network_plots, page, peak, plots, problems, report, rows, run, targets, timing, workloads
from bench.breakeven import BreakEven, break_even
from bench.contenders import CONTENDERS, Contender, Runnable, one_layer
from bench.contenders.calls import kept_gradient
from bench.rows import FAILED, OK, UNAVAILABLE, WRONG
from bench.workloads import WORKLOADS, Workload
from sparseprune.experiments import models

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
    case = rows.case_id(workload, threads)
    return rows.Row(f"{case}/{name}", case, workload, threads, name, "", "", **more)


def honest(problem):
    return one_layer(problem, problem.layer)


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


@pytest.mark.parametrize("block", [1, 4])
def test_random_masks_have_whole_blocks_and_exactly_the_density(block):
    mask = problems.build(Workload("linear-forward", (24, 16), 0.25, 8, block=block)).mask
    assert int(mask.sum()) == 96
    assert mask.shape == (16, 24)
    blocks = mask.reshape(16 // block, block, 24)
    assert torch.equal(blocks.all(1), blocks.any(1))


def test_snip_masks_have_uneven_rows_and_columns():
    mask = problems.build(Workload("linear-forward", (64, 48), 0.25, 8, mask="snip")).mask
    assert int(mask.sum()) == 64 * 48 // 4
    assert mask.sum(0).double().std() > 2 * 48**0.5 / 2  # random columns: sqrt(48 * 0.25 * 0.75) = 3
    assert mask.sum(1).double().std() > 3


def test_problems_are_in_the_precision_and_layout_of_the_workload():
    workload = Workload("linear-step", (24, 16), 0.25, 8, dtype="bfloat16", layout="batch-inner")
    problem = problems.build(workload)
    assert problem.x.dtype == problem.g.dtype == problem.layer.weight.dtype == torch.bfloat16
    assert problem.x.stride() == problem.g.stride() == (1, 8)
    expected = problem.x.double() @ problem.layer.weight.double().t() + problem.layer.bias.double()
    assert_half_the_digits(problem.expected["y"], expected)
    assert not problem.layer.weight[~problem.mask].any()
    assert problem.kept_bytes == 2 * 2 * (96 + 8 * 24 + 8 * 16) + 4 * 96


def test_convolution_problems_are_a_padded_convolution_with_exactly_the_kept_weights():
    workload = Workload("conv-step", (8, 16, 5), 0.25, 16, 4, kernel=3, stride=2, layout="batch-inner")
    problem = problems.build(workload)
    assert workload.id == "conv-step/8x16@5x5-3x3-stride2/density=0.25/n=16/block=4/float32/batch-inner"
    assert problem.mask.shape == (16, 8, 3, 3)
    assert int(problem.mask.sum()) == 16 * 8 * 9 // 4
    blocks = problem.mask.reshape(4, 4, 8, 3, 3)
    assert torch.equal(blocks.all(1), blocks.any(1))
    assert not problem.layer.weight[~problem.mask].any()
    assert problem.x.shape == (16, 8, 5, 5)
    assert problem.g.shape == (16, 16, 3, 3)
    assert problem.x.stride() == (1, 5 * 5 * 16, 5 * 16, 16)
    assert problem.g.stride() == (1, 3 * 3 * 16, 3 * 16, 16)
    expected = F.conv2d(
        problem.x.double(), problem.layer.weight.double(), problem.layer.bias.double(), stride=2, padding=1
    )
    assert_half_the_digits(problem.expected["y"], expected)
    kept = 16 * 8 * 9 // 4
    assert problem.kept_flops == 2 * 3 * kept * 16 * 3 * 3  # two operations, three products, samples, pixels
    assert problem.dense_flops == 4 * problem.kept_flops
    numbers = kept + 16 * 8 * 5 * 5 + 16 * 16 * 3 * 3
    assert problem.kept_bytes == 2 * 4 * numbers + 4 * kept // 4


def test_network_problems_leave_the_first_convolution_dense_where_masks_are_uniform():
    problem = problems.build(NETWORK)
    weights = [name for name, p in problem.model.named_parameters() if p.dim() > 1]
    assert list(problem.masks) == weights[1:]
    for mask in problem.masks.values():
        assert int(mask.sum()) == round(mask.numel() / 2)
    snip = problems.build(dataclasses.replace(NETWORK, mask="snip"))
    assert list(snip.masks) == weights
    kept = sum(int(mask.sum()) for mask in snip.masks.values())
    assert kept == round(sum(mask.numel() for mask in snip.masks.values()) / 2)


def test_network_problems_count_the_operations_of_every_layer():
    class Network(torch.nn.Sequential):
        def __init__(self, *_):
            flat = torch.nn.Flatten()
            super().__init__(torch.nn.Conv2d(2, 4, 3, stride=2), flat, torch.nn.Linear(4 * 3 * 3, 10))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", Network)
        workload = Workload("network-step", (2, 8, 8), 0.5, 4, mask="uniform", optimizer="sgd", model="tiny")
        problem = problems.build(workload)
    # No gradient of the input of the first layer: two products there and three in the other one.
    first, second = 2 * 2 * 4 * (4 * 2 * 9) * 9, 2 * 3 * 4 * (36 * 10)
    assert problem.dense_flops == first + second
    assert problem.kept_flops == first + second // 2


def test_slow_workloads_run_with_the_most_threads_alone():
    same = contender("same", lambda problem: ["not here"], kinds=("network-step", "linear-step"))
    cases = [found[0].case for found in rows.run([NETWORK, STEP], [same], [2, 1], 0.0)]
    assert cases == [f"{NETWORK.id}/threads=2", f"{STEP.id}/threads=2", f"{STEP.id}/threads=1"]


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("shape", [(16, 24), (16, 8, 3, 1)])
def test_kept_gradient_of_blocks_is_row_by_row(block, shape):
    problem = problems.build(Workload("linear-step", (24, 16), 0.25, 8, block=block))
    layer = sp.SparseLinear.from_dense(problem.layer, problem.mask)
    layer.values.grad = layer.values.detach().clone()
    expected = problem.layer.weight.detach()[problem.mask]
    assert torch.equal(kept_gradient(layer, problem.mask.reshape(shape)), expected)


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
    conv = "conv-step/256x256@16x16-3x3/density=0.05/n=32/block=4/float32/batch-inner"
    assert f"{conv}/threads=2/dense-float32-nhwc" in ids
    network = "network-step/resnet18@3x32x32/density=0.02/n=64/float32/snip/sgd"
    assert f"{network}/threads=2/dense-bfloat16-nhwc" in ids
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

    steps = {"a": watched("a", clock.step(2.0, 4.0, 12.0)), "b": watched("b", clock.step(4.0))}
    times = timing.interleaved(steps, seconds=18.0, fewest_blocks=3, clock=clock).seconds
    # One warm-up call each, as they are slow; a has 9 s of 2 s each, b's 3 calls are spread over that.
    assert times == {"a": [4.0, 12.0, 2.0, 4.0], "b": [4.0, 4.0, 4.0]}
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
    assert "<h2>Targets</h2>" in out.with_suffix(".html").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "linear-step/24x16/density=0.25/n=8/float32/threads=2" in printed
    assert "none of them was measured" in printed


@pytest.mark.parametrize(
    ("points", "density", "how"),
    [
        ([(0.1, 4.0), (0.4, 0.5)], 0.2 * 2 ** (1 / 3), "measured"),
        ([(0.1, 2.0), (0.2, 1.0)], 0.2, "extrapolated"),
        ([(0.1, 4.0), (0.05, 8.0)], 0.4, "extrapolated"),
        ([(0.2, 8.0)], 1.0, "extrapolated"),
        ([(0.1, 0.5), (0.05, 0.9)], 0.05, "not reached"),
    ],
)
def test_break_even(points, density, how):
    assert break_even(points) == BreakEven(pytest.approx(density), how)


def test_peak_is_measured_or_says_why_not(monkeypatch):
    figures, reason = peak.measure()
    if figures is None:
        assert reason
    else:
        assert figures["beyond_gbs"] > 0
        assert 0 < figures["load_fma_gflops"] < 2 * figures["fma_gflops"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    figures, reason = peak.measure()
    assert figures is None
    assert "no-such-compiler" in reason


PEAK = {
    "isa": "avx512",
    "fma_gflops": 200.0,
    "load_fma_gflops": 130.0,
    "l1_gbs": 300.0,
    "l2_gbs": 160.0,
    "beyond_gbs": 25.0,
}


def results_of_two_densities():
    """Lines of a results file: dense takes a second, sparse half of it at 75 % and two at 50 %."""
    lines = []
    for density, seconds in ((0.25, 0.5), (0.5, 2.0)):
        workload = Workload("linear-forward", (24, 16), density, 256)
        found = [
            row_of(workload, "dense-float32", seconds=1.0, kept_flops=1, kept_bytes=1),
            row_of(workload, "own", seconds=seconds, kept_flops=1, kept_bytes=1, others=0.5),
            row_of(workload, "<peer>", status=UNAVAILABLE, reason="not <installed>"),
        ]
        rows._set_speedups(found)
        lines += [{"type": "row", **row.to_dict()} for row in found]
    target = targets.Target("fast <enough>", lines[0]["workload"]["kind"], rows.best_dense("float32"), 4.0)
    outcome = targets.Outcome(target, 1, 2.0)
    header = {
        "machine": {
            "date": "2000-01-01",
            "cpu": "a <cpu>",
            "cores": 1,
            "isa": "x",
            "torch": "2",
            "sparseprune": "0",
        },
        "load": 0.0,
        "peak": PEAK,
        "no_peak": "",
        "contender": "own",
        "settings": {"threads": [1], "seconds": 1.0, "filter": ""},
    }
    lines = [{"type": "header", **header}, *lines, {"type": "target", **outcome.to_dict()}]
    return [json.loads(json.dumps(line)) for line in lines]


def test_page_is_one_file_with_targets_plots_losses_and_reasons(tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(json.dumps(line) for line in results_of_two_densities()))
    page.main(results, None)
    text = results.with_suffix(".html").read_text(encoding="utf-8")
    assert text.count('src="data:image/svg+xml;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing to load
    assert re.search(r'fast &lt;enough&gt;.*4×.*class="missed">2.00×', text)
    assert re.search(r"linear-forward/24x16/density=0.50/n=256/float32/threads=1.*0.50×.*busy", text)
    assert "unavailable: not &lt;installed&gt;" in text
    assert "&lt;peer&gt;" in text
    assert "a &lt;cpu&gt;" in text
    assert "2 of 2 cases were measured while other processes" in text


def test_page_of_a_run_that_measured_little_says_so():
    header, *_ = results_of_two_densities()
    text = page.html([{**header, "peak": None, "no_peak": "no compiler"}])
    assert "what a core can do is not known: no compiler" in text
    assert "<img" not in text
    with pytest.raises(ValueError, match="got lines without a full header"):
        page.html([])


def test_plots_have_a_line_for_each_kind_of_weights():
    found = [
        rows.Row.from_dict({k: v for k, v in line.items() if k != "type"})
        for line in results_of_two_densities()
        if line["type"] == "row"
    ]
    (axes,) = plots.speedups(plots.layers(found, "own", 1)).axes
    line = next(line for line in axes.lines if line.get_marker() == "s")
    assert list(line.get_xdata()) == [2.0, 4.0]  # 1/density
    assert list(line.get_ydata()) == [0.5, 2.0]
    assert plots.speedups(plots.layers(found, "own", 2)) is None


def network_rows():
    """Rows of a network where sparse is twice as fast as the faster dense in float32, bfloat16 four times."""
    found = []
    for mask in ("uniform", "snip"):
        for density in (0.1, 0.02):
            workload = dataclasses.replace(NETWORK, density=density, mask=mask)
            case = [
                row_of(workload, "dense-float32", seconds=5.0),
                row_of(workload, "dense-float32-nhwc", seconds=4.0),
                row_of(workload, "dense-bfloat16-nhwc", seconds=1.0),
                row_of(workload, "own", seconds=2.0, kept_flops=10, dense_flops=40),
            ]
            for row in case:
                row.speedup = {other.contender: other.seconds / row.seconds for other in case[:3]}
            found += case
    return found


def test_network_plots_have_a_line_for_each_mask_and_what_its_operations_allow():
    (axes,) = network_plots.networks(network_rows(), "own", 1).axes
    lines = [(list(line.get_xdata()), list(line.get_ydata()), line.get_linestyle()) for line in axes.lines]
    assert lines.count(([10, 50], [2, 2], "-")) == 2
    assert lines.count(([10, 50], [4, 4], ":")) == 2
    assert ([0, 1], [4, 4], "--") in lines  # dense bfloat16
    assert network_plots.networks(network_rows(), "own", 2) is None
    assert network_plots.networks([], "own", 1) is None


def test_page_has_a_section_of_networks_and_plots_of_convolutions_where_there_are_any():
    lines = results_of_two_densities()
    assert "Convolutional networks" not in page.html(lines)
    conv = [
        {**line, "workload": {**line["workload"], "kind": "conv-forward", "sizes": [8, 16, 5], "batch": 32}}
        for line in lines
        if line["type"] == "row"
    ]
    network = [json.loads(report.json_line("row", row.to_dict())) for row in network_rows()]
    text = page.html([*lines, *conv, *network])
    assert text.count('src="data:image/svg+xml;base64,') == 3 + 2 + 1
    assert "<h3>convolutions, 1 thread</h3>" in text
    assert "<h2>Convolutional networks</h2>" in text
    assert "conv-forward, 8x16@5x5-0x0 (2 cases)" in text


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
