"""The command line, ``sparseprune``: a file for each command, its options in options.py."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line on ``sys.argv``; without a package that it needs, say so and exit with code 1."""
    try:
        import rich
        import safetensors
        import typer
    except ModuleNotFoundError as error:
        print(
            f"sparseprune: the command line needs the Python package {error.name}, which is not installed; "
            "pip install 'sparseprune[cli]'",
            file=sys.stderr,
        )
        sys.exit(1)
    from sparseprune.experiments.cli.app import app

    app()
