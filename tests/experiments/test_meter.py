import sys
import types

import pytest
import torch

from sparseprune.experiments import meter as metering
from sparseprune.experiments.meter import Counter, CounterError, Meter, gpu_counter, rapl_counters


class Powercap:
    """A folder like /sys/class/powercap, of zones whose counters a test sets."""

    def __init__(self, folder):
        self.folder = folder

    def zone(self, number, name, energy_uj, range_uj=262_143_328_850):
        zone = self.folder / f"intel-rapl:{number}"
        zone.mkdir(parents=True, exist_ok=True)
        for file, text in {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": range_uj}.items():
            (zone / file).write_text(f"{text}\n")
        return zone


@pytest.fixture
def powercap(tmp_path):
    return Powercap(tmp_path / "powercap")


def test_meter_adds_up_the_packages_and_nothing_else(powercap):
    powercap.zone("0", "package-0", 1_000_000)
    powercap.zone("0:0", "core", 500_000)
    powercap.zone("0:1", "dram", 500_000)
    powercap.zone("1", "package-1", 7_000_000)
    powercap.zone("2", "psys", 8_000_000)
    meter = Meter(powercap=powercap.folder)
    with meter:
        powercap.zone("0", "package-0", 3_500_000)
        powercap.zone("0:0", "core", 2_500_000)
        powercap.zone("1", "package-1", 7_250_000)
        powercap.zone("2", "psys", 90_000_000)
    assert meter.cost.joules == 2.5 + 0.25
    assert meter.cost.source == "RAPL package-0 + RAPL package-1"


def test_meter_counts_between_start_and_stop_alone(powercap):
    powercap.zone("0", "package-0", 0)
    meter = Meter(powercap=powercap.folder)
    assert meter.cost.joules == 0
    for begin, end in ((1_000_000, 3_000_000), (10_000_000, 10_500_000)):
        powercap.zone("0", "package-0", begin)
        meter.start()
        powercap.zone("0", "package-0", end)
        cost = meter.stop()
    assert cost == meter.cost
    assert cost.joules == 2.5


def test_meter_goes_on_where_a_counter_wraps_around(powercap):
    powercap.zone("0", "package-0", 9_000_000, range_uj=10_000_000)
    powercap.zone("1", "package-1", 4_000_000, range_uj=10_000_000)
    with Meter(powercap=powercap.folder) as meter:
        powercap.zone("0", "package-0", 2_000_000, range_uj=10_000_000)
        powercap.zone("1", "package-1", 5_000_000, range_uj=10_000_000)
    assert meter.cost.joules == 3 + 1


def test_meter_sees_each_of_two_wraps_when_it_is_updated(powercap, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metering.time, "perf_counter", lambda: now[0])
    powercap.zone("0", "package-0", 9_000_000, range_uj=10_000_000)
    with Meter(powercap=powercap.folder) as meter:
        for energy, seconds in ((8_000_000, 100), (9_500_000, 120), (7_000_000, 200)):
            powercap.zone("0", "package-0", energy, range_uj=10_000_000)
            now[0] = seconds
            meter.update()
    # 9 -> 8 around the end is 9, 8 -> 7 is another 9; the look at 120 seconds came too soon to read.
    assert meter.cost.joules == 18
    assert meter.cost.seconds == 200


def _no_folder(powercap):
    return "not measured: no RAPL here"


def _no_package(powercap):
    powercap.zone("0", "psys", 5)
    return "not measured: no RAPL here"


def _unreadable(powercap):
    # As root, who runs tests in containers, may read any file, but no folder.
    energy = powercap.zone("0", "package-0", 5) / "energy_uj"
    energy.unlink()
    energy.mkdir()
    return "not measured: RAPL's energy_uj cannot be read: Is a directory"


def _missing(powercap):
    (powercap.zone("0", "package-0", 5) / "max_energy_range_uj").unlink()
    return "not measured: RAPL's max_energy_range_uj cannot be read: No such file or directory"


def _no_number(powercap):
    powercap.zone("0", "package-0", "")
    return "not measured: RAPL's energy_uj holds no number"


def _one_of_two(powercap):
    powercap.zone("0", "package-0", 5)
    powercap.zone("1", "package-1", "?")
    return "not measured: RAPL's energy_uj holds no number"


@pytest.mark.parametrize("spoil", [_no_folder, _no_package, _unreadable, _missing, _no_number, _one_of_two])
def test_meter_says_why_it_measures_no_energy(powercap, spoil):
    source = spoil(powercap)
    with Meter(powercap=powercap.folder) as meter:
        pass
    assert (meter.cost.joules, meter.cost.source) == (None, source)


def test_meter_takes_no_energy_from_a_counter_that_fails_meanwhile(powercap):
    zone = powercap.zone("0", "package-0", 1_000_000)
    meter = Meter(powercap=powercap.folder)
    with meter:
        (zone / "energy_uj").unlink()
    powercap.zone("0", "package-0", 2_000_000)
    with meter:
        powercap.zone("0", "package-0", 3_000_000)
    assert meter.cost.joules is None
    assert meter.cost.source == "not measured: RAPL's energy_uj cannot be read: No such file or directory"


def test_meter_counts_seconds_of_the_cpu_and_of_children(monkeypatch, powercap):
    ticks = {"perf_counter": [100.0, 107.0], "process_time": [1.0, 4.5]}
    children = [types.SimpleNamespace(children_user=2.0, children_system=1.0)] * 1
    children += [types.SimpleNamespace(children_user=2.25, children_system=1.5)]
    meter = Meter(powercap=powercap.folder)
    for number in (0, 1):
        monkeypatch.setattr(metering.time, "perf_counter", lambda n=number: ticks["perf_counter"][n])
        monkeypatch.setattr(metering.time, "process_time", lambda n=number: ticks["process_time"][n])
        monkeypatch.setattr(metering.os, "times", lambda n=number: children[n])
        cost = (meter.start, meter.stop)[number]()
    assert (cost.seconds, cost.cpu_seconds) == (7.0, 3.5 + 0.25 + 0.5)


def test_meter_refuses_to_start_twice_and_to_stop_when_stopped(powercap):
    meter = Meter(powercap=powercap.folder)
    with pytest.raises(
        RuntimeError, match=r"Meter.stop: expected a meter that runs, got one that is stopped"
    ):
        meter.stop()
    meter.start()
    with pytest.raises(
        RuntimeError, match=r"Meter.start: expected a meter that is stopped, got one that runs"
    ):
        meter.start()


class NVMLError(Exception):
    pass


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in of NVML and of the GPU that torch sees; `millijoules` is what its counter shows."""
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError, nvml.millijoules, nvml.nvmlInit = NVMLError, 1000, lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-one-two": "the handle"}[uuid]
    nvml.nvmlDeviceGetName = lambda handle: {"the handle": "GPU of this test"}[handle]
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: nvml.millijoules
    properties = types.SimpleNamespace(uuid="one-two")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return nvml


def test_meter_adds_the_gpu_to_the_packages(powercap, gpu):
    powercap.zone("0", "package-0", 0)
    with Meter(torch.device("cuda"), powercap=powercap.folder) as meter:
        powercap.zone("0", "package-0", 250_000)
        gpu.millijoules = 5000
    assert meter.cost.joules == 0.25 + 4
    assert meter.cost.source == "RAPL package-0 + NVML GPU of this test"


def test_meter_names_what_is_missing_of_two(powercap, gpu, monkeypatch):
    with Meter(torch.device("cuda"), powercap=powercap.folder) as meter:
        gpu.millijoules = 5000
    assert (meter.cost.joules, meter.cost.source) == (4, "NVML GPU of this test (no RAPL here)")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    powercap.zone("0", "package-0", 0)
    meter = Meter(torch.device("cuda"), powercap=powercap.folder)
    assert meter.cost.source == "RAPL package-0 (no NVML without pip install 'sparseprune[energy]')"


def test_meter_leaves_the_gpu_alone_where_work_runs_on_the_cpu(powercap, gpu):
    meter = Meter(torch.device("cpu"), powercap=powercap.folder)
    assert meter.cost.source == "not measured: no RAPL here"


def test_gpu_counter_passes_on_what_nvml_says(gpu):
    def unsupported(_):
        raise NVMLError("Not Supported")

    counter = gpu_counter(torch.device("cuda"))
    assert isinstance(counter, Counter)
    assert counter.read() == 1.0
    gpu.nvmlDeviceGetTotalEnergyConsumption = unsupported
    with pytest.raises(CounterError, match="NVML: Not Supported"):
        counter.read()
    with pytest.raises(CounterError, match="NVML: Not Supported"):
        gpu_counter(torch.device("cuda"))


def test_rapl_counters_wrap_at_the_range_of_their_zone(powercap):
    powercap.zone("0", "package-0-die-1", 5_000_000, range_uj=65_532_610_987)
    (counter,) = rapl_counters(powercap.folder)
    assert (counter.name, counter.read(), counter.wraps_at) == ("RAPL package-0-die-1", 5.0, 65_532.610987)
