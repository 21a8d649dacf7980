"""Which root a store has, and where on this machine the runs of one in a bucket are."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.paths import expand_path, find_project_root
from nemotron_style.runtime.store.roots.bucket import Bucket
from nemotron_style.runtime.store.roots.memory import MemoryBucket
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.s3 import S3Bucket

ROOT_VARIABLE = "NEMOTRON_STYLE_HOME"
SCRATCH_VARIABLE = "NEMOTRON_STYLE_SCRATCH"
KNOWN = "a folder, file://, s3://bucket/prefix, memory://name"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:{1,2}/|[a-z0-9]+::", re.IGNORECASE)  # Path drops a slash
_LOCAL = re.compile(r"(file|local)://(localhost)?(?=/)", re.IGNORECASE)
_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_=.-]+)*")


def default_root(profile_store: str | None = None) -> str | Path:
    """``$NEMOTRON_STYLE_HOME``, else the profile's store, else the one in the project.

    Raises UsageError for a URL where no store can be, and for something that is not a folder.
    """
    own = os.environ.get(ROOT_VARIABLE)
    chosen = own or profile_store or str(find_project_root(Path.cwd()) / ".nemotron-style")
    where = f"${ROOT_VARIABLE}" if own else "the profile's store" if profile_store else "store"
    if url := find_url(chosen, where=where):
        return url
    root = expand_path(_LOCAL.sub("", chosen)).absolute()
    if root.exists() and not root.is_dir():
        raise UsageError(Problem(where=where, what="is not a folder", got=str(root)))
    return root


def check_root(root: str, *, where: str = "store") -> str:
    """``root``; raises UsageError for a URL, which would become a local folder of that name."""
    if not _SCHEME.match(root):
        return root
    what, fix = "is a URL in the place of a folder", "mount it, and give the folder of the mount"
    raise UsageError(Problem(where=where, what=what, got=root, allowed="a folder", fix=fix))


def find_url(root: str, *, where: str = "store") -> str | None:
    """The URL of a bucket that ``root`` is, in its shortest form; None for a folder.

    Raises UsageError for a URL where no store can be.
    """
    if not _SCHEME.match(root) or _LOCAL.match(root):
        return None
    scheme, _, place = root.partition("://")
    if "@" in place.partition("/")[0]:
        what, fix = "holds credentials, which plans and logs would show", "take them out; "
        fix += "they come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE)"
        raise UsageError(Problem(where=where, what=what, got=f"{scheme}://...", fix=fix))
    if scheme.lower() not in BUCKETS:
        what, fix = "a store cannot be there", "mount it, and give the folder of the mount"
        raise UsageError(Problem(where=where, what=what, got=root, allowed=KNOWN, fix=fix))
    place = place.rstrip("/")
    if not _PLACE.fullmatch(place) or {".", ".."} & set(place.split("/")):
        what, allowed = "is not the URL of a store", f"{scheme.lower()}://bucket/folder/..."
        raise UsageError(Problem(where=where, what=what, got=root, allowed=allowed))
    return f"{scheme.lower()}://{place}"


def open_root(root: str | Path, scratch: str | Path | None = None) -> tuple[Path, Path | None]:
    """The root as a path, and for a bucket the local folder beside it (default: ``scratch_of``)."""
    if isinstance(root, ObjectPath) and scratch:
        return root, Path(scratch)
    if url := find_url(str(root)):
        local = Path(scratch) if scratch else scratch_of(url)
        return ObjectPath(_open_bucket(url)), Path(os.path.realpath(local))
    folder = expand_path(_LOCAL.sub("", str(root)))
    return Path(os.path.realpath(folder)), None  # resolve() raises for a circle


def choose_scratch(root: str | Path, profile_scratch: str | None = None) -> Path | None:
    """The local folder of a store in a bucket; None for a store in a folder."""
    url = find_url(str(root))
    return scratch_of(url, profile_scratch) if url else None


def scratch_of(url: str, profile_scratch: str | None = None) -> Path:
    """The local folder with runs, staged files and copies of a store in a bucket.

    Below ``$NEMOTRON_STYLE_SCRATCH``, else what the profile says, else in the user's cache.
    """
    own = os.environ.get(SCRATCH_VARIABLE)
    if chosen := own or profile_scratch:
        where = f"${SCRATCH_VARIABLE}" if own else "the profile's scratch"
        base = expand_path(check_root(chosen, where=where)).absolute()
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        base = expand_path(cache).absolute() / "nemotron-style"
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2])[:60]
    return base / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


@cache
def _open_bucket(url: str) -> Bucket:
    return BUCKETS[url.partition("://")[0]](url)


BUCKETS: dict[str, type[MemoryBucket] | type[S3Bucket]] = {
    "memory": MemoryBucket,
    "s3": S3Bucket,
}
