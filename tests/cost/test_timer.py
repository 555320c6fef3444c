"""What counts as a quiet machine, and when a time is known."""

import io
from collections.abc import Callable

import pytest
import torch

from bench import timing
from bench.report import page, terminal
from sparseprune.cost import quiet, timer
from sparseprune.cost.timer import Timed

CPU = torch.device("cpu")


# ---- others ------------------------------------------------------------------------------------------------


@pytest.fixture
def stat(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, float], None]:
    """Sets what the machine counts of its processors' time (None: nothing), and the seconds that have passed.

    This process has computed all the time, on one processor.
    """
    now: tuple[str | None, float] = (None, 0.0)

    def opened(path: str) -> io.StringIO:
        assert path == "/proc/stat"
        if now[0] is None:
            raise FileNotFoundError(path)
        return io.StringIO(now[0])

    monkeypatch.setattr(quiet, "open", opened, raising=False)
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: now[1])
    monkeypatch.setattr(quiet.time, "process_time", lambda: now[1])
    monkeypatch.setattr(quiet.os, "sysconf", lambda name: 100)

    def set_to(text: str | None, seconds: float) -> None:
        nonlocal now
        now = (text, seconds)

    return set_to


@pytest.mark.parametrize(
    ("counted", "seconds", "others"),
    [
        ("cpu 1000 0 0 900 5 0 0 0 0 0", 10.0, 0.0),  # this process alone
        ("cpu 1500 100 200 900 5 100 0 102 0 0", 10.0, 1.0),  # all but idle and waiting, stolen time too
        ("cpu 6 1 0 0 0 0 0 0", 0.05, 0.0),  # two hundredths more are the counters' coarseness
        ("cpu 7 4 1 0 0 0 0 0", 0.05, 1.0),
        ("cpu 0 0 0 0 0 0 0 0", 0.05, 0.0),
        ("intr 5", 10.0, None),
        ("cpu 1 2 3", 10.0, None),
        (None, 10.0, None),
    ],
)
def test_others_are_counted(
    counted: str | None, seconds: float, others: float | None, stat: Callable[[str | None, float], None]
) -> None:
    stat("cpu 0 0 0 0 0 0 0 0 0 0", 0.0)
    watched = quiet.Others()
    stat(counted, seconds)
    found = watched.processors()
    assert found == (None if others is None else pytest.approx(others))
    assert quiet.is_busy(found) == bool(others)


def test_the_benchmarks_have_no_test_of_their_own() -> None:
    assert timing.Others is quiet.Others
    assert page.is_busy is terminal.is_busy is quiet.is_busy
    assert not quiet.is_busy(0.1)
    assert quiet.is_busy(0.11)


# ---- time_in_turns -----------------------------------------------------------------------------------------


class FakeMachine:
    """Steps that take seconds of a list each, the last ones for ever; others as busy as a list says."""

    def __init__(self, others: list[float | None]) -> None:
        self.now, self.others, self.turns = 0.0, others, ""

    def step(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def call() -> None:
            self.turns += name
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call

    def processors(self) -> float | None:
        return self.others.pop(0) if len(self.others) > 1 else self.others[0]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    made = FakeMachine([0.0])
    monkeypatch.setattr(timer, "clock", lambda device: made.now)
    monkeypatch.setattr(timer, "Others", lambda: made)
    return made


def time_in_turns(*steps: Callable[[], None]) -> Timed:
    return timer.time_in_turns(steps, CPU, fewest=3, seconds=10.0, patience=100.0)


def test_a_quiet_machine_is_looked_at_once(machine: FakeMachine) -> None:
    found = time_in_turns(machine.step("s", 5.0, 1.04, 1.0), machine.step("d", 9.0, 2.0))
    assert found == Timed([1.0, 2.0], "")
    assert machine.turns == "sd" * 3  # 20 seconds, and three rounds


def test_steps_are_repeated_until_a_second_run_confirms_the_fastest(machine: FakeMachine) -> None:
    found = time_in_turns(
        machine.step("s", 9.0, 5.0, 1.0, 5.0, 3.0, 2.0, 1.5, 1.06, 1.05), machine.step("d", 1.0)
    )
    assert found == Timed([1.0, 1.0], "")
    assert len(machine.turns) >= 18


def test_a_machine_that_becomes_quiet_is_waited_for(machine: FakeMachine) -> None:
    machine.others = [1.5, 0.11, 0.1]
    found = time_in_turns(machine.step("s", 16.0, *[3.0] * 5, 0.5), machine.step("d", *[4.0] * 6, 0.75))
    assert found == Timed([0.5, 0.75], "")
    assert not machine.others[1:]


@pytest.mark.parametrize(
    ("others", "seconds", "disturbed"),
    [
        (1.5, [1.0], "other processes kept 1.5 processors busy"),
        (0.0, [1.5**i for i in range(99, 0, -1)], "the two fastest runs are 50% apart"),
        (None, [1.5**i for i in range(99, 0, -1)], "the two fastest runs are 50% apart"),
        (None, [1.0], ""),
    ],
)
def test_patience_has_an_end(
    others: float | None, seconds: list[float], disturbed: str, machine: FakeMachine
) -> None:
    machine.others = [others]
    found = time_in_turns(machine.step("s", *seconds), machine.step("d", 1.0))
    assert found.disturbed == disturbed
    assert machine.now < 111 or len(machine.turns) == 6


def test_slow_steps_run_three_times(machine: FakeMachine) -> None:
    assert time_in_turns(machine.step("s", 300.0, 200.0, 201.0)).seconds == [200.0]
    assert machine.turns == "sss"


def test_what_was_disturbed_is_told_by_medians(machine: FakeMachine) -> None:
    """That one run of one step was lucky says nothing of the two."""
    machine.others = [2.0]
    found = time_in_turns(machine.step("s", 9.0, 3.0, 0.3, 3.0), machine.step("d", 9.0, 6.0))
    assert found.seconds == pytest.approx([3.0, 6.0])
