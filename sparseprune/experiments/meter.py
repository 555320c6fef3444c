"""What a piece of work cost: seconds, CPU-seconds, and joules where the machine measures them.

Joules are read from the machine's own counters: RAPL's, of whole processor packages, and NVML's, of a whole
GPU. They count all that runs on these, not this process alone, and no DRAM, disk or power supply. Where there
is no counter nothing is estimated, and no grams of CO2 are made up in any case.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

POWERCAP = Path("/sys/class/powercap")
# A RAPL counter of 2 ** 32 units of 61 microjoules wraps around every 22 minutes at 200 watts; a second time
# round would be missed.
READ_EVERY = 60.0  # seconds
UNMEASURED = "not measured"


@dataclass(frozen=True)
class Cost:
    """What a piece of work cost.

    Attributes:
        seconds: wall-clock time.
        cpu_seconds: time of all threads of this process, and of its children that ended meanwhile.
        joules: energy of all that the counters named by `source` see; None where there is none.
        source: the counters, or "not measured: " and why.
    """

    seconds: float
    cpu_seconds: float
    joules: float | None
    source: str


class Counter(NamedTuple):
    """A rising count of energy: its name, a function that reads joules, and the joules at which it wraps."""

    name: str
    read: Callable[[], float]
    wraps_at: float = 0.0


class CounterError(Exception):
    """There is no counter, or it cannot be read; the text says why."""


def rapl_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """RAPL's counter of each processor package, by Linux's powercap.

    Cores are a part of their package, and "psys" is the whole platform: both would be counted twice.

    Args:
        powercap: folder of the control types.
    Raises:
        CounterError: there is none, or one of them cannot be read.
    """
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = _text(zone / "name")
        if name.startswith("package"):
            energy, wraps_at = zone / "energy_uj", _joules(zone / "max_energy_range_uj")
            _joules(energy)
            found.append(Counter(f"RAPL {name}", partial(_joules, energy), wraps_at))
    if not found:
        raise CounterError("no RAPL here")
    return found


def gpu_counter(device: torch.device) -> Counter:
    """NVML's counter of a GPU.

    Args:
        device: a CUDA device.
    Raises:
        CounterError: the package nvidia-ml-py is missing, or the GPU has no such counter.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise CounterError("no NVML without pip install 'sparseprune[energy]'") from None
    try:
        nvml.nvmlInit()
        # By identity: NVML numbers the GPUs of the machine, torch those that it may see.
        gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        name = nvml.nvmlDeviceGetName(gpu)

        def read() -> float:
            try:
                return nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3
            except nvml.NVMLError as error:
                raise CounterError(f"NVML: {error}") from None

        read()
    except nvml.NVMLError as error:
        raise CounterError(f"NVML: {error}") from None
    return Counter(f"NVML {name}", read)


class Meter:
    """A stopwatch for seconds, CPU-seconds and joules; what lies between its stops adds up.

    Usable as a context manager, too: ``with Meter() as meter: ...``, then ``meter.cost``.

    Args:
        device: device that the work runs on; of a CUDA device the GPU's energy is added.
        powercap: folder of RAPL's counters.
    """

    def __init__(self, device: torch.device | None = None, *, powercap: Path = POWERCAP) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._seconds = self._cpu_seconds = self._joules = 0.0
        self._began: tuple[float, float] | None = None
        self._read_at = 0.0
        self._values: list[float] = []
        self._counters: list[Counter] = []
        self._missing: list[str] = []
        try:
            self._counters += rapl_counters(powercap)
        except CounterError as error:
            self._missing.append(str(error))
        if self._device is not None:
            try:
                self._counters.append(gpu_counter(self._device))
            except CounterError as error:
                self._missing.append(str(error))

    def __enter__(self) -> Meter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def cost(self) -> Cost:
        """What all pieces between a start and its stop cost."""
        missing = "; ".join(self._missing)
        if not self._counters:
            return Cost(self._seconds, self._cpu_seconds, None, f"{UNMEASURED}: {missing}")
        source = " + ".join(counter.name for counter in self._counters)
        # The processor's or the GPU's alone.
        source += f" ({missing})" if missing else ""
        return Cost(self._seconds, self._cpu_seconds, self._joules, source)

    def start(self) -> None:
        """Count from now on.

        Raises:
            RuntimeError: it runs already.
        """
        if self._began is not None:
            raise RuntimeError("Meter.start: expected a meter that is stopped, got one that runs")
        self._wait()
        self._values = self._read_all()
        self._read_at = time.perf_counter()
        self._began = self._read_at, _cpu_seconds()

    def update(self) -> None:
        """Read the counters if that was long ago; call it now and then, so that no counter wraps unseen."""
        if self._began is not None and time.perf_counter() - self._read_at > READ_EVERY:
            self._count()

    def stop(self) -> Cost:
        """Count no longer.

        Returns:
            the cost of all pieces so far.
        Raises:
            RuntimeError: it does not run.
        """
        if self._began is None:
            raise RuntimeError("Meter.stop: expected a meter that runs, got one that is stopped")
        self._wait()
        seconds, cpu_seconds = self._began
        self._seconds += time.perf_counter() - seconds
        self._cpu_seconds += _cpu_seconds() - cpu_seconds
        self._count()
        self._began = None
        return self.cost

    def _count(self) -> None:
        before, self._values = self._values, self._read_all()
        # Nothing to add where a counter failed just now.
        for counter, start, now in zip(self._counters, before, self._values, strict=False):
            self._joules += now - start + (counter.wraps_at if now < start else 0.0)
        self._read_at = time.perf_counter()

    def _read_all(self) -> list[float]:
        """A value of each counter; where one fails, none is believed from then on."""
        try:
            return [counter.read() for counter in self._counters]
        except CounterError as error:
            self._counters, self._missing = [], [str(error)]
            return []

    def _wait(self) -> None:
        if self._device is not None:
            torch.cuda.synchronize(self._device)


def _cpu_seconds() -> float:
    times = os.times()
    # The process's own clock is finer than that of os.times().
    return time.process_time() + times.children_user + times.children_system


def _joules(file: Path) -> float:
    """The microjoules in a file."""
    text = _text(file)
    if not text.isdecimal():
        raise CounterError(f"RAPL's {file.name} holds no number")
    return int(text) / 1e6


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise CounterError(f"RAPL's {file.name} cannot be read: {error.strerror}") from None
