from bench_small import row_of

from bench.report.tables import serving
from bench.results_file import Results
from bench.rows import UNAVAILABLE, set_speedups
from bench.workloads import served

HEADER = {"settings": {"threads": [1, 2]}, "contender": "own"}
SECONDS = {
    "dense-float32": 1.2,
    "dense-float32-nhwc": 0.9,
    "dense-float32-openvino": 0.6,
    "own": 0.4,
    "own-frozen": 0.2,
}


def results():
    found = []
    for workload in served():
        if workload.model == "resnet50" and workload.batch == 16:
            rows = [row_of(workload, name, 2, seconds=s * workload.density) for name, s in SECONDS.items()]
            set_speedups(rows, lambda row: "own" not in row.contender)
            found += [
                *rows,
                row_of(workload, "dense-float32-onnxruntime", 2, status=UNAVAILABLE, reason="not installed"),
            ]
    return Results(HEADER, found, [])


def test_a_line_has_every_engine_and_our_gain_over_the_fastest():
    assert serving.of_run(results()) == [
        ["ResNet-50, 224×224, batch 16", "90", "", "60", "20 (3.0×)", "10 (3.0×)", "20 (3.0×)"]
    ]


def test_the_table_says_where_nothing_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "RESULTS", tmp_path)
    assert "| not measured yet " in serving.serving()
