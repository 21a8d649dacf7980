"""A bucket of S3, or of a server that speaks its protocol, by s3fs.

Requests go through ``S3FileSystem.call_s3``, which knows credentials and endpoints as the AWS
tools do and tries again what failed on the way. fsspec's listings and their cache are not used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem, StoreError
from nemotron_style.runtime.store.roots.bucket import ObjectState
from nemotron_style.runtime.store.roots.explain import code_of, explain
from nemotron_style.runtime.store.roots.multipart import quote_tag, upload
from nemotron_style.runtime.store.roots.progress import Progress

AT_ONCE = 1000  # keys that one request removes
CONFLICTS = 8
EXISTS = ("PreconditionFailed", "412")
CONFLICT = ("ConditionalRequestConflict", "OperationAborted", "409")


class S3Bucket:
    """The objects of a bucket below a prefix."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name, _, prefix = url.partition("://")[2].partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._opened: tuple[int, Any] = (0, None)
        self._inherited = self._opened

    @property
    def _system(self) -> Any:
        # A process that was forked cannot use the connections of its parent, nor close them.
        if self._opened[0] != os.getpid():
            self._inherited = self._opened
            self._opened = (os.getpid(), self._open())
        return self._opened[1]

    def _open(self) -> Any:
        try:
            import s3fs
        except ImportError:
            what, fix = "needs the package s3fs", "pip install 'nemotron-style[s3]'"
            raise StoreError(Problem(where=self.url, what=what, fix=fix)) from None
        return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def create(self, key: str, data: bytes) -> bool:
        for attempt in range(CONFLICTS):
            try:
                self._call("put_object", key, Body=data, IfNoneMatch="*")
                return True
            except Exception as error:
                code = code_of(error)
                if isinstance(error, FileExistsError) or code in EXISTS:
                    # Ours after all, when only the answer to an earlier request of it was lost.
                    return bool(data) and self.read(key) == data
                # Two writers at the same moment: neither has won yet.
                if code not in CONFLICT or attempt == CONFLICTS - 1:
                    raise explain(error, self.url) from error
            time.sleep(0.05 * 2**attempt)
        raise AssertionError

    def put(self, key: str, data: bytes) -> None:
        self.call("put_object", key, Body=data)

    def read(self, key: str) -> bytes:
        return self._cat(key, max_concurrency=1)  # one request: else the size is asked for first

    def read_range(self, key: str, start: int, end: int) -> bytes:
        return self._cat(key, start=start, end=end)

    def state(self, key: str) -> ObjectState | None:
        try:
            found = self.call("head_object", key) if key else None
        except FileNotFoundError:
            return None
        return _describe(found, found["ContentLength"]) if found else None

    def list(
        self, prefix: str, *, deep: bool = False, limit: int | None = None
    ) -> Iterator[tuple[str, ObjectState | None]]:
        words: dict[str, Any] = {"Bucket": self.name, "Prefix": self._prefix + prefix}
        words |= {} if deep else {"Delimiter": "/"}
        words |= {"MaxKeys": limit + 1} if limit else {}
        return islice(self._list_all(words), limit)

    def _list_all(self, words: dict[str, Any]) -> Iterator[tuple[str, ObjectState | None]]:
        start = len(self._prefix)
        while True:
            page = self._list_page(words)
            found = [
                (each["Key"][start:], _describe(each, each["Size"]))
                for each in page.get("Contents", ())
                if not each["Key"].endswith("/")  # what consoles make for a folder
            ]
            folders = [each["Prefix"][start:-1] for each in page.get("CommonPrefixes", ())]
            yield from sorted([*found, *((each, None) for each in folders)], key=lambda one: one[0])
            if not page.get("IsTruncated"):
                return
            words["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Iterable[str]) -> None:
        names = [{"Key": self._prefix + key} for key in keys]
        for at in range(0, len(names), AT_ONCE):
            listed = {"Objects": names[at : at + AT_ONCE], "Quiet": True}
            answer = self._system_call("delete_objects", Bucket=self.name, Delete=listed)
            if errors := answer.get("Errors"):
                what = f"cannot be removed: {errors[0].get('Message') or errors[0].get('Code')}"
                raise StoreError(Problem(where=f"{self.url}/{errors[0].get('Key')}", what=what))

    def upload(self, source: Path, key: str, *, uploads: dict[str, str], progress: Progress) -> str:
        return upload(self, source, key, uploads=uploads, progress=progress)

    def call(self, method: str, key: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request about an object."""
        try:
            return self._call(method, key, **arguments)
        except Exception as error:
            raise explain(error, self.url) from error

    def _call(self, method: str, key: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._system.call_s3(
            method, Bucket=self.name, Key=self._prefix + key, **arguments
        )
        return answer

    def _system_call(self, method: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._system.call_s3(method, **arguments)
        except Exception as error:
            raise explain(error, self.url) from error
        return answer

    def _list_page(self, words: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._system_call("list_objects_v2", **words)
        except FileNotFoundError as error:  # of a whole bucket only that can be meant
            what, fix = "there is no such bucket", "correct its name, or AWS_ENDPOINT_URL"
            raise StoreError(Problem(where=self.url, what=what, fix=fix)) from error

    def _cat(self, key: str, **part: int) -> bytes:
        try:
            data: bytes = self._system.cat_file(self._path(key), **part)
        except Exception as error:
            raise explain(error, self.url) from error
        return data

    def _path(self, key: str) -> str:
        return f"{self.name}/{self._prefix}{key}"


def _describe(found: dict[str, Any], size: int) -> ObjectState:
    return ObjectState(size, found["LastModified"].timestamp(), quote_tag(found.get("ETag")))
