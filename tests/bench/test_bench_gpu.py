import dataclasses
import itertools
import json
import re
import types

import pytest
import torch
import typer
from bounds import assert_half_the_digits
from rich.console import Console

import sparseprune as sp
from bench.contenders import Contender, Runnable, one_layer
from bench.gpu import __main__ as cli
from bench.gpu import contenders as gpu_contenders
from bench.gpu import model, problems, report, suite, timing
from bench.gpu.contenders import CONTENDERS
from bench.gpu.problems import QUICK, TWO_OF_FOUR, WORKLOADS, case_id
from bench.gpu.suite import Row
from bench.gpu.timing import HostClock
from bench.rows import FAILED, OK, UNAVAILABLE, WRONG
from bench.timing import Step
from bench.workloads import Workload

CPU = torch.device("cpu")
FORWARD = Workload("linear-forward", (64, 32), 0.25, 8)
STEP = Workload("linear-step", (64, 32), 0.25, 16)
CONV = Workload("conv-step", (8, 16, 5), 0.25, 16, kernel=3)
TOPK = Workload("topk", (40, 24, 16, 4), 0.25)
TINY = (
    FORWARD,
    STEP,
    CONV,
    TOPK,
    Workload("linear-forward", (64, 32), 0.5, 8, mask=TWO_OF_FOUR),
    Workload("linear-forward", (64, 32), 0.5, 8, block=4, mask=TWO_OF_FOUR),
    Workload("linear-forward", (64, 32), 0.25, 1, block=16),
    Workload("linear-step", (64, 32), 0.25, 16, block=8),
    Workload("conv-step", (8, 16, 5), 0.25, 16, block=4, kernel=3),
)
OPTIONS = {
    "out": None,
    "quick": False,
    "filter": "",
    "contender": "",
    "list_only": False,
    "show_model": False,
}

# What the CPU cannot do, by contender, and what it says.
NOT_ON_CPU = {
    r"ours-float16": "sparse layers in float16 are for GPUs",
    r"2:4-": "2:4 kernels are for CUDA devices, and this is cpu",
}


class Ticker:
    """A clock that stands still unless a contender moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def contender(name, make, family="peer", precision="float32", kinds=("linear-forward", "linear-step")):
    return Contender(name, kinds, make, family, precision)


def honest(problem):
    runnable = one_layer(problem, problem.layer)
    return dataclasses.replace(runnable, facts=lambda: {"weights": 512, "index_bytes": 0})


def run_one(contenders, workload=FORWARD, rounds=2, clock=None):
    (found,) = suite.run([workload], contenders, CPU, clock or HostClock(), rounds)
    return {row.contender: row for row in found}


def row_of(name, workload=FORWARD, family="own", precision="float32", **more):
    case = case_id(workload)
    return Row(f"{case}/{name}", case, workload, name, family, "", precision, 1e-5, **more)


def cuda_properties():
    return types.SimpleNamespace(
        name="A GPU", major=9, minor=0, L2_cache_size=1000, total_memory=2000, multi_processor_count=3
    )


def text_of(renderable, width=200):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


# ---- here, where there is no GPU ---------------------------------------------------------------------------


def test_a_machine_without_cuda_gets_the_reason_and_nothing_else(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "results.jsonl"
    cli.main(**{**OPTIONS, "out": out})
    assert capsys.readouterr().out == f"skipped: torch {torch.__version__} finds no CUDA device\n"
    assert not out.exists()


def test_kernels_compiled_without_cuda_are_the_reason_too(monkeypatch):
    info = {**sp.ops.info(), "cuda_available": True, "cuda_compiled": False, "backend": "sparseprune._C"}
    monkeypatch.setattr(sp.ops, "info", lambda: info)
    assert suite.why_not() == "sparseprune's kernels (sparseprune._C) are compiled without CUDA"
    info["cuda_compiled"] = True
    assert suite.why_not() == ""


@pytest.mark.gpu
@pytest.mark.skipif(suite.why_not() != "", reason=f"needs a GPU: {suite.why_not()}")
@pytest.mark.parametrize("workload", TINY, ids=case_id)
def test_on_a_gpu_contenders_are_right_and_timed_by_events(workload):
    device = torch.device("cuda", torch.cuda.current_device())
    clock = timing.clock_for(device)
    fitting = [c for c in CONTENDERS.values() if c.applies(workload)]
    (found,) = suite.run([workload], fitting, device, clock, 2)
    for row in found:
        assert row.status != WRONG, (row.contender, row.reason)
        if row.family == "dense" or (row.contender == "ours-float32" and workload.kind != "conv-step"):
            assert row.status == OK, (row.contender, row.reason)
            assert 0 < row.seconds < 1


# ---- contenders, on the CPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", TINY, ids=case_id)
def test_every_contender_is_right_or_says_why_it_cannot_run(workload):
    fitting = {c.name: c for c in CONTENDERS.values() if c.applies(workload)}
    found = run_one(fitting.values(), workload)
    assert set(found) == set(fitting)
    for name, row in found.items():
        cannot = [reason for pattern, reason in NOT_ON_CPU.items() if re.match(pattern, name)]
        assert row.status == (UNAVAILABLE if cannot else OK), (name, row.reason)
        assert all(reason in row.reason for reason in cannot)
        assert (row.seconds is not None) == (row.status == OK)


def test_contenders_cover_what_the_workloads_ask_for():
    names = {case_id(w): {c.name for c in CONTENDERS.values() if c.applies(w)} for w in WORKLOADS}
    ours = {f"ours-{dtype}" for dtype in ("float32", "float16", "bfloat16")}
    dense = {"dense-float32", "dense-tf32", "dense-float16", "dense-bfloat16"}
    both = ours | {f"{name}-inner" for name in ours}
    semi = {"2:4-float16", "2:4-bfloat16"}
    assert names["linear-forward/4096x4096/density=0.10/n=256/block=8"] == dense | both | {"cusparse-float32"}
    assert names["linear-forward/4096x4096/density=0.10/n=1"] == dense | ours | {"cusparse-float32"}
    assert names["linear-step/8192x8192/density=0.02/n=8/block=16"] == dense | both
    at_half = names["linear-forward/1024x1024/density=0.50/n=8/2:4"]
    assert at_half == dense | both | semi | {"cusparse-float32"}
    conv = names["conv-step/256x256@32x32-3x3/density=0.05/n=64/block=4"]
    assert {"dense-float32", "dense-tf32", "dense-float16-nhwc", *both} < conv
    assert names["topk/42.1M/density=0.02"] == {"torch-topk", "torch-kthvalue", "ours-topk"}


def test_workloads_have_ids_of_their_own_and_every_row_has_a_tolerance():
    ids = [case_id(workload) for workload in WORKLOADS]
    assert len(set(ids)) == len(ids)
    assert set(ids) > QUICK
    assert sum(workload.quick for workload in WORKLOADS) == len(QUICK)
    assert {c.dtype for c in CONTENDERS.values()} == set(suite.TOLERANCES)
    assert {workload.kind for workload in WORKLOADS} == set(suite.DEFAULTS)
    assert set(suite.DEFAULTS.values()) < set(CONTENDERS)


def test_contenders_leave_the_precision_of_float32_as_it_was():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    seen = []
    for tf32 in (True, False):
        with gpu_contenders._float32_by(tf32):
            seen.append((matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark))
    assert seen == [(True, True, True), (False, False, True)]
    assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == before


# ---- verification ------------------------------------------------------------------------------------------


def test_verification_catches_a_single_wrong_weight_and_does_not_time_it():
    def wrong(problem):
        with torch.no_grad():
            problem.layer.weight[0, 0] += 0.01
        return honest(problem)

    row = run_one([contender("wrong", wrong)])["wrong"]
    assert (row.status, row.seconds) == (WRONG, None)
    assert re.match(r"y: relative error \d\.\de-0\d, accepted are 3e-05", row.reason)


def test_float32_that_is_rounded_to_tf32_is_wrong():
    def rounded(problem):
        x = (problem.x.view(torch.int32) & ~0x1FFF).view(torch.float32)  # 10 bits after the point
        return honest(dataclasses.replace(problem, x=x))

    found = run_one([contender("float32", rounded), contender("tf32", rounded, precision="tf32")])
    assert found["float32"].status == WRONG
    assert found["tf32"].status == OK


def test_verification_compares_gradients_and_layouts():
    def scaled(problem):
        runnable = honest(problem)
        return dataclasses.replace(
            runnable, answer=lambda y: {**runnable.answer(y), "d_x": problem.expected["d_x"] * 1.001}
        )

    def in_another_layout(problem):
        facts = {"weights": 512, "index_bytes": 0, "layout": "batch-inner"}
        return dataclasses.replace(honest(problem), facts=lambda: facts)

    found = run_one([contender("scaled", scaled), contender("layout", in_another_layout)], STEP)
    assert found["scaled"].reason == "d_x: relative error 1.0e-03, accepted are 3e-05"
    assert "y: expected a batch-inner tensor" in found["layout"].reason


def test_topk_that_keeps_too_many_is_wrong():
    def too_many(problem):
        return Runnable(lambda: None, lambda _: {"count": torch.tensor(problem.k + 1)})

    row = run_one([contender("greedy", too_many, kinds=("topk",))], TOPK)["greedy"]
    assert row.status == WRONG
    assert row.reason.startswith("count: relative error")


def test_what_raises_is_a_failed_row_and_the_run_goes_on():
    def out_of_memory(problem):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def breaks_later(problem):
        runnable = honest(problem)
        calls = itertools.count()

        def call():
            if next(calls) == 20:
                raise RuntimeError("unspecified launch failure\nlong advice")
            return runnable.call()

        return dataclasses.replace(runnable, call=call)

    found = run_one(
        [contender("memory", out_of_memory), contender("later", breaks_later), contender("fine", honest)],
        rounds=30,
    )
    assert (found["memory"].status, found["memory"].reason) == (
        FAILED,
        "OutOfMemoryError: CUDA out of memory",
    )
    assert (found["later"].status, found["later"].seconds) == (FAILED, None)
    assert found["fine"].calls == 30
    printed = text_of(report.case_table(list(found.values())))
    assert "later: FAILED: RuntimeError: unspecified launch failure\n" in printed
    assert "advice" not in printed
    failures = str(report.failures_text(list(found.values())))
    assert "in 1 of 3 rows: memory: FAILED: OutOfMemoryError: CUDA out of memory" in failures


def test_a_workload_that_does_not_fit_fails_and_the_next_one_runs(monkeypatch):
    build = problems.build

    def too_large(workload, device):
        if workload == STEP:
            raise torch.OutOfMemoryError("no room")
        return build(workload, device)

    monkeypatch.setattr(problems, "build", too_large)
    first, second = suite.run([STEP, FORWARD], [contender("fine", honest)], CPU, HostClock(), 1)
    assert (first[0].status, first[0].reason) == (FAILED, "making the workload: OutOfMemoryError: no room")
    assert second[0].status == OK


def test_a_device_that_is_lost_ends_the_run_after_its_rows(monkeypatch, capsys):
    monkeypatch.setattr(suite, "_release", lambda device: "RuntimeError: illegal access")
    console = Console(width=120)
    chosen, fine = [FORWARD, STEP], [contender("fine", honest)]
    results = cli.measure(chosen, fine, CPU, HostClock(), 1, None, console)
    assert [row.workload for row in results] == [FORWARD]
    assert "the rest was not run: RuntimeError: illegal access" in capsys.readouterr().out


# ---- problems ----------------------------------------------------------------------------------------------


def test_masks_at_half_are_2_of_4_in_whole_blocks_and_others_have_exactly_the_density():
    workload = dataclasses.replace(FORWARD, density=0.5, block=4, mask=TWO_OF_FOUR)
    mask = problems.build(workload, CPU).mask
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    blocks = mask.unflatten(0, (-1, 4))
    assert torch.equal(blocks.all(1), blocks.any(1))
    mask = problems.build(FORWARD, CPU).mask
    assert mask.shape == (32, 64)
    assert int(mask.sum()) == 512


def test_expected_answers_are_those_of_the_masked_weight_in_float64():
    problem = problems.build(CONV, CPU)
    weight = (problem.layer.weight * problem.mask).double()
    expected = torch.nn.functional.conv2d(
        problem.x.double(), weight, problem.layer.bias.double(), padding=1
    ).detach()
    assert_half_the_digits(problem.expected["y"], expected)
    assert problem.kept_flops == 2 * 3 * 16 * 25 * (16 * 8 * 9 // 4)
    assert problem.dense_flops == 4 * problem.kept_flops


# ---- timing ------------------------------------------------------------------------------------------------


def test_interleaved_times_every_contender_once_a_round():
    ticker = Ticker()
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            ticker.now += seconds

        return run

    steps = {"a": Step(call("a", 2.0)), "b": Step(call("b", 3.0))}
    timed, failed = timing.interleaved(steps, HostClock(ticker), 20)
    assert (timed["a"].seconds, timed["b"].seconds) == ([2.0] * 20, [3.0] * 20)
    assert failed == {}
    rounds = [order[-2 * i - 2 : len(order) - 2 * i] for i in range(20)]
    assert all(sorted(names) == ["a", "b"] for names in rounds)
    assert ["a", "b"] in rounds
    assert ["b", "a"] in rounds


def test_cuda_clock_clears_the_l2_cache_and_spins_before_the_first_event(monkeypatch):
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("record")

        def synchronize(self):
            done.append("synchronize")

        def elapsed_time(self, end):
            return 2.5  # milliseconds

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cuda_properties())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("spin"))
    clock = timing.CudaClock(CPU)
    assert clock.buffer.nbytes == 2 * 1000
    clock.buffer.fill_(1)

    def call():
        assert not clock.buffer.any()
        done.append("call")

    assert clock.seconds(call) == 0.0025
    assert done == ["spin", "record", "call", "record", "synchronize"]


def test_warm_up_lasts_until_times_are_stable():
    assert not timing.stable([1.0] * 5)
    assert timing.stable([9.0, 1.0, 1.0, 1.0, 1.02, 1.0, 1.0])
    assert not timing.stable([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    ticker, count = Ticker(), itertools.count()

    def call():
        ticker.now += max(1.0, 8.0 - next(count) // 2)

    timing.warm_up(Step(call), HostClock(ticker))
    assert next(count) == 2 * 12  # two calls each: a timed one, and one to see what handing over takes


def test_rows_have_medians_rates_and_speedups_over_each_dense():
    ticker = Ticker()

    def taking(seconds):
        def make(problem):
            runnable = honest(problem)

            def call():
                ticker.now += seconds
                return runnable.call()

            return dataclasses.replace(runnable, call=call)

        return make

    contenders = [
        contender("dense-float32", taking(4.0), "dense"),
        contender("dense-float32-other", taking(2.0), "dense"),
        contender("dense-tf32", taking(1.0), "dense", "tf32"),
        contender("ours-float32", taking(3.0), "own"),
    ]
    found = run_one(contenders, STEP, clock=HostClock(ticker))
    ours = found["ours-float32"]
    assert (ours.seconds, ours.q1, ours.q3, ours.calls) == (3.0, 3.0, 3.0, 2)
    assert (ours.over_best, ours.over_tf32, ours.over_default) == (2 / 3, 1 / 3, 4 / 3)
    assert found["dense-tf32"].over_tf32 is None
    assert ours.kept_flops == 2 * 3 * 16 * 512
    assert ours.tflops == ours.kept_flops / 3.0 / 1e12
    assert ours.least_bytes == 2 * 4 * (512 + 16 * 64 + 16 * 32)
    losses = str(report.losses_text(list(found.values())))
    assert "slower than the strongest dense of the same precision (topk: of torch): 1 of 1" in losses
    assert f"{case_id(STEP)}: float32 0.67" in losses
    assert f"{case_id(STEP)}: float32 0.33" in losses


def test_bytes_are_those_of_weights_as_stored():
    found = run_one(CONTENDERS.values(), dataclasses.replace(STEP, block=8))
    activations = 16 * (64 + 32)
    assert found["dense-float32"].least_bytes == 2 * 4 * (64 * 32 + activations)
    assert found["ours-float32"].least_bytes == 2 * 4 * (512 + activations) + 4 * 512 // 8
    assert found["ours-bfloat16"].least_bytes == 2 * 2 * (512 + activations) + 4 * 512 // 8


# ---- what is printed and written ---------------------------------------------------------------------------


def test_measure_prints_tables_and_writes_rows_with_all_fields(tmp_path, capsys):
    out = tmp_path / "new" / "results.jsonl"
    console = Console(width=120)
    results = cli.measure([FORWARD, TOPK], [*CONTENDERS.values()], CPU, HostClock(), 3, out, console)
    header, *rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert header["type"] == "header"
    assert header["device"]["type"] == "cpu"
    assert header["machine"]["torch"] == torch.__version__
    assert header["tolerances"] == suite.TOLERANCES
    assert header["settings"]["rounds"] == 3
    assert {row["type"] for row in rows} == {"row"}
    assert [row["id"] for row in rows] == [row.id for row in results]
    names = {field.name for field in dataclasses.fields(Row)} | {"type"}
    assert all(set(row) == names for row in rows)
    ours = next(row for row in rows if row["contender"] == "ours-float32")
    assert ours["id"] == "linear-forward/64x32/density=0.25/n=8/ours-float32"
    assert ours["calls"] == 3
    assert ours["facts"]["layout"] == "row-major"
    for name in (
        "seconds",
        "q1",
        "q3",
        "host_seconds",
        "tflops",
        "gbs",
        "over_best",
        "over_tf32",
        "over_default",
    ):
        assert ours[name] > 0
    printed = capsys.readouterr().out
    assert re.search(r"ours-float32 +\d+\.\d", printed)
    assert "ours-float16: UNAVAILABLE: sparse layers in float16" in printed
    assert "slower than the strongest dense" in printed
    assert "sparsity (%) from which on sparse is faster" in printed


def test_tables_fit_a_narrow_terminal():
    times = {"seconds": 0.0123456, "q1": 0.012, "q3": 0.0125, "host_seconds": 0.0012, "tflops": 123.45}
    speeds = {"gbs": 3210.0, "over_best": 0.66, "over_tf32": 0.01, "over_default": 10.55}
    names = ("dense-float32-nhwc", "ours-bfloat16-inner")
    printed = text_of(report.case_table([row_of(name, **times, **speeds) for name in names]), width=80)
    lines = [line for line in printed.splitlines() if line.startswith(names)]
    assert [len(line.split()) for line in lines] == [9, 9]
    assert "12345.6" in printed
    assert "…" not in printed


def test_break_even_is_between_measured_sparsities():
    rows = [
        row_of("ours-float32", dataclasses.replace(FORWARD, density=density, block=block), over_best=speedup)
        for block, density, speedup in [
            (1, 0.4, 0.5),
            (1, 0.1, 2.0),
            (4, 0.4, 2.0),
            (4, 0.1, 4.0),
            (8, 0.1, 0.5),
        ]
    ]
    printed = text_of(report.breakeven_table(rows))
    assert re.search(r"linear-forward/64x32/n=8 +ours-float32 +80 +<60 +>90", printed)


def test_header_names_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cuda_properties())
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    facts = suite.device_facts(torch.device("cuda", 0))
    assert facts["driver"] == "not known"
    assert (facts["compute_capability"], facts["l2_bytes"], facts["torch"]) == (
        "9.0",
        1000,
        torch.__version__,
    )
    device = {**facts, "driver": "580.1", "cuda": "13.0", "l2_bytes": 52_428_800}
    machine = {"torch": "2", "sparseprune": "0", "date": "2000-01-01", "cpu": "a cpu"}
    text = str(report.header_text({"device": device, "machine": machine}))
    assert "A GPU, compute capability 9.0, driver 580.1, CUDA 13.0, L2 52.4 MB" in text


def test_list_prints_workloads_and_contenders(capsys):
    cli.main(**{**OPTIONS, "quick": True, "contender": "2:4|kthvalue", "list_only": True})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(QUICK)
    assert "linear-forward/4096x4096/density=0.50/n=256/2:4: 2:4-float16, 2:4-bfloat16" in lines
    assert "topk/42.1M/density=0.02: torch-kthvalue" in lines


def test_what_is_not_there_is_refused():
    with pytest.raises(typer.BadParameter, match="no workload or no contender is left"):
        cli.main(**{**OPTIONS, "filter": "no such workload"})
    with pytest.raises(typer.BadParameter, match="is not a regular expression"):
        cli.main(**{**OPTIONS, "contender": "("})


# ---- the model ---------------------------------------------------------------------------------------------

SHAPES = [model.Layer(4096, 4096, batch) for batch in (1, 8, 256, 4096)]


@pytest.mark.parametrize("gpu", model.GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("case", model.CASES, ids="-".join)
@pytest.mark.parametrize("layer", SHAPES, ids=lambda layer: f"n={layer.batch}")
def test_model_is_monotone_and_its_break_even_is_where_the_times_meet(gpu, case, layer):
    crossings = []
    for block in model.BLOCKS:
        times = [
            model.sparse_seconds(gpu, case.sparse, layer, block, density)
            for density in (0.01, 0.02, 0.1, 0.5, 1.0)
        ]
        assert times == sorted(times)  # more weights are never predicted to be faster
        found = model.breakeven_model(gpu, case, layer, block)
        assert 0 < found < 1
        there = model.sparse_seconds(gpu, case.sparse, layer, block, 1 - found)
        assert there == pytest.approx(model.dense_seconds(gpu, case.dense, layer))
        crossings.append(found)
    assert crossings == sorted(crossings, reverse=True)  # larger blocks are never predicted to be slower


def test_model_by_hand():
    gpu, layer = model.GPUS[0], model.Layer(4096, 4096, 4096)
    # Both compute: 1 - (27 % of float32) / (80 % of the dense peak)
    found = model.breakeven_model(gpu, model.Case("float32", "float32"), layer, 1)
    assert found == pytest.approx(1 - 0.27 / 0.80, abs=1e-6)
    found = model.breakeven_model(gpu, model.Case("float16", "float16"), layer, 1)
    assert found == pytest.approx(1 - 0.27 * 19.5 / (0.80 * 312), abs=1e-6)
    # Both read weights: 4 bytes each, or 4 and an index
    one = model.Layer(4096, 4096, 1)
    found = model.breakeven_model(gpu, model.Case("float32", "float32"), one, 1)
    assert found == pytest.approx(0.5, abs=1e-6)


def test_model_says_never_where_activations_alone_take_longer():
    case = model.Case("float32", "float16")  # twice the bytes for x and y
    wide = model.Layer(16, 16, 100_000)
    assert model.breakeven_model(model.GPUS[0], case, wide, 1) is None


def test_model_output_says_first_that_nothing_was_measured(capsys):
    cli.main(**{**OPTIONS, "show_model": True})
    printed = capsys.readouterr().out
    first, *_ = printed.splitlines()
    assert first == "A MODEL: nothing in this table was measured."
    assert re.search(r"A100 40 GB float32 float32 +256 +66\.3", printed)
    assert re.search(r"H100 SXM +float16 float16 +4096", printed)
    legend = " ".join(printed.split())
    for assumption in (
        "80 % of the peak",
        "27 % of the float32 peak",
        "1555 GB/s",
        "4-byte index",
        "datasheets",
    ):
        assert assumption in legend
