"""``model.data.data_prefix`` as users of NeMo-Aligner type it fills the inputs of every step."""

from __future__ import annotations

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.config.resolve import resolve_config
from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.planning.inputs import choose_sources

STEPS = {
    "sft/chat": ("data", "validation"),
    "sft/steerlm2": ("data", "validation"),
    "reward/regression": ("data", "validation"),
    "rs/actor": ("prompts", "validation"),
}
TYPED = "model.data.data_prefix={train: [/d/a.jsonl], validation: [/d/b.jsonl], test: [/d/b.jsonl]}"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("config", ["tiny", "default"])
def test_the_table_fills_the_inputs(step: str, config: str) -> None:
    manifest = load_catalog().find(step)
    resolved = resolve_config(manifest, name=config, overrides=[TYPED])
    sources = choose_sources(manifest, resolved, refs={})
    data, validation = STEPS[step]
    assert (sources[data].ref, sources[validation].ref) == ("/d/a.jsonl", "/d/b.jsonl")


@pytest.mark.parametrize("step", STEPS)
def test_several_files_are_to_be_shards_of_a_folder(step: str) -> None:
    manifest = load_catalog().find(step)
    typed = ["model.data.data_prefix={train: [/d/a.jsonl, /d/b.jsonl]}"]
    with pytest.raises(ConfigError, match="and not 2 files: put them into a folder"):
        resolve_config(manifest, name="tiny", overrides=typed)


def test_two_names_of_an_input_must_agree() -> None:
    manifest = load_catalog().find("sft/chat")
    typed = ["model.data.train_ds.file_path=/c", "model.data.data_prefix.train=/d"]
    with pytest.raises(ConfigError, match="name two files; give one"):
        resolve_config(manifest, name="tiny", overrides=typed)
