"""The code that a run is made with; no step is imported to describe it.

The digest covers the Python files of the step's own package and of the shared blocks; it belongs
to the run's identity. Version, commit and difference to the commit stand in the record.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

import nemotron_style
from nemotron_style.runtime.errors import ManifestError, Problem


def digest_code(entrypoint: str) -> str:
    """SHA-256 over the sources of the entrypoint's package and of ``steps/blocks``.

    Raises ``ManifestError`` when there is no such module.
    """
    module = find_module(entrypoint)
    top, _, rest = entrypoint.partition(":")[0].partition(".")
    blocks = Path(nemotron_style.__file__).parent / "steps" / "blocks"
    roots = [(top, module.parent if rest else module), ("blocks", blocks)]
    return hash_files(
        (f"{label}/{path.relative_to(root.parent).as_posix()}", path)
        for label, root in roots
        for path in (sorted(root.rglob("*.py")) if root.is_dir() else [root])
    )


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over the names and contents of files, in their order."""
    whole = hashlib.sha256()
    for name, path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{name} {content}\n".encode())
    return whole.hexdigest()


def find_module(entrypoint: str) -> Path:
    """The file of ``package.module:name``, found without importing any part of it."""
    name = entrypoint.partition(":")[0]
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
    raise ManifestError(Problem(key="run.entrypoint", what=what, got=entrypoint, fix=fix))


def describe_code(entrypoint: str, digest: str) -> dict[str, str]:
    """For the record: the digest, the package's version, and the commit where there is one."""
    try:
        version = metadata.version("nemotron-style")
    except metadata.PackageNotFoundError:
        version = "unknown"
    code = {"entrypoint": entrypoint, "digest": digest, "version": version}
    folder = find_module(entrypoint).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return code
    code["commit"] = commit.decode().strip()
    difference = _git(folder, "diff", "HEAD")
    if difference:
        code["difference"] = hashlib.sha256(difference).hexdigest()
    return code


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints, or None where there is no git, no checkout or no commit."""
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
