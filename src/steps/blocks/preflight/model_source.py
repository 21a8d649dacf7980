"""A checkpoint that is there already: its sizes, its tokenizer, and what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.text_file import read_json_file
from nemotron_style.steps.blocks.checkpoint.hf_config import CONFIG_FILE, read_sizes
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.preflight.memory import count_parameters, show_count
from nemotron_style.steps.blocks.settings.json_model import read_json_model
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

if TYPE_CHECKING:
    from nemotron_style.steps.blocks.data.chat.interface import Chat
    from nemotron_style.steps.blocks.data.tokenizer import Tokenizer

SIZES_FILE, TOKENIZER_FOLDER = "model_config.json", "tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "tiktoken.model")
PICKLES = ("*.bin", "*.pt", "*.pth")
INDEX_FILE = "model.safetensors.index.json"
MOST_HEAD_BYTES = 100 << 20


@dataclass(frozen=True)
class ModelSource:
    """``sizes`` are None where they cannot be read; ``tokenizer`` is the folder of its files."""

    path: Path
    sizes: ModelConfig | None
    tokenizer: Path
    problems: tuple[Problem, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on the family and the size of the model, where they are known."""
        if self.sizes is None:
            return ()
        weights = show_count(count_parameters(self.sizes))
        return (f"model: {self.sizes.architecture}, {weights} weights, of {self.path}",)


def look_at_model(path: Path) -> ModelSource:
    """The checkpoint in a folder, of Hugging Face or of our own; of another, its path alone."""
    if (path / SIZES_FILE).is_file():
        return _look(path, path / TOKENIZER_FOLDER, hub=False)
    if (path / CONFIG_FILE).is_file():
        return _look(path, path, hub=True)
    return ModelSource(path, None, path)


def _look(path: Path, tokenizer: Path, *, hub: bool) -> ModelSource:
    sizes, problems = None, [*_check_weights(path)] if hub else []
    try:
        absent = Problem(where=str(path), what="has no sizes")
        sizes = (
            read_sizes(path)
            if hub
            else read_json_model(ModelConfig, path / SIZES_FILE, absent=absent)
        )
    except InputError as error:
        problems += error.problems
    if not any(file for name in TOKENIZER_FILES for file in tokenizer.glob(name)):
        what = "the checkpoint has no tokenizer"
        fix = "add the files of its tokenizer: tokenizer.json, or tokenizer.model"
        problems.append(Problem(where=str(tokenizer), what=what, fix=fix))
    return ModelSource(path, sizes, tokenizer, tuple(problems))


def _check_weights(path: Path) -> list[Problem]:
    """Weights that are there, all of them, and whole; read are the heads of their files."""
    files = sorted(path.glob("*.safetensors"))
    if not files and not any(path.glob("*.gguf")):
        pickles = sorted(file for name in PICKLES for file in path.glob(name))
        what = "pickled weights are not read: a pickle can run any code"
        fix = "save the model as safetensors where you trust it: "
        fix += "AutoModelForCausalLM.from_pretrained(PATH).save_pretrained(NEW_PATH)"
        return [Problem(where=str(pickles[0]), what=what, fix=fix)] if pickles else []
    return [*_find_missing_files(path), *filter(None, map(_check_size, files))]


def _find_missing_files(path: Path) -> list[Problem]:
    index = path / INDEX_FILE
    try:
        named = read_json_file(index, InputError)["weight_map"].values() if index.is_file() else ()
        missing = sorted({str(name) for name in named if not (path / str(name)).is_file()})
    except (InputError, KeyError, AttributeError):
        return []  # whoever reads the weights says what is wrong with the index
    what = "a file of weights that the index names is missing"
    return [Problem(where=str(index), key=name, what=what) for name in missing]


def _check_size(file: Path) -> Problem | None:
    """Whether a file ends where the table at its beginning says."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            head = int.from_bytes(stream.read(8), "little")
            if not 0 < head <= min(size, MOST_HEAD_BYTES):
                raise ValueError(f"a head of {head} bytes")
            table = json.loads(stream.read(head))
        ends = [int(entry["data_offsets"][1]) for name, entry in table.items() if name[:2] != "__"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = "is no safetensors file"
        return Problem(where=str(file), what=what, got=str(error)[:100])
    whole = 8 + head + max(ends, default=0)
    if size >= whole:
        return None
    what, got = "the file is cut off", f"{size} bytes, and its table speaks of {whole}"
    return Problem(where=str(file), what=what, got=got, fix="download it again")


def check_model(path: Path, *, pad_to: int = 1) -> tuple[ModelSource, tuple[Problem, ...]]:
    """The checkpoint in a folder, and all that is wrong with it, as far as its small files say."""
    source = look_at_model(path)
    return source, (
        *source.problems,
        *([] if source.problems else _check_tokenizer(source, pad_to)),
    )


def _check_tokenizer(source: ModelSource, pad_to: int) -> list[Problem]:
    """Whether its tokenizer can be read, and has no more ids than there are rows to embed them.

    Rows are added up to a multiple of ``pad_to``. Nothing is said where the library is missing.
    """
    try:
        tokenizer = open_tokenizer(source.tokenizer)
    except InputError as error:
        return list(error.problems)
    if tokenizer is None or source.sizes is None:
        return []
    rows = -(-source.sizes.vocab_size // pad_to) * pad_to
    if tokenizer.vocab_size <= rows:
        return []
    what = "the tokenizer gives ids that the model has no rows for"
    got, allowed = f"{rows} rows", f"at least {tokenizer.vocab_size}"
    fix = "model.make_vocab_size_divisible_by of convert/hf_to_megatron adds rows"
    where = str(source.path)
    return [Problem(where=where, key="vocab_size", what=what, got=got, allowed=allowed, fix=fix)]


def open_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder; None where the library, or its own file, is missing.

    Raises InputError for one that cannot be read.
    """
    file = folder / "tokenizer.json"
    return _open(file, file.stat().st_mtime_ns) if file.is_file() else None


@lru_cache(maxsize=2)
def _open(file: Path, _changed: int) -> Tokenizer | None:
    try:  # a large vocabulary takes a second, and a plan asks more than once
        from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
    except ImportError:
        return None
    return Tokenizer(file.parent)


def open_chat_of(source: ModelSource, tokens: ChatPromptTokens | None) -> Chat | None:
    """The chat format that a step will use; None where the tokenizer is not known.

    Raises InputError where there is none, or another than ``tokens``.
    """
    tokenizer = open_tokenizer(source.tokenizer)
    if tokenizer is None:
        return None
    from nemotron_style.steps.blocks.data.chat.opening import open_chat

    return open_chat(tokenizer, tokens)
