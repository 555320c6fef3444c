"""What one core can do at best: `peak.cpp` compiled for this machine and run."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("peak.cpp")
# -O3: the accumulators have to stay in registers.
FLAGS = ("-O3", "-std=c++17")
TIMEOUT = 60.0
# The best run counts: one may be disturbed.
RUNS = 5


def measure() -> tuple[dict[str, Any] | None, str]:
    """Compile the probe with the compiler that torch uses, and run it on a quiet core (a few seconds).

    Returns:
        its figures (see `peak.cpp`) and "", or None and why there are none.
    """
    try:
        from torch.utils.cpp_extension import get_cxx_compiler

        with tempfile.TemporaryDirectory() as folder:
            program = str(Path(folder, "peak"))
            _run([get_cxx_compiler(), *FLAGS, str(SOURCE), "-o", program])
            runs = [json.loads(_run([program])) for _ in range(RUNS)]
            return {name: _best([run[name] for run in runs]) for name in runs[0]}, ""
    except (ImportError, OSError, subprocess.SubprocessError, ValueError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return None, f"{type(error).__name__}: {detail.strip()}"


def _best(found: list[Any]) -> Any:
    return found[0] if isinstance(found[0], str) else max(found)


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout
