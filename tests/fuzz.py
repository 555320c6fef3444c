"""Look for examples that break a property: ``make fuzz MINUTES=60``.

Every test that hypothesis drives runs again and again with a fresh seed, until time is up or a test fails.
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
import time

ENVIRONMENT = {"SPARSEPRUNE_EXAMPLES": "fuzz"}  # a profile of conftest.py


def command(seed: int, *others: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-m", "hypothesis", "-q", f"--hypothesis-seed={seed}", *others]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all properties with fresh seeds.")
    parser.add_argument("--minutes", type=float, default=10, help="no round starts later")
    parser.add_argument("--seed", type=int, help="seed of the first round (default: a new one)")
    arguments, others = parser.parse_known_args()  # others: pytest's, such as -n 2, or files
    end = time.monotonic() + 60 * arguments.minutes
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    rounds = examples = 0
    while rounds == 0 or time.monotonic() < end:
        print(f"round {rounds + 1}: seed {seed}", end="", flush=True)
        result = subprocess.run(
            command(seed, "--hypothesis-show-statistics", *others),
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        found = sum(map(int, re.findall(r"(\d+) passing", result.stdout)))
        rounds, examples = rounds + 1, examples + found
        print(f", {found} examples", flush=True)
        if result.returncode != 0:
            print(result.stdout)
            variables = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
            print(f"again: {variables} {shlex.join(command(seed, *others))}")
            break
        seed = (seed + 1) % 2**32
    print(f"{rounds} rounds, {examples} examples")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
