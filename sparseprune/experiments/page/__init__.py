"""Pages of results: one HTML file that loads nothing, with interactive Vega-Lite charts."""

from __future__ import annotations

import importlib.util

PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python"}  # as Python and pip call them


def what_to_install() -> str:
    """The command that installs what pages need and is missing, or ""."""
    missing = [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]
    return f"pip install {' '.join(missing)}" if missing else ""
