"""A small store in which one thing is changed, deleted, renamed, swapped or linked: each in turn.

``verify`` must find it, and ``gc`` must mend what it can and lose nothing. A sample is tried;
``STORE_DAMAGE=0/4`` tries the first of four parts of them all: every byte of every file changed,
every pair swapped (some minutes a part; a ``--basetemp`` in memory helps).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store

PART, _, PARTS = os.environ.get("STORE_DAMAGE", "").partition("/")
EVERYTHING = bool(PARTS)
SAMPLE = 40  # of the pairs that can be swapped
NOTES = "index/newest"  # what the store may lose: a note that saves the next writer a listing


@dataclass(frozen=True)
class Damage:
    """One thing that happens to a store; ``mendable`` when the rest of the store tells it all."""

    what: str
    happen: Callable[[Path], None]
    mendable: bool = True


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def sound(tmp_path: Path) -> Store:
    """A store with two adopted artifacts, two outputs made from one of them, and a loose one."""
    store = Store(tmp_path / "sound")
    for name in ("data", "more"):
        source = tmp_path / f"{name}.jsonl"
        source.write_text(f'"{name}"\n')
        store.adopt(source, kind="raw_jsonl", name=name)
    for run in ("r-1", "r-2"):
        make(store, run)
    make(store, "")
    assert store.verify_all(deep=True) == (5, [])
    return store


def make(store: Store, run: str) -> Artifact:
    staged = store.stage("test")
    (staged / "sub").mkdir()
    (staged / "weights").write_text(f"weights of {run}")
    (staged / "sub" / "same").write_text("the same in all")
    producer = Producer(run_id=run, step="a/b", slot="model") if run else None
    inputs = [store.resolve("data").edge("data")]
    return store.commit(staged, name="model", kind="k", producer=producer, inputs=inputs)


def paths_of(root: Path, *, folders: bool) -> list[str]:
    """What can be damaged, relative to the root."""
    paths = [path for top in ("artifacts", "index") for path in sorted(root.glob(f"{top}/**/*"))]
    kept = [path for path in paths if path.is_dir() == folders and any(files_of(path))]
    names = [str(path.relative_to(root)) for path in kept]
    return [name for name in names if not name.startswith(NOTES)]


def files_of(path: Path) -> list[Path]:
    return [each for each in (path, *path.rglob("*")) if each.is_file()]


def sort_of(path: str) -> str:
    """What a path is: a ``key`` of the index, or in artifacts a ``name``, ``version``, ..."""
    if path.startswith("index/"):
        return "key"
    if ".claims" in path:
        return "claim"
    if path.endswith("artifact.json"):
        return "record"
    return {2: "name", 3: "version"}.get(len(Path(path).parts), "content")


def picture(root: Path) -> dict[str, bytes]:
    """Every file of the store with its bytes, but for what it may lose."""
    files = {str(path.relative_to(root)): path for path in files_of(root)}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if not name.startswith((NOTES, "staging"))
    }


def contents(root: Path) -> Counter[str]:
    """The bytes of artifacts, wherever in the store they lie."""
    files = {str(path.relative_to(root)): path for path in files_of(root)}
    return Counter(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name.startswith(("artifacts/", "staging/"))
        and path.name in ("weights", "same", "data.jsonl", "more.jsonl")
    )


def on(path: str, act: Callable[..., None], *words: object) -> Callable[[Path], None]:
    return lambda root: act(root / path, *words)


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def flip(path: Path, place: int) -> None:
    data = path.read_bytes()
    rewrite(path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def lengthen(path: Path) -> None:
    rewrite(path, path.read_bytes() + b"\n")


def shorten(path: Path) -> None:
    rewrite(path, path.read_bytes()[:-1])


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


def link(path: Path) -> None:
    away = path.parent / "..elsewhere"
    path.rename(away)
    path.symlink_to(away.name)


def swap(one: str, other: str) -> Callable[[Path], None]:
    def happen(root: Path) -> None:
        aside = root / "aside"
        (root / one).rename(aside)
        (root / other).rename(root / one)
        aside.rename(root / other)

    return happen


def damages(root: Path) -> Iterator[Damage]:
    """Every single damage, in a fixed order."""
    files, folders = paths_of(root, folders=False), paths_of(root, folders=True)
    for path in (*files, *folders):
        sort = sort_of(path)
        told_elsewhere = sort in ("key", "claim", "record")
        yield Damage(f"delete {path}", on(path, remove), told_elsewhere)
        for name in ("elsewhere", "v9", "data@v9") if EVERYTHING else ("v9",):
            what = f"rename {path} to {name}"
            mendable = sort != "content" and not path.endswith(".claims")
            yield Damage(what, on(path, rename, name), mendable)
        if sort in ("name", "version", "content") and path in folders:
            yield Damage(f"link {path}", on(path, link), False)
    for path in files:
        told_elsewhere = sort_of(path) in ("key", "claim", "record")
        size = (root / path).stat().st_size
        yield Damage(f"lengthen {path}", on(path, lengthen), told_elsewhere and size > 0)
        places = range(size) if EVERYTHING else {size // 2} & set(range(size))
        for place in places:
            what = f"flip byte {place} of {path}"
            yield Damage(what, on(path, flip, place), told_elsewhere)
        if size:
            yield Damage(f"shorten {path}", on(path, shorten), told_elsewhere)
    pairs = [*itertools.combinations(files, 2), *itertools.combinations(folders, 2)]
    apart = [pair for pair in pairs if not pair[1].startswith(pair[0] + "/")]
    for one, other in apart if EVERYTHING else random.Random(1).sample(apart, SAMPLE):
        sorts = {sort_of(one), sort_of(other)}
        mendable = len(sorts) == 1 and sorts != {"content"}
        yield Damage(f"swap {one} and {other}", swap(one, other), mendable)


def test_every_single_damage_is_found_and_what_can_be_mended_is(
    sound: Store, tmp_path: Path
) -> None:
    before = picture(sound.root)
    figures: Counter[str] = Counter()
    wrong: list[str] = []
    for damage in itertools.islice(damages(sound.root), int(PART or 0), None, int(PARTS or 8)):
        kind = damage.what.split()[0]
        root = tmp_path / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sound.root, root, symlinks=True)
        damage.happen(root)
        if picture(root) == before and not any(path.is_symlink() for path in root.rglob("*")):
            figures[f"{kind}: nothing changed"] += 1
            continue
        figures[f"{kind}: done"] += 1
        store, kept = Store(root), contents(root)
        problems = store.verify_all(deep=True)[1]
        if problems:
            figures[f"{kind}: found"] += 1
        else:
            wrong.append(f"not found: {damage.what}")
        store.collect_garbage(grace_s=-1)
        if kept - contents(root):
            wrong.append(f"gc lost bytes: {damage.what}")
        left = store.verify_all(deep=True)[1]
        figures[f"{kind}: mended"] += not left
        if left and damage.mendable:
            wrong.append(f"not mended: {damage.what}: {left[0]}")
    print("\n".join(f"{name:25} {figures[name]}" for name in sorted(figures)))
    print("\n".join(wrong))
    assert not wrong
