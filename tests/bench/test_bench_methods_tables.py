import dataclasses

import pytest

pytest.importorskip("pandas")
pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")

from bench.methods.points import (
    AFTER_TRAINING,
    DENSE,
    EXPERIMENTS,
    SMALL_DENSE,
    SPARSITIES,
    TICKET,
    Point,
    pruned,
)
from bench.methods.results import Measured, Record
from bench.report.plots import methods as plot
from bench.report.tables import TABLES, methods, registry
from sparseprune.scores import METHODS

SETTINGS = {
    "samples": 20_000,
    "train": 20_000,
    "test": 10_000,
    "epochs": 2,
    "batch_size": 128,
    "optimizer": "SGD",
    "lr": 0.1,
    "min_per_layer": 1,
}
MACHINE = {"cpu": "a cpu", "isa": "avx512", "threads": 2, "torch": "t", "sparseprune": "s"}
SCOPE_NAMES = ("global", "layer", "erk", "balanced")
REASON = "prune: layer fc keeps no weight"


def measured(accuracy, seconds=10.0, **fields):
    given = {
        "accuracy": accuracy,
        "curve": ((4.0, seconds, accuracy),),
        "epochs": 2.0,
        "steps": 628,
        "scored": 100,
        "spent_seconds": 0.0,
        "prune_seconds": 1.0,
        "sparsify_seconds": 0.5,
        "train_seconds": seconds - 1.0,
        "total_seconds": seconds,
        "wall_seconds": seconds + 1,
        "step_seconds": 0.02,
        "flops_vs_dense": 0.2,
        "weights": 1000,
        "sparsity": 0.9,
        "width": 1.0,
        "channels_last": False,
        "layers": {"fc": (10_000, 1000, "sparse")},
    }
    return Measured(**{**given, **fields})


def record(point, accuracy, seed=0, model="resnet8", data="fashion-mnist", **fields):
    """A run; of no accuracy, one that failed."""
    result, failed = (None, REASON) if accuracy is None else (measured(accuracy, **fields), None)
    machine = {**MACHINE, "date": f"2026-11-3{seed}"}
    return Record(model, data, seed, point, SETTINGS, machine, result, failed)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_snip_table_has_errors_of_both_data_sets_and_the_papers():
    records = [
        record(point, accuracy + 0.01 * seed, seed, "lenet_300_100", data)
        for data, point, accuracy in (
            ("mnist5k", Point(DENSE), 0.94),
            ("mnist5k", pruned("snip", 0.95, 100), 0.93),
            ("mnist5k", pruned("random", 0.95, 100), 0.8),
            ("fashion-mnist", Point(DENSE), 0.88),
            ("fashion-mnist", pruned("snip", 0.95, 100), 0.87),
        )
        for seed in (0, 1)
    ]
    failing = pruned("random", 0.95, 100)
    records += [record(failing, None, seed, "lenet_300_100", "fashion-mnist") for seed in (0, 1)]
    assert methods.snip_table(records) == (
        "| test error %   | method   |   sparsity |      mnist5k |   fashion-mnist |   the paper's, MNIST |\n"
        "|:---------------|:---------|-----------:|-------------:|----------------:|---------------------:|\n"
        "| LeNet-300-100  | dense    |            |  5.50 ± 0.71 |    11.50 ± 0.71 |                  1.7 |\n"
        "| LeNet-300-100  | snip     |       95 % |  6.50 ± 0.71 |    12.50 ± 0.71 |                  1.6 |\n"
        "| LeNet-300-100  | random   |       95 % | 19.50 ± 0.71 |           fails |                      |\n"
        "\n"
        f"- random 95 % on fashion-mnist fails: {REASON}"
    )


def resnet8_records():
    points = {
        Point(DENSE): (0.9, 20.0),
        Point(SMALL_DENSE, sparsity=0.9): (0.86, 8.0),
        pruned("random", 0.9, 100, scope="layer"): (0.85, 9.0),
        pruned("snip", 0.9, 100): (0.87, 10.0),
        pruned("snip", 0.9, 100, control="shuffled"): (0.88, 10.0),
        pruned("snip", 0.9, 100, control="inverted"): (None, 10.0),
        pruned("snip", 0.99, 100): (0.8, 6.0),
        Point(AFTER_TRAINING, sparsity=0.9): (0.89, 30.0),
        Point(TICKET, sparsity=0.822172, round=3): (0.9, 55.0),
        Point(TICKET, sparsity=0.9, round=4): (0.89, 66.0),
        Point(TICKET, sparsity=0.98, round=7): (0.85, 70.0),
    }
    return [
        record(
            point,
            # Of the second seed, one method fails.
            None
            if (seed, point.method, point.sparsity) == (1, "snip", 0.99) or accuracy is None
            else accuracy - 0.01 * seed,
            seed,
            seconds=seconds,
            sparsity=point.sparsity or 0.0,
        )
        for seed in (0, 1)
        for point, (accuracy, seconds) in points.items()
    ]


def test_resnet8_has_accuracy_then_time_of_every_method():
    assert methods.resnet8(resnet8_records()) == (
        "Dense: 89.50 ± 0.71 % in 20.0 ± 0.0 s.\n"
        "\n"
        "| test accuracy %          |                     90 % |                     99 % |\n"
        "|:-------------------------|-------------------------:|-------------------------:|\n"
        "| small dense              |             85.50 ± 0.71 |                          |\n"
        "| random, uniform density  |             84.50 ± 0.71 |                          |\n"
        "| snip                     |             86.50 ± 0.71 |     80.00 (1 of 2 seeds) |\n"
        "| magnitude after training |             88.50 ± 0.71 |                          |\n"
        "| lottery ticket           | 88.50 ± 0.71 (at 90.0 %) | 84.50 ± 0.71 (at 98.0 %) |\n"
        "\n"
        f"- snip 99 % on fashion-mnist fails: {REASON}\n"
        "\n"
        "| seconds of pruning and training ÷ dense's   |   90 % |   99 % |   pruning, s |\n"
        "|:--------------------------------------------|-------:|-------:|-------------:|\n"
        "| small dense                                 |   0.40 |        |              |\n"
        "| random, uniform density                     |   0.45 |        |          1.0 |\n"
        "| snip                                        |   0.50 |   0.30 |          1.0 |\n"
        "| magnitude after training                    |   1.50 |        |          1.0 |\n"
        "| lottery ticket                              |   3.30 |   3.50 |              |"
    )


def test_controls_stand_beside_the_masks_that_they_came_from():
    head, _, line, _, failure = methods.controls(resnet8_records()).splitlines()
    assert cells(head) == [
        *("test accuracy %", "as it is", "shuffled within layers", "weights re-initialised", "inverted"),
        "random, uniform density",
    ]
    assert cells(line) == ["snip 90 %", "86.50 ± 0.71", "87.50 ± 0.71", "", "fails", "84.50 ± 0.71"]
    assert failure == f"- snip 90 %, inverted, on fashion-mnist fails: {REASON}"


def test_samples_says_where_the_data_has_fewer():
    records = [
        record(point, accuracy, seed, "lenet_300_100", "mnist5k", scored=scored)
        for point, accuracy, scored in (
            (Point(DENSE), 0.94, 0),
            (pruned("snip", 0.9, 100), 0.9, 100),
            (pruned("snip", 0.9, 10_000), 0.92, 4000),
        )
        for seed in (0,)
    ]
    assert methods.samples(records) == (
        "| test error % by samples scored   |   100 |           10,000 |   dense |\n"
        "|:---------------------------------|------:|-----------------:|--------:|\n"
        "| mnist5k, SNIP 90 %               | 10.00 | 8.00 (all 4,000) |    6.00 |\n"
        "| MNIST, SNIP 90 %, the paper's    |  1.64 |             1.40 |     1.7 |"
    )


def test_grouping_has_differences_seed_by_seed():
    ways = ({}, {"block_rows": 4}, {"block_rows": 4, "grouped": True})
    records = [
        record(point, accuracy + 0.02 * seed, seed, "wide_mlp")
        for seed in (0, 1)
        for point, accuracy in (
            (Point(DENSE), 0.9),
            *(
                (pruned("snip", 0.9, 100, **way), 0.88 - lost)
                for way, lost in zip(ways, (0, 0.005, 0.002), strict=True)
            ),
        )
    ]
    head, _, *lines = methods.grouping(records).splitlines()
    assert cells(head)[2] == "− single weights"
    assert list(map(cells, lines)) == [
        ["dense", "91.00 ± 1.41", "", "20.00 ± 0.00", "10.0 ± 0.0", ""],
        ["SNIP 90 %, single weights", "89.00 ± 1.41", "", "20.00 ± 0.00", "10.0 ± 0.0", "1.00 ± 0.00"],
        [
            "SNIP 90 %, 4×1 blocks",
            "88.50 ± 1.41",
            "-0.50 ± 0.00",
            "20.00 ± 0.00",
            "10.0 ± 0.0",
            "1.00 ± 0.00",
        ],
        [
            *("SNIP 90 %, 4×1 blocks of grouped rows", "88.80 ± 1.41", "-0.20 ± 0.00", "20.00 ± 0.00"),
            *("10.0 ± 0.0", "1.00 ± 0.00"),
        ],
    ]


def test_facts_name_settings_machine_days_and_the_command():
    records = [record(Point(DENSE), 0.9, seed) for seed in (0, 1)]
    assert methods.facts(records, "resnet8") == (
        "resnet8 on fashion-mnist: 20,000 training and 10,000 test samples, epochs 2, batch 128, SGD, "
        "lr 0.1. After ± stands one standard deviation over the seeds. Each layer keeps 1 weight at least. "
        "a cpu, 2 threads, avx512, torch t, sparseprune s, 2026-11-30 to 2026-11-31.\n"
        "\n"
        "```\n"
        "python -m bench.methods resnet8 --seeds 0,1 --threads 2\n"
        "```"
    )
    scored = [pruned("snip", 0.9, 2560), pruned("random", 0.9, 2560), pruned("force", 0.9, 512)]
    told = methods.facts([record(point, 0.9) for point in scored], "resnet8")
    assert " Samples scored: 2,560 (snip), 512 (force). After" in told
    shorter = dataclasses.replace(records[0], settings={**SETTINGS, "epochs": 1, "samples": 500})
    assert "resnet8 --seeds 0 --epochs 1 --samples 500 --threads 2\n" in methods.facts([shorter], "resnet8")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_table_is_registered_where_there_are_runs_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    monkeypatch.setattr(registry, "TABLES", {})
    methods.of_runs("mine", name)(lambda records: "a table")
    assert registry.TABLES == {}
    ((training, _),) = list(EXPERIMENTS[name].items())[:1]
    line = record(Point(DENSE), 0.9, model=training.model, data=training.data).to_line()
    (tmp_path / f"{name}.jsonl").write_text(f"{line}\n")
    methods.of_runs("mine", name)(lambda records: f"{len(records)} run")
    text = registry.TABLES["methods mine"]()
    assert text.startswith("1 run\n\n")
    assert f"python -m bench.methods {name} --seeds 0 " in text
    assert {found for found in TABLES if found.startswith("methods ")} <= {
        f"methods {table}" for table in ("snip-table", "resnet8", "controls", "samples", "grouping", "scopes")
    }


def test_plot_draws_every_method(tmp_path):
    records = [
        record(point, 0.9 - (point.sparsity or 0) ** 8 * 0.1, seed, seconds=10.0 + i)
        for seed in (0, 1)
        for i, point in enumerate(
            [
                Point(DENSE),
                *(Point(SMALL_DENSE, sparsity=sparsity) for sparsity in SPARSITIES),
                *(pruned(m, s, 100) for m in ("snip", "grasp") for s in SPARSITIES),
                *(pruned("random", sparsity, 100, scope="erk") for sparsity in SPARSITIES),
                pruned("snip", 0.9, 100, control="shuffled"),
            ]
        )
    ]
    records.append(record(pruned("synflow", 0.9, 100), 0.1))
    plot.save(records, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    table = plot.means(methods.frame(records))
    assert sorted(set(table.index)) == [DENSE, "grasp", plot.ERK, SMALL_DENSE, "snip", "synflow"]
    assert len(table.loc["snip"]) == len(SPARSITIES)


def test_every_method_of_the_plot_looks_different():
    assert set(METHODS) < set(plot.LOOKS)
    assert len({(*look, name in plot.DASHED) for name, look in plot.LOOKS.items()}) == len(plot.LOOKS)


def test_scopes_has_a_column_for_each_way_and_counts_layers_that_are_cut():
    layers = {"q": (100, 1, "dense"), "v": (100, 19, "dense"), "bias-like": (1, 1, "dense")}
    (first, second) = EXPERIMENTS["scopes"]
    records = []
    for training in (first, second):
        for seed in (0, 1):
            for point in EXPERIMENTS["scopes"][training]:
                cut = {"layers": layers} if point.scope == "global" and point.min_per_layer == 1 else {}
                accuracy = 0.5 + 0.1 * seed + 0.01 * SCOPE_NAMES.index(point.scope)
                made = dataclasses.replace(
                    record(point, accuracy, seed, **cut), model=training.model, data=training.data
                )
                records.append(made)
    table = methods.scopes(records).split("\n")
    assert cells(table[0])[1:] == [
        "dense",
        '"global"',
        "global with min_per_layer=50",
        '"layer"',
        '"erk"',
        '"balanced"',
    ]
    assert cells(table[2]) == [
        "llama, 80 %",
        "55.0 ± 7.1",
        "55.0 ± 7.1 (1 cut)",
        "55.0 ± 7.1",
        "56.0 ± 7.1",
        "57.0 ± 7.1",
        "58.0 ± 7.1",
    ]
    assert [cells(line)[0] for line in table[2:]] == ["llama, 80 %", "llama, 90 %", "vit, 80 %", "vit, 90 %"]
    assert "llama on recall: 20,000 training" in methods.facts(records, "scopes")
