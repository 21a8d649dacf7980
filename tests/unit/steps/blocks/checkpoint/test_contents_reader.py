"""The table of contents of weights: an honest one is read, no other does anything at all."""

import os
import pathlib
import pickle
import pickletools
import random
import subprocess
import time

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from nemotron_style.steps.blocks.checkpoint import contents_reader
from nemotron_style.steps.blocks.checkpoint.contents_reader import ContentsError, parse_contents

MUTATIONS = int(os.environ.get("NEMOTRON_STYLE_MUTATIONS", "3000"))
SECONDS = 5  # of the processor


def table(pieces=3):
    size = torch.Size([4, 2])
    chunk = ChunkStorageMetadata(offsets=torch.Size([0, 0]), sizes=size)
    tensor = TensorStorageMetadata(TensorProperties(torch.bfloat16), size, [chunk])
    names = [f"layer{number}" for number in range(pieces)]
    return Metadata(
        state_dict_metadata={**dict.fromkeys(names, tensor), "object": BytesStorageMetadata()},
        planner_data={},
        storage_data={
            MetadataIndex(name, torch.Size([0, 0])): _StorageInfo("__0_0.distcp", 2**33, 16)
            for name in names
        },
        storage_meta=StorageMeta(checkpoint_id=pathlib.Path("/a/b"), save_id="x"),
        version="1.0.0",
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("pieces", [0, 3, 2000])
def test_an_honest_table_is_read(protocol, pieces):
    honest = table(pieces)
    read = parse_contents(pickle.dumps(honest, protocol))
    assert read.state_dict_metadata == honest.state_dict_metadata
    assert read.storage_data == honest.storage_data
    assert read.version == "1.0.0"


def build(target, state):
    """A pickle that sets the state of what the pickle ``target`` leaves."""
    return b"\x80\x04" + target + pickle.dumps(state, 4)[2:-1] + b"b."


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


SIZE = name("torch", "Size")
INFO = name("torch.distributed.checkpoint.filesystem", "_StorageInfo")


@pytest.mark.parametrize(
    ("target", "state"),
    [
        (INFO, {"offset": 1}),
        (SIZE, {"numel": 1}),
        (name("torch", "float32"), {"itemsize": 0}),
        (name("pathlib", "PosixPath"), {"is_file": 1}),
        (name("pathlib", "PosixPath"), (None, {"is_file": 1})),
        (name("builtins", "getattr"), {"__doc__": ""}),
        (name("collections", "OrderedDict"), {"get": 1}),
        (b"]", {"append": 1}),
        (b"}", {"get": 1}),
        (b")", {"count": 1}),
        (b"K\x01", {"real": 1}),
        (INFO + b")\x81", {"__class__": 1}),
        (INFO + b")\x81", {"nothing": 1}),
        (INFO + b")\x81", {"offset": "text"}),
        (INFO + b")\x81", (None, {"offset": 1})),
        (INFO + b")\x81", [("offset", 1)]),
    ],
)
def test_state_is_set_on_instances_of_the_tables_classes_alone(target, state):
    with pytest.raises(ContentsError):
        parse_contents(build(target, state))
    assert pathlib.Path(__file__).is_file()
    assert "offset" not in vars(_StorageInfo)


def honest_splits():
    """An honest pickle, cut before each of its opcodes."""
    data = pickle.dumps(table(1), 4)
    return [(data[:position], data[position:]) for _, _, position in pickletools.genops(data)]


# One encoding for each kind of argument that an opcode has.
ARGUMENTS = {
    None: b"",
    "uint1": b"\x01",
    "uint2": b"\x01\x00",
    "int4": b"\xff\xff\xff\x7f",
    "uint4": b"\xff\xff\xff\xff",
    "uint8": b"\xff" * 8,
    "decimalnl_short": b"1\n",
    "decimalnl_long": b"1" * 5000 + b"L\n",
    "stringnl": b"'a'\n",
    "stringnl_noescape": b"a\n",
    "stringnl_noescape_pair": b"os\nsystem\n",
    "unicodestringnl": b"a\n",
    "floatnl": b"1.5\n",
    "float8": b"\x00" * 8,
    "string1": b"\x01a",
    "string4": b"\x01\x00\x00\x00a",
    "bytes1": b"\x01a",
    "bytes4": b"\x01\x00\x00\x00a",
    "bytes8": b"\x01" + b"\x00" * 7 + b"a",
    "bytearray8": b"\x01" + b"\x00" * 7 + b"a",
    "unicodestring1": b"\x01a",
    "unicodestring4": b"\x01\x00\x00\x00a",
    "unicodestring8": b"\x01" + b"\x00" * 7 + b"a",
    "long1": b"\x01a",
    "long4": b"\x01\x00\x00\x00a",
}
NEVER = {  # what runs, imports, fetches from a registry, or makes what a table does not hold
    *("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"),
    *("NEXT_BUFFER", "READONLY_BUFFER", "BYTEARRAY8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("FROZENSET", "EMPTY_SET", "ADDITEMS", "POP", "POP_MARK", "DUP", "DICT", "LIST"),
    *("GET", "PUT", "INT", "LONG", "LONG4", "FLOAT", "STRING", "UNICODE", "BINSTRING"),
}


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_no_opcode_does_more_than_a_table_needs(opcode):
    kind = opcode.arg.name if opcode.arg else None
    code = opcode.code.encode("latin-1") + ARGUMENTS[kind]
    begun = time.process_time()
    for before, after in honest_splits():
        try:
            parse_contents(before + code + after)
        except Exception:
            continue
        assert opcode.name not in NEVER
    assert time.process_time() - begun < SECONDS


@pytest.mark.parametrize(
    ("module", "attribute"),
    [("os", "system"), ("builtins", "eval"), ("builtins", "set"), ("torch", "load"),
     ("subprocess", "Popen"), ("torch.distributed.checkpoint.metadata", "Enum"),
     ("torch.distributed.checkpoint.metadata", "os"), ("pathlib", "Path.home")],
)  # fmt: skip
@pytest.mark.parametrize("call", [b"(K\x01tR.", b")\x81.", b")}\x92.", b"."])
def test_a_name_outside_the_table_is_refused_before_it_is_imported(module, attribute, call):
    with pytest.raises(ContentsError):
        parse_contents(b"\x80\x04" + name(module, attribute) + call)


def nested_tuples(depth):
    """A tuple of two of the tuple before, and so on: its hash takes 2**depth steps."""
    return b")\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(depth))


def prefixed(body):
    return b"\x80\x04" + body + b"."


DEEP = 200_000


@pytest.mark.parametrize(
    "data",
    [
        prefixed(b"}" + nested_tuples(60) + b"K\x01s"),
        prefixed(SIZE + nested_tuples(60) + b"R"),
        prefixed(b")" + b"\x85" * DEEP),
        prefixed(b"]" * DEEP + b"a" * (DEEP - 1)),
        prefixed(b"(" * DEEP + b"t" * DEEP),
        prefixed(b"]\x94" + b"h\x00a" * DEEP),
        prefixed(b"N\x94" * DEEP),
        prefixed(b"Nr\xff\xff\xff\xff"),
        prefixed(SIZE + b"(" + b"K\x01" * 100_000 + b"t" + b"\x85R"),
        prefixed(SIZE + b"\x8a\xff" + b"\x7f" * 255 + b"\x85\x85R"),
        prefixed(b"\x8b\xff\xff\xff\x7f"),
        prefixed(b"\x8d" + b"\xff" * 8),
        prefixed(b"\x95" + b"\xff" * 8),
        b"(" * contents_reader.MAX_BYTES + b"..",
        prefixed(b"}" * 2_000_000),
        prefixed(b"h\x00"),
        prefixed(b"t"),
        b"",
        b".",
    ],
    ids=lambda data: f"{len(data)} bytes {data[:12].hex()}",
)
def test_a_table_of_any_shape_is_refused_in_time(data):
    begun = time.process_time()
    with pytest.raises((ContentsError, ValueError)):
        parse_contents(data)
    assert time.process_time() - begun < SECONDS


def test_mutated_tables_run_nothing(monkeypatch):
    """``NEMOTRON_STYLE_MUTATIONS`` sets how many are tried."""

    def refuse(*_args, **_options):
        raise AssertionError("a table ran something")

    for owner, attribute in ((os, "system"), (subprocess, "Popen"), (pickle, "loads")):
        monkeypatch.setattr(owner, attribute, refuse)
    rng, honest = random.Random(5), pickle.dumps(table(2), 4)
    before = {kind: dict(vars(kind)) for kind in (Metadata, _StorageInfo, pathlib.PosixPath)}
    codes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    read = 0
    for _ in range(MUTATIONS):
        data = bytearray(honest)
        for _ in range(rng.choice((1, 1, 2, 8))):
            start = rng.randrange(len(data))
            end = start + rng.choice((0, 1, 1, 4, 40))
            data[start:end] = rng.choice((b"", bytes([rng.randrange(256)]), *rng.sample(codes, 3)))
        try:
            read += type(parse_contents(bytes(data))) is Metadata
        except (AssertionError, MemoryError, RecursionError):
            raise
        except Exception:
            continue
    assert 0 < read < MUTATIONS
    assert {kind: dict(vars(kind)) for kind in before} == before
