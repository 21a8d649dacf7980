"""A small tree of steps in NVIDIA Nemotron's layout, of our own text: words are counted."""

from __future__ import annotations

from pathlib import Path

TOML = """
[step]
id = "words/count"
name = "Count words"
category = "words"
description = "Counts the words of a text."

[[consumes]]
type = "text_lines"
description = "The text."
config_key = "source"
file = "lines.txt"

[[produces]]
type = "word_counts"
config_key = "result.folder"

[[parameters]]
name = "least"
description = "The least count to write."

[[strategies]]
when = "words differ in case only"
then = "set fold"
"""
TYPES = """
[text_lines]
description = "one line a text"

[word_counts]
description = "a JSON file of counts"
convert_to = { text_lines = "words/list" }
"""
HEAD = """\
# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/words/count"
#
# [tool.runspec.run]
# launch = "python"
#
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""
BODY = """
import collections
import json
import os
import sys
from pathlib import Path

import yaml

config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
words = Path(config["source"]).read_text().split()
words = [word.lower() for word in words] if config["fold"] else words
counts = {w: n for w, n in collections.Counter(words).items() if n >= config["least"]}
report = {"counts": counts, "arguments": sys.argv[3:], "mood": os.environ.get("MOOD")}
Path(config["result"]["file"]).write_text(json.dumps(report))
print("counted", len(counts))
"""
DEFAULT = """
run:
  env:
    env_vars: {MOOD: calm}
source: ???
fold: false
least: 1
ratio: 0.5
label: "1e-4"
note: null
result:
  folder: ./output/words
  file: ${result.folder}/counts.json
"""
TINY = "defaults: default.yaml\nleast: 2\n"


def write_tree(root: Path) -> Path:
    """Write the tree, with the step ``words/count``, and return its root."""
    write_step(root)
    (root / "types.toml").write_text(TYPES)
    return root


def write_step(
    root: Path, name: str = "words/count", *, toml: str = TOML, script: str = HEAD + BODY
) -> Path:
    """Write one step of a tree, with two configs, and return its folder."""
    folder = root / name
    (folder / "config").mkdir(parents=True)
    (folder / "step.toml").write_text(toml.replace("words/count", name))
    (folder / "step.py").write_text(script)
    (folder / "config" / "default.yaml").write_text(DEFAULT)
    (folder / "config" / "tiny.yaml").write_text(TINY)
    return folder
