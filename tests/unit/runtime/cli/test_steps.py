from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from nemotron_style.runtime.cli import main

PROGRAM = Path(sys.executable).parent / "nemotron-style"


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys, *words: str):
    code, out, _ = run(capsys, *words, "--json")
    return code, json.loads(out)


def test_list_shows_every_step_with_what_goes_in_and_out(toy, capsys):
    code, out, err = run(capsys, "steps", "list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    (at,) = [at for at, line in enumerate(lines) if line.startswith("toy/train ")]
    column = len("convert/nemo_to_megatron") + 2
    assert lines[at - 1] == "TOY"
    assert lines[at] == "toy/train".ljust(column) + "Trains a toy."
    kinds = "[checkpoint_megatron, training_jsonl -> checkpoint_megatron]"
    assert lines[at + 1] == " " * column + kinds


@pytest.mark.parametrize("columns", ["80", "100", "", "250"])
def test_list_fits_the_screen_and_begins_a_line_with_each_step(toy, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = run(capsys, "steps", "list")
    lines = out.splitlines()
    assert max(map(len, lines)) <= min(int(columns or 100), 100)
    _, document = run_json(capsys, "steps", "list")
    steps = sorted(document["steps"], key=lambda step: step["category"])
    assert [line.split()[0] for line in lines if "/" in line[:8]] == [step["id"] for step in steps]
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_a_terminal_gets_colour_and_no_line_that_is_too_long(toy, columns):
    shown = ["rl/rlhf", "rs/actor"]  # the latter has long names of other systems
    for words in (["steps", "list"], *(["steps", "show", s] for s in shown), ["profiles", "list"]):
        text = on_a_terminal(columns, *words)
        assert "\x1b[1m" in text
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
        # A key, a path or a default is left whole, and stands alone on its line then.
        too_long = [line for line in plain if len(line.rstrip()) > columns]
        assert [line for line in too_long if " " in line.strip().replace("[default: ", "")] == []


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colour_gets_plain_text(toy, variables):
    text = on_a_terminal(80, "steps", "list", "--category", "toy", **variables)
    assert "toy/train" in text
    assert "\x1b" not in text


def on_a_terminal(columns: int, *words: str, **variables: str) -> str:
    """What a command writes when its output is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {"TERM": "xterm"} | variables
    process = subprocess.Popen([PROGRAM, *words], stdout=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error to read
        while part := os.read(ours, 65536):
            written += part
    os.close(ours)
    assert process.wait() == 0
    return written.decode().replace("\r\n", "\n")


def test_list_as_json_is_one_document(toy, capsys):
    code, document = run_json(capsys, "steps", "list", "--category", "toy")
    assert code == 0
    (step,) = document["steps"]
    assert step["id"] == "toy/train"
    assert step["consumes"][0]["kind"] == "checkpoint_megatron"
    assert step["configs"] == ["default", "tiny"]
    assert document["broken"] == {}


def test_list_filters_by_kind_through_is_a(toy, capsys):
    _, document = run_json(capsys, "steps", "list", "--consumes", "prompts_jsonl")
    assert "toy/train" in [step["id"] for step in document["steps"]]
    _, document = run_json(capsys, "steps", "list", "--produces", "eval_results")
    assert "toy/train" not in [step["id"] for step in document["steps"]]
    _, document = run_json(capsys, "steps", "list", "--produces", "checkpoint_megatron")
    assert "toy/train" in [step["id"] for step in document["steps"]]


def test_list_as_a_tree(toy, capsys):
    _, out, _ = run(capsys, "steps", "list", "--category", "toy", "--tree")
    assert out.splitlines()[0] == "toy"
    assert out.splitlines()[1].startswith("└── toy/train: model (checkpoint_megatron), data")
    assert out.rstrip().endswith("-> model (checkpoint_megatron)")


def test_an_empty_selection_says_so(toy, capsys):
    code, out, err = run(capsys, "steps", "list", "--category", "toy", "--produces", "eval_results")
    assert (code, out, err) == (0, "", "No step fits.\n")


def test_a_broken_step_is_told_apart_and_does_not_hide_the_others(toy, capsys):
    toy.write("manifests/toy/broken/step.toml", "[step\n")
    code, out, err = run(capsys, "steps", "list")
    assert code == 0
    assert "toy/train" in out
    assert "toy/broken" not in out
    assert err.startswith("step toy/broken is left out: manifests/toy/broken/step.toml:1")
    _, document = run_json(capsys, "steps", "list")
    assert list(document["broken"]) == ["toy/broken"]
    code, _, err = run(capsys, "steps", "show", "toy/broken")
    assert code == 2
    assert "is not valid TOML" in err


def test_show_tells_what_an_operator_needs(toy, capsys):
    code, out, err = run(capsys, "steps", "show", "learn")
    assert (code, err) == (0, "")
    for part in (
        "toy/train - Toy training",
        "Also called\n  toy/learn\n",
        "[checkpoint_megatron, config key model.restore_from_path]",
        "[training_jsonl, optional, config key data.path]",
        "Made by ",
        "default\n",
        "model.optim.lr  Peak learning rate. [default: 0.0001]",
        "the loss jumps  lower the rate",
        "no_data  adopt some",
        "nemotron-style steps run toy/train -c tiny",
        "nemotron-style steps run toy/train --dry-run -i model=REF",
    ):
        assert part in out, part


def test_show_as_json_is_complete(toy, capsys):
    code, document = run_json(capsys, "steps", "show", "toy/train")
    assert code == 0
    assert document["parameters"][0]["default"] == 1e-4
    assert document["run"]["entrypoint"] == "toy_step_config:run"
    assert document["strategies"] == [
        {"when": "the loss jumps", "then": "lower the rate", "skill": ""}
    ]


def test_show_works_when_the_default_config_is_not_in_order(toy, capsys):
    toy.write_step("default.yaml", "nosuch: 1\n")
    code, out, _ = run(capsys, "steps", "show", "toy/train")
    assert code == 0
    assert "[default: null]" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("steps", "lst"), "Did you mean 'list'"),
        (("step",), "No such command 'step'; did you mean 'steps'?"),
        (("lineage", "x"), "did you mean 'nemotron-style artifacts lineage'?"),
        (("sft/chat",), "to run a step: nemotron-style steps run sft/chat"),
        (("steps", "run", "sft/chat", "-b"), "see nemotron-style steps run --help"),
        (("steps", "show", "sft"), "allowed: sft/chat, sft/steerlm2"),
        (("steps", "show", "rl/dpo"), "allowed: rl/rlhf"),
        (("steps", "show", "GRPO"), "allowed: rl/rlhf"),
        (("steps", "list", "--tre"), "did you mean '--tree'?"),
        (("steps", "list", "--category"), "requires an argument"),
        (("steps", "list", "--category", "tyo"), "there is no category 'tyo'"),
        (("steps", "list", "--consumes", "training_json"), "did you mean 'training_jsonl'"),
        (("steps", "list", "extra"), "unexpected extra argument"),
        (("steps", "show"), "Missing argument"),
        (("steps", "show", "toy/trane"), "did you mean 'toy/train'"),
        (("profiles", "show", "slrum"), "did you mean 'slurm'"),
    ],
)
def test_a_mistyped_command_is_one_message_and_exit_code_two(toy, capsys, words, part):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert part in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    code, document = run_json(capsys, *words)
    assert code == 2
    assert document["error"]["exit_code"] == 2
    assert len(document["error"]["problems"]) == 1


def test_no_words_at_all_is_help(capsys):
    for words in ((), ("steps",), ("profiles",)):
        code, out, err = run(capsys, *words)
        assert (code, out) == (2, "")
        assert err.startswith("Usage: nemotron-style")


def test_help_teaches_by_example(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "  nemotron-style steps show sft/chat           what a step needs and makes\n" in out
    code, out, _ = run(capsys, "steps", "list", "--help")
    assert code == 0
    assert "    nemotron-style steps list --produces reward_model\n" in out


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("nemotron-style ")


def test_an_interruption_is_130(toy, capsys, monkeypatch):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nemotron_style.runtime.catalog.catalog.load_kinds", interrupt)
    assert run(capsys, "steps", "list")[0] == 130


def test_profiles_list_and_show(toy, capsys):
    toy.write("env.toml", '[mine]\nnodes = 2\nsecrets = ["HF_TOKEN"]\n[bad]\nnodes = 0\n')
    code, out, err = run(capsys, "profiles", "list")
    assert code == 0
    assert "mine" in out
    assert "slurm-large" in out
    assert err.startswith("profile bad is left out: env.toml [bad]: nodes")
    code, out, _ = run(capsys, "profiles", "show", "mine")
    assert code == 0
    assert "HF_TOKEN" in out
    code, document = run_json(capsys, "profiles", "show", "mine")
    assert document == {
        "origin": "env.toml",
        "executor": "local",
        "name": "mine",
        "nodes": 2,
        "secrets": ["HF_TOKEN"],
    }
    _, document = run_json(capsys, "profiles", "list")
    assert list(document["broken"]) == ["bad"]


def complete(line: str) -> list[str]:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    environment = {"_NEMOTRON_STYLE_COMPLETE": "complete_bash", "PATH": "/usr/bin:/bin", **words}
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_the_shell_completes_steps_kinds_categories_and_profiles(toy):
    assert complete("nemotron-style steps show toy/") == ["toy/train", "toy/learn"]
    assert complete("nemotron-style steps list --consumes prom") == ["prompts_jsonl"]
    assert "toy" in complete("nemotron-style steps list --category ")
    assert complete("nemotron-style profiles show slurm-") == ["slurm-large"]


def test_the_shell_completes_what_a_step_takes_and_what_a_store_holds(toy):
    assert complete("nemotron-style steps run toy/train -c ti") == ["tiny"]
    assert complete("nemotron-style steps run toy/train -i ") == ["model=", "data="]
    keys = complete("nemotron-style steps run sft/chat -c tiny model.optim.")
    assert "model.optim.lr=" in keys
    assert complete("nemotron-style artifacts show ") == []
    main(["artifacts", "adopt", __file__, "--kind", "training_jsonl", "--name", "rows"])
    assert complete("nemotron-style artifacts show r") == ["rows"]
    assert complete("nemotron-style runs show ") == ["latest"]


def test_a_closed_pipe_is_no_traceback(toy):
    command = f"{PROGRAM} steps list --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
