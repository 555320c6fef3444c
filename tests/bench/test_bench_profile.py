import functools

import pytest
import torch
import torch.nn.functional as F
import typer
from bench_small import transformer

import sparseprune as sp
from bench import problems, profile
from bench.contenders import CONTENDERS
from bench.profile import REST, Used


def test_operators_are_counted_by_what_they_do():
    x = torch.randn(200, 200)

    def call():
        y = F.gelu(x @ torch.ones(200, 400))
        torch.zeros(300, 300)
        return F.layer_norm(y.t().contiguous(), (200,)), torch.cat([x, x])

    used = profile.operators(call, 2)
    count = {}
    for one in used:
        count.setdefault(one.group, []).extend([one.name] * one.ran)
    assert count["dense products"].count("aten::mm") == 2
    assert count["activations and norms"].count("aten::gelu") == 2
    assert count["activations and norms"].count("aten::native_layer_norm") == 2
    moved = {(one.name, one.written(4)): one.ran for one in profile.moves(used, 4)}
    # torch.ones fills, torch.zeros zeroes, which fills; contiguous copies. All of two calls.
    assert moved == {
        ("aten::fill_", 2 * 4 * 200 * 400): 2,
        ("aten::fill_", 2 * 4 * 300 * 300): 2,
        ("aten::copy_", 2 * 4 * 400 * 200): 2,
        ("aten::cat", 2 * 4 * 2 * 200 * 200): 2,
    }
    assert len(profile.moves(used, 4, at_least=4 * 200 * 400 + 1)) == 1


def test_tables_are_of_one_call():
    used = [
        Used("aten::gelu", [[10, 10]], 4, 0.006),
        Used("aten::copy_", [[100_000, 2], [100_000, 2]], 2, 0.002),
        Used("autograd::engine", [], 2, 0.0),
    ]
    table = profile.by_group(used, 2)
    assert "| activations and norms" in table
    assert "|           2 |  3.0 |    75 % |" in table
    assert REST in table
    assert "| aten::copy_        | [100000, 2] |           1 |          0.8 |" in profile.by_shape(used, 2, 4)


def test_the_command_profiles_a_workload(monkeypatch, capsys):
    monkeypatch.setattr(profile, "WORKLOADS", [transformer("step", "gpt2")])
    before = torch.get_num_threads()
    try:
        profile.main("gpt2", contender="dense-float32", threads=1, calls=1)
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert printed.startswith("transformer-step/gpt2@1x6x128/density=0.25/n=4/float32/")
    for group in ("attention", "dense products", "optimizer", "activations and norms"):
        assert f"| {group} " in printed
    with pytest.raises(typer.BadParameter, match="dense-float32-mkl does not compute transformer-step"):
        profile.main("gpt2", contender="dense-float32-mkl", threads=1, calls=1)


@pytest.mark.parametrize(("model", "joined"), [("bert", []), ("vit", ["aten::cat"]), ("gpt2", ["aten::cat"])])
def test_steps_of_sparse_transformers_copy_no_activations(model, joined, monkeypatch):
    """Nothing but the gradients of queries, keys and values where one layer gave all three."""
    monkeypatch.setattr(sp, "sparsify", functools.partial(sp.sparsify, layers="sparse"))
    step = CONTENDERS[f"sparseprune-{sp.ops.info()['isa']}"].make(problems.build(transformer("step", model)))
    activation = 4 * 6 * 128 * 4
    moved = profile.moves(profile.operators(step.call), 4, at_least=activation)
    assert [one.name for one in moved if one.name != "aten::fill_" for _ in range(one.ran)] == joined
    filled = sum(one.written(4) for one in moved if one.name == "aten::fill_")
    # Attention's gradients, which torch fills before it adds to them, and little else.
    assert filled <= 4 * activation
