"""Examples of the documents, run as they stand there."""

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"<!-- test: (?P<name>[^>]+) -->\n\n```python\n(?P<code>.*?)```", re.DOTALL)


def run(document: str, name: str) -> dict[str, Any]:
    text = (ROOT / document).read_text(encoding="utf-8")
    (code,) = [found["code"] for found in EXAMPLE.finditer(text) if found["name"] == name]
    assert len(code.strip().splitlines()) < 25
    names: dict[str, Any] = {}
    exec(compile(code, document, "exec"), names)
    return names


def test_a_score_of_ones_own() -> None:
    names = run("docs/methods.md", "own score")
    masks, model = names["masks"], names["model"]
    assert sum(int(mask.sum()) for mask in masks.values()) == round((784 * 300 + 300 * 10) * 0.1)
    # Squares rank as magnitudes do: these are SNIP's weights, in the layers' densities of ERK.
    exact = names["sp"].prune(model, names["batches"], method="snip", sparsity=0.9, scope="erk")
    assert all(torch.equal(masks[name], exact[name]) for name in exact)
    in_rounds = names["sp"].prune(model, names["batches"], method=names["taylor"], sparsity=0.9, rounds=3)
    assert sum(int(mask.sum()) for mask in in_rounds.values()) == 23_820


def test_rewiring() -> None:
    names = run("docs/rewiring.md", "ten lines")
    assert names["rewire"].state_dict()["steps"] == 300
    masks = names["sp"].masks_from_zeros(names["model"])
    assert sum(int(mask.sum()) for mask in masks.values()) == round((784 * 1024 + 1024 * 10) * 0.1)


def test_a_rule_of_ones_own() -> None:
    names = run("docs/rewiring.md", "own rule")
    sp, rule = names["sp"], names["by_saliency"]
    positions = torch.tensor([0, 5, 7, 2])
    stay, grow = rule(
        torch.tensor([[1.0], [-2.0], [0.5]]),
        sp.Candidates(positions, torch.tensor([3.0, 1.0, 2.0, 9.0])),
        (torch.tensor([0, 3]), torch.tensor([0, 5, 7])),
    )
    assert stay.tolist() == [3.0, 2.0, 1.0]
    assert grow.tolist() == [3.0, 1.0, 2.0, 9.0]
    masks = sp.masks_from_zeros(names["model"])
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"0.weight": 410, "2.weight": 26}
