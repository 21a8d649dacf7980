"""What a file of rows holds: its layout, counts, lengths, what repeats, and what is refused.

Nothing is trained and nothing is mended. Rows are read by the reader of the steps that train, so
what is refused here is what they would refuse, and what is marked as trained is what they train.
"""

from __future__ import annotations

import json

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.data.chat.interface import Chat
from nemotron_style.steps.blocks.data.chat.opening import open_chat, tokenizer_facts
from nemotron_style.steps.blocks.data.files.row_file import find_files
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.data.inspect.config import Config
from nemotron_style.steps.data.inspect.inspection import inspect_rows
from nemotron_style.steps.data.inspect.report import summarise, write_report


def run(config: Config, ctx: StepContext) -> None:
    """Look at ``data`` and produce ``report``: report.md to read, report.json to count with."""
    path, output = ctx.input("data").path, ctx.output("report")
    chat, limit = open_model(config, ctx)
    found = inspect_rows(
        path,
        config.data,
        chat=chat,
        limit=config.max_tokens or limit,
        shown=config.shown_rows,
    )
    files = find_files(path)
    name = files[0].name if len(files) == 1 else f"{len(files)} shards, {files[0].name} ..."
    report, facts = write_report(found, name), found.facts()
    (output.path / "report.md").write_text(report, encoding="utf-8")
    (output.path / "report.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    ctx.say(report)
    output.note(**facts, **(tokenizer_facts(chat.tokenizer, chat) if chat else {}))
    ctx.summarise(**summarise(found))


def open_model(config: Config, ctx: StepContext) -> tuple[Chat | None, int | None]:
    """The chat format of the model and the tokens that it can read, or nothing without a model."""
    model = ctx.optional_input("model")
    if model is None:
        return None, None
    # torch, which takes seconds to import, is behind it, and a look without a model needs none
    from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER, read_config

    tokenizer = Tokenizer(model.path / TOKENIZER)
    chat = open_chat(tokenizer, config.model.data.chat_prompt_tokens)
    return chat, read_config(model.path).max_sequence_length
