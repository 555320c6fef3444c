"""Look for examples that break a property: ``make fuzz MINUTES=60``.

Every test that hypothesis drives runs again and again with a fresh seed, until time is up or a test fails. In
every third round the extension is one with sanitizers, where there is a compiler for it.
What a failure prints reproduces it: the command with the round's seed, and hypothesis' ``@reproduce_failure``
line, which a test takes as its decorator.
"""

import argparse
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sanitized
from torch.utils import cpp_extension

ENVIRONMENT = {"SPARSEPRUNE_EXAMPLES": "fuzz"}  # a profile of conftest.py
REPORT = "sanitizers"
# What runs the extension's code.
SANITIZED_FILES = ("tests/ops", "tests/nn", "tests/select", "tests/test_random_networks.py")


def command(seed: int, *others: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-m", "hypothesis", "-q", f"--hypothesis-seed={seed}", *others]


def sanitized_build(folder: Path) -> dict[str, str] | None:
    """The environment of an extension with sanitizers; None where it cannot be compiled."""
    compiler = shlex.split(cpp_extension.get_cxx_compiler())
    print("compile the extension with sanitizers", end="", flush=True)
    try:
        _, environment = sanitized.build(compiler, folder)
    except (AssertionError, OSError) as error:
        print(f": it cannot be, {str(error).splitlines()[0]}")
        return None
    print()
    # Pytest would capture what they say, and lose it when they end the process.
    said = f"log_path={folder / REPORT}"
    return {
        **environment,
        "ASAN_OPTIONS": f"{environment['ASAN_OPTIONS']}:{said}",
        "UBSAN_OPTIONS": f"{environment['UBSAN_OPTIONS']}:{said}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all properties with fresh seeds.")
    parser.add_argument("--minutes", type=float, default=10, help="no round starts later")
    parser.add_argument("--seed", type=int, help="seed of the first round (default: a new one)")
    parser.add_argument("--no-sanitizers", action="store_true", help="compile nothing")
    arguments, others = parser.parse_known_args()  # others: pytest's, such as -n 2, or files
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    rounds, examples = 0, {False: 0, True: 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sanitizing = None if arguments.no_sanitizers else sanitized_build(folder)
        end = time.monotonic() + 60 * arguments.minutes
        while rounds == 0 or time.monotonic() < end:
            with_sanitizers = sanitizing is not None and rounds % 3 == 2
            what = " with sanitizers" if with_sanitizers else ""
            print(f"round {rounds + 1}{what}: seed {seed}", end="", flush=True)
            files = [str(folder / file) for file in SANITIZED_FILES] if with_sanitizers else []
            result = subprocess.run(
                command(seed, "--hypothesis-show-statistics", *others, *files),
                cwd=folder if with_sanitizers else None,
                env={**os.environ, **ENVIRONMENT, **((with_sanitizers and sanitizing) or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            found = sum(map(int, re.findall(r"(\d+) passing", result.stdout)))
            rounds, examples[with_sanitizers] = rounds + 1, examples[with_sanitizers] + found
            print(f", {found} examples", flush=True)
            if result.returncode != 0:
                print(result.stdout, *(file.read_text() for file in folder.glob(f"{REPORT}*")))
                variables = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
                print(f"again{what}: {variables} {shlex.join(command(seed, *others))}")
                break
            seed = (seed + 1) % 2**32
    print(f"{rounds} rounds, {sum(examples.values())} examples, {examples[True]} of them with sanitizers")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
