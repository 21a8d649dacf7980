from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_style.runtime.catalog.manifest import load_manifest
from nemotron_style.runtime.errors import ManifestError

SHARED = Path(
    os.environ.get("NEMOTRON_STYLE_SHARED", Path(__file__).resolve().parents[5] / "shared")
)
NEMOTRON = SHARED / "data" / "nemotron" / "rlhf_step.toml"


def refusal(path: Path, **kwargs) -> str:
    with pytest.raises(ManifestError) as caught:
        load_manifest(path, **kwargs)
    return str(caught.value)


def change(toy, old: str, new: str) -> Path:
    path = toy.folder / "step.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_manifest_is_read_whole(toy):
    manifest = load_manifest(toy.folder / "step.toml")
    assert manifest.id == "toy/train"
    assert manifest.version == "1"
    assert [slot.kind for slot in manifest.consumes] == ["checkpoint_megatron", "training_jsonl"]
    assert [slot.required for slot in manifest.consumes if slot.name == "data"] == [False]
    assert manifest.produced("data") is None
    assert set(manifest.bound_keys) == {"model.restore_from_path", "data.path"}
    assert manifest.configs == ("default", "tiny")
    assert manifest.run.launch == "python"


def test_configs_begin_with_default_and_tiny(toy):
    toy.write_step("all.yaml", "")
    toy.write_step("zoom.yaml", "")
    manifest = load_manifest(toy.folder / "step.toml")
    assert manifest.configs == ("default", "tiny", "all", "zoom")


def test_every_unknown_key_is_told_at_once_with_the_nearest_known_one(toy):
    change(toy, 'name = "model"\n', 'name = "model"\nrequird = true\n')
    path = change(toy, "[run]", '[run]\nentripoint = "a:b"\nlunch = "torchrun"')
    text = refusal(path)
    assert "run.entripoint: is not a known key; did you mean 'run.entrypoint'?" in text
    assert "run.lunch: is not a known key; did you mean 'run.launch'?" in text
    assert "consumes[0].requird: is not a known key; did you mean 'consumes[0].required'?" in text
    assert "manifests/toy/train/step.toml" in text


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('entrypoint = "toy_step_config:run"', 'entrypoint = "toy_step_config.run"', "run.entry"),
        ('id = "toy/train"', 'id = "Toy Train"', "step.id"),
        ('id = "toy/train"', 'id = "toy/other"', "differs from the folder"),
        ('name = "data"', 'name = "model"', "'model' stands twice"),
        ('config_key = "data.path"', 'config_key = "model.restore_from_path"', "two slots"),
        ("required = false", 'required = "no"', "consumes[1].required"),
        ('name = "Toy training"\n', "", "step.name: is required"),
        ('entrypoint = "toy_step_config:run"\n', "", "run.entrypoint: is required"),
    ],
)
def test_a_wrong_value_is_named(toy, old, new, part):
    assert part in refusal(change(toy, old, new))


def test_broken_toml_names_file_and_line(toy):
    path = toy.write_step("step.toml", '[step]\nid = "toy/train"\nname = \n')
    assert "manifests/toy/train/step.toml:3: is not valid TOML" in refusal(path)


def test_toml_that_ends_early_names_a_place(toy):
    path = toy.write_step("step.toml", '[step]\nid = "toy')
    assert "step.toml" in refusal(path)


def test_a_file_that_is_not_text_is_refused(toy):
    path = toy.folder / "step.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(path)


def test_the_id_is_the_path_below_the_root(toy):
    path = change(toy, 'id = "toy/train"', 'id = "train/it"')
    assert "allowed: 'toy/train'" in refusal(path, root=toy.root / "manifests")


def test_a_manifest_cannot_be_changed(toy):
    manifest = load_manifest(toy.folder / "step.toml")
    with pytest.raises(ValueError, match="frozen"):
        manifest.id = "other/step"


@pytest.mark.skipif(not NEMOTRON.is_file(), reason="the reference data are not here")
def test_nemotrons_own_manifest_lacks_only_what_we_add():
    lines = refusal(NEMOTRON).splitlines()
    assert len(lines) == 5
    assert sum("].name: is required" in line for line in lines) == 4
    assert sum("run: is required" in line for line in lines) == 1


@pytest.mark.skipif(not NEMOTRON.is_file(), reason="the reference data are not here")
def test_nemotrons_own_manifest_loads_once_slots_are_named(tmp_path):
    text = NEMOTRON.read_text()
    names = iter(["data", "policy", "judge", "model"])
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if line in ("[[consumes]]", "[[produces]]"):
            lines.append(f'name = "{next(names)}"')
    lines += ["[run]", 'entrypoint = "a.b:run"', 'config = "a.b:Config"']
    path = tmp_path / "rl" / "nemo_rl" / "rlhf" / "step.toml"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines))
    manifest = load_manifest(path, root=tmp_path)
    assert manifest.id == "rl/nemo_rl/rlhf"
    assert [slot.name for slot in manifest.consumes] == ["data", "policy", "judge"]
    assert len(manifest.errors) == 4
