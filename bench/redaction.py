"""Megabytes a second that are searched for secrets: whole texts, and the lines of a stream.

``python bench/redaction.py`` prints the best of several rounds in CPU time; ``smoke`` makes it one
round over a tenth of the text.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time

from nemotron_style.runtime.secrets.redact import RedactedStream, redact

SMOKE = "smoke" in sys.argv[1:]
ROUNDS = 1 if SMOKE else 3
LENGTH = 100_000 if SMOKE else 1_000_000
DIGEST = "0123456789abcdef" * 4
RECORD = {"path": "iter_20/__0_0.distcp", "sha256": DIGEST, "config": {"eos_token": "</s>"}}
TEXTS = {
    "lines of a training log": "20/100  2.5/s  32s left  loss=0.48 tokens=10240 eval_pass=0.81\n",
    "records": json.dumps(RECORD, indent=2) + "\n",
    "prose": "the key of a model is a token, and the judge scores the answer to each prompt\n",
    "URLs": "https://host/data?name=a&part=b&key=c\n",
}


def seconds_of(text: str, *, by_line: bool) -> float:
    """CPU seconds for one pass over ``text``."""
    begun = time.process_time()
    if by_line:
        stream = RedactedStream(io.StringIO())
        for line in text.splitlines(keepends=True):
            stream.write(line)
        stream.release()
    else:
        redact(text)
    return time.process_time() - begun


def main() -> None:
    """Print a row a kind of text."""
    os.environ.setdefault("HF_TOKEN", "a-value-that-is-searched-for")
    for name, unit in TEXTS.items():
        text = unit * (LENGTH // len(unit))
        whole, lines = (
            min(seconds_of(text, by_line=by_line) for _ in range(ROUNDS))
            for by_line in (False, True)
        )
        size = len(text) / 1e6
        print(f"{name:25s} whole {size / whole:6.1f} MB/s   by line {size / lines:6.1f} MB/s")


if __name__ == "__main__":
    main()
