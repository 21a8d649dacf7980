"""Verdicts by the digest of their question, so that no question is paid for twice.

A run that is killed and continued asks the same questions with the same seeds, and finds their
verdicts here. Failures are not kept.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_style.steps.blocks.judge.verdict import Verdict

MOST_WORDS = 10_000
"""Verdicts whose words are remembered; the others keep their numbers alone."""


def question_digest(judge: str, body: Mapping[str, Any]) -> str:
    """SHA-256 of the judge's identity and of the whole request, the seed included."""
    named = json.dumps({"judge": judge, "body": body}, sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


class VerdictCache:
    """Verdicts in memory, and in a file of JSON lines where one is given.

    Lines are only ever appended. One that was cut short by a kill is skipped, as is any other
    that holds no verdict. The judge's words are no part of them: they are remembered in memory, of
    the last :data:`MOST_WORDS` verdicts. May be used from many threads of one process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[str, Verdict] = {}
        self._with_words: deque[str] = deque()
        self._cut = False
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._known = dict(filter(None, map(_read_line, text.split("\n"))))
            self._cut = bool(text) and not text.endswith("\n")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, digest: str) -> Verdict | None:
        """The verdict on a question, or None."""
        with self._lock:
            return self._known.get(digest)

    def put(self, digest: str, verdict: Verdict) -> None:
        """Remember a verdict; the first one on a question stands."""
        with self._lock:
            if digest in self._known:
                return
            self._known[digest] = verdict
            self._with_words.append(digest)
            if len(self._with_words) > MOST_WORDS:
                oldest = self._with_words.popleft()
                self._known[oldest] = replace(self._known[oldest], words="")
            if self.path is not None:
                line = json.dumps({"digest": digest, **verdict.numbers})
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{line}\n" if self._cut else f"{line}\n")
                self._cut = False


def _read_line(line: str) -> tuple[str, Verdict] | None:
    try:
        fields = json.loads(line)
        digest = fields.pop("digest")
        verdict = Verdict(**{name: float(value) for name, value in fields.items()})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return digest, verdict
