"""Keep the first of every set of equal conversations, in their order."""

from __future__ import annotations

import json

from acme.dedup.config import Config
from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.step.context import StepContext


def run(config: Config, ctx: StepContext) -> None:
    """Read every ``*.jsonl`` of ``rows`` and write what is new to ``train.jsonl``.

    Raises ``InputError`` when there is nothing to read.
    """
    files = sorted(ctx.input("rows").path.glob("*.jsonl"))
    if not files:
        raise InputError(f"{ctx.input('rows').path} holds no .jsonl file")
    seen: set[str] = set()
    read = 0
    with open(ctx.output("rows").path / "train.jsonl", "w", encoding="utf-8") as kept:
        for file in files:
            # Not splitlines: U+2028, a line break to it, may stand in a string of JSON.
            for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n"):
                read += 1
                messages = json.dumps(json.loads(line)["messages"], sort_keys=True)
                key = messages if config.case_sensitive else messages.casefold()
                if key not in seen:
                    seen.add(key)
                    kept.write(line + "\n")
    ctx.summarise(rows=len(seen), repeated=read - len(seen))
