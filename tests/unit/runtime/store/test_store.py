"""The store's promises on a local disk."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from pathlib import Path
from unittest.mock import Mock

import fsspec
import pytest

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, InputError, RefError, UsageError
from nemotron_style.runtime.store import claim, resolve, verify
from nemotron_style.runtime.store import commit as commit_module
from nemotron_style.runtime.store.digest import Found, Hashed, hash_file
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.ref import is_location
from nemotron_style.runtime.store.roots.location import default_root
from nemotron_style.runtime.store.store import Store, digest_tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def commit(store: Store, text: str, *, name: str = "model", run: str = "") -> Artifact:
    staged = store.stage("test")
    (staged / "sub").mkdir()
    (staged / "a.txt").write_text(text)
    (staged / "sub" / "b.bin").write_bytes(bytes(range(64)))
    producer = Producer(run_id=run, step="a/b", slot="model") if run else None
    return store.commit(staged, name=name, kind="checkpoint_hf", producer=producer)


# Committing


def test_what_is_committed_is_found_by_every_kind_of_ref(store: Store) -> None:
    first, second = commit(store, "one", run="r-1"), commit(store, "two", run="r-2")
    refs = {"model": second, "model:latest": second, "model:v1": first, first.digest: first}
    refs |= {second.digest[:13]: second, "run:r-1/model": first}
    for ref, artifact in refs.items():
        assert store.resolve(ref) == artifact
    assert [artifact.ref for artifact in store.artifacts()] == ["model:v2", "model:v1"]
    assert store.output_of("r-2", "model") == second
    assert store.output_of("r-2", "other") is None
    assert second.digest == digest_tree(second.path)[0]
    assert not any(store.layout.staging.iterdir())


def test_a_limited_list_has_the_artifacts_that_were_committed_last(store: Store) -> None:
    made = [commit(store, str(number), name=f"m{number % 2}") for number in range(6)]
    for number, artifact in enumerate(made):
        os.utime(artifact.path / "artifact.json", (number, number))
    store.remove([made[5].record], find_in_use=dict)
    listed, problems, more = store.list_artifacts(limit=3)
    assert [each.ref for each in listed] == ["m0:v3", "m0:v2", "m1:v2"]
    assert (problems, more) == ([], 2)
    assert store.list_artifacts(limit=9) == store.list_artifacts()
    assert len(store.list_artifacts("m0", limit=1)[0]) == 1


def test_an_absent_store_is_empty_and_reading_makes_nothing(store: Store) -> None:
    assert list(store.artifacts()) == []
    assert store.by_digest("sha256:" + "0" * 64) == []
    with pytest.raises(RefError, match="no such artifact"):
        store.resolve("model")
    assert not store.root.exists()


def test_committed_files_cannot_be_written(store: Store) -> None:
    for path in commit(store, "one").path.rglob("*"):
        assert path.is_dir() or not stat.S_IMODE(path.stat().st_mode) & 0o222


def test_a_file_with_another_name_elsewhere_is_copied_apart(store: Store, tmp_path: Path) -> None:
    staged = store.stage("test")
    (tmp_path / "outside").write_text("before")
    os.link(tmp_path / "outside", staged / "a.txt")
    artifact = store.commit(staged, name="model", kind="k")
    (tmp_path / "outside").write_text("after!")
    assert store.verify(artifact, deep=True) == []
    assert (artifact.path / "a.txt").read_text() == "before"


def test_the_same_run_and_slot_is_committed_once(store: Store) -> None:
    first = commit(store, "one", run="r-1")
    again = commit(store, "other bytes", run="r-1")
    assert again == first
    assert len(list(store.artifacts())) == 1
    assert not any(store.layout.staging.iterdir())


def test_an_output_that_was_damaged_is_committed_anew(store: Store) -> None:
    first = commit(store, "one", run="r-1")
    damage(first.path / "a.txt", b"two")
    second = commit(store, "one", run="r-1")
    assert second.ref == "model:v2"
    assert store.output_of("r-1", "model") == second


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "/etc", "A", ".hidden", "a\n", "x" * 101, "sha256", "é"]
)
def test_names_cannot_escape(store: Store, name: str) -> None:
    with pytest.raises(RefError):
        commit(store, "one", name=name)
    with pytest.raises(RefError):
        store.resolve(f"{name}:v1")
    assert not (store.root / "artifacts").exists()


@pytest.mark.parametrize("word", ["..", "a/b", "", "../../x"])
def test_runs_slots_and_kinds_cannot_escape(store: Store, word: str) -> None:
    staged = store.stage("test")
    (staged / "a").write_text("x")
    for producer in (
        Producer(run_id=word, step="s", slot="model"),
        Producer(run_id="r", step="s", slot=word),
    ):
        with pytest.raises(RefError):
            store.commit(staged, name="model", kind="k", producer=producer)
    with pytest.raises(RefError):
        store.commit(staged, name="model", kind=word)
    assert list(store.artifacts()) == []


def test_links_pipes_and_a_record_in_a_staged_tree_are_refused(store: Store) -> None:
    staged = store.stage("test")
    (staged / "a.txt").write_text("x")
    (staged / "link").symlink_to("a.txt")
    (staged / "folder").symlink_to("/etc")
    os.mkfifo(staged / "pipe")
    with pytest.raises(ArtifactError) as caught:
        store.commit(staged, name="model", kind="k")
    assert len(caught.value.problems) == 3
    for name in ("link", "folder", "pipe"):
        (staged / name).unlink()
    (staged / "artifact.json").write_text("{}")
    with pytest.raises(ArtifactError, match="name of the record"):
        store.commit(staged, name="model", kind="k")
    (staged / "artifact.json").unlink()
    assert store.commit(staged, name="model", kind="k").ref == "model:v1"


def test_a_directory_elsewhere_is_not_taken_away(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("x")
    for place in (tmp_path / "mine", tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="not a directory in the store"):
            store.commit(place, name="model", kind="k")
    link = store.stage("test") / "link"
    link.symlink_to(tmp_path / "mine")
    with pytest.raises(ArtifactError, match="not a directory in the store"):
        store.commit(link, name="model", kind="k")
    with pytest.raises(ArtifactError, match="holds no files"):
        store.commit(store.stage("test"), name="model", kind="k")
    assert (tmp_path / "mine" / "a").read_text() == "x"


def test_a_secret_in_the_record_stops_the_commit(store: Store) -> None:
    staged = store.stage("test")
    (staged / "a.txt").write_text("x")
    with pytest.raises(ArtifactError, match="secret"):
        store.commit(staged, name="m", kind="k", config={"key": "hunter22"}, forbidden=["hunter22"])
    assert list(store.artifacts()) == []
    assert store.commit(staged, name="m", kind="k", forbidden=["hunter22"]).ref == "m:v1"


# Versions


def test_a_version_without_a_record_is_not_there(store: Store) -> None:
    whole = commit(store, "one")
    half = store.layout.version("model", 2)
    half.mkdir()
    (half / "a.txt").write_text("half")
    assert [artifact.ref for artifact in store.artifacts()] == ["model:v1"]
    assert store.resolve("model") == whole
    with pytest.raises(RefError, match="no such version"):
        store.resolve("model:v2")
    assert commit(store, "three").ref == "model:v3"


def test_a_claim_that_came_to_nothing_leaves_a_gap(store: Store) -> None:
    commit(store, "one")
    atomic.create_empty(store.layout.claims("model") / "v7")
    assert commit(store, "two").ref == "model:v8"
    store.collect_garbage(grace_s=-1)
    assert commit(store, "three").ref == "model:v9"


def test_registering_lists_no_claims_unless_one_came_or_went(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, "one")
    listed: list[str] = []
    real = claim._list_newest
    monkeypatch.setattr(claim, "_list_newest", lambda *args: listed.append("") or real(*args))
    assert [commit(store, text).ref for text in ("two", "three")] == ["model:v2", "model:v3"]
    assert listed == []
    atomic.create_empty(store.layout.claims("model") / "v9")  # by another machine
    assert commit(store, "four").ref == "model:v10"
    assert len(listed) == 1
    for note in ("", "x y", "99"):
        store.layout.newest("model").write_text(note)
        assert commit(store, note + "five").record.version == 9 + len(listed)


def test_latest_is_the_highest_number_not_the_longest_text(store: Store) -> None:
    artifacts = [commit(store, str(number)) for number in range(11)]
    assert store.resolve("model") == artifacts[-1]
    assert artifacts[-1].ref == "model:v11"


PROCESSES = int(os.environ.get("STORE_PROCESSES", "8"))
PUBLISHES = int(os.environ.get("STORE_PUBLISHES", "160"))


def _commit_many(root: Path, writer: int) -> None:
    store = Store(root)
    for number in range(writer, PUBLISHES, PROCESSES):
        staged = store.stage("test")
        (staged / "a.txt").write_text(f"number {number}")
        producer = Producer(run_id=f"r-{number}", step="a/b", slot="model")
        facts = {"made": f"number {number}"}
        store.commit(staged, name="model", kind="k", producer=producer, facts=facts)


def test_many_writers_get_distinct_versions_and_lose_nothing(store: Store) -> None:
    """``STORE_PROCESSES=64 STORE_PUBLISHES=2000`` is the long form."""
    spawn = multiprocessing.get_context("fork").Process
    writers = [spawn(target=_commit_many, args=(store.root, each)) for each in range(PROCESSES)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        problems = store.verify_all(deep=False)[1]  # commits under way are no problem
        assert problems == [] or not store.layout.index.exists()
        time.sleep(0.1)
    for writer in writers:
        writer.join(300)
        assert writer.exitcode == 0
    artifacts = list(store.artifacts("model"))
    assert [artifact.record.version for artifact in artifacts] == list(range(PUBLISHES, 0, -1))
    made = {(artifact.path / "a.txt").read_text(): artifact.facts["made"] for artifact in artifacts}
    assert len(made) == PUBLISHES
    assert all(text == fact for text, fact in made.items())
    assert store.verify_all(deep=True) == (PUBLISHES, [])


def test_a_folder_that_another_process_makes_meanwhile_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False, True])
    monkeypatch.setattr(Path, "is_dir", lambda path: path == tmp_path or next(looks, True))
    (tmp_path / "new").mkdir()
    atomic.make_dir(tmp_path / "new")


def _commit_same_run(root: Path, writer: int) -> None:
    store = Store(root)
    for number in range(15):
        commit(store, f"by {writer}", run=f"r-{number}")


def test_writers_of_the_same_run_agree_on_one_artifact(store: Store) -> None:
    spawn = multiprocessing.get_context("fork").Process
    writers = [spawn(target=_commit_same_run, args=(store.root, each)) for each in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    artifacts = list(store.artifacts("model"))
    runs = [artifact.record.producer.run_id for artifact in artifacts if artifact.record.producer]
    assert sorted(runs) == sorted(f"r-{number}" for number in range(15))
    assert all(store.verify(artifact, deep=True) == [] for artifact in artifacts)


# Checking


def damage(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_every_flipped_bit_is_found(store: Store) -> None:
    artifact = commit(store, "one")
    path = artifact.path / "sub" / "b.bin"
    good = path.read_bytes()
    for place in range(len(good)):
        damage(path, bytes(byte ^ (1 << place % 8) * (i == place) for i, byte in enumerate(good)))
        (problem,) = store.verify(artifact, deep=True)
        assert (problem.key, problem.what) == ("sub/b.bin", "has other content")
    damage(path, good)
    assert store.verify(artifact, deep=True) == []


def test_truncated_missing_extra_and_replaced_files_are_all_told(store: Store) -> None:
    artifact = commit(store, "one")
    damage(artifact.path / "a.txt", b"on")
    (artifact.path / "sub" / "b.bin").unlink()
    (artifact.path / "sub" / "c").write_text("new")
    for deep in (True, False):
        told = {problem.key: problem.what for problem in store.verify(artifact, deep=deep)}
        assert told == {
            "sub/b.bin": "is missing",
            "sub/c": "was not committed with the artifact",
            "a.txt": "has another size",
        }
    (artifact.path / "a.txt").unlink()
    (artifact.path / "a.txt").symlink_to("/etc/passwd")
    assert "symbolic link" in str(store.verify(artifact, deep=False)[0])


def test_a_changed_record_is_told_and_hides_no_other_artifact(store: Store) -> None:
    good, bad = commit(store, "one"), commit(store, "two")
    record = bad.path / "artifact.json"
    damage(record, record.read_bytes().replace(b"checkpoint_hf", b"checkpoint_hg"))
    assert list(store.artifacts()) == [good]
    assert "not the one that was committed" in str(store.verify(bad, deep=False)[0])
    with pytest.raises(ArtifactError):
        store.resolve("model")
    record.unlink()
    assert store.verify(bad, deep=False)[0].what == "is gone"


def test_shallow_reads_only_what_looks_touched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = commit(store, "one")
    read: list[str] = []

    def hash_and_tell(found: Found) -> Hashed:
        read.append(found.path)
        return hash_file(found)

    monkeypatch.setattr(verify, "hash_file", hash_and_tell)
    assert store.verify(artifact, deep=False) == []
    assert read == []
    os.utime(artifact.path / "a.txt", ns=(1, 1))
    assert store.verify(artifact, deep=False) == []
    assert read == ["a.txt"]
    store.layout.times(artifact.ref).unlink()
    assert store.verify(artifact, deep=False) == []
    assert read == ["a.txt", "a.txt", "sub/b.bin"]


def test_equal_length_damage_is_found_by_shallow_too(store: Store) -> None:
    artifact = commit(store, "one")
    damage(artifact.path / "a.txt", b"two")
    os.utime(artifact.path / "a.txt", ns=(1, 1))
    assert [problem.what for problem in store.verify(artifact, deep=False)] == ["has other content"]


# Refs


def test_near_misses_are_suggested(store: Store) -> None:
    commit(store, "one", name="steerlm", run="sft-chat-1")
    with pytest.raises(RefError, match="did you mean 'steerlm'"):
        store.resolve("stearlm")
    with pytest.raises(RefError, match="allowed: v1"):
        store.resolve("steerlm:v9")
    with pytest.raises(RefError, match="run:sft-chat-1/model"):
        store.resolve("run:sft-chat-1/models")
    for wrong in ("steerlm:3", "steerlm:", "sha256:abc", "sha256:XYZXYZ", "run:x"):
        with pytest.raises(RefError):
            store.resolve(wrong)
    with pytest.raises(RefError, match="begins so"):
        store.resolve("sha256:000000")


def test_a_digest_prefix_must_be_unique(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(store, "one")
    same = commit(store, "one", name="copy")
    assert same.digest == first.digest
    assert store.resolve(first.digest) == first
    assert store.by_digest(first.digest) == [first, same]
    other = commit(store, "two")
    digests = [first.digest, other.digest]
    monkeypatch.setattr(resolve, "read_digests", lambda layout, prefix: digests)
    with pytest.raises(RefError, match="more than one digest") as caught:
        store.resolve("sha256:aaaaaa")
    assert "model:v1" in str(caught.value)
    assert "model:v2" in str(caught.value)


@pytest.mark.parametrize("text", ["./a", "a/b", "/a", "~/a", "s3://b/k", "../x", "."])
def test_locations(text: str) -> None:
    assert is_location(text)


@pytest.mark.parametrize("text", ["name", "name:v3", "a.b", "sha256:abcdef", "run:r-1/slot"])
def test_refs_are_no_locations(text: str) -> None:
    assert not is_location(text)


def test_the_root_is_chosen_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.delenv("NEMOTRON_STYLE_HOME", raising=False)
    assert default_root() == tmp_path / ".nemotron-style"
    assert default_root("/shared/store") == Path("/shared/store")
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(tmp_path / "home"))
    assert default_root("/shared/store") == tmp_path / "home"


@pytest.mark.parametrize(
    "url", ["s3:/bucket/x", "gs://b", "s3::/x", "ftp://host/x", "simplecache::s3://b"]
)
def test_a_store_at_a_url_of_no_known_kind_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEMOTRON_STYLE_HOME", raising=False)
    for ask in (lambda: default_root(url), lambda: Store(url), lambda: Store(Path(url))):
        with pytest.raises(
            UsageError, match=r"a store cannot be there; got .*; allowed: a folder, f"
        ):
            ask()
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", url)
    with pytest.raises(UsageError, match="NEMOTRON_STYLE_HOME"):
        default_root()


def test_a_file_is_no_store_and_a_colon_in_a_path_no_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEMOTRON_STYLE_HOME", raising=False)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        default_root(str(tmp_path / "file"))
    assert default_root(f"{tmp_path}/a:/b") == tmp_path / "a:" / "b"


# Adopting


def test_adopting_copies_and_is_done_once(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "data"
    (source / "sub").mkdir(parents=True)
    (source / "rows.jsonl").write_text("{}\n")
    (source / "sub" / "x").symlink_to("../rows.jsonl")
    artifact = store.adopt(source, kind="raw_jsonl", name="data")
    assert artifact.digest == digest_tree(source)[0]
    assert not (artifact.path / "sub" / "x").is_symlink()
    assert artifact.record.origin is not None
    assert artifact.record.origin.source == str(source)
    assert store.adopt(source, kind="raw_jsonl", name="data") == artifact
    assert store.adopt(source, kind="training_jsonl", name="data").ref == "data:v2"
    assert store.adopt(source, kind="raw_jsonl", name="other").ref == "other:v1"
    (source / "rows.jsonl").write_text("[]\n")
    assert store.verify(artifact, deep=True) == []
    assert store.adopt(source, kind="raw_jsonl", name="data").ref == "data:v3"
    assert not any(store.layout.staging.iterdir())


def test_adopting_one_file_and_a_damaged_copy(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    artifact = store.adopt(tmp_path / "rows.jsonl", kind="raw_jsonl", name="data")
    assert [file.path for file in artifact.record.files] == ["rows.jsonl"]
    damage(artifact.path / "rows.jsonl", b"[]\n\n")
    again = store.adopt(tmp_path / "rows.jsonl", kind="raw_jsonl", name="data")
    assert again.ref == "data:v2"
    assert store.verify(again, deep=True) == []


def test_adopting_from_another_store_keeps_what_its_record_tells(
    store: Store, tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    staged = other.stage("test")
    (staged / "weights").write_text("w")
    producer = Producer(run_id="r-9", step="sft/chat", slot="model")
    theirs = other.commit(staged, name="m", kind="k", producer=producer, facts={"canary": "c"})
    ours = store.adopt(theirs.path, kind="k", name="base")
    assert (ours.digest, ours.facts, ours.record.producer) == (theirs.digest, {"canary": "c"}, None)
    assert ours.record.origin is not None
    assert ours.record.origin.record == theirs.record
    (theirs.path / "extra").write_text("new")
    with pytest.raises(InputError, match="not those that its"):
        store.adopt(theirs.path, kind="k", name="base")
    damage(theirs.path / "artifact.json", b"{}")
    with pytest.raises(InputError, match="rename it when it is content"):
        store.adopt(theirs.path, kind="k", name="base")
    assert [artifact.ref for artifact in store.artifacts()] == ["base:v1"]


def test_adopting_from_uris(store: Store, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/set/a.txt": b"one", "/bucket/set/sub/b.txt": b"two"})
    tree = store.adopt("memory://bucket/set", kind="raw_jsonl", name="data")
    assert [file.path for file in tree.record.files] == ["a.txt", "sub/b.txt"]
    assert (tree.path / "sub" / "b.txt").read_text() == "two"
    assert store.adopt("memory://bucket/set", kind="raw_jsonl", name="data") == tree
    one = store.adopt("memory://bucket/set/a.txt", kind="raw_jsonl", name="one")
    (tmp_path / "a.txt").write_text("one")
    assert store.adopt(f"file://{tmp_path}/a.txt", kind="raw_jsonl", name="one") == one
    for absent in ("memory://bucket/absent", "nosuch://x", f"file://{tmp_path}/absent"):
        with pytest.raises(InputError):
            store.adopt(absent, kind="raw_jsonl", name="data")
    assert not any(store.layout.staging.iterdir())


def test_a_remote_name_cannot_escape(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/evil/a.txt": b"one"})
    monkeypatch.setattr(
        type(memory), "find", lambda self, root, detail: {f"{root}/../../../escaped": {}}
    )
    with pytest.raises(InputError, match="no name for a file"):
        store.adopt("memory://evil", kind="raw_jsonl", name="data")
    assert not (store.root.parent / "escaped").exists()


def test_a_bad_source_is_the_users_mistake(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        store.adopt(tmp_path / "absent", kind="raw_jsonl", name="data")
    with pytest.raises(RefError):
        store.adopt(tmp_path, kind="raw_jsonl", name="../x")


# Garbage


def cut_off(store: Store, *, run: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a commit that died before it was decided, and lost a file."""
    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "_decide", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            commit(store, "half", run=run)
    half = max(store.layout.name("model").glob("v*"), key=lambda path: int(path.name[1:]))
    (half / "a.txt").unlink()
    return half


def test_garbage_is_removed_after_its_grace_and_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = commit(store, "one", run="r-1")
    staged = store.stage("left")
    (staged / "a").write_text("x")
    cut_off(store, run="r-2", monkeypatch=monkeypatch)
    assert store.collect_garbage(grace_s=3600).removed == []
    done = store.collect_garbage(grace_s=-1)
    assert sorted(done.removed) == ["artifacts/model/v2", str(staged.relative_to(store.root))]
    assert store.verify(whole, deep=True) == []
    assert list(store.artifacts()) == [whole]
    assert store.collect_garbage(grace_s=-1).removed == []


def test_lost_keys_are_written_again(store: Store) -> None:
    whole = commit(store, "one")
    (store.layout.digest(whole.digest) / "model@v1").unlink()
    assert store.by_digest(whole.digest) == []
    assert [problem.what for problem in store.check_keys(whole.path)] == ["is missing"]
    assert store.collect_garbage().keys_written == 1
    assert store.by_digest(whole.digest) == [whole]


def test_a_version_that_was_moved_aside_while_it_was_finished_comes_back(store: Store) -> None:
    whole = commit(store, "one")
    whole.path.rename(store.layout.staging / "half-made-model@v1-x")
    assert store.collect_garbage(grace_s=-1).finished == ["model:v1"]
    assert store.resolve("model") == whole
