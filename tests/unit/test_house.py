"""The repository keeps its own promises: packaging, data files, documentation."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.catalog.kinds import load_kinds

ROOT = Path(__file__).parents[2]
SKIPPED = re.compile(r"\.venv.*|\.git|build|node_modules|\.nemotron-style")


def data_files(*suffixes: str) -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*")
        if path.suffix in suffixes
        and not any(SKIPPED.fullmatch(part) for part in path.relative_to(ROOT).parts)
    )


def test_every_package_on_disk_is_packaged() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    found = {
        ".".join(["nemotron_style", *init.parent.relative_to(ROOT / "src").parts])
        for init in (ROOT / "src").rglob("__init__.py")
    }
    assert found | {"nemotron_style.manifests", "nemotron_style.profiles"} == set(declared)


@pytest.mark.parametrize("path", data_files(".toml"), ids=lambda path: path.name)
def test_every_toml_parses(path: Path) -> None:
    assert tomllib.loads(path.read_text())


@pytest.mark.parametrize("path", data_files(".yaml", ".yml"), ids=lambda path: path.name)
def test_every_yaml_parses(path: Path) -> None:
    assert yaml.safe_load(path.read_text())


def test_every_shipped_manifest_loads() -> None:
    catalog = load_catalog()
    assert not catalog.problems
    assert {"data/toy", "sft/chat", "data/steerlm2", "sft/steerlm2", "eval/steerability"} <= set(
        catalog.steps
    )


def test_every_kind_consumed_has_a_producer_or_can_be_adopted() -> None:
    kinds, steps = load_kinds(), load_catalog().steps.values()
    made = {slot.kind for step in steps for slot in step.produces}
    for step in steps:
        for slot in step.consumes:
            assert slot.kind in kinds.names
            assert slot.config_key or any(kinds.accepts(slot.kind, kind) for kind in made), slot


def test_every_step_has_a_default_a_tiny_and_a_page() -> None:
    for step in load_catalog().steps.values():
        folder = step.path.parent if step.path.is_file() else step.path
        assert (folder / "default.yaml").is_file()
        assert (folder / "tiny.yaml").is_file()
        assert (ROOT / "docs" / "steps" / f"{step.id.replace('/', '-')}.md").is_file()
        assert step.strategies, step.id


def test_no_room_module_or_function_is_too_large() -> None:
    """``python tests/rooms.py`` prints the sizes of all rooms."""
    assert runpy.run_path(str(ROOT / "tests" / "rooms.py"))["find_excess"]() == []
