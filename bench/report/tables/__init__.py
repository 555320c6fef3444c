"""The tables of README, docs and results: each a function that reads committed results, by its name."""

from bench.report.tables import (
    accuracy,
    demo,
    fair,
    frontier,
    gpu,
    language,
    limits,
    methods,
    models,
    mosaic,
    rewire,
    serving,
    speed,
    ticket,
    transformers,
    wide_data,
)
from bench.report.tables.registry import TABLES

__all__ = [
    "TABLES",
    "accuracy",
    "demo",
    "fair",
    "frontier",
    "gpu",
    "language",
    "limits",
    "methods",
    "models",
    "mosaic",
    "rewire",
    "serving",
    "speed",
    "ticket",
    "transformers",
    "wide_data",
]
