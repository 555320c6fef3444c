"""Iterative magnitude pruning: what rounds keep, what they start from, and how a search goes on."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import check_unchanged, layer_of, noise, state
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sparseprune as sp
from sparseprune._ticket import Ticket, TicketRound, lottery_ticket
from sparseprune._ticket import folder as files
from sparseprune.nn import SparseLinear

X, Y = noise(32, 6), torch.arange(32) % 3
STEPS = 4


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))


def fit(model: nn.Module, start: int = 0, stop: int | None = None) -> float:
    """Full-batch gradient descent whose rate depends on the step."""
    loss = torch.zeros(())
    for step in range(start, STEPS if stop is None else stop):
        loss = cross_entropy(model(X), Y)
        parameters = list(model.parameters())
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p -= 0.5 / (step + 1) * g
    return loss.item()


def search(train: Callable[..., Any] = fit, rounds: int = 3, **options: Any) -> Ticket:
    return lottery_ticket(perceptron, train, rounds, **{"layers": "sparse", **options})


def same_masks(one: Ticket, other: Ticket) -> bool:
    return [r.number for r in one.rounds] == [r.number for r in other.rounds] and all(
        a.masks.keys() == b.masks.keys() and all(torch.equal(a.masks[n], b.masks[n]) for n in a.masks)
        for a, b in zip(one.rounds, other.rounds, strict=True)
    )


class KilledError(Exception):
    pass


def killed_in(number: int, train: Callable[..., Any] = fit) -> Callable[..., Any]:
    """Trains so many times, counted from 0, and is killed in the next."""
    calls = 0

    def until(model: nn.Module, **ahead: Any) -> Any:
        nonlocal calls
        if calls == number:
            raise KilledError
        calls += 1
        return train(model, **ahead)

    return until


@settings(max_examples=20)
@given(st.floats(0.05, 0.6), st.integers(1, 3))
def test_every_round_keeps_the_exact_number_of_weights(fraction: float, rounds: int) -> None:
    ticket = search(lambda _: None, rounds, fraction=fraction, layers="dense", min_per_layer=1)
    assert [r.number for r in ticket.rounds] == list(range(rounds + 1))
    for r in ticket.rounds:
        assert r.kept == sum(int(mask.sum()) for mask in r.masks.values())
        assert r.kept == round(90 * (1 - fraction) ** r.number)
        assert r.sparsity == 1 - r.kept / 90
    for before, after in zip(ticket.rounds, ticket.rounds[1:], strict=False):
        assert all(not (after.masks[n] & ~before.masks[n]).any() for n in after.masks)
    assert ticket.masks is ticket.rounds[-1].masks


def test_lottery_ticket_removes_the_smallest_after_training() -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 2, bias=False))
        model[0].weight.data = torch.tensor([[-8.0, 7, 6, -5], [4, -3, 2, 1]])
        return model

    def flip(model: nn.Module) -> None:
        # The largest become the smallest.
        with torch.no_grad():
            model[0].weight.reciprocal_()

    kept = [
        r.masks["0.weight"].int().tolist()
        for r in lottery_ticket(make, flip, 2, fraction=0.5, layers="dense").rounds
    ]
    assert kept == [[[1, 1, 1, 1], [1, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 0, 0], [0, 0, 1, 1]]]


def test_what_was_removed_never_returns_before_zeros() -> None:
    trained = iter([[1.0, 2, 3, 4, 5, 6, 7, 8], [0.0] * 8, [0.0] * 8])

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(4, 2)

    def train(model: nn.Module) -> None:
        model.weight.data = torch.tensor(next(trained)).view(2, 4)

    _, first, second = lottery_ticket(make, train, 2, fraction=0.5, layers="dense").rounds
    assert first.masks["weight"].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert second.masks["weight"].int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("rewind", [0, 2])
def test_every_round_starts_from_the_same_step(rewind: int) -> None:
    expected = perceptron()
    if rewind:
        fit(expected, 0, rewind)
    before, starts, calls = state(expected), [], []

    def train(model: nn.Module, **ahead: Any) -> float:
        calls.append(ahead)
        starts.append(sp.densify(model))
        return fit(model, **ahead)

    ticket = search(train, rewind=rewind)
    if rewind:
        assert calls.pop(0) == {"start": 0, "stop": rewind}
        check_unchanged(starts.pop(0), state(perceptron()))
    assert calls == [{"start": rewind, "stop": None} if rewind else {}] * 4
    for r, start in zip(ticket.rounds, starts, strict=True):
        expected.load_state_dict(before)
        sp.apply_masks(expected, r.masks)
        check_unchanged(start, state(expected))
    # All weights: masks are another's business.
    check_unchanged(ticket.model, before)
    assert all(p.grad is None and p.requires_grad for p in ticket.model.parameters())
    winner = sp.sparsify(ticket.model, ticket.masks, layers="sparse")
    assert fit(winner, rewind) == ticket.rounds[-1].result


def test_later_rounds_train_sparse_layers_and_the_first_the_dense_network() -> None:
    kinds = []
    search(lambda model: kinds.append(type(layer_of(model, "0.weight"))))
    assert kinds == [nn.Linear] + [SparseLinear] * 3


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_lottery_ticket_equals_masked_dense_training_in_float64(fraction: float) -> None:
    x = X.double()

    def make() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
        for _ in range(12):
            optimizer.zero_grad()
            cross_entropy(model(x), Y).backward()
            optimizer.step()

    ticket = lottery_ticket(make, train, 3, fraction=fraction, layers="sparse")

    # The same by other means: one flat vector of all weights, its mask, gradients written out.
    first, one_hot = [p.detach() for p in make().parameters()], torch.eye(3).double()[Y]
    w = torch.cat([first[0].flatten(), first[2].flatten()])
    mask = torch.ones_like(w)
    for r in ticket.rounds:
        if r.number > 0:
            # What is removed is 0, and stays behind all others.
            best = (w.abs() + mask).argsort(descending=True)[: round(108 * (1 - fraction) ** r.number)]
            mask = torch.zeros_like(w).index_fill(0, best, 1)
        assert torch.equal(torch.cat([m.flatten() for m in r.masks.values()]), mask.bool())
        w = mask * torch.cat([first[0].flatten(), first[2].flatten()])
        at = [w, first[1].clone(), first[3].clone()]
        speed = [torch.zeros_like(t) for t in at]
        for _ in range(12):
            h = (x @ at[0][:72].view(12, 6).T + at[1]).tanh()
            error = ((h @ at[0][72:].view(3, 12).T + at[2]).softmax(1) - one_hot) / len(x)
            back = error @ at[0][72:].view(3, 12) * (1 - h * h)
            of_weights = mask * torch.cat([(back.T @ x).flatten(), (error.T @ h).flatten()])
            for t, v, g in zip(at, speed, (of_weights, back.sum(0), error.sum(0)), strict=True):
                t -= 0.3 * v.mul_(0.5).add_(g)


@pytest.mark.parametrize("rewind", [0, 1])
@pytest.mark.parametrize("number", range(5))
def test_a_killed_search_goes_on(number: int, rewind: int, tmp_path: Path) -> None:
    whole, told = search(rewind=rewind), []
    if number < 4 + bool(rewind):
        with pytest.raises(KilledError):
            search(killed_in(number), rewind=rewind, folder=tmp_path)
    else:
        search(rewind=rewind, folder=tmp_path)
    calls = []

    def train(model: nn.Module, **ahead: Any) -> float:
        calls.append(ahead)
        return fit(model, **ahead)

    resumed = search(train, rewind=rewind, folder=tmp_path, on_round=told.append)
    assert len(calls) == 4 + bool(rewind) - number
    assert same_masks(resumed, whole)
    assert [r.result for r in resumed.rounds] == [r.result for r in whole.rounds]
    assert told == list(resumed.rounds)
    check_unchanged(resumed.model, state(whole.model))


def test_a_search_goes_on_with_more_rounds_and_returns_fewer(tmp_path: Path) -> None:
    whole = search(rounds=4)
    search(rounds=2, folder=tmp_path)
    assert same_masks(search(killed_in(2), rounds=4, folder=tmp_path), whole)
    fewer = search(killed_in(0), rounds=1, folder=tmp_path)
    assert [r.number for r in fewer.rounds] == [0, 1]
    assert fewer.rounds[1].seconds > 0


def test_a_killed_search_goes_on_with_its_random_numbers(tmp_path: Path) -> None:
    def train(model: nn.Module, **_: Any) -> float:
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        return torch.rand(()).item()

    whole = search(train)
    with pytest.raises(KilledError):
        search(killed_in(2, train), folder=tmp_path)
    torch.manual_seed(5)
    resumed = search(train, folder=tmp_path)
    assert same_masks(resumed, whole)
    assert [r.result for r in resumed.rounds] == [r.result for r in whole.rounds]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fraction": 0.3}, "fraction 0.2 there, 0.3 now"),
        ({"rewind": 2}, "rewind 1 there, 2 now"),
        ({"layers": "dense"}, "layers 'sparse' there, 'dense' now"),
        ({"exclude": "3"}, r"exclude \[\] there, \['3'\] now"),
        ({"min_per_layer": 2}, "min_per_layer 1 there, 2 now"),
    ],
)
def test_a_folder_of_other_settings_is_refused(other: dict, message: str, tmp_path: Path) -> None:
    search(rounds=1, rewind=1, folder=tmp_path)
    there = {file.name: file.read_bytes() for file in tmp_path.glob("*.pt")}
    with pytest.raises(ValueError, match=f"got others: {message}; give another folder"):
        search(killed_in(0), **{"rewind": 1, "folder": tmp_path, **other})
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.pt")} == there


def test_a_folder_of_other_initial_weights_is_refused(tmp_path: Path) -> None:
    search(rounds=1, folder=tmp_path)

    def other() -> nn.Module:
        model = perceptron()
        model[1].running_mean[0] = 1e-30
        return model

    with pytest.raises(
        ValueError, match=r"got others: initial weights '[0-9a-f]{16}' there, '[0-9a-f]{16}' now"
    ):
        lottery_ticket(other, fit, 1, layers="sparse", folder=tmp_path)


@pytest.mark.parametrize("name", ["start.pt", "round-000.pt", "round-001.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "list", "keys"])
def test_damaged_files_are_named(name: str, damage: str, tmp_path: Path) -> None:
    search(rounds=1, folder=tmp_path)
    file = tmp_path / name
    if damage in ("list", "keys"):
        torch.save([1] if damage == "list" else {"masks": {}}, file)
    else:
        file.write_bytes({"cut": file.read_bytes()[:-99], "empty": b"", "text": b"ticket"}[damage])
    with pytest.raises(
        ValueError, match=f"expected a part of a search in .*{name}, got .*; delete it and the"
    ):
        search(killed_in(0), folder=tmp_path)
    file.unlink()
    assert same_masks(search(folder=tmp_path), search())


def test_rounds_that_do_not_follow_from_each_other_are_refused(tmp_path: Path) -> None:
    search(folder=tmp_path / "one")
    search(lambda _: 0.0, folder=tmp_path / "other")
    os.replace(tmp_path / "other" / "round-002.pt", tmp_path / "one" / "round-002.pt")
    with pytest.raises(ValueError, match=r"round-002.pt, got other masks than follow from the round before"):
        search(folder=tmp_path / "one")
    start = torch.load(tmp_path / "one" / "start.pt")
    torch.save({**start, "state": {}}, tmp_path / "one" / "start.pt")
    with pytest.raises(ValueError, match=r"start.pt, got other tensors than the network has"):
        search(folder=tmp_path / "one")


def test_a_folder_serves_one_search_at_a_time(tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def train(model: nn.Module) -> None:
        inside.set()
        assert leave.wait(60)

    first = threading.Thread(target=lambda: search(train, 1, folder=tmp_path))
    first.start()
    assert inside.wait(60)
    with pytest.raises(BlockingIOError, match=r"expected no other process to work in .*, but one does"):
        search(folder=tmp_path)
    leave.set()
    first.join()
    assert len(search(train, 1, folder=tmp_path).rounds) == 2
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*is no folder"):
        search(folder=tmp_path / "file")


def shrink_last(model: nn.Module) -> None:
    """Trains so that the last layer goes first."""
    with torch.no_grad():
        for tensor in layer_of(model, "3.weight").parameters():
            tensor *= 1e-6


def test_a_layer_that_loses_all_its_weights_is_named_with_its_round(tmp_path: Path) -> None:
    calls = []

    def train(model: nn.Module) -> None:
        calls.append(1)
        shrink_last(model)

    with pytest.raises(
        ValueError, match=r"none kept in '3.weight' in round 2; give each layer a floor with min"
    ):
        search(train, fraction=0.2, folder=tmp_path)
    assert len(calls) == 2
    # What was trained is not lost.
    ticket = search(train, fraction=0.2, folder=tmp_path, min_per_layer=1)
    assert len(calls) == 4
    assert [int(r.masks["3.weight"].sum()) for r in ticket.rounds] == [30, 12, 1, 1]
    assert [r.kept for r in ticket.rounds] == [90, 72, 58, 46]


def test_excluded_layers_stay_dense() -> None:
    ticket = search(exclude=["3"])
    assert list(ticket.masks) == ["0.weight"]
    assert [r.kept for r in ticket.rounds] == [60, 48, 38, 31]


def make_blown(rate: float) -> Callable[..., None]:
    def train(model: nn.Module, **ahead: Any) -> None:
        layer_of(model, "3.weight").bias.data[1] = rate

    return train


@pytest.mark.parametrize(("rewind", "when"), [(0, "round 0"), (2, "the first 2 steps")])
def test_weights_that_are_not_finite_are_named(rewind: int, when: str, tmp_path: Path) -> None:
    message = f"expected finite weights after {when}, got inf in '3.bias'; lower the learning rate"
    with pytest.raises(ValueError, match=message):
        search(make_blown(float("inf")), rewind=rewind, folder=tmp_path)
    assert [file.name for file in tmp_path.glob("round*")] == []


def other_every_time() -> nn.Module:
    return nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((perceptron, fit, 0), {}, ValueError, "expected rounds to be a whole number, 1 or more, got 0"),
        ((perceptron, fit, 2.0), {}, ValueError, "expected rounds to be a whole number, 1 or more, got 2.0"),
        ((perceptron, fit, 1), {"rewind": -1}, ValueError, "rewind to be a whole number, 0 or more, got -1"),
        ((perceptron, fit, 1), {"fraction": 0.0}, ValueError, r"each round removes, in \(0, 1\), got 0.0"),
        ((perceptron, fit, 1), {"fraction": 1}, ValueError, r"each round removes, in \(0, 1\), got 1"),
        ((perceptron, fit, 1), {"fraction": "a"}, TypeError, "expected fraction to be a number, got str"),
        ((perceptron, fit, 1), {"layers": "fast"}, ValueError, 'expected layers="measured", "sparse" or'),
        ((perceptron, fit, 1), {"batch_size": 0}, ValueError, "expected batch_size >= 1, got 0"),
        ((perceptron, fit, 1), {"min_per_layer": -1}, ValueError, "min_per_layer: expected a whole number"),
        ((perceptron, fit, 1), {"exclude": "7"}, ValueError, "exclude: expected names of parameters"),
        ((perceptron, fit, 1), {"exclude": ("0", "3")}, ValueError, "none to prune; exclude leaves nothing"),
        (
            (perceptron, fit, 9),
            {"min_per_layer": 7},
            ValueError,
            r"at least 14 weights \(7 in each layer\), got 12",
        ),
        (
            (perceptron, fit, 40),
            {},
            ValueError,
            r"at least 2 weights \(1 in each layer\), got 0; ask for fewer",
        ),
        ((lambda: None, fit, 1), {}, TypeError, "make_model to return a torch.nn.Module, got NoneType"),
        ((nn.ReLU, fit, 1), {}, ValueError, "Linear or Conv1d/2d/3d layers, found none to prune$"),
        ((lambda: nn.LazyLinear(2), fit, 1), {}, ValueError, "got none yet in lazy 'weight'; run one batch"),
        ((other_every_time, fit, 1), {}, ValueError, "got others the second time; seed it, as with torch"),
        (
            (perceptron, lambda model: model, 1),
            {},
            TypeError,
            "what JSON can hold, such as a number, got Seq",
        ),
    ],
)
def test_lottery_ticket_refuses(
    arguments: tuple, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lottery_ticket(*arguments, **options)


def test_lottery_ticket_leaves_the_networks_of_make_model_alone() -> None:
    model = perceptron()
    before = state(model)
    ticket = lottery_ticket(lambda: model, fit, 1, layers="sparse")
    check_unchanged(model, before)
    assert ticket.model is not model


def test_fingerprint_tells_names_shapes_dtypes_and_bits_apart() -> None:
    def of(name: str, tensor: Tensor) -> str:
        model = nn.Module()
        model.register_buffer(name, tensor, persistent=False)
        return files.fingerprint(model)

    zero = torch.zeros(4)
    others = [("b", zero), ("a", zero.view(2, 2)), ("a", zero.int()), ("a", -zero), ("a", zero[0])]
    assert len({of(*other) for other in [("a", zero), *others]}) == 6
    assert of("a", zero.view(2, 2)) == of("a", zero.view(2, 2).T)


def test_rounds_are_told_in_turn() -> None:
    seen: list[TicketRound] = []
    ticket = search(lambda _: {"accuracy": 0.5, "curve": (1, 2)}, on_round=seen.append)
    assert seen == list(ticket.rounds)
    assert seen[2].result == {"accuracy": 0.5, "curve": [1, 2]}


class Embedded(nn.Module):
    """Takes tokens and a factor by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer = nn.Embedding(5, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor, *, factor: Tensor) -> Tensor:
        return self.layer(self.embedding(tokens)) * factor


def test_a_search_takes_example_inputs_in_place_of_a_size() -> None:
    def train(model: nn.Module) -> None:
        assert model(torch.zeros(2, 3, dtype=torch.int64), factor=torch.ones(2, 1, 1)).shape == (2, 3, 8)

    options: dict[str, Any] = {"batch_size": 2, "layers": "measured"}
    examples = ((torch.zeros(2, 3, dtype=torch.int64),), {"factor": torch.ones(2, 1, 1)})
    ticket = lottery_ticket(Embedded, train, 1, example_inputs=examples, **options)
    assert ticket.rounds[-1].kept == round(64 * 0.8)
    with pytest.raises(ValueError, match="lottery_ticket: expected one of input_size and example_inputs"):
        lottery_ticket(Embedded, train, 1, example_inputs=examples, input_size=(3,), **options)
    with pytest.raises(ValueError, match="sparsify: expected example_inputs to be arguments that the model"):
        lottery_ticket(Embedded, train, 1, example_inputs=torch.zeros(2, 3), **options)
