import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

import torch

import sparseprune as sp
from bench import speedups
from bench.speedups import HEADS, Setting
from sparseprune.cost.speedup import SpeedUp, TimedMasks


def test_speedups_are_timed_and_what_is_out_of_reach_is_told(monkeypatch, tmp_path):
    real, asked = sp.prune, []

    def prune(model, batches, *, speedup, block, **settings):
        """Half of the weights, without timing anything."""
        asked.append((speedup, block))
        if speedup > 5:
            raise ValueError("expected at most 5 times")
        masks = TimedMasks(real(model, batches, method="magnitude", sparsity=0.5))
        masks.speedup = SpeedUp(speedup, 2.5, 0.5, 0.2)
        return masks

    monkeypatch.setattr(sp, "prune", prune)
    monkeypatch.setattr(speedups, "SECONDS", 0.05)
    monkeypatch.setitem(speedups.SETTINGS, "resnet8", Setting((1, 12, 12), 16))
    out, threads = tmp_path / "table.md", torch.get_num_threads()
    try:
        speedups.main("resnet8", "2,10", "1,auto", 1, out)
    finally:
        torch.set_num_threads(threads)
    assert asked == [(2.0, (1, 1)), (10.0, (1, 1)), (2.0, "auto"), (10.0, "auto")]
    table = [line for line in out.read_text().splitlines() if line.startswith("|")]
    heads, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table]
    assert tuple(heads) == HEADS
    assert [row[:4] for row in rows] == [
        ["resnet8", "1x1", "2", "2.50"],
        ["resnet8", "1x1", "10", "refused: expected at most 5 times"],
        ["resnet8", "auto", "2", "2.50"],
        ["resnet8", "auto", "10", "refused: expected at most 5 times"],
    ]
    numbers = dict(zip(HEADS[4:], map(float, rows[0][4:]), strict=True))
    assert numbers["measured"] == pytest.approx(numbers["dense ms"] / numbers["sparse ms"], rel=0.1)
    assert numbers["weights %"] == 50
    assert 0 < numbers["FLOPs %"] < 100
