"""A pickle's values without unpickling it: what it would import or call stands for nothing.

Megatron-LM keeps the arguments of a training run in ``common.pt``, beside whatever else that run
had: a pickle, and thus a program. This module carries out the opcodes that build numbers, text and
containers. A name imports nothing and a call calls nothing: each leaves an :class:`Inert` thing,
whose ``state`` is what would have been set on it. So whatever the file holds, reading it takes time
and memory that are linear in its size.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from typing import Any

from nemotron_style.steps.blocks.checkpoint.tensor_archive import FilePart
from nemotron_style.steps.convert.nemo_to_megatron.archive import Span

MOST_BYTES = 8 << 20  # of the pickle; arguments have some 20 kB
MOST_VALUES = 1_000_000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORED, _FETCHED = ("BINPUT", "LONG_BINPUT", "PUT"), ("BINGET", "LONG_BINGET", "GET")
# How many values a call takes off the stack; one thing is left for them.
_CALLS = {"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "BINPERSID": 1, "STACK_GLOBAL": 2}
_OF_A_MARK = ("FROZENSET", "LIST", "TUPLE", "DICT")
_SKIPPED = ("PROTO", "FRAME", "STOP")
_MARK = object()


class Inert:
    """What a pickle names, calls or makes."""

    def __init__(self) -> None:
        self.state: Any = None


def read_archive(span: Span) -> Any:
    """The values of what ``torch.save`` wrote. Raises ValueError where it is no such file.

    What a damaged zip or pickle makes :mod:`zipfile` and :mod:`pickletools` raise passes through.
    """
    with (
        span.path.open("rb", buffering=0) as file,
        zipfile.ZipFile(FilePart(file, span.offset, span.size)) as archive,
    ):
        pickles = [one for one in archive.infolist() if one.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MOST_BYTES:
            raise ValueError(f"it does not hold one pickle of at most {MOST_BYTES:,} bytes")
        return read_values(archive.read(pickles[0]))


def read_values(data: bytes) -> Any:
    """The value that a pickle describes, with :class:`Inert` things for all that is not plain."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
        if count > MOST_VALUES:
            raise ValueError("it makes more values than arguments have")
        _step(opcode.name, argument, stack, memo)
    if len(stack) != 1:
        raise ValueError("it does not end with one value")
    return stack[0]


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in _SKIPPED:
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _CONTAINERS:
        stack.append(_CONTAINERS[name]())
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in _STORED:
        memo[argument] = stack[-1]
    elif name in _FETCHED:
        stack.append(memo[argument])
    elif name in _TUPLES:
        stack.append(tuple(_pop(stack, _TUPLES[name])))
    elif name in _OF_A_MARK:
        values = _pop_to_mark(stack)
        stack.append(tuple(values) if name in ("TUPLE", "FROZENSET") else values)
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
        values = _pop(stack, 1) if name == "APPEND" else _pop_to_mark(stack)
        if isinstance(stack[-1], list):
            stack[-1].extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = _pop(stack, 2) if name == "SETITEM" else _pop_to_mark(stack)
        if isinstance(stack[-1], dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            stack[-1].update((key, value) for key, value in pairs if type(key) in (str, int))
    elif name == "BUILD":
        (state,) = _pop(stack, 1)
        if isinstance(stack[-1], Inert):
            stack[-1].state = state
    elif name in _CALLS:
        _pop(stack, _CALLS[name])
        stack.append(Inert())
    elif name in ("GLOBAL", "EMPTY_SET", "PERSID"):
        stack.append(Inert())
    elif name == "POP":
        stack.pop()
    elif argument is not None and isinstance(argument, int | float | str | bytes):
        stack.append(argument)
    else:
        raise ValueError(f"it holds the opcode {name}")


def _pop(stack: list[Any], count: int) -> list[Any]:
    values = stack[-count:]
    if len(values) < count or any(value is _MARK for value in values):
        raise ValueError("it takes more values than there are")
    del stack[-count:]
    return values


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    values: list[Any] = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]
