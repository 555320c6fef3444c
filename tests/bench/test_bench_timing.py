from bench_small import Ticker

from bench import timing
from bench.timing import HostClock


def test_quartiles():
    assert timing.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    assert timing.quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert timing.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_share_out_gives_each_contender_the_same_time_and_the_slow_ones_a_few_calls():
    shares = timing.share_out({"fast": 0.001, "middling": 0.05, "slow": 5.0}, seconds=3.0, fewest_blocks=2)
    assert shares["fast"].calls == 20  # 20 ms
    assert shares["fast"].blocks == timing.MOST_BLOCKS  # one call of 21 untimed
    assert shares["middling"] == (1, 10)  # 1 s in blocks of 100 ms, half of it untimed
    assert shares["slow"] == (1, 2)


def test_interleaved_takes_turns_and_measures_what_passes():
    clock = Ticker()
    order = []

    def watched(name, step):
        return timing.Step(lambda: (order.append(name), step()))

    steps = {"a": watched("a", clock.step(2.0, 4.0, 12.0)), "b": watched("b", clock.step(4.0))}
    times = timing.interleaved(steps, seconds=18.0, fewest_blocks=3, clock=HostClock(clock)).seconds
    # One warm-up call each, as they are slow; a has 9 s of 2 s each, b's 3 calls are spread over that.
    assert times == {"a": [4.0, 12.0, 2.0, 4.0], "b": [4.0, 4.0, 4.0]}
    assert "".join(order[2:]) == "aababab"
