"""The code that a run is made with; no step is imported to describe it.

The digest belongs to the run's identity. It covers every file of the package that the step lives
in, prompts and templates too, and the shared blocks; of this package, whose steps do not import
each other, it covers the step's own folder and the blocks. It covers neither the runtime, nor
installed packages, nor anything that a step reads or imports from elsewhere. Version, commit and
difference to the commit stand in the record.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata, util
from pathlib import Path

from nemotron_style.runtime.errors import ManifestError, Problem, UsageError
from nemotron_style.runtime.shell_environment import clean_environment

OWN = "nemotron_style"
MOST_BYTES = 2 << 30
MOST_FILES = 50_000


def digest_code(*objects: str) -> str:
    """SHA-256 over the sources of ``package.module:name`` objects and of ``steps/blocks``.

    Raises ``ManifestError`` when there is no such module, and ``UsageError`` for a package that
    cannot be read or is too large to be code.
    """
    root = find_package(OWN)[1]
    sources = dict(_hash_blocks(root / "steps" / "blocks"))
    for text in dict.fromkeys(objects):
        top, package = find_package(text)
        if top == OWN:
            package = find_module(text).parent
            top = Path(OWN, package.relative_to(root)).as_posix()
        sources.update(_hash_each(walk_sources(package, top)))
    return _hash_hashed(sorted(sources.items()))


@cache
def _hash_blocks(folder: Path) -> tuple[tuple[str, str], ...]:
    """Names and hashes of the shared blocks, which all steps of a pipeline have in common."""
    return tuple(_hash_each(walk_sources(folder, f"{OWN}/steps/blocks")))


def walk_sources(root: Path, name: str) -> list[tuple[str, Path]]:
    """(name, path) of every file of a package, or of a lone module; the name begins with ``name``.

    Links to folders are followed, as imports follow them. What Python and editors write beside
    sources is left out, and so is what begins with a dot: an ``.env`` is no code.

    Raises ``UsageError`` for a package that is too large to be code.
    """
    if root.is_file():
        return [(root.name, root)]
    sources, size = [], 0
    for source in _walk(root, name, above=frozenset([os.path.realpath(root)])):
        sources.append(source)
        size += source[1].stat().st_size
        if size > MOST_BYTES or len(sources) > MOST_FILES:
            what = f"the package {name} holds more than {MOST_BYTES >> 30} GiB or {MOST_FILES} "
            what += "files; all of it counts as the code of the step"
            fix = "keep data, and links to data, outside the package"
            raise UsageError(Problem(where=str(root), what=what, fix=fix))
    return sources


def _walk(folder: Path, name: str, *, above: frozenset[str]) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as entries:
        sources = [entry for entry in entries if is_source(entry.name)]
    if any(entry.name == "pyvenv.cfg" for entry in sources):
        return  # a virtual environment holds installed packages, wherever it lies
    for entry in sources:
        inner = f"{name}/{entry.name}"
        if entry.is_file():
            yield inner, Path(entry.path)
        elif entry.is_dir() and (real := os.path.realpath(entry.path)) not in above:
            yield from _walk(Path(entry.path), inner, above=above | {real})


def is_source(name: str) -> bool:
    """Whether a file or folder of a package counts, by its name alone."""
    return name != "__pycache__" and name[0] != "." and not name.endswith((".pyc", "~"))


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over the names and contents of files, in their order."""
    return _hash_hashed(_hash_each(files))


def _hash_each(files: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, str]]:
    for name, path in files:
        yield name, hashlib.sha256(_read(path)).hexdigest()


def _hash_hashed(files: Iterable[tuple[str, str]]) -> str:
    whole = hashlib.sha256()
    for name, content in files:
        whole.update(f"{json.dumps(name)} {content}\n".encode())
    return whole.hexdigest()


def find_package(text: str) -> tuple[str, Path]:
    """The top-level package of ``package.module:name`` and its folder, or its file if it is lone.

    Of a namespace package, the folder that holds the module.
    """
    module = find_module(text)
    top, *rest = text.partition(":")[0].split(".")
    parts = [*rest, ""] if module.name == "__init__.py" else rest
    return top, module.parents[len(parts) - 1] if parts else module


def find_module(text: str) -> Path:
    """The file of ``package.module:name``, found without importing any part of it."""
    name = text.partition(":")[0]
    top, *rest = name.split(".")
    spec = util.find_spec(top)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if spec and spec.origin and not rest and not folders:
        return Path(spec.origin)
    for folder in folders:
        stem = Path(folder, *rest)
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    what = f"there is no module {name!r}"
    fix = "is its package installed, or on PYTHONPATH?"
    raise ManifestError(Problem(key="run.entrypoint", what=what, got=text, fix=fix))


def describe_code(entrypoint: str, digest: str) -> dict[str, str]:
    """For the record: the digest, the package's version, and the commit where there is one."""
    try:
        version = metadata.version("nemotron-style")
    except metadata.PackageNotFoundError:
        version = "unknown"
    code = {"entrypoint": entrypoint, "digest": digest, "version": version}
    return code | describe_commit(entrypoint)


def describe_commit(entrypoint: str) -> dict[str, str]:
    """The ``commit`` that the entrypoint's package is checked out from.

    ``difference`` is the hash of the files of the package that are not those of the commit, those
    that git does not track or ignores included. Nothing where git does not track the entrypoint: a
    virtual environment inside a project is no part of the project.
    """
    top, package = find_package(entrypoint)
    package, module = package.resolve(), find_module(entrypoint).resolve()
    folder = package if package.is_dir() else package.parent
    commit, listed = _git(folder, "rev-parse", "HEAD"), _git(folder, "ls-tree", "-rz", "HEAD")
    if commit is None or listed is None:
        return {}
    blobs = dict(_read_tree(listed))
    if not module.is_relative_to(folder) or str(module.relative_to(folder)) not in blobs:
        return {}
    found = {str(path.relative_to(folder)): path for _, path in walk_sources(package, top)}
    blobs = {
        name: blob
        for name, blob in blobs.items()
        if name in found or (package.is_dir() and all(map(is_source, Path(name).parts)))
    }
    difference = hashlib.sha256()
    changed = [name for name in sorted({**blobs, **found}) if _differs(name, blobs, found)]
    for name in changed:
        content = hashlib.sha256(_read(found[name])).hexdigest() if name in found else None
        difference.update(json.dumps([name, content]).encode())
    facts = {"commit": commit.decode().strip()}
    return facts | ({"difference": difference.hexdigest()} if changed else {})


def _read_tree(listed: bytes) -> Iterator[tuple[str, str]]:
    """(path, hash of the content) of the lines that ``git ls-tree -z`` prints."""
    for line in filter(None, listed.split(b"\0")):
        head, _, path = line.partition(b"\t")
        yield os.fsdecode(path), head.decode().split()[2]


def _differs(name: str, blobs: Mapping[str, str], found: Mapping[str, Path]) -> bool:
    """Whether a file is not what its commit holds. Git is not asked, which could run filters."""
    if name not in blobs or name not in found:
        return True
    path, blob = found[name], blobs[name]
    content = os.fsencode(os.readlink(path)) if path.is_symlink() else _read(path)
    algorithm = "sha1" if len(blob) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content).hexdigest() != blob


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"the code of the step cannot be read: {error.strerror}"
        raise UsageError(Problem(where=str(path), what=what)) from None


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints, or None where there is no git, no checkout or no commit.

    The environment says nothing about which repository: ``GIT_DIR`` is set inside hooks.
    """
    environment = clean_environment(os.environ)
    fixed = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=20,
            check=True,
            stdin=subprocess.DEVNULL,
            env=environment | fixed | {"LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
