import dataclasses
import json
import re

import pytest
from bench_small import NETWORK, row_of
from browser import look

from bench import page as command
from bench import results_file, rows, targets
from bench.report import page, points
from bench.report.break_even import BreakEven, break_even
from bench.report.columns import columns
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


def test_page_is_one_file_with_charts_losses_targets_and_reasons(tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(json.dumps(line) for line in results_of_two_densities()))
    command.main(results, None)
    text = results.with_suffix(".html").read_text(encoding="utf-8")
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!#)', outside)  # nothing to load
    assert "<script src" not in text
    assert re.search(r"0.50×</td>.*linear-forward/24x16/density=0.50/n=256/float32/threads=1.*busy", text)
    assert re.search(r'fast &lt;enough&gt;.*4×.*class="missed">2.00×', text)
    assert text.index("Losses") < text.index("All results") < text.index("Targets")
    assert "unavailable: not &lt;installed&gt;" in text
    assert "&lt;peer&gt;" in text
    assert "a &lt;cpu&gt;" in text
    assert "2 of 2 cases were measured while other processes" in text
    assert [chart["needs"] for chart in data_of(text)["charts"]] == ["", "", "", "rate"]


def data_of(text):
    """What the charts of a page are drawn from."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def test_points_tell_their_row():
    found = data_of(html(results_of_two_densities()))["rows"]["rows"]
    assert [(point["sparsity"], point["speedup"], point["kind"], point["threads"]) for point in found] == [
        ("75 %", 2.0, "linear-forward", 1),
        ("50 %", 0.5, "linear-forward", 1),
    ]
    hover = found[0]["hover"]
    assert list(hover)[:3] == ["title", "contender", "ms"]
    assert hover["title"] == "linear-forward/24x16/density=0.25/n=256/float32/threads=1"
    assert (hover["ms"], hover["x best f32"]) == ("500.000", "2.00")
    assert "do not trust" in hover["busy"]


def test_page_of_a_run_that_measured_little_says_so():
    header, *_ = results_of_two_densities()
    text = html([{**header, "peak": None, "no_peak": "no compiler"}])
    assert "what a core can do is not known: no compiler" in text
    assert data_of(text)["charts"] == []
    assert '<div class="cards">' not in text
    assert "<select" not in text
    with pytest.raises(ValueError, match="got lines without a full header"):
        html([])


def test_first_screen_says_what_is_gained_and_what_is_lost():
    found = points.compared(network_rows(), "own")
    first, last = points.cards(found, network_rows())
    assert (first.figure, first.tone) == ("2.0×", "good")
    assert first.says == (
        "as fast as dense: a training step of a convolutional network, 90 % sparse "
        "(median of 2: 2.0× to 2.0×, 1 thread)"
    )
    assert (last.figure, last.tone) == ("0 of 4", "good")
    slower = results_file.parse(results_of_two_densities()).rows
    assert points.cards(points.compared(slower, "own"), slower)[-1].figure == "1 of 2"


def test_filters_offer_what_was_measured():
    lines = results_of_two_densities()
    network = [json.loads(results_file.json_line("row", row.to_dict())) for row in network_rows()]
    options = re.findall(r'<option value="([^"]*)"( selected)?>', html([*lines, *network]))
    assert options == [
        ("linear-forward", " selected"),
        ("network-step", ""),
        ("", ""),
        *((sparsity, "") for sparsity in ("50 %", "75 %", "90 %", "98 %")),
        ("1", " selected"),
    ]


def test_networks_have_marks_at_what_their_operations_allow():
    drawn = points.points(points.compared(network_rows(), "own"), columns(None))
    assert [(point["series"], point["fold"], point["allowed"]) for point in drawn] == [
        (f"V=1, {mask}", fold, 4.0) for mask in ("uniform", "snip") for fold in (10.0, 50.0)
    ]


def test_break_evens_are_those_of_linear_layers():
    found = results_file.parse(results_of_two_densities()).rows
    (line,) = points.break_evens(points.compared([*found, *network_rows()], "own"))
    assert (line["kind"], line["how"], line["hover"]["break-even"]) == ("linear-forward", "measured", "64.6%")
    assert line["fold"] == pytest.approx(2 * 2**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(scheme, tmp_path):
    network = [json.loads(results_file.json_line("row", row.to_dict())) for row in network_rows()]
    seen = look(html([*results_of_two_densities(), *network]), scheme, tmp_path)
    # Networks have no break-even here, and these no place under the roof.
    assert (seen.charts, seen.of_choice) == (4, 2)
    assert seen.row.startswith("network-step/")
    assert "contenderown" in seen.row


@pytest.mark.parametrize(
    ("measured", "density", "how"),
    [
        ([(0.1, 4.0), (0.4, 0.5)], 0.2 * 2 ** (1 / 3), "measured"),
        ([(0.1, 2.0), (0.2, 1.0)], 0.2, "extrapolated"),
        ([(0.1, 4.0), (0.05, 8.0)], 0.4, "extrapolated"),
        ([(0.2, 8.0)], 1.0, "extrapolated"),
        ([(0.1, 0.5), (0.05, 0.9)], 0.05, "not reached"),
    ],
)
def test_break_even(measured, density, how):
    assert break_even(measured) == BreakEven(pytest.approx(density), how)
