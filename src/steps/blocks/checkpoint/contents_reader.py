"""``.metadata`` of a ``torch_dist`` directory, read without unpickling it.

The file is a pickle, and a pickle is a program for a small stack machine: unpickling runs it. This
module carries out the opcodes that a table of contents needs, and refuses every other. A name
stands for one of the values in ``_NAMES`` and imports nothing; a call builds a plain value; the
only attributes that are set are the declared fields of the table's own classes, on instances that
were made here. Size and depth are bounded, and only text, numbers and indices are keys, so a file
of any content ends in time that is linear in its size.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

MAX_BYTES = 32 * 1024 * 1024  # a table of about 100,000 pieces of tensors
MAX_CONTAINERS = 2_000_000  # of which a piece of a tensor has ten
MAX_STACK = 100_000  # pickle puts a thousand items on it at once
MAX_DEPTH = 12  # a real table has 5
MAX_DIMENSIONS = 64  # as torch has it

_NONE = type(None)

# The fields of each class and what each may hold. What `object` holds is not looked at again:
# read_contents drops it.
_FIELDS: dict[type, dict[str, tuple[type, ...]]] = {
    Metadata: {
        "state_dict_metadata": (dict,),
        "planner_data": (object,),
        "storage_data": (dict,),
        "storage_meta": (StorageMeta, _NONE),
        "version": (str, _NONE),
        "mcore_data": (object,),  # older versions of megatron-core add it
    },
    TensorStorageMetadata: {
        "properties": (TensorProperties,),
        "size": (torch.Size,),
        "chunks": (list,),
    },
    ChunkStorageMetadata: {"offsets": (torch.Size,), "sizes": (torch.Size,)},
    BytesStorageMetadata: {},
    MetadataIndex: {"fqn": (str,), "offset": (torch.Size, _NONE), "index": (int, _NONE)},
    _StorageInfo: {
        "relative_path": (str,),
        "offset": (int,),
        "length": (int,),
        "transform_descriptors": (_NONE,),
    },
    StorageMeta: dict.fromkeys(("checkpoint_id", "save_id", "load_id"), (str, _NONE))
    | {"modules": (list,)},
}
_PROPERTIES = (torch.dtype, torch.layout, bool, _MEM_FORMAT_ENCODING, bool)


class ContentsError(ValueError):
    """The file is not a table of contents; the message says what was met."""


def _size(dimensions: Any = ()) -> torch.Size:
    short = type(dimensions) is tuple and len(dimensions) <= MAX_DIMENSIONS
    if not short or not all(type(n) is int and 0 <= n < 2**63 for n in dimensions):
        raise ContentsError("a size is not a tuple of numbers")
    return torch.Size(dimensions)


def _layout(name: Any) -> torch.layout:
    if name != "torch.strided":
        raise ContentsError("a tensor's layout is not strided")
    return torch.strided


def _enum_member(kind: Any, name: Any) -> _MEM_FORMAT_ENCODING:
    # Some Pythons (3.11.0 to 3.11.2) pickle the member of an Enum as getattr(Enum, name). The real
    # getattr would reach any attribute of a class, and code from there.
    if kind is not _memory_format or type(name) is not str:
        raise ContentsError("it names builtins.getattr of something else than a memory format")
    if name not in _MEM_FORMAT_ENCODING.__members__:
        raise ContentsError(f"it names builtins.getattr with {name[:80]!r}")
    return _MEM_FORMAT_ENCODING[name]


def _memory_format(number: Any) -> _MEM_FORMAT_ENCODING:
    return _MEM_FORMAT_ENCODING(number if type(number) is int else None)


def _path(*parts: Any) -> str:
    # Versions of torch put the folder that was written to into the table; nothing reads it.
    return "/".join(part for part in parts if type(part) is str)


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _layout,
    (Metadata.__module__, "_MEM_FORMAT_ENCODING"): _memory_format,
    ("builtins", "getattr"): _enum_member,
    ("collections", "OrderedDict"): lambda: {},
    **{
        (module, name): _path
        for module in ("pathlib", "pathlib._local")  # the latter is that of Python 3.13
        for name in ("PosixPath", "PurePosixPath")
    },
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "uint8")
_NAMES: dict[tuple[str, str], Any] = {
    **_CALLS,
    **{("torch", name): getattr(torch, name) for name in _DTYPES},
    **{(kind.__module__, kind.__qualname__): kind for kind in _FIELDS},
    (TensorProperties.__module__, "TensorProperties"): TensorProperties,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_LITERALS = {*_NUMBERS, "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_TUPLES, _MARK = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}, object()


def parse_contents(data: bytes) -> Metadata:
    """The table in the bytes of a ``.metadata`` file. Raises ContentsError, or what a damaged
    pickle makes :mod:`pickletools` raise."""
    if len(data) > MAX_BYTES:
        raise ContentsError(f"it has {len(data)} bytes; a table may have {MAX_BYTES}")
    contents = _Machine().run(data)
    if type(contents) is not Metadata:
        raise ContentsError("it holds something else than a table")
    return contents


class _Machine:
    """Stack, memo, and how deep each container is; see the opcodes in :mod:`pickletools`."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # By id. Containers are kept to the end, so that no id is given twice.
        self.depths: dict[int, int] = {}
        self.containers: list[Any] = []
        self.used: set[int] = set()  # containers that another one holds

    def run(self, data: bytes) -> Any:
        """What the program leaves."""
        for opcode, argument, position in pickletools.genops(io.BytesIO(data)):
            if opcode.name == "STOP":
                break
            try:
                self.step(opcode.name, argument)
            except (IndexError, KeyError, TypeError) as error:
                what = f"{opcode.name} at byte {position} fits no table"
                raise ContentsError(what) from error
            if len(self.stack) > MAX_STACK or len(self.containers) > MAX_CONTAINERS:
                raise ContentsError("it makes more values than a table holds")
        if len(self.stack) != 1:
            raise ContentsError("it does not end with one value")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        stack = self.stack
        if name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(self.keep(_CONTAINERS[name]()))
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            stack.append(self.hold((), self.pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(self.hold((), self.pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.pop_to_mark()
            self.extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.pop(2) if name == "SETITEM" else self.pop_to_mark()
            self.fill(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ") if name == "GLOBAL" else self.pop(2)
            stack.append(_find(*words))
        elif name == "REDUCE":
            function, arguments = self.pop(2)
            stack.append(self.keep(_call(function, arguments)))
        elif name == "NEWOBJ":
            kind, arguments = self.pop(2)
            stack.append(self.keep(_create(kind, arguments)))
        elif name == "BUILD":
            (state,) = self.pop(1)
            self.build(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            raise ContentsError(f"it holds the opcode {name}")

    def pop(self, count: int) -> list[Any]:
        """The topmost values, the lowest first."""
        values = self.stack[-count:]
        if len(values) < count or any(value is _MARK for value in values):
            raise ContentsError("it takes more values than there are")
        del self.stack[-count:]
        return values

    def pop_to_mark(self) -> list[Any]:
        """The values above the topmost mark, which goes too."""
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def keep(self, value: Any) -> Any:
        """``value``, known from now on as a container where it is one."""
        if type(value) in (list, dict, *_FIELDS):
            self.containers.append(value)
            self.depths[id(value)] = 1
        return value

    def hold(self, container: Any, items: list[Any]) -> Any:
        """``container`` (for a tuple: a new one) as the holder of ``items``."""
        if type(container) is tuple:
            container = tuple(items)
            self.containers.append(container)
        elif id(container) in self.used or id(container) not in self.depths:
            # A pickle completes a container before another one holds it, unless it holds itself.
            raise ContentsError("it changes a value that is in use, or is no container")
        depth = 1 + max((self.depths.get(id(item), 0) for item in items), default=0)
        if depth > MAX_DEPTH:
            raise ContentsError(f"it is nested deeper than {MAX_DEPTH}")
        self.depths[id(container)] = max(depth, self.depths.get(id(container), 0))
        self.used.update(id(item) for item in items if id(item) in self.depths)
        return container

    def extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise ContentsError("it appends to something else than a list")
        self.hold(target, items).extend(items)

    def fill(self, target: Any, items: list[Any]) -> None:
        if type(target) is not dict:
            raise ContentsError("it sets keys of something else than a table")
        keys, values = items[::2], items[1::2]
        # No tuple: the hash of a tuple of tuples of the same tuples takes exponential time.
        if not all(type(key) in (str, int, MetadataIndex) for key in keys):
            raise ContentsError("a key is neither text, nor a number, nor an index")
        self.hold(target, items).update(zip(keys, values, strict=True))

    def build(self, target: Any, state: Any) -> None:
        """Set the fields of an instance of the table's classes."""
        if type(target) is TensorProperties:
            types = tuple(map(type, state)) if type(state) is tuple else ()
            if types != _PROPERTIES:
                raise ContentsError("the properties of a tensor are of other types")
            target.__setstate__(state)
            return
        fields = _FIELDS.get(type(target))
        if fields is None:
            raise ContentsError(f"it sets the state of a {type(target).__name__}")
        if type(state) is not dict:
            raise ContentsError(f"the state of a {type(target).__name__} is not a table")
        self.hold(target, list(state.values()))
        for name, value in state.items():
            kinds = fields.get(name, ())
            if object not in kinds and type(value) not in kinds:
                raise ContentsError(f"{type(target).__name__} has no such {str(name)[:80]}")
            object.__setattr__(target, name, value)  # an index is a frozen dataclass


def _find(module: Any, name: Any) -> Any:
    if (module, name) in _NAMES:
        return _NAMES[module, name]
    raise ContentsError(f"it names {str(module)[:80]}.{str(name)[:80]}")


def _call(function: Any, arguments: Any) -> Any:
    if type(arguments) is not tuple or not any(function is known for known in _CALLS.values()):
        raise ContentsError("it calls something else than a function of a table")
    return function(*arguments)


def _create(kind: Any, arguments: Any) -> Any:
    known = isinstance(kind, type) and (kind in _FIELDS or kind is TensorProperties)
    if not known or arguments != ():
        raise ContentsError("it creates something else than a part of a table")
    return object.__new__(kind)
