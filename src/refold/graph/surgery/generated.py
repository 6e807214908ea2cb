"""Give a module a generated forward while everything else about it stays.

The module becomes an instance of a subclass of its own class. The subclass is made on the fly, so
its instances pickle as (original class, source of the methods, state).
"""

from __future__ import annotations

import copy
import copyreg
import hashlib
import importlib
import inspect
import linecache
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType, ModuleType
from typing import Any, cast
from weakref import WeakValueDictionary

from torch import fx, nn
from torch.fx.graph import CodeGen

from refold.errors import RefusedError
from refold.graph.copies.modules import _BASE
from refold.graph.copies.watching import Absent
from refold.graph.surgery.contents import HELD, Contents, checking
from refold.graph.surgery.fixed import FIXED, check_assignment
from refold.graph.surgery.guards import GENERATED, GUARDED, Guard, guarded
from refold.graph.surgery.shortcuts import in_turn

_Key = tuple[type[nn.Module], tuple[tuple[str, str, str, int], ...]]
_CLASSES: WeakValueDictionary[_Key, type[nn.Module]] = WeakValueDictionary()
_METHODS = "_refold_methods"


@dataclass(frozen=True)
class Method:
    """A generated method: its source and the names that the source uses.

    Args:
        source: Python source of one function called `forward`.
        names: for each global name of the source, where to import it from (`module:attribute`), or
            the object itself when it cannot be imported.
        around: what runs around it: "guarded" or "checking". Without a source the method is that of
            the class.
        in_turn: of a `__call__`: how many children it runs in turn.
    """

    source: str
    names: dict[str, Any] = field(default_factory=dict[str, Any])
    around: str = ""
    in_turn: int = 0


def method_from_graph(graph: fx.Graph) -> Method:
    """Return the method that computes `graph` with `self` as the root of its paths."""
    code = graph.python_code("self")
    names = {name: _reference(value) for name, value in code.globals.items()}
    return Method(code.src, names)


class NamesFrom(CodeGen):
    """Writes a method whose arguments from some place on are given by name.

    Args:
        place: of the first of them, behind `self`.
    """

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def gen_fn_def(self, free_vars: list[str], *rest: Any, **options: Any) -> str:
        """Write the line with the arguments."""
        given = [*free_vars[: self.place], "*", *free_vars[self.place :]]
        return super().gen_fn_def(given, *rest, **options)


def refuse_calls(module: nn.Module, method: str, where: str) -> None:
    """Let a method refuse to run: the layers of its code were folded elsewhere.

    Args:
        module: the module.
        method: the name of the method.
        where: the path of the module, for the refusal. The module keeps it: all modules of a class
            share the method.
    """
    module.__dict__[_WHERE] = where
    regenerate(module, {method: _STALE})


def guard_methods(module: nn.Module, guard: Guard, names: Iterable[str]) -> None:
    """Let methods of a module raise where they would take folds apart.

    Args:
        module: the module.
        guard: what they must not take apart.
        names: of the methods.
    """
    known = cast("Guard | None", module.__dict__.get(GUARDED))
    _, earlier = _origin(type(module))
    methods = {name: replace(earlier.get(name, _OWN), around="guarded") for name in names}
    own = {
        name: value.__func__
        for name, value in module.__dict__.items()
        if isinstance(value, MethodType) and value.__self__ is module
    }
    regenerate(module, methods)
    for name, function in own.items():  # `self.run = self.encode`
        now = getattr(type(module), function.__name__, None)
        if inspect.unwrap(cast(Any, now or function)) is inspect.unwrap(function):
            module.__dict__[name] = MethodType(cast(Any, now or function), module)
    module.__dict__[GUARDED] = guard if known is None else guard.after(known)


def shorten(module: nn.Module, count: int) -> None:
    """Let a call of a module run its children in turn, with nothing in between.

    Args:
        module: one whose forward does that and nothing else.
        count: of its children.
    """
    regenerate(module, {"__call__": Method("", in_turn=count)})


def has_new_forward(module: nn.Module) -> bool:
    """Say whether a module's forward was written by a fold, which checks what it is given."""
    return "forward" in _origin(type(module))[1]


def fix_contents(module: nn.Module, held: Contents) -> None:
    """Let a forward raise where lists, tables or objects hold something else by now."""
    _, earlier = _origin(type(module))
    regenerate(module, {"forward": replace(earlier.get("forward", _OWN), around="checking")})
    module.__dict__[HELD] = held


def regenerate(module: nn.Module, methods: dict[str, Method]) -> None:
    """Turn `module` into an instance of a subclass of its class with the given methods.

    Attributes, hooks, children and all other methods stay; the class keeps its name; the module
    still pickles, deep-copies and exports.
    """
    base, earlier = _origin(type(module))
    for name in methods:
        module.__dict__.pop(name, None)
    if "forward" in methods:
        earlier = {name: method for name, method in earlier.items() if not method.in_turn}
    module.__class__ = generated_class(base, {**earlier, **methods})


def _origin(kind: type[nn.Module]) -> tuple[type[nn.Module], dict[str, Method]]:
    base = cast("type[nn.Module] | None", kind.__dict__.get(_BASE))
    if base is None:
        return kind, {}
    return base, cast("dict[str, Method]", kind.__dict__[_METHODS])


def generated_class(base: type[nn.Module], methods: dict[str, Method]) -> type[nn.Module]:
    """Return the subclass of `base` with the given methods (one class for the same sources)."""
    rows = ((name, m.source, m.around, m.in_turn) for name, m in methods.items())
    key = (base, tuple(sorted(rows)))
    known = _CLASSES.get(key)
    if known is None:
        namespace: dict[str, Any] = {name: _made(m, name, base) for name, m in methods.items()}
        namespace |= {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": _reduce,
            "__setattr__": _assigning(base),
            "__delattr__": _deleting(base),
            _BASE: base,
            _METHODS: dict(methods),
        }
        own_code = not any(method.source or method.around for method in methods.values())
        if own_code and not hasattr(base, "__deepcopy__"):
            # What keeps its own code is in a file what it was: who opens it needs no refold.
            namespace |= {"__reduce_ex__": _reduce_to_base, "__deepcopy__": _deepcopy}
        make = cast(Any, type(base))
        known = _CLASSES[key] = cast("type[nn.Module]", make(base.__name__, (base,), namespace))
    return known


def _assigning(base: type[nn.Module]) -> Callable[[nn.Module, str, Any], None]:
    def assign(self: nn.Module, name: str, value: Any) -> None:
        check_assignment(self, name, value)
        base.__setattr__(self, name, value)

    return assign


def _deleting(base: type[nn.Module]) -> Callable[[nn.Module, str], None]:
    def delete(self: nn.Module, name: str) -> None:
        check_assignment(self, name, Absent)
        base.__delattr__(self, name)

    return delete


def fix_attributes(module: nn.Module, where: str, values: dict[str, Any]) -> None:
    """Let a module refuse other values for some of its attributes.

    Args:
        module: the module.
        where: its path, for the refusal.
        values: what the attributes are taken to be.
    """
    _, known = module.__dict__.get(FIXED, ("", {}))
    regenerate(module, {})
    module.__dict__[FIXED] = (where, {**values, **known})


_WHERE = "_refold_folded_at"
_OWN = Method("")
_STALE = Method(
    "def forward(self, *args, **kwargs):\n"
    f"    where = self.{_WHERE} or 'the model'\n"
    "    what = 'was folded into the forward of an enclosing module; call that one'\n"
    "    raise RefusedError(f'{where} {what}')\n",
    {"RefusedError": "refold.errors:RefusedError"},
)


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    base, methods = _origin(type(self))
    state = cast(Any, self).__getstate__()
    return _rebuild, (base, methods), state


def _reduce_to_base(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    state = cast(Any, self).__getstate__()
    plain = {k: v for k, v in state.items() if k != FIXED} if isinstance(state, dict) else state
    make = cast(Any, copyreg)._reconstructor
    return make, (_origin(type(self))[0], object, None), plain


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    made = memo[id(self)] = nn.Module.__new__(type(self))
    made.__setstate__(copy.deepcopy(cast(Any, self).__getstate__(), memo))
    return made


def _rebuild(base: type[nn.Module], methods: dict[str, Method]) -> nn.Module:
    kind = generated_class(base, methods)
    return nn.Module.__new__(kind)


def _made(method: Method, name: str, base: type[nn.Module]) -> Callable[..., Any]:
    if method.in_turn:
        return in_turn(method.in_turn)
    own = inspect.getattr_static(base, name, None)
    function = _compile(method, name) if method.source else getattr(own, "__func__", own)
    if not method.around:
        return cast("Callable[..., Any]", function)
    if method.around == "checking":
        return checking(cast(FunctionType, function), name)
    is_static = not method.source and isinstance(own, staticmethod)
    return guarded(cast(FunctionType, function), name, is_static=is_static)


def _compile(method: Method, name: str) -> Callable[..., Any]:
    digest = hashlib.sha256(method.source.encode()).hexdigest()[:16]
    filename = f"{GENERATED} {name} {digest}>"
    lines = method.source.splitlines(keepends=True)
    linecache.cache[filename] = (len(method.source), None, lines, filename)
    scope: dict[str, Any] = {key: _resolve(value) for key, value in method.names.items()}
    exec(compile(method.source, filename, "exec"), scope)
    function = cast(Callable[..., Any], scope["forward"])
    function.__name__ = name
    return function


def _reference(value: Any) -> Any:
    """Return `module:attribute` for what can be imported again, else the object itself."""
    if isinstance(value, ModuleType):
        return f"{value.__name__}:"
    home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(home, str) and isinstance(name, str):
        reference = f"{home}:{name}"
        try:
            if _resolve(reference) is value:
                return reference
        except (ImportError, AttributeError, ValueError):
            pass
    return value


def _resolve(reference: Any) -> Any:
    if not isinstance(reference, str):
        return reference
    home, _, names = reference.partition(":")
    value: Any = importlib.import_module(home)
    for name in names.split("."):
        value = getattr(value, name) if name else value
    return value


def _told(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__


def check_baked(value: Any, baked: Any, name: str) -> None:
    """Refuse an argument that differs from the value that the generated forward was made for.

    Raises:
        RefusedError: when the caller passes another value than the one seen at capture.

    Examples:
        >>> check_baked(None, None, "mask")
    """
    if value is baked or isinstance(value, fx.Proxy):
        return
    if (
        type(value) is type(baked)
        and isinstance(value, bool | int | float | str)
        and value == baked
    ):
        return
    if isinstance(value, list | tuple | dict) and type(value) is type(baked) and value == baked:
        return
    raise RefusedError(
        f"this folded forward was made for {name}={baked!r}, got {_told(value)}; "
        "call the original model for other arguments"
    )
