"""What commands work on: a data set and a network, of the built-in ones or the user's own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from sparseprune.experiments import data, models
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.models import Network


def load(
    bars: Bars,
    name: str,
    data_dir: Path | None,
    samples: int | None,
    model: str,
    model_args: str,
    data_args: str = "{}",
) -> tuple[Dataset, Network]:
    """Load the data, and check that the network takes them.

    Args:
        bars: listener that is told of the progress.
        name, data_dir, samples: values of --data, --data-dir and --samples.
        model, model_args: values of --model and --model-args.
        data_args: value of --data-args.
    Returns:
        the data set, and the network at full width.
    Raises:
        ValueError, OSError, ImportError: something of them cannot be used.
    """
    args, of_data = parse_model_args(model_args), parse_data_args(data_args)
    # A wrong name is told before the data are loaded.
    Network(model, (1,), 1, args=args)
    bars.begin(f"load {name}")
    dataset = data.load(name, data_dir, samples, of_data)
    bars.say(f"data: {dataset.name} from {dataset.source}")
    network = Network(model, dataset.sample, dataset.classes, args=args)
    models.check(network, dataset.classes)
    return dataset, network


def parse_model_args(text: str) -> dict[str, Any]:
    """``'{"depth": 3}'`` as a dictionary; ValueError for anything else."""
    return _parse_args("--model-args", text, '{"depth": 3}')


def parse_data_args(text: str) -> dict[str, Any]:
    """``'{"jitter": 2}'`` as a dictionary; ValueError for anything else."""
    return _parse_args("--data-args", text, '{"jitter": 2}')


def _parse_args(option: str, text: str, example: str) -> dict[str, Any]:
    expected = f"expected keyword arguments as JSON, such as '{example}'"
    try:
        args = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{option}: {expected}, got {text!r} ({error})") from None
    if not isinstance(args, dict):
        raise ValueError(f"{option}: {expected}, got {text!r}")
    return args


def require(command: str, *packages: str) -> None:
    """Raise ModuleNotFoundError now, rather than after minutes of training, where a package is missing."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ModuleNotFoundError(
            f"{command}: needs the Python package {missing[0]}, which is not installed; "
            f"pip install {' '.join(missing)}"
        )
