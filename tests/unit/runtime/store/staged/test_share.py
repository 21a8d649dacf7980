"""Files of equal content are one file on the disk, and nobody is the worse for it."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.store.adoption.bring import Ways
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.removal import Removed, select
from nemotron_style.runtime.store.roots.files import size_on_disk
from nemotron_style.runtime.store.staged import share
from nemotron_style.runtime.store.store import Store

SAME = b"t" * share.SMALLEST


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(store: Store, name: str, content: bytes = SAME, mode: int = 0o644) -> Artifact:
    """A checkpoint with weights of its own and a tokenizer that others have too."""
    staged = store.stage("test")
    (staged / "tokenizer.json").write_bytes(content)
    (staged / "tokenizer.json").chmod(mode)
    (staged / "weights").write_text(name)
    producer = Producer(run_id=f"run-{name}", step="sft/chat", slot="model")
    return store.commit(staged, name=name, kind="k", producer=producer)


def file_of(artifact: Artifact, path: str = "tokenizer.json") -> os.stat_result:
    return (artifact.path / path).stat()


def are_one(*artifacts: Artifact) -> bool:
    return len({file_of(each).st_ino for each in artifacts}) == 1


def remove(store: Store, *refs: str) -> Removed:
    going = select(store.read_family(), wanted=refs, keep={}).going
    return store.remove(going, find_in_use=dict)


def test_equal_files_of_unrelated_artifacts_are_stored_once(store: Store, tmp_path: Path) -> None:
    made = [make(store, f"model{number}") for number in range(3)]
    (tmp_path / "rows.jsonl").write_bytes(SAME)
    ways = [Ways(), Ways()]
    adopted = [
        store.adopt(tmp_path / "rows.jsonl", kind="k", name=f"rows{number}", ways=each)
        for number, each in enumerate(ways)
    ]
    files = {(each.path / "rows.jsonl").stat().st_ino for each in adopted}
    assert are_one(*made)
    assert files == {file_of(made[0]).st_ino}
    assert file_of(made[0]).st_nlink == 5
    assert "; 65.5 kB of it is stored once with other artifacts" in ways[0].describe()
    assert file_of(made[0], "weights").st_nlink == 1, "small files are not worth it"
    assert store.verify_all(deep=False) == store.verify_all(deep=True) == (5, [])
    assert store.collect_garbage().shared == 4 * len(SAME)
    # Nobody reads the files again to see that they are as they were.
    times = share.read_times(store.layout, made[2].ref)
    state = file_of(made[2])
    assert times["tokenizer.json"] == [state.st_size, state.st_mtime_ns]


def test_only_the_last_of_several_frees_what_they_share(store: Store) -> None:
    made = [make(store, f"model{number}") for number in range(3)]
    own = len("model0")
    assert [size_on_disk(each.path) - len(SAME) < 0 for each in made] == [True] * 3
    record = size_on_disk(made[0].path) - own
    assert remove(store, made[0].ref).freed == own + record
    both = size_on_disk(made[1].path, made[2].path)
    done = remove(store, made[1].ref, made[2].ref)
    assert done.freed == both > len(SAME)
    assert store.verify_all(deep=True) == (0, [])
    assert list((store.layout.index / "file").iterdir()) == []


def test_who_outlives_the_first_is_shared_with_after_it(store: Store) -> None:
    first, second = make(store, "first"), make(store, "second")
    remove(store, first.ref)
    assert are_one(second, third := make(store, "third"))
    assert file_of(third).st_nlink == 2
    shutil.rmtree(store.layout.index / "file")  # and what is lost is written again
    store.collect_garbage()
    assert are_one(second, third, make(store, "fourth"))


@pytest.mark.parametrize("keep_time", [False, True])
def test_damage_is_found_in_every_artifact_and_is_not_handed_on(
    store: Store, keep_time: bool
) -> None:
    made = [make(store, "model0"), make(store, "model1")]
    path = made[0].path / "tokenizer.json"
    state = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"x" * len(SAME))
    path.chmod(0o444)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + (not keep_time)))
    told = {problem.where for problem in store.verify_all(deep=True)[1]}
    assert told == {"model0:v1", "model1:v1"}
    if not keep_time:
        fresh = make(store, "fresh")
        assert store.verify(fresh, deep=True) == []
        assert are_one(fresh, make(store, "later")), "the sound file is the one that is shared now"


def test_a_file_with_other_rights_or_a_name_elsewhere_is_not_shared(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = make(store, "private", mode=0o600)
    public = make(store, "public")
    assert not are_one(private, public)
    assert [file_of(each).st_mode & 0o777 for each in (private, public)] == [0o400, 0o444]
    monkeypatch.setattr("nemotron_style.runtime.store.adoption.bring.SMALLEST_LINK", 1)
    other = b"o" * len(SAME)
    (tmp_path / "tokenizer.json").write_bytes(other)
    linked = store.adopt(tmp_path / "tokenizer.json", kind="k", name="linked", link=True)
    # Whoever changes the file outside of the store changes the artifact that was linked to it.
    own = make(store, "own", other)
    assert not are_one(linked, own)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "copy")
    assert are_one(own, store.adopt(tmp_path / "copy", kind="k", name="again", link=True))
    assert (tmp_path / "copy" / "tokenizer.json").stat().st_nlink == 1
    referenced = store.adopt(tmp_path / "copy", kind="k", name="referenced", reference=True)
    assert (referenced.path / "tokenizer.json").is_symlink()
    store.collect_garbage()
    assert store.verify_all(deep=True) == (6, [])


@pytest.mark.parametrize(
    "text", ["", "[1]", '["public:v1", "../../../rows"]', '["../x:v1", "tokenizer.json"]', "\0"]
)
def test_a_hint_that_is_wrong_harms_nothing(store: Store, text: str) -> None:
    make(store, "public")
    hint = store.layout.file(next((store.layout.index / "file").iterdir()).name)
    hint.chmod(0o644)
    hint.write_text(text)
    second = make(store, "second")
    assert are_one(second, make(store, "third"))
    assert store.verify_all(deep=True) == (3, [])


def test_a_hint_to_another_file_of_the_same_size_is_not_believed(store: Store) -> None:
    make(store, "one")
    make(store, "two", b"2" * len(SAME))
    first, second = sorted((store.layout.index / "file").iterdir())
    texts = first.read_bytes(), second.read_bytes()
    for hint, text in zip((second, first), texts, strict=True):
        hint.chmod(0o644)
        hint.write_bytes(text)
    make(store, "three")
    assert store.verify_all(deep=True) == (3, [])


def test_a_file_that_goes_while_it_is_being_shared_stays_a_copy(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(store, "first")
    link = os.link

    def link_late(source: Any, target: Any, **options: Any) -> None:
        if Path(source).name == "tokenizer.json":
            remove(store, first.ref)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", link_late)
    second = make(store, "second")
    assert store.find("first:v1") is None
    assert are_one(second, make(store, "third"))
    assert store.verify_all(deep=True) == (2, [])


def test_a_disk_without_hard_links_keeps_a_copy_of_each(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, target: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted", str(source))

    monkeypatch.setattr(os, "link", refuse)
    made = [make(store, f"model{number}") for number in range(2)]
    assert not are_one(*made)
    assert store.verify_all(deep=True) == (2, [])
    assert list(store.layout.staging.iterdir()) == []


def test_removals_and_commits_at_once_lose_nothing(store: Store) -> None:
    make(store, "model0")

    def replace(number: int) -> None:
        own = Store(store.root)
        made = make(own, f"model{number}")
        assert own.verify(made, deep=True) == []
        if number % 2:
            remove(own, made.ref)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, range(1, 13)))
    assert store.verify_all(deep=True) == (7, [])
    assert list(store.layout.staging.iterdir()) == []


def test_many_equal_files_cost_a_commit_one_look_at_the_record(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    load = share.load_artifact

    def count(path: Path) -> Artifact:
        reads.append(path)
        return load(path)

    def make_many(name: str) -> Artifact:
        staged = store.stage("test")
        for number in range(5):
            (staged / f"{number}").write_bytes(bytes([number]) * len(SAME))
        return store.commit(staged, name=name, kind="k")

    make_many("first")
    monkeypatch.setattr(share, "load_artifact", count)
    assert size_on_disk(make_many("second").path) < share.SMALLEST
    assert len(reads) == 1
