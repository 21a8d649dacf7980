"""A model in one GGUF file becomes a Hugging Face folder, or is refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.checkpoint.gguf_folder import NEEDED, unpack_gguf
from nemotron_style.steps.blocks.checkpoint.hf_config import read_sizes
from nemotron_style.steps.blocks.checkpoint.hf_weights import check_tensors
from nemotron_style.steps.blocks.checkpoint.safetensors_folder import TensorFolder
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from small_model import ONE_LAYER

WORDS = ["<unk>", "<s>", "</s>", *"abcdefgh", "ab", "Ġ"]


def write(folder: Path, name: str = "tiny.gguf") -> dict[str, torch.Tensor]:
    """A Llama of one layer as llama.cpp's tools write it; the tensors under its names."""
    for package in NEEDED:
        pytest.importorskip(package)
    import gguf

    folder.mkdir(exist_ok=True)
    hidden, wide = ONE_LAYER.hidden_size, ONE_LAYER.ffn_hidden_size
    groups = ONE_LAYER.num_query_groups * ONE_LAYER.head_size
    writer = gguf.GGUFWriter(folder / name, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(ONE_LAYER.num_attention_heads)
    writer.add_head_count_kv(ONE_LAYER.num_query_groups)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(WORDS)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    shapes = {
        "token_embd": (len(WORDS), hidden),
        "output": (len(WORDS), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (groups, hidden),
        "blk.0.attn_v": (groups, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.ffn_gate": (wide, hidden),
        "blk.0.ffn_up": (wide, hidden),
        "blk.0.ffn_down": (hidden, wide),
    }
    draw = torch.Generator().manual_seed(1)
    tensors = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
    for key, tensor in tensors.items():
        writer.add_tensor(f"{key}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def refused(path: Path, work: Path) -> str:
    with pytest.raises(InputError) as caught:
        unpack_gguf(path, work)
    return str(caught.value)


def test_weights_sizes_words_and_template_come_out(tmp_path: Path) -> None:
    tensors = write(tmp_path / "model")
    folder = unpack_gguf(tmp_path / "model", tmp_path / "work")
    sizes, written = read_sizes(folder), TensorFolder(folder)
    check_tensors(written, sizes)
    assert (sizes.num_layers, sizes.vocab_size) == (1, len(WORDS))
    for theirs, ours in (("token_embd", "embed_tokens"), ("blk.0.ffn_up", "layers.0.mlp.up_proj")):
        assert torch.equal(written.read(f"model.{ours}.weight"), tensors[theirs])
    tokenizer = Tokenizer(folder)
    assert [WORDS[number] for number in tokenizer.encode("cab")] == ["c", "ab"]
    assert tokenizer.special_tokens["eos_token"] == "</s>"
    assert tokenizer.template == "{{ messages[0].content }}"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_a_folder_with_safetensors_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("model.safetensors", "one.gguf", "two.gguf"):
        (tmp_path / name).write_text("")
    assert unpack_gguf(tmp_path, tmp_path / "work") == tmp_path


def test_several_files_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_text("")
    assert "got one.gguf, two.gguf; give the file itself" in refused(tmp_path, tmp_path / "work")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    file = tmp_path / "model" / "tiny.gguf"
    file.write_bytes(file.read_bytes()[:200])
    assert "transformers cannot read this GGUF file" in refused(file.parent, tmp_path / "work")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.gguf").write_text("")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refused(tmp_path, tmp_path / "work")
    assert "reading GGUF needs transformers and gguf and accelerate" in said
    assert "pip install 'nemotron-style[hf]'" in said
