"""What is wrong with a checkpoint is known by its small files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hub_folder import CONFIG, write_json
from nemotron_style.steps.blocks.preflight.model_source import check_model, look_at_model


def told(folder: Path, **options: int) -> str:
    return "\n".join(str(problem) for problem in check_model(folder, **options)[1])


def test_a_folder_of_hugging_face_has_sizes_and_a_tokenizer(hub: Path) -> None:
    source, problems = check_model(hub)
    assert problems == ()
    assert source.sizes is not None
    assert source.sizes.num_layers == 2
    assert source.notes == (f"model: llama, 94,208 weights, of {hub}",)


def test_a_checkpoint_of_ours_is_known_by_its_sizes(hub: Path, tmp_path: Path) -> None:
    sizes = look_at_model(hub).sizes
    assert sizes is not None
    (tmp_path / "own").mkdir()
    write_json(tmp_path / "own" / "model_config.json", sizes.model_dump())
    hub.rename(tmp_path / "own" / "tokenizer")
    source, problems = check_model(tmp_path / "own")
    assert (source.sizes, problems) == (sizes, ())


def test_content_that_is_not_known_has_no_problems(tmp_path: Path) -> None:
    source, problems = check_model(tmp_path)
    assert (source.sizes, source.notes, problems) == (None, (), ())


def test_an_architecture_that_cannot_be_converted_is_named(hub: Path) -> None:
    write_json(hub / "config.json", CONFIG | {"model_type": "rwkv", "architectures": ["Rwkv"]})
    assert "rwkv" in told(hub)


def test_a_missing_tokenizer_and_pickled_weights_are_told_at_once(hub: Path) -> None:
    (hub / "tokenizer.json").unlink()
    (hub / "model.safetensors").rename(hub / "pytorch_model.bin")
    lines = told(hub)
    assert "the checkpoint has no tokenizer" in lines
    assert "a pickle can run any code" in lines
    assert "save_pretrained" in lines


def test_a_tokenizer_that_is_larger_than_the_embedding_is_refused_unless_rows_are_added(
    hub: Path,
) -> None:
    write_json(hub / "config.json", CONFIG | {"vocab_size": 200})
    assert "got 200 rows; allowed: at least " in told(hub)
    assert told(hub, pad_to=512) == ""


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"short", "is no safetensors file"),
        (b"<html>no such file</html>", "is no safetensors file"),
        ({"w": {"data_offsets": [0, 400]}}, "the file is cut off"),
    ],
)
def test_weights_that_are_cut_off_are_refused(hub: Path, content: object, what: str) -> None:
    if isinstance(content, dict):
        head = json.dumps(content).encode()
        content = len(head).to_bytes(8, "little") + head + b"\0" * 399
    assert isinstance(content, bytes)
    (hub / "model.safetensors").write_bytes(content)
    assert what in told(hub)


def test_a_shard_that_is_missing_is_named(hub: Path) -> None:
    index = {"weight_map": {"w": "model.safetensors", "x": "model-00002-of-00002.safetensors"}}
    write_json(hub / "model.safetensors.index.json", index)
    assert "model-00002-of-00002.safetensors: a file of weights" in told(hub)
