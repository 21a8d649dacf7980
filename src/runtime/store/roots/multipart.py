"""A file sent to S3 in parts, several at once; after a crash only parts that are missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

from nemotron_style.runtime.store.roots.progress import Progress
from nemotron_style.runtime.store.roots.threads import map_in_threads

PART = 16 << 20
THREADS = 4
MOST_PARTS = 10_000  # of S3


class _Caller(Protocol):
    def call(self, method: str, key: str, **arguments: Any) -> dict[str, Any]: ...


def upload(
    bucket: _Caller, source: Path, key: str, *, uploads: dict[str, str], progress: Progress
) -> str:
    """Send ``source``; its ETag. The upload's id is in ``uploads`` from before the first part."""
    size = source.stat().st_size
    if size <= PART:
        answer = bucket.call("put_object", key, Body=source.read_bytes())
        progress.add(size)
        return quote_tag(answer["ETag"])
    length = max(PART, math.ceil(size / MOST_PARTS))
    count = math.ceil(size / length)
    sizes = {number: min(length, size - (number - 1) * length) for number in range(1, count + 1)}
    sent = _list_sent(bucket, key, uploads[key], sizes) if key in uploads else None
    if sent is None:
        uploads[key] = str(bucket.call("create_multipart_upload", key)["UploadId"])
        sent = {}
    progress.add(sum(sizes[number] for number in sent))

    def send(number: int) -> tuple[int, str]:
        with source.open("rb") as stream:
            stream.seek((number - 1) * length)
            data = stream.read(sizes[number])
        words = {"UploadId": uploads[key], "PartNumber": number, "Body": data}
        tag = str(bucket.call("upload_part", key, **words)["ETag"])
        progress.add(len(data))
        return number, tag

    missing = [number for number in sizes if number not in sent]
    sent |= dict(map_in_threads(send, missing, threads=THREADS))
    parts = [{"PartNumber": number, "ETag": sent[number]} for number in sorted(sent)]
    words = {"UploadId": uploads[key], "MultipartUpload": {"Parts": parts}}
    answer = bucket.call("complete_multipart_upload", key, **words)
    uploads.pop(key)
    return quote_tag(answer["ETag"])


def quote_tag(tag: object) -> str:
    """An ETag as S3 writes it; not every server quotes it in every answer."""
    return f'"{str(tag).strip(chr(34))}"' if tag else ""


def _list_sent(
    bucket: _Caller, key: str, upload_id: str, sizes: dict[int, int]
) -> dict[int, str] | None:
    """The tags of the parts that are there, by number; None when the upload is not known."""
    sent: dict[int, str] = {}
    marker = 0
    while True:
        try:
            page = bucket.call("list_parts", key, UploadId=upload_id, PartNumberMarker=marker)
        except FileNotFoundError:
            return None
        for part in page.get("Parts", ()):
            if sizes.get(part["PartNumber"]) == part["Size"]:
                sent[part["PartNumber"]] = str(part["ETag"])
        if not page.get("IsTruncated"):
            return sent
        marker = page["NextPartNumberMarker"]
