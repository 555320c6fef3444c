import itertools

import torch
from bench_small import Ticker
from bench_small_gpu import CPU, cuda_properties

from bench.gpu import timing
from bench.timing import HostClock, Step


def test_rounds_time_every_contender_once_a_round():
    ticker = Ticker()
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            ticker.now += seconds

        return run

    steps = {"a": Step(call("a", 2.0)), "b": Step(call("b", 3.0))}
    timed, failed = timing.in_rounds(steps, HostClock(ticker), 20)
    assert (timed["a"].seconds, timed["b"].seconds) == ([2.0] * 20, [3.0] * 20)
    assert failed == {}
    rounds = [order[-2 * i - 2 : len(order) - 2 * i] for i in range(20)]
    assert all(sorted(names) == ["a", "b"] for names in rounds)
    assert ["a", "b"] in rounds
    assert ["b", "a"] in rounds


def test_cuda_clock_clears_the_l2_cache_and_spins_before_the_first_event(monkeypatch):
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("record")

        def synchronize(self):
            done.append("synchronize")

        def elapsed_time(self, end):
            return 2.5  # milliseconds

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cuda_properties())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("spin"))
    clock = timing.CudaClock(CPU)
    assert clock.buffer.nbytes == 2 * 1000
    clock.buffer.fill_(1)

    def call():
        assert not clock.buffer.any()
        done.append("call")

    assert clock.seconds(call) == 0.0025
    assert done == ["spin", "record", "call", "record", "synchronize"]


def test_warm_up_lasts_until_times_are_stable():
    assert not timing.stable([1.0] * 5)
    assert timing.stable([9.0, 1.0, 1.0, 1.0, 1.02, 1.0, 1.0])
    assert not timing.stable([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    ticker, count = Ticker(), itertools.count()

    def call():
        ticker.now += max(1.0, 8.0 - next(count) // 2)

    timing.warm_up(Step(call), HostClock(ticker))
    assert next(count) == 2 * 12  # two calls each: a timed one, and one to see what handing over takes
