"""Content is recognised by the names of its files, and filled in as what it is."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from nemotron_style.runtime.catalog.catalog import Catalog, load_catalog
from nemotron_style.runtime.catalog.content_kind import (
    check_kind,
    choose_kind,
    list_names,
    recognise,
    suggest_makers,
)
from nemotron_style.runtime.catalog.slot import Slot
from nemotron_style.runtime.errors import UsageError

HUB = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
CONTENT = {
    "checkpoint_hf": HUB,
    "checkpoint_megatron": ["model_config.json", "tokenizer/", "tokenizer/a", "weights/"],
    "reward_model": [*HUB, "reward_config.json"],
    "judge_model": [*HUB, "card.json", "samples.jsonl"],
    "checkpoint_lora": ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"],
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


@pytest.mark.parametrize("kind", CONTENT)
def test_a_checkpoint_is_recognised_as_the_closest_kind(kind: str, catalog: Catalog) -> None:
    assert [found.name for found in recognise(CONTENT[kind], catalog.kinds)] == [kind]


def test_rows_may_be_of_any_kind_of_rows(catalog: Catalog) -> None:
    names = [found.name for found in recognise(["a.jsonl", "b.jsonl"], catalog.kinds)]
    assert {"training_jsonl", "prompts_jsonl", "rated_jsonl"} <= set(names)
    assert all(name.endswith("_jsonl") for name in names)


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (HUB, "checkpoint_hf", "checkpoint_hf"),
        (HUB, "checkpoint_megatron", "checkpoint_hf"),  # which is converted
        (CONTENT["judge_model"], "checkpoint_hf", "judge_model"),
        (["rows.jsonl"], "rated_jsonl", "rated_jsonl"),
        (["conversations.txt"], "training_jsonl", "training_jsonl"),
        (["a.json", "b.json"], "training_jsonl", "training_jsonl"),
        (["truth.json"], "attribute_truth", "attribute_truth"),  # has no signs
    ],
)
def test_content_fills_a_slot_as_what_it_is(
    names: list[str], wanted: str, chosen: str, catalog: Catalog
) -> None:
    slot = Slot(name="given", kind=wanted)
    assert choose_kind(names, slot, catalog, location="./x") == chosen


@pytest.mark.parametrize(
    ("names", "wanted", "told"),
    [
        (HUB, "training_jsonl", r"./x is no training_jsonl: it looks like checkpoint_hf"),
        (["rows.jsonl"], "checkpoint_megatron", "it looks like raw_jsonl"),
        (["a.txt", "b.txt"], "checkpoint_megatron", r"holds a.txt, b.txt.*model_config.json and"),
        (CONTENT["reward_model"], "checkpoint_hf", "it looks like reward_model"),
        (
            CONTENT["checkpoint_lora"],
            "checkpoint_hf",
            "looks like checkpoint_lora.*convert/merge_lora",
        ),
        ([], "checkpoint_megatron", "it holds nothing"),
    ],
)
def test_what_cannot_fill_a_slot_is_refused_with_what_it_looks_like(
    names: list[str], wanted: str, told: str, catalog: Catalog
) -> None:
    with pytest.raises(UsageError, match=told):
        choose_kind(names, Slot(name="given", kind=wanted), catalog, location="./x")


def test_names_are_those_of_a_folder_and_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "weights" / "deep").mkdir(parents=True)
    (tmp_path / "weights" / "deep" / "below").touch()
    (tmp_path / "weights" / "shard").touch()
    (tmp_path / "config.json").touch()
    named = ["config.json", "weights/", "weights/deep", "weights/shard"]
    assert list_names(tmp_path) == named
    assert list_names(tmp_path / "config.json") == ["config.json"]


def test_content_is_not_called_what_it_does_not_look_like(tmp_path: Path, catalog: Catalog) -> None:
    for name in HUB:
        (tmp_path / name).touch()
    for kind in ("checkpoint_hf", "attribute_truth"):
        check_kind(tmp_path, kind, catalog.kinds)
    with pytest.raises(UsageError, match=r"looks like checkpoint_hf.*give --kind checkpoint_hf"):
        check_kind(tmp_path, "checkpoint_megatron", catalog.kinds)
    check_kind(tmp_path / "no such folder", "checkpoint_megatron", catalog.kinds)


@pytest.mark.parametrize("name", ["a.nemo", "weights.bin", "a"])
def test_a_tar_is_what_is_in_it_however_it_is_called(
    name: str, tmp_path: Path, catalog: Catalog
) -> None:
    (tmp_path / "model_config.yaml").write_text("{}")
    with tarfile.open(tmp_path / name, "w:") as archive:
        archive.add(tmp_path / "model_config.yaml", arcname="./model_config.yaml")
    names = list_names(tmp_path / name)
    slot = Slot(name="model", kind="checkpoint_megatron")
    assert choose_kind(names, slot, catalog, location=name) == "checkpoint_nemo"
    (tmp_path / "text").write_text("no tar\n")
    assert list_names(tmp_path / "text") == ["text"]


def test_the_conversion_that_makes_what_is_wanted_of_what_is_given_is_named(
    catalog: Catalog,
) -> None:
    slots = {slot.name: slot for slot in catalog.find("sft/steerlm2").consumes}
    makers = suggest_makers("checkpoint_lora", slots["model"], catalog)
    assert makers == "convert/merge_lora makes checkpoint_megatron of it (-i adapter=REF)"
    assert suggest_makers("data_report", slots["data"], catalog) == "usable are steerlm2_jsonl"
