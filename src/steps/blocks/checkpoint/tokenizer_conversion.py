"""A ``tokenizer.json`` for a checkpoint that came without one, by transformers' own conversion.

``tokenizer.model`` is either a SentencePiece model or a list of byte sequences as tiktoken has it.
A conversion knows less than the file: how text is split, or which spaces are kept, is a habit of
the family. So the ids of fixed texts are compared with those that the library of the file gives,
and a tokenizer that reads them otherwise is refused.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.text_file import read_json_file
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import (
    CONFIG_FILE,
    SETTINGS_FILE,
    write_json,
)
from nemotron_style.steps.blocks.settings.hub_code import find_code_keys

MODEL_FILE, FAST_FILE = "tokenizer.model", "tokenizer.json"
# None begins with a space: SentencePiece adds its own space in front of such a text all the same,
# and no fast tokenizer of transformers does.
PROBES = (
    "Name a river.\n\tThe Rhine, 1234.5 km? It's  here;   and\n\n\nthere.",
    "spaces  between,   and trailing ones  ",
    "naïve Ünïcode: é ☂ 日本語 Ελλάδα 한국어 🙂",
    'def f(x):\n    return {"key": [x ** 2, x_1]}  # comment\r\n',
    "I'll, we've, THEY'RE 'quoted'; 1000000 and 3.14159",
)
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")
# How text is split before bytes are merged; the file does not say. This is how Llama 3 does it,
# and what transformers takes for every such file.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What a SentencePiece model is where its settings do not say; the ids are compared all the same.
_CLASSES = {
    **dict.fromkeys(("llama", "mistral", "phi3"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
}

Encode = Callable[[str], list[int]]


def with_fast_tokenizer(path: Path, work: Path) -> Path:
    """The folder of a tokenizer that has a ``tokenizer.json``: ``path``, or else ``work``.

    ``work`` gets the small files of ``path`` and the one that was made. Raises InputError where
    a package is missing, the file cannot be converted, or the result gives other ids.
    """
    if (path / FAST_FILE).is_file() or not (path / MODEL_FILE).is_file():
        return path
    kind = _file_kind(path / MODEL_FILE)
    _require("transformers", kind, where=path)
    raise_all(InputError, list(_unfit(path, kind)))
    encode = _open_original(path / MODEL_FILE, kind)
    shutil.rmtree(work, ignore_errors=True)  # of an attempt before
    work.mkdir(parents=True)
    for file in path.iterdir():
        if file.name == MODEL_FILE or file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, work / file.name)
    _convert(work)
    _compare(encode, Tokenizer(work), where=path / MODEL_FILE)
    return work


def _file_kind(file: Path) -> str:
    """The package that such a file is from."""
    with file.open("rb") as stream:
        return "tiktoken" if _TIKTOKEN_LINE.match(stream.readline(1000)) else "sentencepiece"


def _require(*packages: str, where: Path) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            Problem(
                where=str(where),
                key=FAST_FILE,
                what=f"{MODEL_FILE} has to be converted, which needs {' and '.join(missing)}",
                fix="pip install 'nemotron-style[hf]'",
            )
        )


def _unfit(path: Path, kind: str) -> Iterator[Problem]:
    """What keeps the file from being converted, as far as the files beside it tell."""
    settings = _read(path / SETTINGS_FILE)
    yield from find_code_keys(settings, where=str(path / SETTINGS_FILE))
    if kind != "tiktoken":
        return
    family = _read(path / CONFIG_FILE).get("model_type")
    fix = "save the tokenizer where its own class is known: AutoTokenizer, then save_pretrained"
    if family != "llama":
        what = "a tiktoken file does not say how text is split, which is known for Llama 3 alone"
        where = str(path / MODEL_FILE)
        yield Problem(where=where, key="model_type", what=what, got=str(family), fix=fix)
    if not settings:
        what = f"a tiktoken file holds no special tokens, and there is no {SETTINGS_FILE}"
        yield Problem(where=str(path / MODEL_FILE), what=what, fix=fix)


def _convert(folder: Path) -> None:
    """Write ``tokenizer.json``, and the roles of tokens where no settings tell them."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    settings, family = _read(folder / SETTINGS_FILE), _read(folder / CONFIG_FILE).get("model_type")
    if family in _CLASSES:
        settings.setdefault("tokenizer_class", _CLASSES[family])
    write_json(folder / SETTINGS_FILE, settings)
    made = folder / "made"
    try:
        with _no_tiktoken_cache():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        tokenizer.save_pretrained(made)
        (made / FAST_FILE).rename(folder / FAST_FILE)
    except Exception as error:  # of a damaged file, or a class that is not known
        what, where = "transformers cannot convert it", str(folder / MODEL_FILE)
        raise InputError(Problem(where=where, what=what, got=str(error)[:300])) from error
    found = _read(made / SETTINGS_FILE).items()
    roles = {name: text for name, text in found if name.endswith("_token") and text}
    write_json(folder / SETTINGS_FILE, roles | settings)
    shutil.rmtree(made)


@contextmanager
def _no_tiktoken_cache() -> Iterator[None]:
    """Have tiktoken read files anew: it would keep a copy of each in ``/tmp``, by its path."""
    name = "TIKTOKEN_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _open_original(file: Path, kind: str) -> Encode:
    """The ids of a text without control tokens, as the library of the file gives them."""
    try:
        if kind == "sentencepiece":
            import sentencepiece

            return sentencepiece.SentencePieceProcessor(model_file=str(file)).encode
        import tiktoken

        pairs = (line.split() for line in file.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        split = _LLAMA3_SPLIT
        encoding = tiktoken.Encoding(
            file.name, pat_str=split, mergeable_ranks=ranks, special_tokens={}
        )
    except Exception as error:  # each library has errors of its own
        what = f"{kind} cannot read it"
        raise InputError(Problem(where=str(file), what=what, got=str(error)[:300])) from error
    return encoding.encode_ordinary


def _compare(encode: Encode, made: Tokenizer, *, where: Path) -> None:
    """Raise InputError for the first text that the tokenizer reads otherwise."""
    for text in PROBES:
        wanted, got = encode(text), made.encode(text)
        if got != wanted:
            raise InputError(
                Problem(
                    where=str(where),
                    what=f"transformers makes a tokenizer of it that gives other ids for {text!r}",
                    got=str(got),
                    allowed=str(wanted),
                    fix=f"give a {FAST_FILE} that is known to be right",
                )
            )


def _read(file: Path) -> dict[str, Any]:
    return read_json_file(file, InputError) if file.is_file() else {}
