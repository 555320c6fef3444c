import dataclasses

from bench_small import row_of

from bench.report.tables import speed, transformers
from bench.results_file import Results
from bench.rows import UNAVAILABLE, set_speedups
from bench.workloads import TRANSFORMER_STEP
from bench.workloads import transformers as workloads_of

HEADER = {"settings": {"threads": [1, 2]}, "contender": "own"}
SECONDS = {"dense-float32": 1.2, "dense-float32-compiled": 0.6, "dense-bfloat16": 0.3, "own": 0.2}


def results(more=()):
    """BERT's training steps, twice as fast at 95 % as at 90 %, the same in blocks."""
    found = []
    for workload in workloads_of("bert", 3, (0.10, 0.05)):
        if workload.kind == TRANSFORMER_STEP:
            seconds = {**SECONDS, **dict(more)}
            own = {name: s * workload.density / 0.10 for name, s in seconds.items() if "own" in name}
            rows = [row_of(workload, name, 2, seconds=s) for name, s in {**seconds, **own}.items()]
            set_speedups(rows, lambda row: row.contender.startswith("dense"))
            found += [*rows, row_of(workload, "own-compiled", 2, status=UNAVAILABLE, reason="no compiler")]
    return Results(HEADER, found, [])


def cells(results):
    return {head: figures for head, *figures in transformers.of_run(results)}


def test_what_was_measured_is_compared_with_every_dense_precision():
    assert cells(results()) == {
        "BERT, 16 × 128 tokens, training step, float32": ["200 ms", "100 ms"] * 2,
        "... over dense float32 as it is by default": ["6.0×", "12×"] * 2,
        "... over the fastest dense float32": ["3.0×", "6.0×"] * 2,
        "... over the fastest dense bfloat16": ["1.5×", "3.0×"] * 2,
    }


def test_bfloat16_is_compared_with_dense_and_with_the_same_in_float32():
    found = cells(results({"own-bfloat16": 0.1}.items()))
    head = "BERT, 16 × 128 tokens, training step, in bfloat16, over "
    assert found[f"{head}the fastest dense bfloat16"] == ["3.0×", "6.0×"] * 2
    assert found[f"{head}the same in float32"] == ["2.0×", "2.0×"] * 2


def test_what_was_not_measured_has_no_line():
    first = dataclasses.replace(results().rows[3], speedup={})
    assert cells(Results(HEADER, [first], [])) == {
        "BERT, 16 × 128 tokens, training step, float32": ["200 ms", "", "", ""]
    }


def test_the_table_is_of_all_runs_that_there_are(monkeypatch, tmp_path):
    monkeypatch.setattr(transformers, "RESULTS", tmp_path)
    assert "| not measured yet |" in transformers.transformer_blocks()
    (tmp_path / "transformers-bert.jsonl").touch()
    machine = {"cpu": "a cpu", "isa": "x", "torch": "2", "date": "2000-01-01"}
    found = results()._replace(header={**HEADER, "machine": machine})
    for home in (transformers, speed):
        monkeypatch.setattr(home, "run", {"transformers-bert.jsonl": found}.__getitem__)
    text = transformers.transformer_blocks()
    assert "200 ms" in text
    about = "a cpu, 2 threads, x, torch 2, 2000-01-01. The fastest dense float32: `{}` in {} cases."
    assert text.endswith(about.format("dense-float32-compiled", 4))


def test_the_first_screen_has_a_row_of_them(monkeypatch, tmp_path):
    (tmp_path / "transformers-bert.jsonl").touch()
    machine = {"cpu": "another cpu", "isa": "x", "torch": "2", "date": "2000-01-01"}
    found = {"transformers-bert.jsonl": results()._replace(header={**HEADER, "machine": machine})}
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "run", lambda file, run=speed.run: found.get(file) or run(file))
    *_, bert, bfloat16, _empty, about = speed.headline().splitlines()
    assert [cell.strip() for cell in bert.split("|")[1:-1]] == [
        "three blocks of BERT-base, AdamW",
        "3.0×",
        "6.0×",
        "",
    ]
    assert "over dense bfloat16" in bfloat16
    assert "Blocks of BERT: another cpu, 2 threads" in about
