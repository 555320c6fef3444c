import dataclasses
import json

import pytest
import torch
import typer
from bench_small import NO_PEAK, STEP, TINY, contender, row_of, text_of
from typer.testing import CliRunner

from bench import peak, results_file, run
from bench.contenders import Runnable
from bench.report import terminal
from bench.rows import OK
from sparseprune.experiments.cli.app import app

# Images of 8 x 8 leave taps of kernels unused: their scores are 0, and position decides about them.
pytestmark = pytest.mark.filterwarnings("ignore:prune. expected scores that tell weights apart")


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
    assert results_file.read(out).rows[0].workload == STEP
    assert header["no_peak"] == "no compiler"
    assert found[0]["id"] == "linear-step/24x16/density=0.25/n=8/float32/threads=1/dense-float32"
    assert found[0]["status"] == OK
    assert found[0]["seconds"] > 0
    assert {line["type"] for line in rest} == {"row", "target"}
    assert ">Targets</h2>" in out.with_suffix(".html").read_text(encoding="utf-8")
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


def test_a_busy_machine_is_reported():
    row = row_of(STEP, "a", seconds=1.0, others=0.75)
    assert "others kept 0.75 processors busy" in text_of(terminal.case_table([row]))
    assert "busy" not in text_of(terminal.case_table([dataclasses.replace(row, others=0.01)]))


@pytest.mark.slow
def test_peak_is_measured_where_there_is_a_compiler():
    figures, reason = peak.measure()
    if figures is None:
        assert reason
    else:
        assert figures["beyond_gbs"] > 0
        assert 0 < figures["load_fma_gflops"] < 2 * figures["fma_gflops"]


def test_peak_says_why_it_was_not_measured(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    figures, reason = peak.measure()
    assert figures is None
    assert "no-such-compiler" in reason


def test_sparseprune_bench_is_the_same_command():
    done = CliRunner().invoke(app, ["bench", "--list", "--quick", "--filter", "topk", "--contender", "torch"])
    assert done.exit_code == 0, done.output
    assert done.output == "topk/42.1M/density=0.02/float32: torch-kthvalue, torch-topk\n"


def test_results_file_is_whole_or_as_it_was(tmp_path):
    out = tmp_path / "new" / "results.jsonl"
    with results_file.writer(out) as write:
        write("header", {"a": 1})
        assert not out.exists()
    before = out.read_bytes()
    assert results_file.read(out).header == {"a": 1}

    def ends_early():
        with results_file.writer(out) as write:
            write("header", {"a": 2})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ends_early()
    assert out.read_bytes() == before
    # What was measured is there.
    assert results_file.read(out.with_name("results.jsonl.part")).header == {"a": 2}
    with results_file.writer(out) as write:
        write("header", {"a": 3})
    assert results_file.read(out).header == {"a": 3}
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(OSError, match="it is a folder"), results_file.writer(tmp_path):
        pytest.fail("worked")
