"""Event files: what TensorBoard's own writers write, while it is written and when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter

from nemotron_style.steps.rl.rlhf.nemo_rl.job.event_file import EventFile, Scalar, checksum
from nemotron_style.steps.rl.rlhf.nemo_rl.job.event_folder import EventFolder, rename


def event(step: int, **numbers: float) -> Event:
    values = [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
    return Event(step=step, wall_time=1.0, summary=Summary(value=values))


def write(path: Path, *events: Event) -> bytes:
    with path.open("ab") as file:
        for each in events:
            RecordWriter(file).write(each.SerializeToString())
    return path.read_bytes()


def test_the_scalars_of_tensorboards_writer_are_read(tmp_path: Path) -> None:
    writer = EventFileWriter(str(tmp_path))
    writer.add_event(event(3, loss=0.5, reward=2.0))
    writer.add_event(event(70_000, loss=-1e30))
    writer.close()
    (path,) = tmp_path.iterdir()
    assert EventFile(path).read() == [
        Scalar(3, "loss", 0.5),
        Scalar(3, "reward", 2.0),
        Scalar(70_000, "loss", pytest.approx(-1e30)),
    ]


def test_scalars_that_are_tensors_are_read_and_other_summaries_left_out(tmp_path: Path) -> None:
    tensors = [
        TensorProto(dtype="DT_FLOAT", float_val=[1.5]),
        TensorProto(dtype="DT_DOUBLE", double_val=[2.5]),
        TensorProto(dtype="DT_FLOAT", tensor_content=b"\0\0\x60\x40"),
        TensorProto(dtype="DT_FLOAT", float_val=[1.0, 2.0]),
        TensorProto(dtype="DT_STRING", string_val=[b"text"]),
    ]
    values = [Summary.Value(tag=f"t{n}", tensor=tensor) for n, tensor in enumerate(tensors)]
    values.append(Summary.Value(tag="picture", image=Summary.Image(height=1)))
    write(tmp_path / "e", Event(step=1, summary=Summary(value=values)))
    scalars = EventFile(tmp_path / "e").read()
    assert [(one.tag, one.value) for one in scalars] == [("t0", 1.5), ("t1", 2.5), ("t2", 3.5)]


def test_a_record_that_is_cut_short_is_read_once_it_is_whole(tmp_path: Path) -> None:
    data = write(tmp_path / "whole", event(1, a=1.0), event(2, a=2.0))
    path = tmp_path / "growing"
    path.touch()
    reader, found = EventFile(path), []
    for place in range(len(data)):
        with path.open("ab") as file:
            file.write(data[place : place + 1])
        found.append([scalar.step for scalar in reader.read()])
    assert [steps for steps in found if steps] == [[1], [2]]
    assert found[-1] == [2]
    assert not reader.damage


@pytest.mark.parametrize(("place", "what"), [(3, "length"), (20, "data"), (-1, "data")])
def test_a_flipped_bit_ends_reading_and_says_where(tmp_path: Path, place: int, what: str) -> None:
    first = len(write(tmp_path / "e", event(1, a=1.0)))
    data = bytearray(write(tmp_path / "e", event(2, a=2.0)))
    data[place if place < 0 else first + place] ^= 4
    (tmp_path / "e").write_bytes(data)
    reader = EventFile(tmp_path / "e")
    assert [scalar.step for scalar in reader.read()] == [1]
    assert f"byte {first} has" in reader.damage
    assert what in reader.damage
    assert reader.read() == []


def test_bytes_that_are_no_protobuf_are_no_scalars(tmp_path: Path) -> None:
    for message in (b"\x2a\xff", b"\x2a\x02\x0a\x7f", b"\xff" * 20, b"\x2b\x00", b""):
        with (tmp_path / "e").open("ab") as file:
            RecordWriter(file).write(message)
    write(tmp_path / "e", event(5, a=1.0))
    assert [scalar.step for scalar in EventFile(tmp_path / "e").read()] == [5]


def test_the_checksum_is_the_masked_crc32c() -> None:
    # RFC 3720, B.4: 32 bytes of zeros have 0x8A9136AA
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert checksum(bytes(32)) == masked.to_bytes(4, "little")


def test_of_several_attempts_the_last_one_counts(tmp_path: Path) -> None:
    for number, loss in ((2, 2.0), (10, 10.0), (1, 1.0)):
        folder = tmp_path / f"exp_{number:03d}/tensorboard"
        (folder / "hparams").mkdir(parents=True)
        write(folder / "events.out.tfevents.1", event(1, **{"train/loss": loss}))
        write(folder / "hparams/events.out.tfevents.1", event(1, **{"train/loss": 9.0}))
    folder = EventFolder(tmp_path)
    assert folder.read() == {1: {"loss": 10.0}}
    assert folder.read() == {}


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("train/reward", "reward"),
        ("train/total_reward/mean", "total_reward/mean"),
        ("validation/accuracy", "validation/accuracy"),
        ("timing/train/total_step_time", "timing/train/total_step_time"),
        ("ray/node.0.gpu.0.util", None),
        ("train/step", None),
    ],
)
def test_metrics_have_the_names_of_the_embedded_loop(tag: str, name: str | None) -> None:
    assert rename(tag) == name
