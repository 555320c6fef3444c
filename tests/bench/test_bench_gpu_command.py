import dataclasses
import json
import re

import pytest
import torch
import typer
from bench_small import text_of
from bench_small_gpu import CPU, FORWARD, STEP, TOPK, contender, cuda_properties, honest, row_of
from rich.console import Console

import sparseprune as sp
from bench.contenders.gpu import CONTENDERS
from bench.gpu import __main__ as cli
from bench.gpu import device, suite
from bench.gpu.workloads import QUICK
from bench.report import gpu as report
from bench.rows import Row
from bench.timing import HostClock

OPTIONS = {
    "out": None,
    "quick": False,
    "filter": "",
    "contender": "",
    "list_only": False,
    "show_model": False,
}


def test_a_machine_without_cuda_gets_the_reason_and_nothing_else(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "results.jsonl"
    cli.main(**{**OPTIONS, "out": out})
    assert capsys.readouterr().out == f"skipped: torch {torch.__version__} finds no CUDA device\n"
    assert not out.exists()


def test_kernels_compiled_without_cuda_are_the_reason_too(monkeypatch):
    info = {**sp.ops.info(), "cuda_available": True, "cuda_compiled": False, "backend": "sparseprune._C"}
    monkeypatch.setattr(sp.ops, "info", lambda: info)
    assert device.why_not() == "sparseprune's kernels (sparseprune._C) are compiled without CUDA"
    info["cuda_compiled"] = True
    assert device.why_not() == ""


def test_a_device_that_is_lost_ends_the_run_after_its_rows(monkeypatch, capsys):
    monkeypatch.setattr(suite, "_release", lambda device: "RuntimeError: illegal access")
    console = Console(width=120)
    chosen, fine = [FORWARD, STEP], [contender("fine", honest)]
    results = cli.measure(chosen, fine, CPU, HostClock(), 1, None, console)
    assert [row.workload for row in results] == [FORWARD]
    assert "the rest was not run: RuntimeError: illegal access" in capsys.readouterr().out


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
    for name in ("seconds", "q1", "q3", "host_seconds", "kept_flops", "least_bytes"):
        assert ours[name] > 0
    printed = capsys.readouterr().out
    assert re.search(r"ours-float32 +\d+\.\d", printed)
    assert "ours-float16: unavailable: sparse layers in float16" in printed
    assert "slower than the strongest dense" in printed
    assert "sparsity (%) from which on sparse is faster" in printed


def test_tables_fit_a_narrow_terminal():
    times = {"seconds": 0.0123456, "q1": 0.012, "q3": 0.0125, "host_seconds": 0.0012}
    work = {"kept_flops": 10**12, "least_bytes": 10**10}
    speeds = {"speedup": {"dense-float32": 10.55, "dense-tf32": 0.01, "dense-bfloat16": 0.66}}
    names = ("dense-float32-nhwc", "ours-bfloat16-inner")
    rows = [row_of(name, **times, **work, **speeds) for name in names]
    printed = text_of(report.case_table(rows), width=80)
    lines = [line for line in printed.splitlines() if line.startswith(names)]
    assert [len(line.split()) for line in lines] == [9, 9]
    assert "12345.6" in printed
    assert "…" not in printed


def test_break_even_is_between_measured_sparsities():
    rows = [
        row_of(
            "ours-float32",
            dataclasses.replace(FORWARD, density=density, block=block),
            speedup={"dense-float32": speedup},
        )
        for block, density, speedup in [
            (1, 0.4, 0.5),
            (1, 0.1, 2.0),
            (4, 0.4, 2.0),
            (4, 0.1, 4.0),
            (8, 0.1, 0.5),
        ]
    ]
    printed = text_of(report.break_even_table(rows))
    assert re.search(r"linear-forward/64x32/n=8 +ours-float32 +80 +<60 +>90", printed)


def test_header_names_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cuda_properties())
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    facts = device.device_facts(torch.device("cuda", 0))
    assert facts["driver"] == "not known"
    assert (facts["compute_capability"], facts["l2_bytes"], facts["torch"]) == (
        "9.0",
        1000,
        torch.__version__,
    )
    found = {**facts, "driver": "580.1", "cuda": "13.0", "l2_bytes": 52_428_800}
    machine = {"torch": "2", "sparseprune": "0", "date": "2000-01-01", "cpu": "a cpu"}
    text = str(report.header_text({"device": found, "machine": machine}))
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
