"""The tables of README, docs and results: each a function that reads committed results, by its name."""

from bench.report.tables import accuracy, demo, frontier, gpu, limits, methods, speed, ticket
from bench.report.tables.registry import TABLES

__all__ = ["TABLES", "accuracy", "demo", "frontier", "gpu", "limits", "methods", "speed", "ticket"]
