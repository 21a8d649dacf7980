"""Files of artifacts as a report quotes them: the bytes that were committed, or a word on why not.

A report must not show what was changed after the commit as if it were the result. So a file is
hashed before it is quoted; of a very large one only the beginning is read, which is said.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store

MOST_BYTES = 32 << 20
"""Of one file; hashing that much takes about a tenth of a second."""


@dataclass(frozen=True)
class Content:
    """The bytes of a file; not ``whole`` where it is so large that only its beginning was read."""

    data: bytes
    whole: bool

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """The JSON objects of its lines, at most ``most``; a line that is none is left out."""
        lines = self.data.split(b"\n")
        found: list[dict[str, Any]] = []
        for line in lines if self.whole else lines[:-1]:
            if most is not None and len(found) >= most:
                break
            if isinstance(row := _parse(line), dict):
                found.append(row)
        return found

    def json(self) -> dict[str, Any]:
        """The JSON object that it is; {} when it is none."""
        value = _parse(self.data)
        return value if isinstance(value, dict) else {}


def read_file(store: Store, artifact: Artifact, path: str) -> Content | None:
    """A file of an artifact; None when the artifact has no such file.

    Raises ArtifactError when its bytes are not those that were committed, or cannot be read.
    """
    known = next((file for file in artifact.record.files if file.path == path), None)
    if known is None:
        return None
    where = f"{artifact.ref}: {path}"
    try:
        content = read_beginning(store.fetch(artifact) / path)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ArtifactError(Problem(where=where, what=what)) from None
    if content.whole and hashlib.sha256(content.data).hexdigest() != known.sha256.removeprefix(
        "sha256:"
    ):
        what, fix = (
            "was changed after it was committed",
            "nemotron-style artifacts verify says more",
        )
        raise ArtifactError(Problem(where=where, what=what, fix=fix))
    return content


def read_beginning(path: Path, most: int = MOST_BYTES) -> Content:
    """The first ``most`` bytes of a file."""
    with open(path, "rb") as file:
        data = file.read(most)
        return Content(data, not file.read(1))


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
