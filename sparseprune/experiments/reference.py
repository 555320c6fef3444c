"""A user's own functions, named as ``package.module:function``: found, called, and blamed in one line."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

HERE = Path(__file__).resolve().parents[1]


def find(reference: str, op: str) -> Callable[..., Any]:
    """The function that a reference names; its module may lie in the current folder.

    Args:
        reference: ``"package.module:function"``.
        op: beginning of error messages.
    Returns:
        the function, or whatever else can be called.
    Raises:
        ValueError: the reference has another form, there is no such module or function, or importing the
            module raises.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name.isidentifier():
        raise ValueError(f"{op}: expected package.module:function, such as net:make, got {reference!r}")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(
            f"{op}: expected a module as Python imports it, got {module_name!r}; write {dotted}:{name}"
        )
    module = _imported(module_name, op)
    found = getattr(module, name, None)
    if found is None:
        file = getattr(module, "__file__", None)
        place = module_name if file is None else _shown(file)
        raise ValueError(f"{op}: found no {name!r} in {place}; {_suggested(module, name)}")
    if not callable(found) or isinstance(found, nn.Module):
        raise ValueError(
            f"{op}: expected a function, got a {type(found).__name__}; write a function that returns it"
        )
    return found


def call(function: Callable[..., Any], arguments: Mapping[str, Any], op: str, given: str = "none") -> Any:
    """Call a user's function.

    Args:
        function: what `find` returned.
        arguments: its keyword arguments.
        op: beginning of error messages.
        given: the arguments as the user gave them.
    Returns:
        what the function returns.
    Raises:
        ValueError: the function does not take these arguments, or raises.
    """
    signature = signature_of(function)
    try:
        if signature is not None:
            signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{op}: expected arguments that fit {signature}, got {given}: {error}") from None
    try:
        return function(**arguments)
    except Exception as error:
        raise ValueError(f"{op}: raised {told(error)}") from error


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The parameters of a function or class; None where Python does not know them."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def source_of(function: Callable[..., Any]) -> str:
    """The file that defines a function, or its module where there is none."""
    try:
        return inspect.getfile(function)
    except TypeError:
        return str(getattr(function, "__module__", "a function"))


def told(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the line of the user's code that led to it."""
    message = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        message, place = error.msg, f" at {_shown(error.filename or '?')}:{error.lineno}"
    else:
        place = _place(error)
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"


def _imported(name: str, op: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        # As `python -m` has it.
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"{op}: importing {name} raised {told(error)}") from error
        raise ValueError(
            f"{op}: found no module {error.name!r} in {folder} or among the installed packages; "
            "run the command in the folder where the module is"
        ) from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{op}: importing {name} raised {told(error)}") from error


def _suggested(module: ModuleType, wanted: str) -> str:
    """Names that may have been meant: close ones, else the module's own functions and classes."""
    names = [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", "") == module.__name__
    ]
    if close := difflib.get_close_matches(wanted, names):
        return f"did you mean {' or '.join(close)}?"
    return f"it has {', '.join(names)}" if names else "it has no functions"


def _place(error: BaseException) -> str:
    """The innermost line of code that is neither this package's nor an installed one's."""
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [
        *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
        HERE,
    ]
    for frame in reversed(frames):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in foreign):
            return f" at {_shown(frame.filename)}:{frame.lineno}"
    return ""


def _shown(file: str) -> str:
    """A path, short where it is below the current folder."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
