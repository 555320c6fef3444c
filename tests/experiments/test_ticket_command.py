"""``sparseprune ticket``: rounds and controls, the report, how it goes on; and training from step k."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
pytest.importorskip("safetensors")

from typer.testing import CliRunner, Result

import sparseprune as sp
from sparseprune.experiments import models
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.ticket import plot, report, results, run
from sparseprune.experiments.ticket.results import Run, Search
from sparseprune.experiments.train import train
from sparseprune.experiments.watcher import Watcher

WEIGHTS = 12 * 16 + 16 * 3


@pytest.fixture
def data() -> Dataset:
    """Three well separated clouds: 60 samples to train (4 steps of 16), 30 to test."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = 3 * torch.eye(3).repeat(1, 4)[y] + 0.5 * torch.randn(90, 12, generator=generator)
    return Dataset("clouds", "this test", x[:60], y[:60], x[60:], y[60:])


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """Learning rates of all steps."""
    seen: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    yield seen
    hook.remove()


class Recorder(nn.Linear):
    """Keeps what it was trained on."""

    def __init__(self) -> None:
        super().__init__(12, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            # The next batch is written over this one.
            self.seen.append(x.detach().clone())
        return super().forward(x)


@pytest.mark.parametrize("step", [1, 4, 6, 8, 11])
def test_train_goes_on_at_a_step(step: int, data: Dataset, rates: list[float]) -> None:
    whole, parts = Recorder(), Recorder()
    train(whole, data, epochs=3, batch_size=16, optimizer="sgd")
    expected, done = list(rates), []
    rates.clear()
    first = train(parts, data, epochs=3, batch_size=16, optimizer="sgd", stop=step, on_progress=done.append)
    second = train(parts, data, epochs=3, batch_size=16, optimizer="sgd", start=step, on_progress=done.append)
    assert rates == expected
    assert len(parts.seen) == 12
    assert all(map(torch.equal, parts.seen, whole.seen))
    assert (first.steps, second.steps) == (step, 12 - step)
    assert (first.epochs, second.epochs) == (step / 4, 3)
    assert [p.epoch for p in first.curve] == [*range(1, math.ceil(step / 4)), step / 4]
    assert [p.epoch for p in second.curve] == list(range(step // 4 + 1, 4))
    assert done == [i / n for n in (step, 12 - step) for i in range(1, n + 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 1, "start": 4}, "0 <= start < stop <= 4 (steps of its epochs), got 4 and 4"),
        ({"epochs": 1, "start": -1}, "0 <= start < stop <= 4 (steps of its epochs), got -1 and 4"),
        ({"epochs": 1, "stop": 5}, "0 <= start < stop <= 4 (steps of its epochs), got 0 and 5"),
        ({"epochs": 1, "start": 2, "stop": 2}, "0 <= start < stop <= 4 (steps of its epochs), got 2 and 2"),
        ({"seconds": 1.0, "start": 1}, "0 <= start < stop <= 0 (steps of its epochs), got 1 and 0"),
    ],
)
def test_train_refuses_steps_that_it_has_not(data: Dataset, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train(Recorder(), data, batch_size=16, **arguments)


class KilledError(Exception):
    pass


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    def small(sample: tuple[int, ...], classes: int, width: float) -> nn.Module:
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

    monkeypatch.setitem(models.MODELS, "small", small)
    # Sparse or dense is measured, and must not differ between runs that are compared.
    monkeypatch.setattr(run, "lottery_ticket", lambda *a, **o: sp_ticket(*a, **o, layers="sparse"))
    monkeypatch.setattr(run.sp, "sparsify", lambda *a, **o: sparsify(*a, **{**o, "layers": "sparse"}))
    return "small"


sp_ticket, sparsify = run.lottery_ticket, sp.sparsify


@pytest.fixture
def killed_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[nn.Module]]:
    """Kills the search in the training of this number, from 0; the list has the networks as they start."""

    def kill_in(number: int) -> list[nn.Module]:
        starts: list[nn.Module] = []

        def until(model: nn.Module, *arguments: Any, **options: Any) -> Any:
            if len(starts) == number:
                raise KilledError
            starts.append(sp.densify(model))
            return train(model, *arguments, **options)

        monkeypatch.setattr(run, "train", until)
        return starts

    return kill_in


def search(data: Dataset, small: str, **options: Any) -> Search:
    return run.search(data, small, **{"rounds": 2, "epochs": 2, "batch_size": 16, "lr": 0.01, **options})


def figures(found: Search) -> dict[tuple[str, int], tuple[Any, ...]]:
    """All that does not depend on the clock."""

    def curve(one: Run) -> list[tuple[float, float]]:
        return [(point.epoch, point.accuracy) for point in one.result.curve]

    return {(r.kind, r.round): (r.weights, r.sparsity, r.result.steps, curve(r)) for r in found.runs}


class Log(Watcher):
    def __init__(self) -> None:
        self.begun: list[tuple[str, int, int]] = []
        self.ended: list[str] = []

    def begin(self, task: str, number: int, count: int) -> None:
        self.begun.append((task, number, count))

    def end(self, task: str, outcome: str) -> None:
        self.ended.append(task)


@pytest.mark.parametrize("rewind", [0, 3])
def test_search_trains_rounds_and_controls(
    rewind: int, data: Dataset, small: str, killed_in: Callable[[int], list[nn.Module]]
) -> None:
    starts, log = killed_in(99), Log()
    found = search(data, small, rewind=rewind, watcher=log)
    kinds = [("ticket", 0), ("ticket", 1), ("ticket", 2)]
    kinds += [("re-initialised", 1), ("shuffled", 1), ("re-initialised", 2), ("shuffled", 2)]
    assert [(one.kind, one.round) for one in found.runs] == kinds
    kept = [round(WEIGHTS * 0.8**n) for n in range(3)]
    assert all(one.weights == kept[one.round] for one in found.runs)
    assert [one.result.steps for one in found.runs] == [
        8 - (rewind if one.kind != "re-initialised" else 0) for one in found.runs
    ]
    tasks = ["round 0", "round 1", "round 2"]
    tasks += [f"round {n}, {kind}" for n in (1, 2) for kind in ("re-initialised", "shuffled")]
    assert log.ended == tasks
    count = 7 + bool(rewind)
    assert log.begun == [
        (f"train: {task}", number, count)
        for number, task in enumerate(["to step 3"] * bool(rewind) + tasks, 1)
    ]

    dense, _, ticket, _, _, other, shuffled = starts[bool(rewind) :]
    for at in (0, 3):
        mask = ticket[at].weight != 0
        assert torch.equal(ticket[at].weight, dense[at].weight * mask)
        assert torch.equal(other[at].weight != 0, mask)
        assert not (other[at].weight == dense[at].weight)[mask].any()
        assert not torch.equal(shuffled[at].weight != 0, mask)
        assert int((shuffled[at].weight != 0).sum()) == int(mask.sum())
        assert torch.equal(shuffled[at].weight, dense[at].weight * (shuffled[at].weight != 0))
        assert torch.equal(shuffled[at].bias, dense[at].bias)


@pytest.mark.parametrize("number", [1, 3, 4, 6])
def test_a_killed_search_goes_on_with_the_next_training(
    number: int, tmp_path: Path, data: Dataset, small: str, killed_in: Callable[[int], list[nn.Module]]
) -> None:
    whole = search(data, small, rewind=3)
    killed_in(number)
    with pytest.raises(KilledError):
        search(data, small, rewind=3, folder=tmp_path)
    there = json.loads((tmp_path / results.FILE).read_text())
    assert len(there["runs"]) == number - 1
    trained = killed_in(99)
    resumed = search(data, small, rewind=3, folder=tmp_path)
    assert len(trained) == 8 - number
    assert figures(resumed) == figures(whole)
    assert Search.from_dict(json.loads((tmp_path / results.FILE).read_text())) == resumed


def test_a_search_goes_on_with_more_rounds_and_with_controls(
    tmp_path: Path, data: Dataset, small: str, killed_in: Callable[[int], list[nn.Module]]
) -> None:
    search(data, small, rounds=1, controls=False, folder=tmp_path)
    trained = killed_in(99)
    more = search(data, small, rounds=2, folder=tmp_path)
    assert len(trained) == 1 + 4
    assert figures(more) == figures(search(data, small))
    assert search(data, small, rounds=1, controls=False, folder=tmp_path) == more


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fraction": 0.3}, "fraction 0.2 there, 0.3 now"),
        ({"rewind": 1}, "rewind 0 there, 1 now"),
        ({"epochs": 1, "seed": 5}, "epochs 2 there, 1 now; seed 0 there, 5 now"),
        ({"lr": 0.5}, "lr 0.01 there, 0.5 now"),
    ],
)
def test_a_folder_of_another_search_is_refused(
    other: dict, message: str, tmp_path: Path, data: Dataset, small: str
) -> None:
    search(data, small, rounds=1, controls=False, folder=tmp_path)
    with pytest.raises(ValueError, match=f"got others: {message}; give another --out, or the same settings"):
        search(data, small, folder=tmp_path, **other)
    fewer = dataclasses.replace(data, train_x=data.train_x[:50], train_y=data.train_y[:50])
    with pytest.raises(ValueError, match="data train 60 there, 50 now"):
        search(fewer, small, folder=tmp_path)


def test_a_folder_that_is_none_of_a_search_is_refused(tmp_path: Path, data: Dataset, small: str) -> None:
    search(data, small, rounds=1, controls=False, folder=tmp_path)
    file = tmp_path / results.FILE
    for content in ("", "[]", "{}", '{"runs": [{}]}', file.read_text()[:-9]):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"expected the results of a search in .*json, got something"):
            search(data, small, folder=tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"expected .*json beside the rounds in .*search, got none"):
        search(data, small, folder=tmp_path)


TICKET = [
    *("ticket", "--data", "digits", "--model", "lenet_300_100", "--samples", "60"),
    *("--rounds", "2", "--epochs", "1", "--batch-size", "30"),
]


@pytest.fixture
def call(restored_threads: None) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(app, [*TICKET, *map(str, arguments)])


def test_ticket_prints_a_line_for_each_round_and_goes_on(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call("--out", tmp_path)
    assert first.exit_code == 0, first.output
    lines = [line.split() for line in first.stdout.splitlines() if re.match(r" +[012] ", line)]
    assert [line[:3] for line in lines] == [
        ["0", "0.0", "50,200"],
        ["1", "20.0", "40,160"],
        ["2", "36.0", "32,128"],
    ]
    assert [len(line) for line in lines] == [7, 9, 9]
    assert lines[0][6] == "1.00×"
    assert "results.json, table.md and ticket.png are in" in first.stdout
    assert len(re.findall(r"round \d(, [-a-z]+)?: .* % after .* ms per step", first.stderr)) == 7
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.startswith("**Lottery ticket of lenet_300_100 on digits, 1 epoch, batch 30, ")
    numbers = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert numbers[2:] == ["0", "1", "2"]
    assert table.rstrip().endswith(report.LEGEND)
    assert (tmp_path / "ticket.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(run, "train", lambda *_, **__: pytest.fail("trained again"))
    again = call("--out", tmp_path, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == json.loads((tmp_path / "results.json").read_text())
    assert call("--out", tmp_path).stdout == first.stdout
    other = call("--out", tmp_path, "--seed", 1)
    assert other.exit_code == 1
    assert "got others: seed 0 there, 1 now; give another --out" in " ".join(other.stderr.split())


def test_ticket_without_controls_or_folder_trains_the_rounds_alone(call: Callable[..., Result]) -> None:
    result = call("--no-controls", "--rewind", 1, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(one["kind"], one["round"]) for one in found["runs"]] == [("ticket", n) for n in range(3)]
    assert [one["result"]["steps"] for one in found["runs"]] == [1, 1, 1]
    assert found["settings"]["rewind"] == 1
    table = report.texts(Search.from_dict(found))
    assert list(table.columns) == ["round", "sparsity %", "weights", "accuracy %", "s", "ms/step", "speed-up"]
    assert report.headline(Search.from_dict(found)).startswith(
        "Lottery ticket of lenet_300_100 on digits from step 1, 1 epoch, batch 30, "
    )


def test_ticket_refuses_what_it_cannot_do(call: Callable[..., Result], tmp_path: Path) -> None:
    for arguments, message in (
        (("--fraction", 1), "each round removes, in (0, 1), got 1.0"),
        (("--rewind", 2), "expected 0 <= start < stop <= 2 (steps of its epochs), got 2 and 2"),
        (("--rounds", 60), "at least 3 weights (1 in each layer), got 0"),
    ):
        result = call(*arguments, "--out", tmp_path / str(arguments[1]))
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())


def test_the_plot_labels_as_many_rounds_as_have_room(tmp_path: Path, data: Dataset, small: str) -> None:
    found = search(data, small, rounds=1, controls=False)
    (first, second) = found.runs
    runs = [dataclasses.replace(second, round=n, sparsity=1 - 0.8**n) for n in range(1, 21)]
    long = dataclasses.replace(found, runs=(first, *runs))
    assert plot._labelled(long.of_kind("ticket")) == list(range(0, 21, 2))
    plot.save_ticket(long, "many rounds", tmp_path / "long.png")
    assert (tmp_path / "long.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [plot._percent(1 - 0.8**n) for n in (0, 1, 10, 20)] == ["0", "20", "89.3", "98.85"]
