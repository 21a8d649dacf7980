"""A job's code and plan in one archive, for machines that share no disk with this one.

The archive is named by the SHA-256 of its uncompressed content, so the same job is uploaded once,
and the pod can prove that it unpacks what was shown. It holds paths relative to the store that the
job will use, and is laid out there file by file, each at once: many pods may do so together.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import shlex
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.runtime.errors import Problem, StepFailed

# Runs in the pod, before anything of this package is there.
FETCH = """\
import gzip, hashlib, io, os, sys, tarfile
import fsspec
url, digest, store = sys.argv[1:]
with fsspec.open(url, "rb") as file:
    data = gzip.decompress(file.read())
if hashlib.sha256(data).hexdigest() != digest:
    sys.exit(url + ": the content is not what its name says")
aside = ".part-%d-%s" % (os.getpid(), os.uname().nodename)
with tarfile.open(fileobj=io.BytesIO(data)) as archive:
    for member in archive:
        path = os.path.join(store, member.name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + aside, "wb") as file:
            file.write(archive.extractfile(member).read())
        os.replace(path + aside, path)
"""


@dataclass(frozen=True)
class Bundle:
    """A tar archive; ``digest`` is the SHA-256 of ``content`` in hex."""

    digest: str
    content: bytes
    count: int

    @property
    def name(self) -> str:
        return f"{self.digest}.tar.gz"


def pack(files: Mapping[str, bytes]) -> Bundle:
    """The same files give the same bytes: sorted, without times, owners or modes of their own."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = whole.getvalue()
    return Bundle(hashlib.sha256(content).hexdigest(), content, len(files))


def locate(bundle: Bundle, folder: str) -> str:
    """The archive's URL in a folder of any fsspec filesystem."""
    return f"{folder.rstrip('/')}/{bundle.name}"


def upload(bundle: Bundle, folder: str) -> bool:
    """Put the archive there, whole or not at all; False when it was there already.

    Raises ``StepFailed`` when the place cannot be written.
    """
    import fsspec

    url = locate(bundle, folder)
    try:
        files, path = fsspec.core.url_to_fs(url)
        if files.exists(path) and _is_whole(files, path, bundle):
            return False
        files.makedirs(files._parent(path), exist_ok=True)
        _put(files, path, gzip.compress(bundle.content, mtime=0))
    except Exception as error:  # every filesystem has errors of its own
        what = f"the code cannot be uploaded: {type(error).__name__}: {error}"
        fix = "is the place right, is its fsspec package installed, may you write there?"
        raise StepFailed(Problem(where=url, what=what, fix=fix)) from None
    return True


def _is_whole(files: Any, path: str, bundle: Bundle) -> bool:
    try:
        return bool(gzip.decompress(files.cat_file(path)) == bundle.content)
    except (OSError, EOFError, ValueError):
        return False


def _put(files: Any, path: str, data: bytes) -> None:
    """Write aside and rename: a reader sees the whole archive or none."""
    aside = f"{path}.part-{uuid.uuid4().hex}"
    try:
        files.pipe_file(aside, data)
        files.mv(aside, path)
    except BaseException:
        with contextlib.suppress(Exception):
            files.rm_file(aside)
        raise


def fetch_command(bundle: Bundle, folder: str, *, python: str, store: str) -> str:
    """What a pod runs first: get the archive, compare its digest, lay it out in the store."""
    return shlex.join([python, "-c", FETCH, locate(bundle, folder), bundle.digest, store])
