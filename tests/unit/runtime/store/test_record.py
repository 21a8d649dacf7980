"""Records: sealed, plain, without secrets; digests by their definition."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from nemotron_style.runtime.errors import ArtifactError, InputError
from nemotron_style.runtime.store.digest import digest_files, digest_tree
from nemotron_style.runtime.store.record import (
    Edge,
    Producer,
    Record,
    load_artifact,
    parse_record,
    render_record,
)
from nemotron_style.runtime.store.store import Store

DIGEST = "sha256:" + "0" * 64


def sample(**fields: object) -> Record:
    base = {"name": "m", "version": 2, "kind": "k", "digest": DIGEST, "files": ()}
    return Record.model_validate(base | {"created": "2026-01-01T00:00:00+00:00"} | fields)


def test_a_sealed_record_comes_back() -> None:
    edge = Edge(slot="data", ref="d:v1", kind="raw_jsonl", digest=DIGEST)
    producer = Producer(run_id="r", step="a/b", slot="model", attempts=({"state": "failed"},))
    record = sample(producer=producer, inputs=(edge,), config={"text": 'ü "quoted" \\ \n'})
    assert parse_record(render_record(record).encode(), where="here") == record


def test_no_bit_of_a_record_can_change_unnoticed() -> None:
    # The text holds a run of 64 zeros of its own, which must not be taken for the seal.
    data = render_record(sample(config={"seal": "0" * 64, "key": 1})).encode()
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << (place % 7)
        with pytest.raises(ArtifactError):
            parse_record(bytes(broken), where="here")


def test_of_a_damaged_record_it_is_said_what_mends_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (staged := store.stage("x")).joinpath("file").write_text("content")
    made = store.commit(staged, name="m", kind="k")
    record = made.path / "artifact.json"
    record.chmod(0o644)
    record.write_text("damaged")
    with pytest.raises(ArtifactError, match="`nemotron-style artifacts gc` writes it again"):
        load_artifact(made.path)
    store.collect_garbage(grace_s=0)
    assert load_artifact(made.path) == made


@pytest.mark.parametrize("cut", [0, 1, 50, -1, -70])
def test_a_cut_record_is_refused(cut: int) -> None:
    with pytest.raises(ArtifactError, match="not the one that was committed"):
        parse_record(render_record(sample()).encode()[:cut], where="here")


def test_a_record_of_another_schema_is_refused() -> None:
    text = render_record(sample()).replace('"schema_version": 1', '"schema_version": 9')
    blank = text[: text.rindex('"seal"')] + '"seal": "' + "0" * 64 + '"\n}\n'
    seal = hashlib.sha256(blank.encode()).hexdigest()
    with pytest.raises(ArtifactError, match="a newer nemotron-style wrote the record"):
        parse_record(blank.replace("0" * 64 + '"\n}', seal + '"\n}').encode(), where="here")


@pytest.mark.parametrize("ref", ["d", "d:latest", "../d:v1", "d:v0", "d:v1\n", "D:v1"])
def test_an_edge_names_one_version_exactly(ref: str) -> None:
    with pytest.raises(ValidationError):
        Edge(slot="data", ref=ref, kind="k", digest=DIGEST)


def test_the_digest_is_what_its_definition_says(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b ü.txt").write_bytes(b"two")
    (tmp_path / "sub" / "a.txt").write_bytes(b"")
    (tmp_path / "artifact.json").write_text("not content")
    (tmp_path / "empty").mkdir()
    lines = [
        ["b ü.txt", 3, hashlib.sha256(b"two").hexdigest()],
        ["sub/a.txt", 0, hashlib.sha256(b"").hexdigest()],
    ]
    text = "".join(
        json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines
    )
    digest, files = digest_tree(tmp_path)
    assert digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert [file.path for file in files] == ["b ü.txt", "sub/a.txt"]
    assert digest_files(reversed(files)) == digest


def test_a_single_file_is_a_tree_of_one(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "rows.jsonl").write_text("{}\n")
    assert digest_tree(tmp_path / "d" / "rows.jsonl") == digest_tree(tmp_path / "d")


def test_every_entry_that_is_no_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    (tmp_path / "ok").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").symlink_to("/")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
    with pytest.raises(InputError) as caught:
        digest_tree(tmp_path)
    places = sorted(Path(problem.where).name for problem in caught.value.problems)
    assert places == ["dangling", "folder", "pipe", "sock"]


def test_nothing_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        digest_tree(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no files"):
        digest_tree(tmp_path)
