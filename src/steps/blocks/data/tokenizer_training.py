"""A small tokenizer made from texts, for a model that starts from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import write_settings


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, path: Path, *, tokens: ChatPromptTokens
) -> Tokenizer:
    """Train a byte-level BPE tokenizer on ``texts`` and write it to ``path``.

    Every text can be encoded and comes back unchanged, since all 256 bytes are in the vocabulary;
    ``vocab_size`` counts them and the control tokens, and is an upper bound: a small corpus stops
    when nothing is left to merge. Control tokens come first and are never merged.
    """
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[
            AddedToken(token, special=True, normalized=False) for token in tokens.atomic
        ],
    )
    backend.train_from_iterator(texts, trainer=trainer)
    path.mkdir(parents=True, exist_ok=True)
    backend.save(str(path / "tokenizer.json"), pretty=True)
    write_settings(path, tokens)
    return Tokenizer(path)
