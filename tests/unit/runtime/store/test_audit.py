"""What was decided stays: verify names what the store has lost, gc mends what can be mended."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import ArtifactError
from nemotron_style.runtime.store.lineage.graph import walk
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def commit(store: Store, run: str, *, slot: str = "model") -> Artifact:
    staged = store.stage("test")
    (staged / "weights").write_text(f"weights of {run}")
    producer = Producer(run_id=run, step="a/b", slot=slot)
    return store.commit(staged, name="model", kind="k", producer=producer)


def problems(store: Store) -> list[str]:
    return [str(problem) for problem in store.verify_all(deep=True)[1]]


def test_a_committed_artifact_that_lost_its_record_is_named_and_mended_not_removed(
    store: Store,
) -> None:
    whole = commit(store, "r-1")
    text = (whole.path / "artifact.json").read_text()
    (whole.path / "artifact.json").unlink()
    assert problems(store) == [
        "model:v1: was decided and has no record; `nemotron-style artifacts gc` mends it"
    ]
    assert store.collect_garbage(grace_s=-1).finished == ["model:v1"]
    assert (whole.path / "artifact.json").read_text() == text
    assert problems(store) == []
    assert store.output_of("r-1", "model") == whole


def test_a_lost_record_comes_back_although_a_file_is_damaged_too(store: Store) -> None:
    whole = commit(store, "r-1")
    (whole.path / "artifact.json").unlink()
    (whole.path / "weights").chmod(0o644)
    (whole.path / "weights").write_text("other")
    store.collect_garbage(grace_s=-1)
    (problem,) = problems(store)
    assert problem.startswith("model:v1: weights: has another size")


def test_a_directory_of_which_nothing_is_known_is_named_and_stays(store: Store) -> None:
    whole = commit(store, "r-1")
    (whole.path / "artifact.json").unlink()
    shutil.rmtree(store.layout.index)  # a copy that lost the index too
    store.collect_garbage(grace_s=-1)
    assert (whole.path / "weights").read_text() == "weights of r-1"
    assert "no commit is known that began it" in problems(store)[0]


def test_a_version_that_is_gone_is_named(store: Store) -> None:
    shutil.rmtree(commit(store, "r-1").path)
    store.collect_garbage(grace_s=-1)
    assert problems(store) == [
        "model:v1: was committed and is gone; restore it from a copy of the store"
    ]


def test_renamed_and_swapped_versions_are_named_and_put_back(store: Store) -> None:
    first, second = commit(store, "r-1"), commit(store, "r-2")
    first.path.rename(first.path.with_name("v1.bak"))
    assert "model:v1: was committed and is gone" in "\n".join(problems(store))
    store.collect_garbage(grace_s=-1)
    assert problems(store) == []
    os.rename(first.path, store.root / "aside")
    os.rename(second.path, first.path)
    os.rename(store.root / "aside", second.path)
    assert "the record is that of model:v2" in "\n".join(problems(store))
    with pytest.raises(ArtifactError, match="the record is that of"):
        store.resolve("model:v1")
    store.collect_garbage(grace_s=-1)
    assert problems(store) == []
    assert (first.path / "weights").read_text() == "weights of r-1"


def test_a_link_in_the_place_of_a_version_is_named_and_left_alone(
    store: Store, tmp_path: Path
) -> None:
    whole = commit(store, "r-1")
    whole.path.rename(tmp_path / "elsewhere")
    whole.path.symlink_to(tmp_path / "elsewhere")
    assert "is a link in the place of a directory" in problems(store)[0]
    store.collect_garbage(grace_s=-1)
    assert whole.path.is_symlink()
    assert (tmp_path / "elsewhere" / "weights").exists()


def test_a_key_that_was_copied_over_another_gives_no_other_artifact(store: Store) -> None:
    first, second = commit(store, "r-1"), commit(store, "r-2")
    ours, theirs = (store.layout.output(run, "model") for run in ("r-1", "r-2"))
    ours.chmod(0o644)
    ours.write_bytes(theirs.read_bytes())
    assert store.output_of("r-1", "model") is None
    assert store.finish_commit("r-1", "model") is None
    assert "the key holds the record of model:v2, which belongs elsewhere" in problems(store)[0]
    store.collect_garbage(grace_s=-1)
    assert (store.output_of("r-1", "model"), store.output_of("r-2", "model")) == (first, second)
    assert problems(store) == []


def test_a_renamed_key_goes_back_to_its_place(store: Store) -> None:
    whole = commit(store, "r-1")
    key = store.layout.output("r-1", "model")
    key.rename(key.with_name("other"))
    assert store.output_of("r-1", "other") is None
    store.collect_garbage(grace_s=-1)
    assert store.output_of("r-1", "model") == whole
    assert not key.with_name("other").exists()


def test_an_artifact_under_the_wrong_digest_is_not_given_out(store: Store) -> None:
    first, second = commit(store, "r-1"), commit(store, "r-2")
    stray = store.layout.digest(first.digest) / "model@v2"
    stray.touch()
    assert store.by_digest(first.digest) == [first]
    assert "belongs to no artifact" in problems(store)[0]
    store.collect_garbage(grace_s=-1)
    assert problems(store) == []
    assert store.by_digest(second.digest) == [second]


def test_a_store_that_is_not_mounted_is_told_from_an_empty_one(store: Store) -> None:
    assert "there is no store here; is it mounted?" in problems(store)[0]
    store.root.mkdir()  # the mount point alone
    assert "there is no store here" in problems(store)[0]
    store.layout.runs.mkdir()
    assert problems(store) == []


def test_one_entry_that_nobody_can_finish_does_not_stop_the_collector(store: Store) -> None:
    bad, good = commit(store, "r-1"), commit(store, "r-2")
    for artifact in (bad, good):
        (artifact.path / "artifact.json").unlink()
    (bad.path / "artifact.json").mkdir()  # what an older version left of a poisoned folder
    (bad.path / "artifact.json" / "x").touch()
    done = store.collect_garbage(grace_s=-1)
    assert done.finished == ["model:v2"]
    assert len(done.skipped) == 1
    assert (bad.path / "weights").exists()


def test_what_cannot_be_read_is_left_out_and_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = commit(store, "r-1"), commit(store, "r-2")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:  # root may read anything
        if path.parent == second.path:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    artifacts, left_out, _ = store.list_artifacts()
    assert artifacts == [first]
    assert "model/v2/artifact.json: the record cannot be read: Permission denied" in str(
        left_out[0]
    )


def test_a_store_from_before_the_sealed_times_is_sound(store: Store) -> None:
    whole = commit(store, "r-1")
    times = store.layout.times(whole.ref)
    state = (whole.path / "weights").stat()
    times.chmod(0o644)
    times.write_text(f'{{"weights": [{state.st_size}, {state.st_mtime_ns}]}}')
    shutil.rmtree(store.layout.index / "newest")
    assert problems(store) == []
    assert commit(store, "r-2").ref == "model:v2"


def test_a_changed_time_hides_no_changed_file(store: Store) -> None:
    whole = commit(store, "r-1")
    weights, times = whole.path / "weights", store.layout.times(whole.ref)
    weights.chmod(0o644)
    weights.write_text("WEIGHTS of r-1")
    before, now = whole.record.files[0], weights.stat().st_mtime_ns
    text = times.read_text()
    old = text.split("[")[1].split("]")[0]
    times.chmod(0o644)
    times.write_text(text.replace(old, f"{before.size}, {now}"))
    assert "has other content" in str(store.verify(whole, deep=False)[0])


def test_a_pipe_in_the_place_of_a_file_of_the_store_stops_no_reader(store: Store) -> None:
    first, second = commit(store, "r-1"), commit(store, "r-2")
    for path in (
        first.path / "artifact.json",
        store.layout.output("r-2", "model"),
        store.layout.times(second.ref),
    ):
        path.unlink()
        os.mkfifo(path)
    assert len(problems(store)) >= 3
    assert list(store.artifacts()) == [second]
    assert store.output_of("r-2", "model") is None
    store.collect_garbage(grace_s=-1)
    assert problems(store) == []
    assert store.output_of("r-2", "model") == second


def test_what_a_complete_run_committed_is_missed_when_all_else_is_gone(store: Store) -> None:
    whole = commit(store, "r-1")
    outputs = {"model": {"ref": whole.ref, "kind": "k", "digest": whole.digest}}
    (store.layout.runs / "r-1").mkdir(parents=True)
    (store.layout.runs / "r-1" / "outputs.json").write_text(json.dumps({"outputs": outputs}))
    assert problems(store) == []
    shutil.rmtree(store.layout.artifacts)
    shutil.rmtree(store.layout.index)
    assert "model:v1: run r-1 committed it from model, and it is gone" in problems(store)[0]


def test_keys_under_wrong_names_make_no_edges_and_stop_no_reader(store: Store) -> None:
    first, second = commit(store, "r-1"), commit(store, "r-2")
    strays = [
        store.layout.edges("down", first.digest, first.ref) / "model~model@v2",
        store.layout.edges("down", first.digest, first.ref) / "nonsense",
        store.layout.digest(first.digest) / "nonsense",
    ]
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.touch()
    assert walk(store, first, down=True).links == []
    assert store.by_digest(first.digest) == [first]
    assert store.resolve(first.digest[:20]) == first
    assert len(problems(store)) == 3
    store.collect_garbage(grace_s=-1)
    assert problems(store) == []
    assert list(store.artifacts()) == [second, first]


def test_age_is_measured_by_the_clock_of_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, "r-1")
    staged = store.stage("left")
    (staged / "x").write_text("x")
    monkeypatch.setattr("time.time", lambda: 4e9)  # this machine's clock is decades ahead
    assert store.collect_garbage(grace_s=3600.0).removed == []
    monkeypatch.setattr("time.time", lambda: 0.0)  # or behind
    for path in (staged / "x", staged):
        os.utime(path, (1e9, 1e9))
    assert store.collect_garbage(grace_s=3600.0).removed == [f"staging/{staged.name}"]


def test_the_times_of_one_artifact_are_not_those_of_another(store: Store) -> None:
    first, second = commit(store, "r-1"), commit(store, "r-2")
    ours, theirs = store.layout.times(first.ref), store.layout.times(second.ref)
    ours.rename(ours.with_name("aside"))
    theirs.rename(ours)
    ours.with_name("aside").rename(theirs)
    assert len([each for each in problems(store) if "is not what was written" in each]) == 2
    store.collect_garbage(grace_s=-1)
    assert problems(store) == []


def test_times_that_are_nested_without_an_end_are_named_and_mended(store: Store) -> None:
    times = store.layout.times(commit(store, "a-1").ref)
    times.chmod(0o644)
    times.write_text("[" * 200_000)
    assert any("is not what was written" in each for each in problems(store))
    store.collect_garbage(grace_s=0)
    assert problems(store) == []
