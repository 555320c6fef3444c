"""A module with another forward, written from a torch.fx graph: same object, same children, same names."""

import copy
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import fx, nn

# What may be read from a module while its forward is followed, and then stays as it is.
CONSTANTS = (bool, int, str, type(None), types.FunctionType, types.BuiltinFunctionType)


class Rewriting(NamedTuple):
    """What a class with a rewritten forward was made from."""

    original: type[nn.Module]
    graph: fx.Graph
    absorbing: tuple[str, ...]  # layers that compute what the forward did
    constants: Mapping[str, Any]  # attributes that the forward read


class Rewritten(nn.Module):
    """Base of the classes that :func:`rewrite` makes."""

    rewriting: Rewriting

    def __setattr__(self, name: str, value: Any) -> None:
        constants, absorbing = self.rewriting.constants, self.rewriting.absorbing
        if name in constants and constants[name] != value:
            raise AttributeError(
                f"{type(self).__name__}: expected {name!r} to stay {constants[name]!r}, with which "
                f"sparsify() fused the forward, got {value!r}; set it before, or use sparsify(fuse=False)"
            )
        if name in absorbing and type(value) is not type(getattr(self, name)):
            raise AttributeError(
                f"{type(self).__name__}: expected {name!r} to stay a {type(getattr(self, name)).__name__}, "
                f"which computes what followed it, got {type(value).__name__}; replace it in densify(model), "
                "or use sparsify(fuse=False)"
            )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is not importable: a copy is made from what it was made from.
        getstate: Callable[[], Any] = getattr(self, "__getstate__", lambda: self.__dict__)
        return (_new, tuple(self.rewriting), getstate())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rewritten":
        result: Rewritten = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return result


def rewrite(
    block: nn.Module, graph: fx.Graph, absorbing: Sequence[str], constants: Mapping[str, Any]
) -> None:
    """Give the module the forward that a graph of calls of its own children describes.

    Args:
        block: module of any class; afterwards its class is one derived from that, or from the one that it had
            before it was rewritten the first time.
        graph: graph of the new forward.
        absorbing: names of those children that compute what followed them: they must stay what they are.
        constants: attributes that must stay what they are.
    """
    original: type[nn.Module] = type(block)
    if isinstance(block, Rewritten):
        before = block.rewriting
        original = before.original
        absorbing, constants = (*before.absorbing, *absorbing), {**before.constants, **constants}
    block.__class__ = _class(Rewriting(original, graph, tuple(absorbing), dict(constants)))


def original_class(block: Rewritten) -> type[nn.Module]:
    """The class that the module had."""
    return block.rewriting.original


def attributes_read(block: nn.Module) -> dict[str, Any] | None:
    """The module's own plain attributes that its forward may read; None if one of them may change."""
    internal = nn.Module().__dict__
    own = {name: value for name, value in block.__dict__.items() if name not in internal}
    read = {name: own[name] for name in sorted(_names(type(block), "forward", set())) if name in own}
    return read if all(isinstance(value, CONSTANTS) for value in read.values()) else None


def reads_weights(module: nn.Module) -> bool:
    """Whether a module's forward, or a method that it calls, may read a ``weight``, such as a child's."""
    return "weight" in _names(type(module), "forward", set())


def _names(cls: type, method: str, seen: set[types.CodeType]) -> set[str]:
    """All names in the code of a method, and of the methods and properties among them."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base is nn.Module:
            break
        member = base.__dict__.get(method)
        function = member.fget if isinstance(member, property) else inspect.unwrap(member) if member else None
        code = getattr(function, "__code__", None)
        if code is not None and code not in seen:
            seen.add(code)
            for name in _names_in(code):
                names |= {name} | _names(cls, name, seen)
    return names


def _names_in(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*(_names_in(part) for part in inner))


def _class(rewriting: Rewriting) -> Any:
    code = rewriting.graph.python_code("self")
    scope = dict(code.globals)
    # What torch.fx itself does with its own source.
    exec(code.src, scope)
    original = rewriting.original
    members = {
        "forward": scope["forward"],
        "rewriting": rewriting,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (Rewritten, original), members)


def _new(*parts: Any) -> Rewritten:
    made = _class(Rewriting(*parts))
    block: Rewritten = made.__new__(made)
    return block
