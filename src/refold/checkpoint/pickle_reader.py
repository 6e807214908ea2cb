"""Read a pickle as data: a machine of our own, which looks nothing up and calls nothing of it.

A pickle is a program for a small stack machine. Python's own machine imports the classes and calls
the functions that the program names. This one writes down their names (`Name`) and what they would
be called with (`Thing`). Only functions in a table that the caller gives are replaced by ours.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple


class Name(NamedTuple):
    """A class or function by its name; nothing stands behind it."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return the dotted name."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Thing:
    """An object of a class that is not looked up: what the file says of it.

    Args:
        kind: the class or function, by its dotted name.
        arguments: what it was to be called with.
        state: what it was to be set to.
        items: what was appended to it.
        entries: what was set in it under keys.
    """

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list[Any])
    entries: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def __repr__(self) -> str:
        """Return the kind alone: what it holds may be without end."""
        return self.kind


Rebuilders = Mapping[str, Callable[..., Any]]
_PLAIN_KEYS = (str, int, float, bytes, type(None))
# Opcodes that push the value they carry.
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)


def read_pickle(
    stream: BinaryIO, rebuilders: Rebuilders, persistent: Callable[[Any], Any]
) -> object:
    """Return what the next pickle of a stream holds; the stream then stands behind it.

    Args:
        stream: where to read.
        rebuilders: functions of ours in place of those the pickle names. Where one returns
            `NotImplemented`, the call is written down like any other.
        persistent: what to make of a reference to something outside the pickle.

    Raises:
        Exception: at junk, of many kinds.

    Examples:
        >>> import io, pickle, pathlib
        >>> stream = io.BytesIO(pickle.dumps({"at": pathlib.PurePosixPath("a")}))
        >>> read_pickle(stream, {}, lambda key: key)["at"].kind
        'pathlib.PurePosixPath'
    """
    return _Machine(rebuilders, persistent).run(stream)


class _Machine:
    def __init__(self, rebuilders: Rebuilders, persistent: Callable[[Any], Any]) -> None:
        self.rebuilders = rebuilders
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> object:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name != "STOP":
                _ACTIONS[opcode.name](self, argument)
        return self.stack.pop()

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Remove and return what lies above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def call(self, function: Any, arguments: Any, named: Any = None) -> None:
        """Push what a call would return: by our own function, else written down."""
        kind = str(function) if isinstance(function, Name) else f"a {type(function).__name__}"
        given = tuple(arguments) if isinstance(arguments, tuple | list) else (arguments,)
        result: Any = NotImplemented
        if isinstance(function, Name) and kind in self.rebuilders and not named:
            result = self.rebuilders[kind](*given)
        self.stack.append(Thing(kind, given) if result is NotImplemented else result)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Thing) else target
        if not isinstance(entries, dict):
            raise TypeError("items are set on an object that is not a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # The hash of nested tuples can take for ever; no name of a weight is one.
            entries[key if isinstance(key, _PLAIN_KEYS) else Thing("a key", (key,))] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        held = target.items if isinstance(target, Thing) else target
        if not isinstance(held, list):
            raise TypeError("items are appended to what holds none")
        held.extend(items)

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Thing):  # a dict's own attributes are not entries of it
            self.stack[-1].state = state

    def make_dict(self) -> None:
        pairs = self.marked()
        self.stack.append({})
        self.set_items(pairs)

    def make_set(self) -> None:
        self.stack.append(Thing("builtins.set", items=self.marked()))

    def make_tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError("a tuple of more items than the stack holds")
        self.stack[-count:] = [items]

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Name(str(module), str(name)))

    def make_object(self, with_names: bool = False) -> None:
        named = self.stack.pop() if with_names else None
        arguments = self.stack.pop()
        self.call(self.stack.pop(), arguments, named)

    def make_instance(self, argument: Any) -> None:
        arguments = self.marked()
        self.call(_name(argument) if argument else arguments.pop(0), arguments)

    def drop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def ask(self, argument: Any) -> None:
        self.stack.append(self.persistent(argument))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def push(self, value: Any) -> None:
        self.stack.append(value)


def _name(argument: str) -> Name:
    module, _, name = argument.partition(" ")
    return Name(module, name)


def _same_for(names: str, action: Callable[[_Machine, Any], None]) -> dict[str, Any]:
    return dict.fromkeys(names.split(), action)


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **_same_for("PROTO FRAME READONLY_BUFFER", lambda m, a: None),
    **_same_for("PUT BINPUT LONG_BINPUT", lambda m, a: m.put(a)),
    **_same_for("GET BINGET LONG_BINGET", lambda m, a: m.get(a)),
    **_same_for("EXT1 EXT2 EXT4", lambda m, a: m.push(Name("copyreg", f"extension {a}"))),
    **_same_for("NEWOBJ REDUCE", lambda m, a: m.make_object()),
    **_same_for("INST OBJ", lambda m, a: m.make_instance(a)),
    "NEWOBJ_EX": lambda m, a: m.make_object(with_names=True),
    "MEMOIZE": lambda m, a: m.put(len(m.memo)),
    "GLOBAL": lambda m, a: m.push(_name(a)),
    "STACK_GLOBAL": lambda m, a: m.stack_global(),
    "BUILD": lambda m, a: m.build(),
    "PERSID": lambda m, a: m.ask(a),
    "BINPERSID": lambda m, a: m.ask(m.stack.pop()),
    "MARK": lambda m, a: m.mark(),
    "POP": lambda m, a: m.drop(),
    "POP_MARK": lambda m, a: m.push(m.marked()) or m.drop(),
    "DUP": lambda m, a: m.push(m.stack[-1]),
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "LIST": lambda m, a: m.push(m.marked()),
    "APPEND": lambda m, a: m.append([m.stack.pop()]),
    "APPENDS": lambda m, a: m.append(m.marked()),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "TUPLE": lambda m, a: m.push(tuple(m.marked())),
    "TUPLE1": lambda m, a: m.make_tuple(1),
    "TUPLE2": lambda m, a: m.make_tuple(2),
    "TUPLE3": lambda m, a: m.make_tuple(3),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "DICT": lambda m, a: m.make_dict(),
    "SETITEM": lambda m, a: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, a: m.set_items(m.marked()),
    "EMPTY_SET": lambda m, a: m.push(Thing("builtins.set")),
    "ADDITEMS": lambda m, a: m.append(m.marked()),
    "FROZENSET": lambda m, a: m.make_set(),
}
