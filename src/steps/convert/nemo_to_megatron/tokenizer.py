"""The tokenizer of a model of NeMo, written as Hugging Face's tools keep one.

NeMo stores what ``tokenizer.library`` needs under names that begin with a random number, and names
them in ``model_config.yaml`` as ``nemo:...``. For ``huggingface`` it stores nothing but the name of
a repository, which is not fetched: it may hold other words by now.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.convert.nemo_to_megatron.archive import ModelFiles, Span

MOST_BYTES = 512 << 20
_NEMO = "nemo:"
_UNIQUE = re.compile(r"(?:[0-9a-f]{32}_)?(.+)")
# What Hugging Face's tools read, where somebody has put it beside the weights.
_THEIRS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "generation_config.json", "added_tokens.json"),
)


def find_tokenizer_files(files: ModelFiles, settings: Mapping[str, Any]) -> dict[str, Span]:
    """The tokenizer's files in the model, by the names that Hugging Face's tools know.

    ``settings`` is the section ``tokenizer`` of ``model_config.yaml``. Raises InputError, with what
    to do, where the model does not hold its tokenizer.
    """
    root = {_short(name): span for name, span in files.spans.items() if "/" not in name}
    if "tokenizer.json" in root:
        return {name: root[name] for name in _THEIRS if name in root}
    library = settings.get("library")
    if library == "sentencepiece":
        named = str(settings.get("model"))
        span = files.spans.get(named.removeprefix(_NEMO)) if named.startswith(_NEMO) else None
        if span:
            return {"tokenizer.model": span}
    if library == "megatron" and settings.get("type") == "GPT2BPETokenizer":
        named_files = {
            "vocab.json": str(settings.get("vocab_file")),
            "merges.txt": str(settings.get("merge_file")),
        }
        spans = {
            ours: files.spans.get(theirs.removeprefix(_NEMO))
            for ours, theirs in named_files.items()
        }
        if all(spans.values()):
            return {name: span for name, span in spans.items() if span}
    raise InputError(_explain_absence(files, settings))


def write_tokenizer(found: Mapping[str, Span], target: Path) -> Path:
    """Write the files that :func:`find_tokenizer_files` found into a folder, and return it."""
    target.mkdir(parents=True, exist_ok=True)
    for name, span in found.items():
        try:
            (target / name).write_bytes(span.read(MOST_BYTES))
        except (OSError, ValueError) as error:
            raise InputError(Problem(where=str(span.path), key=name, what=str(error))) from error
    if "tokenizer.model" in found:
        # How NeMo reads SentencePiece; that the ids are those of the file is checked.
        settings = json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False})
        (target / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    if "merges.txt" in found and "tokenizer.json" not in found:
        _write_byte_pairs(target)
    return target


def find_added_tokens(settings: Mapping[str, Any], *, where: str) -> Iterator[Problem]:
    """Tokens that NeMo adds to the tokenizer when it opens it, which its files do not hold."""
    for key in ("additional_special_tokens", "special_tokens"):
        if settings.get(key):
            yield Problem(
                where=where,
                key=f"tokenizer.{key}",
                what="tokens are added to those of the file, and get ids that it does not say",
                got=str(settings[key])[:200],
                fix="give the whole tokenizer as a folder with tokenizer.json: "
                "model.tokenizer=FOLDER",
            )


def _short(name: str) -> str:
    found = _UNIQUE.fullmatch(name)
    return found[1] if found else name


def _write_byte_pairs(folder: Path) -> None:
    """Write ``tokenizer.json`` of a GPT-2 tokenizer's two files."""
    from tokenizers import AddedToken, ByteLevelBPETokenizer

    try:
        backend = ByteLevelBPETokenizer.from_file(
            str(folder / "vocab.json"), str(folder / "merges.txt")
        )
    except Exception as error:  # the library raises bare Exception
        what = "vocab.json and merges.txt are no tokenizer"
        raise InputError(Problem(where=str(folder), what=what, got=str(error)[:200])) from error
    if backend.token_to_id("<|endoftext|>") is not None:
        backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    backend.save(str(folder / "tokenizer.json"))


def _explain_absence(files: ModelFiles, settings: Mapping[str, Any]) -> Problem:
    library, kind = settings.get("library"), settings.get("type")
    what = "the model does not hold its tokenizer"
    if library == "huggingface":
        what += ", but its name on the Hugging Face Hub, from where nothing is fetched"
    command = f"convert/nemo_to_megatron -i model={files.where} -i tokenizer=FOLDER --name NAME"
    return Problem(
        where=files.where,
        key="tokenizer",
        what=what,
        got=f"library {library}, type {kind}, model {settings.get('model')}"[:200],
        allowed="tokenizer.json, or the SentencePiece or GPT-2 files that model_config.yaml names",
        fix=f"give a folder with its tokenizer.json: nemotron-style steps run {command}, "
        "and then NAME as the model",
    )
