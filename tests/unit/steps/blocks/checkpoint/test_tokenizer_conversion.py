"""tokenizer.json is made of the files that came, and gives the ids that their own library gives."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint import tokenizer_conversion
from nemotron_style.steps.blocks.checkpoint.tokenizer_conversion import with_fast_tokenizer
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer

TEXT = [
    *("the river is deep and the water is cold", "a stone in the river", "where is the bridge?"),
    *("the trees by the lake are tall", "it's here; the ice is thin", "12 boats and 3 stones"),
]
TEXTS = ("The deep river", "it's  12\n\tstones  ", "Ünïcode ☂ 日本", "")
LLAMA = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
GEMMA = {
    **{"unk_id": 3, "bos_id": 2, "eos_id": 1, "pad_id": 0, "add_dummy_prefix": False},
    "user_defined_symbols": ["<mask>", "<start_of_turn>", "<end_of_turn>"],
}


def train(folder: Path, **options: Any) -> Path:
    """A folder with a SentencePiece model, trained as those of large models are."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("transformers")
    folder.mkdir()
    model = io.BytesIO()
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        **{**plain, **options},
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def write(file: Path, **content: Any) -> None:
    file.write_text(json.dumps(content))


def refused(path: Path, work: Path) -> str:
    with pytest.raises(InputError) as caught:
        with_fast_tokenizer(path, work)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "tokenizer_class", "family"),
    [
        (LLAMA, "LlamaTokenizer", None),
        (LLAMA, None, "llama"),
        (GEMMA, "GemmaTokenizer", None),
    ],
)
def test_a_sentencepiece_model_gives_the_same_ids(
    tmp_path: Path, options: dict[str, Any], tokenizer_class: str | None, family: str | None
) -> None:
    path = train(tmp_path / "model", **options)
    if tokenizer_class:
        write(path / "tokenizer_config.json", tokenizer_class=tokenizer_class, chat_template="hi")
    if family:
        write(path / "config.json", model_type=family)
    made = with_fast_tokenizer(path, tmp_path / "work")
    assert not (path / "tokenizer.json").exists()
    import sentencepiece

    encode = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model")).encode
    tokenizer = Tokenizer(made)
    for text in TEXTS:
        assert tokenizer.encode(text) == encode(text)
    assert tokenizer.special_tokens["eos_token"] in ("</s>", "<eos>")
    assert tokenizer.template == ("hi" if tokenizer_class else None)
    assert not (made / "made").exists()


def test_other_ids_are_refused(tmp_path: Path) -> None:
    """This model was trained to leave out spaces, which transformers' class does not know."""
    path = train(tmp_path / "model", **LLAMA, remove_extra_whitespaces=True)
    write(path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    said = refused(path, tmp_path / "work")
    assert "transformers makes a tokenizer of it that gives other ids" in said


def tiktoken_file(folder: Path, *, family: str = "llama") -> Path:
    pytest.importorskip("tiktoken")
    pytest.importorskip("transformers")
    folder.mkdir()
    words = [b"th", b"the", b" r", b"iv", b"er", b" riv", b" river", "ü".encode()]
    ranks = [*(bytes([number]) for number in range(256)), *words]
    lines = (f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(ranks))
    (folder / "tokenizer.model").write_text("".join(lines))
    write(folder / "config.json", model_type=family)
    return folder


def test_a_tiktoken_file_gives_the_same_ids(tmp_path: Path) -> None:
    path = tiktoken_file(tmp_path / "model")
    special = {"content": "<|end|>", "special": True, "normalized": False}
    special |= {"lstrip": False, "rstrip": False, "single_word": False}
    settings = {"added_tokens_decoder": {"264": special}, "eos_token": "<|end|>"}
    write(path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **settings)
    tokenizer = Tokenizer(with_fast_tokenizer(path, tmp_path / "work"))
    assert tokenizer.encode("the river") == [257, 262]
    assert tokenizer.encode("<|end|>", control=True) == [264]
    assert tokenizer.decode(tokenizer.encode(TEXTS[2])) == TEXTS[2]


def test_a_tiktoken_file_of_another_family_is_refused(tmp_path: Path) -> None:
    """How it splits text is not in the file, and no special tokens are."""
    said = refused(tiktoken_file(tmp_path / "model", family="qwen2"), tmp_path / "work")
    assert "model_type: a tiktoken file does not say how text is split" in said
    assert "holds no special tokens, and there is no tokenizer_config.json" in said


def test_a_file_that_is_neither_is_refused(tmp_path: Path) -> None:
    path = train(tmp_path / "model", **LLAMA)
    (path / "tokenizer.model").write_bytes(b"\x08nonsense")
    assert "tokenizer.model: sentencepiece cannot read it" in refused(path, tmp_path / "work")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = train(tmp_path / "model", **LLAMA)
    find = tokenizer_conversion.importlib.util.find_spec
    absent = ("sentencepiece", "tiktoken")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in absent else find(name)
    )
    said = refused(path, tmp_path / "work")
    assert "tokenizer.model has to be converted, which needs sentencepiece" in said
    assert "pip install 'nemotron-style[hf]'" in said


def test_code_is_not_run(tmp_path: Path) -> None:
    path = train(tmp_path / "model", **LLAMA)
    (path / "evil.py").write_text("raise SystemExit(3)")
    auto = {"AutoTokenizer": ["evil.Evil", None]}
    write(path / "tokenizer_config.json", tokenizer_class="Evil", auto_map=auto)
    assert "auto_map: can have code fetched or run" in refused(path, tmp_path / "work")
    assert "evil" not in sys.modules


def test_a_folder_with_tokenizer_json_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer.model").write_text("x")
    assert with_fast_tokenizer(tmp_path, tmp_path / "work") == tmp_path
