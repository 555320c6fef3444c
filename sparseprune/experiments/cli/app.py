"""The typer application: its commands, and how errors are told."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

import sparseprune as sp
from sparseprune.experiments.cli.bench import bench
from sparseprune.experiments.cli.compare import compare
from sparseprune.experiments.cli.cost import cost
from sparseprune.experiments.cli.frontier import frontier
from sparseprune.experiments.cli.info import info
from sparseprune.experiments.cli.mosaic import mosaic
from sparseprune.experiments.cli.prune import prune
from sparseprune.experiments.cli.show import show
from sparseprune.experiments.cli.tables import shown
from sparseprune.experiments.cli.ticket import ticket
from sparseprune.experiments.cli.train import train


class _Commands(TyperGroup):
    """Turns the library's errors into one message and exit code 1; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, ImportError) as error:
            raise _told(str(error)) from error
        except (RuntimeError, MemoryError) as error:
            # Torch has no type of its own for the processor's memory.
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
                raise
            raise _told("not enough memory; try a smaller --batch-size, or smaller samples") from error


def _told(message: str) -> typer.Exit:
    console = Console(stderr=True)
    console.print(Text(f"Error: {shown(message)}", "bold red"), soft_wrap=not console.is_terminal)
    return typer.Exit(1)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(prune)
app.command()(train)
app.command()(compare)
app.command()(mosaic)
app.command()(cost)
app.command()(frontier)
app.command()(ticket)
app.command()(show)
app.command()(info)
# Its options are those of the suite, help included.
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)(bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(sp.__version__)
        raise typer.Exit


@app.callback()
def _sparseprune(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prune a network before training, and train it with sparse kernels."""
