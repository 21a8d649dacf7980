"""A folder of steps in NVIDIA's layout: read as manifests, each mistake told in one message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_style.runtime.catalog.catalog import Catalog, load_catalog
from nemotron_style.runtime.catalog.kinds import load_kinds
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest, read_keys
from nemotron_style.runtime.catalog.runspec import find_imports, read_runspec
from nemotron_style.runtime.catalog.tree import VARIABLE, find_trees
from nemotron_style.runtime.errors import ManifestError, UsageError
from step_tree import BODY, HEAD, TOML, write_step, write_tree


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = write_tree(tmp_path / "tree")
    monkeypatch.setenv(VARIABLE, f"acme={root}")
    monkeypatch.chdir(tmp_path)
    return root


def read_message(catalog: Catalog, name: str) -> str:
    """The one message that a broken step has."""
    (problem,) = catalog.broken[name]
    return str(problem)


def test_a_step_of_a_tree_is_called_by_the_name_of_the_tree(root) -> None:
    step = load_catalog().find("words/count")
    assert isinstance(step, TreeManifest)
    assert step.id == "acme/words/count"
    assert step.configs == ("default", "tiny")
    assert [slot.name for slot in step.consumes] == ["text_lines"]
    assert step.slots("input")[0].file == "lines.txt"
    assert step.run.launch == "python"


def test_its_kinds_are_added_and_ours_keep_their_meaning(root) -> None:
    with (root / "types.toml").open("a") as types:
        types.write('[checkpoint_hf]\ndescription = "something else"\n')
    kinds = load_kinds()
    assert kinds["word_counts"].convert_to == {"text_lines": "acme/words/list"}
    assert kinds["checkpoint_hf"].description != "something else"


def test_kinds_that_are_wrong_take_no_other_command_along(root) -> None:
    (root / "types.toml").write_text('[a]\ndescription = "x"\nis_a = ["nothing"]\n')
    assert "training_jsonl" in load_kinds()
    catalog = load_catalog()
    assert "there is no kind 'nothing'" in read_message(catalog, "acme/types.toml")
    assert "sft/chat" in catalog.steps


def test_short_names_of_our_steps_stay_theirs(root) -> None:
    toml = TOML.replace("text_lines", "training_jsonl").replace("word_counts", "checkpoint_hf")
    write_step(root, "other/chat", toml=toml)
    catalog = load_catalog()
    assert catalog.find("chat").id == "sft/chat"
    assert catalog.find("other/chat").id == "acme/other/chat"


def test_the_same_id_twice_is_told_and_the_first_stays(root) -> None:
    write_step(root, "words/again", toml=TOML)
    (root / "words/again/step.toml").write_text(TOML)  # it says words/count
    catalog = load_catalog()
    assert "acme/words/count" in catalog.steps
    [name] = [name for name in catalog.broken if name.startswith("acme/words/count in ")]
    assert "there is a step 'acme/words/count' already" in read_message(catalog, name)


def test_an_id_of_ours_is_not_taken(root, monkeypatch) -> None:
    write_step(root, "chat")
    (root / "chat/step.toml").write_text(TOML.replace("words/count", "chat"))
    monkeypatch.setenv(VARIABLE, f"sft={root}")
    catalog = load_catalog()
    assert not isinstance(catalog.steps["sft/chat"], TreeManifest)
    assert any("'sft/chat' already" in str(problem) for problem in catalog.problems)


BROKEN = {
    "no runspec": (BODY, "has no block `# /// script`"),
    "two runspecs": (HEAD + "x = 1\n" + HEAD, "has 2 blocks `# /// script`"),
    "no TOML": (HEAD.replace('schema = "1"', "schema = 1 2"), "not valid TOML"),
    "another table": (HEAD.replace("tool.runspec", "tool.other"), "no table [tool.runspec]"),
    "launch": (HEAD.replace('"python"', '"mpi"'), "tool.runspec.run.launch"),
    "key": (HEAD.replace("schema", "scheme"), "tool.runspec.scheme: is not a known key"),
    "cmd": (HEAD.replace('launch = "python"', 'cmd = "go {scrip}"'), "is no template"),
    "config": (
        HEAD.replace(
            "# [tool.runspec.res", '# [tool.runspec.config]\n# default = "big"\n# [tool.runspec.res'
        ),
        "there is no config big.yaml",
    ),
}


@pytest.mark.parametrize(("script", "message"), BROKEN.values(), ids=BROKEN)
def test_a_step_py_that_cannot_be_used_gives_one_message(root, script, message) -> None:
    (root / "words/count/step.py").write_text(script)
    text = read_message(load_catalog(), "acme/words/count")
    assert message in text
    assert "words/count/step.py" in text


def test_a_syntax_error_is_told_with_the_line_of_the_file(root) -> None:
    script = root / "words/count/step.py"
    script.write_text("#!/usr/bin/env python3\n" + HEAD.replace('schema = "1"', "schema = 1 2"))
    with pytest.raises(ManifestError, match="at line 4"):
        read_runspec(script)


def test_a_step_toml_that_cannot_be_used_gives_one_message(root) -> None:
    toml = root / "words/count/step.toml"
    toml.write_text("[step\n")
    assert "is not valid TOML" in read_message(load_catalog(), "acme/words/count")
    toml.write_text(TOML.split("[[produces]]")[0])
    assert "makes no artifact" in read_message(load_catalog(), "acme/words/count")
    toml.write_text(TOML + '[run]\nentrypoint = "a:b"\n')
    assert "take it out" in read_message(load_catalog(), "acme/words/count")
    toml.write_text(TOML.replace("word_counts", "unheard"))
    assert "there is no kind 'unheard'" in read_message(load_catalog(), "acme/words/count")
    (root / "words/count/step.py").unlink()
    toml.write_text(TOML)
    assert "there is no such file" in read_message(load_catalog(), "acme/words/count")


def test_nothing_of_a_step_is_executed_to_read_it(root, tmp_path) -> None:
    script = root / "words/count/step.py"
    script.write_text(HEAD + f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    step = load_catalog().find("words/count")
    assert find_imports(step.folder / "step.py") == ()
    assert not (tmp_path / "ran").exists()


def test_imports_are_named_without_pythons_own(tmp_path) -> None:
    script = tmp_path / "step.py"
    script.write_text("import os, yaml\nfrom acme.steps import one\nfrom . import two\n")
    assert find_imports(script) == ("acme", "yaml")
    script.write_text("def broken(\n")
    assert find_imports(script) == ()


def test_trees_are_named_and_looked_for(root, tmp_path, monkeypatch) -> None:
    (tree,) = find_trees([f"acme={root}"])  # the same one twice
    assert tree.name_step("a/b") == "acme/a/b"
    checkout = tmp_path / "Nemotron"
    steps = write_tree(checkout / "src" / "nemotron" / "steps")
    for folder in (steps, steps.parent):
        (folder / "__init__.py").touch()
    monkeypatch.setenv(VARIABLE, os.pathsep.join([f"acme={root}", str(checkout)]))
    nemotron = find_trees()[1]
    assert (nemotron.name, nemotron.root) == ("nemotron", steps)
    assert nemotron.import_root == checkout / "src"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("acme=/nowhere", "there is no such folder"),
        ("A b={root}", "cannot be the name of a tree"),
        ("acme={root}:acme={root}/words", "'acme' names two folders"),
    ],
)
def test_a_tree_that_is_not_there_is_told(root, monkeypatch, entries, message) -> None:
    monkeypatch.setenv(VARIABLE, entries.format(root=root))
    with pytest.raises(UsageError, match=message):
        load_catalog()


def test_what_we_know_of_nvidias_keys_is_in_order() -> None:
    keys = read_keys()
    assert len(keys) == 24
    assert all(step.produces for step in keys.values())
