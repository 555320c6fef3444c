import dataclasses
import itertools
import re

import pytest
import torch
from bench_small import Ticker, text_of
from bench_small_gpu import CONV, CPU, FORWARD, STEP, TINY, TOPK, contender, honest, run_one
from bounds import assert_half_the_digits

from bench import problems
from bench.contenders import Runnable
from bench.contenders import gpu as gpu_contenders
from bench.contenders.gpu import CONTENDERS
from bench.gpu import device, suite, timing
from bench.gpu.workloads import QUICK, WORKLOADS, case_id
from bench.report import gpu as report
from bench.rows import FAILED, OK, UNAVAILABLE, WRONG
from bench.timing import HostClock
from bench.workloads import TWO_OF_FOUR

# What the CPU cannot do, by contender, and what it says.
NOT_ON_CPU = {
    r"ours-float16": "sparse layers in float16 are for GPUs",
    r"2:4-": "2:4 kernels are for CUDA devices, and this is cpu",
}


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


@pytest.mark.gpu
@pytest.mark.skipif(device.why_not() != "", reason=f"needs a GPU: {device.why_not()}")
@pytest.mark.parametrize("workload", TINY, ids=case_id)
def test_on_a_gpu_contenders_are_right_and_timed_by_events(workload):
    gpu = torch.device("cuda", torch.cuda.current_device())
    clock = timing.clock_for(gpu)
    fitting = [c for c in CONTENDERS.values() if c.applies(workload)]
    (found,) = suite.run([workload], fitting, gpu, clock, 2)
    for row in found:
        assert row.status != WRONG, (row.contender, row.reason)
        if row.family == "dense" or (row.contender == "ours-float32" and workload.kind != "conv-step"):
            assert row.status == OK, (row.contender, row.reason)
            assert 0 < row.seconds < 1


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
    assert "later: failed: RuntimeError: unspecified launch failure\n" in printed
    assert "advice" not in printed
    failures = str(report.failures_text(list(found.values())))
    assert "in 1 of 3 rows: memory: failed: OutOfMemoryError: CUDA out of memory" in failures


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
    factors = (suite.over_best(ours), suite.over_tf32(ours), suite.over_default(ours))
    assert factors == (2 / 3, 1 / 3, 4 / 3)
    assert suite.over_tf32(found["dense-tf32"]) is None
    assert ours.kept_flops == 2 * 3 * 16 * 512
    assert ours.flops_per_second == ours.kept_flops / 3.0
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
