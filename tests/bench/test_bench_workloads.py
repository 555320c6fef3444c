from bench_small import STEP, row_of, text_of

from bench import problems, rows, suite, targets, workloads
from bench.contenders import CONTENDERS
from bench.report import terminal
from bench.workloads import WORKLOADS


def test_ids_are_unique():
    ids = [
        f"{suite.case_id(workload, threads)}/{c.name}"
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


def test_every_contender_has_a_tolerance_for_what_it_computes():
    for workload in WORKLOADS:
        assert workload.kind in problems.BUILD
        for c in CONTENDERS.values():
            if c.applies(workload):
                assert (c.dtype or workload.dtype) in workloads.TOLERANCES[workload.kind]


def test_targets_are_about_workloads_and_contenders_that_exist():
    kinds = {workload.id: workload.kind for workload in WORKLOADS}
    for target in targets.TARGETS:
        assert target.workload in kinds
        if target.over not in (rows.best_dense("float32"), rows.best_dense("bfloat16")):
            assert kinds[target.workload] in CONTENDERS[target.over].kinds


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
    assert "missed" in text_of(terminal.targets_table(outcomes, "own"))
