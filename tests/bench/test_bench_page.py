import dataclasses
import json
import re

import pytest
from bench_small import NETWORK, row_of

from bench import page as command
from bench import results_file, rows, targets
from bench.report import page
from bench.report.break_even import BreakEven, break_even
from bench.report.plots import layers, networks, speedups
from bench.rows import UNAVAILABLE
from bench.workloads import Workload

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
        rows.set_speedups(found, lambda row: row.contender == "dense-float32")
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


def html(lines):
    return page.html(results_file.parse(lines))


def test_page_is_one_file_with_targets_plots_losses_and_reasons(tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(json.dumps(line) for line in results_of_two_densities()))
    command.main(results, None)
    text = results.with_suffix(".html").read_text(encoding="utf-8")
    assert text.count('src="data:image/svg+xml;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing to load
    assert re.search(r'fast &lt;enough&gt;.*4×.*class="missed">2.00×', text)
    assert re.search(r"linear-forward/24x16/density=0.50/n=256/float32/threads=1.*0.50×.*busy", text)
    assert "unavailable: not &lt;installed&gt;" in text
    assert "&lt;peer&gt;" in text
    assert "a &lt;cpu&gt;" in text
    assert "2 of 2 cases were measured while other processes" in text


def test_page_of_a_run_that_measured_little_says_so():
    header, *_ = results_of_two_densities()
    text = html([{**header, "peak": None, "no_peak": "no compiler"}])
    assert "what a core can do is not known: no compiler" in text
    assert "<img" not in text
    with pytest.raises(ValueError, match="got lines without a full header"):
        html([])


def test_page_has_a_section_of_networks_and_plots_of_convolutions_where_there_are_any():
    lines = results_of_two_densities()
    assert "Convolutional networks" not in html(lines)
    conv = [
        {**line, "workload": {**line["workload"], "kind": "conv-forward", "sizes": [8, 16, 5], "batch": 32}}
        for line in lines
        if line["type"] == "row"
    ]
    network = [json.loads(results_file.json_line("row", row.to_dict())) for row in network_rows()]
    text = html([*lines, *conv, *network])
    assert text.count('src="data:image/svg+xml;base64,') == 3 + 2 + 1
    assert "<h3>convolutions, 1 thread</h3>" in text
    assert ">Convolutional networks</h2>" in text
    assert "conv-forward, 8x16@5x5-0x0 (2 cases)" in text


def test_plots_have_a_line_for_each_kind_of_weights():
    found = results_file.parse(results_of_two_densities()).rows
    (axes,) = speedups.draw(layers.layers(found, "own", 1)).axes
    line = next(line for line in axes.lines if line.get_marker() == "s")
    assert list(line.get_xdata()) == [2.0, 4.0]  # 1/density
    assert list(line.get_ydata()) == [0.5, 2.0]
    assert speedups.draw(layers.layers(found, "own", 2)) is None


def test_network_plots_have_a_line_for_each_mask_and_what_its_operations_allow():
    (axes,) = networks.draw(network_rows(), "own", 1).axes
    lines = [(list(line.get_xdata()), list(line.get_ydata()), line.get_linestyle()) for line in axes.lines]
    assert lines.count(([10, 50], [2, 2], "-")) == 2
    assert lines.count(([10, 50], [4, 4], ":")) == 2
    assert ([0, 1], [4, 4], "--") in lines  # dense bfloat16
    assert networks.draw(network_rows(), "own", 2) is None
    assert networks.draw([], "own", 1) is None


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
