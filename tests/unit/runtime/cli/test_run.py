"""``steps run``: what it refuses, what it shows, and what it leaves behind."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.cli.progress import Screen
from nemotron_style.runtime.cli.summary import list_results
from nemotron_style.runtime.launch.base import JobHandle
from nemotron_style.runtime.run.folder import RunFolder

Capture = pytest.CaptureFixture[str]


def run(*words: str) -> int:
    return main(["steps", "run", *words])


def refuse(capsys: Capture, *words: str) -> str:
    """The message of a command that must fail as a usage error, and write nothing."""
    assert run(*words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mill/grow", "fresh"), "did you mean '--fresh'"),
        (("mill/grow", "steps"), "did you mean steps=VALUE?"),
        (("mill/grow", "--freshh"), "--fresh"),
        (("mill/grow", "stesp=4"), "did you mean 'steps'"),
        (("mill/grow", "steps=x"), "a whole number"),
        (("mill/grwo",), "did you mean"),
        (("mill/grow", "-c", "tiyn"), "has no config 'tiyn'"),
        (("mill/grow", "-r", "local", "-b", "local"), "exclude each other"),
        (("mill/grow", "-r", "nowhere"), "there is no profile 'nowhere'"),
        (("mill/grow", "--", "x"), "takes no arguments after --"),
        (("mill/bake", "-i", "inptu=x"), "did you mean 'input'"),
        (("mill/bake", "-c", "bare"), "give -i input=REF or mill.input_path=PATH; made"),
        (("mill/bake", "--no-upstream"), "run it first: nemotron-style steps run mill/g"),
    ],
)
def test_mistakes_are_told_in_a_line(
    mill: Any, capsys: Capture, words: tuple[str, ...], message: str
) -> None:
    mill.write("env.toml", '[cluster]\nexecutor = "slurm"\n')
    before = mill.files()
    assert message in refuse(capsys, *words)
    assert mill.files() == before


def test_several_mistakes_are_told_at_once(mill: Any, capsys: Capture) -> None:
    shown = refuse(capsys, "mill/grow", "steps=x", "sede=1", "mill.speed=y")
    assert len(shown.splitlines()) == 3


def test_a_dry_run_writes_nothing_and_is_repeatable(mill: Any, capsys: Capture) -> None:
    before = mill.files()
    assert run("mill/bake", "-d", "mill.speed=2") == 0
    first = capsys.readouterr().out
    assert run("mill/bake", "mill.speed=2", "--dry-run") == 0
    assert capsys.readouterr().out == first
    assert mill.files() == before
    lines = first.splitlines()
    assert lines[:3] == [
        "run     mill/grow (default): first run of this step",
        "run     mill/grind (default): first run of this step",
        "run     mill/bake (default): first run of this step",
    ]
    assert "  input_path: run:mill-grind-" in first.replace("    input", "  input")
    assert first.count("\n$ bash ") == 3


def test_a_dry_run_as_json_is_one_document(mill: Any, capsys: Capture) -> None:
    assert run("mill/bake", "-d", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dry_run"] is True
    assert [one["step"] for one in document["runs"]] == ["mill/grow", "mill/grind", "mill/bake"]
    assert document["runs"][-1]["plan"]["run_id"] == document["runs"][-1]["run_id"]


def test_secrets_are_shown_by_name_only(
    mill: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILL_TOKEN", "very-secret-value")
    mill.write("env.toml", '[mine]\nexecutor = "local"\nsecrets = ["MILL_TOKEN"]\n')
    assert run("mill/grow", "-r", "mine", "-d") == 0
    shown = capsys.readouterr().out
    assert "secrets   MILL_TOKEN" in shown
    assert "very-secret-value" not in shown


def test_a_run_shows_each_step_its_log_and_a_summary(mill: Any, capsys: Capture) -> None:
    assert run("mill/grind", "-c", "default", "mill.speed=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "== mill/grow (default)  run: first run of this step"
    assert "4/4  total=10" in lines
    assert "4/4  total=20" in lines
    summary = lines[lines.index("") + 1 :]
    header, grow, grind, *rest = summary
    assert header.split() == ["STEP", "CONFIG", "DECISION", "TOOK", "ARTIFACTS"]
    assert grow.split()[:3] == ["mill/grow", "default", "run"]
    assert grow.split()[3].endswith("s")
    assert grind.endswith("mill-grind-default:v1 (+1)")
    assert rest[:4] == ["", "Figures", "  mill/grow   total=10", "  mill/grind  total=20"]


def test_a_summary_says_where_to_look_next(mill: Any, capsys: Capture) -> None:
    recipe = mill.root / "code/milling/recipe.py"
    results = """
    (ctx.output("sack").path / "results.json").touch()
    for name in ("plots/mill.png", "samples/step-1.md", "samples/step-2.md"):
        (ctx.run_dir / name).parent.mkdir(exist_ok=True)
        (ctx.run_dir / name).touch()
    ctx.summarise"""
    recipe.write_text(recipe.read_text().replace("\n    ctx.summarise", results))
    mill.write("manifests/mill/bake/tiny.yaml", "defaults: default.yaml\n")
    manifest = mill.root / "manifests/mill/bake/step.toml"
    condition = 'name = "input"\nwhen = { steps = 4 }'
    manifest.write_text(manifest.read_text().replace('name = "input"', condition))
    mill.write("manifests/mill/grind/tiny.yaml", "defaults: default.yaml\n")
    assert run("mill/grind", "-c", "tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Look at")
    grow, grind = (
        f".nemotron-style/runs/{next(mill.home.glob(f'runs/{step}-*')).name}"
        for step in ("mill-grow", "mill-grind")
    )
    assert lines[at + 1 : at + 9] == [
        f"  plot     {grow}/plots/mill.png",
        f"  samples  {grow}/samples/step-2.md",
        "  report   .nemotron-style/artifacts/mill-grow-default/v1/results.json",
        f"  metrics  {grow}/metrics.jsonl",
        f"  plot     {grind}/plots/mill.png",
        f"  samples  {grind}/samples/step-2.md",
        "  report   .nemotron-style/artifacts/mill-grind-tiny/v1/results.json",
        f"  metrics  {grind}/metrics.jsonl",
    ]
    assert lines[at + 9 :] == [
        "",
        "Next",
        "  trace it  nemotron-style artifacts lineage mill-grind-tiny:v1",
        "  show it   nemotron-style report mill-grind-tiny:v1",
        "  mill      nemotron-style steps run mill/bake -c tiny -i input=mill-grind-tiny:v1"
        + " steps=4",
    ]


def test_what_was_made_is_used_again_whatever_is_cosmetic(mill: Any, capsys: Capture) -> None:
    assert run("mill/grind") == 0
    capsys.readouterr()
    assert run("mill/grind", "gate=/elsewhere", "--json") == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert [one["decision"] for one in document["runs"]] == ["reuse", "reuse"]
    assert "outputs unchanged by size and time" in document["runs"][0]["reason"]
    assert document["runs"][1]["inputs"]["input"]["ref"] == "mill-grow-default:v1"
    assert document["runs"][1]["outputs"]["sack"]["ref"] == "mill-grind-default:v1"
    assert "== mill/grind" in shown.err


def test_a_name_for_what_is_made_already_is_not_dropped(mill: Any, capsys: Capture) -> None:
    assert run("mill/grow", "--name", "rye") == run("mill/grow", "--name", "rye") == 0
    assert run("mill/grow") == 0
    made = mill.store.resolve("rye")
    for words in ([], ["--dry-run"]):
        capsys.readouterr()
        assert run("mill/grow", "--name", "wheat", *words) == 2
        shown = capsys.readouterr().err
        assert f"{made.record.producer.run_id} has made it already: rye:v1; got wheat" in shown
    adopt = shown.partition("(nemotron-style ")[2].partition(")")[0].split()
    assert main(adopt) == 0
    assert mill.store.resolve("wheat").digest == made.digest
    assert run("mill/grow", "--name", "oats", "--fresh") == 0
    assert mill.store.resolve("oats").record.producer.run_id != made.record.producer.run_id


def test_a_name_is_not_dropped_while_a_run_is_under_way(mill: Any, capsys: Capture) -> None:
    plan = mill.compile("mill/grow").target.plan
    folder = RunFolder(plan.record_dir)
    assert folder.reserve(plan)
    assert folder.claim_attempt()
    assert run("mill/grow", "--name", "wheat") == 2
    assert "makes it already, under the name mill-grow-default" in capsys.readouterr().err


def test_a_name_for_a_step_that_makes_nothing_is_refused(press: Any, capsys: Capture) -> None:
    assert run("mill/wheel", "--name", "wheat") == 2
    assert "makes no artifact that could have a name" in capsys.readouterr().err


def test_options_may_stand_anywhere_and_arguments_pass_on(mill: Any, capsys: Capture) -> None:
    assert run("-c", "default", "mill/bake", "steps=2", "--name", "loaf", "--", "-x", "a=b") == 0
    artifact = mill.store.resolve("loaf.chaff")
    assert (artifact.path / "chaff.txt").read_text() == "-x a=b"
    assert "loaf:v1" in capsys.readouterr().out


def test_a_failed_step_ends_with_one_line_and_its_log(mill: Any, capsys: Capture) -> None:
    assert run("mill/grind", "raise_at=2") == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert "mill/grind (default): RuntimeError: the mill stone broke; log: " in line
    assert line.endswith("attempts/1/log-0.txt")
    assert "Traceback" in shown.out  # the log itself was followed


def test_a_users_mistake_inside_the_step_exits_as_one(mill: Any, capsys: Capture) -> None:
    assert run("mill/grow", "refuse_at=1", "--json") == 2
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["error"]["problems"][0]["what"] == "the grain is wet"


def test_fresh_makes_it_again_beside_the_old(mill: Any, capsys: Capture) -> None:
    assert run("mill/grow") == 0
    assert run("mill/grow", "--fresh") == 0
    shown = capsys.readouterr().out
    assert "run: --fresh: generation 1" in shown
    versions = [artifact.record.version for artifact in mill.store.artifacts("mill-grow-default")]
    assert sorted(versions) == [1, 2]
    again = shown[shown.index("Made again\n") :].splitlines()[1]
    told = "bit-identical: every byte of 1 file; the other is mill-grow-default:v1"
    assert again.split(maxsplit=1) == ["sack", told]
    assert run("mill/grow", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runs"][0]["outputs"]["sack"]["ref"] == "mill-grow-default:v2"
    assert "Made again" not in shown[: shown.index("generation 1")]


def test_what_was_made_again_with_other_bytes_is_told(mill: Any, capsys: Capture) -> None:
    recipe = (mill.root / "code/milling/recipe.py").read_text()
    chance = recipe.replace('" ".join(ctx.arguments) or "-"', "str(time.monotonic_ns())")
    mill.write("code/milling/recipe.py", chance)
    assert run("mill/grow") == 0
    assert run("mill/grow", "--fresh") == 0
    again = capsys.readouterr().out.partition("Made again\n")[2]
    assert "1 of 1 files differ; the other is mill-grow-default.chaff:v1" in again


def test_a_path_is_adopted_when_the_step_runs(mill: Any, capsys: Capture) -> None:
    path = mill.write("flour/sack.txt", "white flour\n").parent
    assert run("mill/bake", "-i", f"input={path}", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    bread = mill.store.resolve(document["runs"][0]["outputs"]["sack"]["ref"])
    assert (bread.path / "sack.txt").read_text().startswith("white flour\n")
    assert bread.record.inputs[0].ref == "flour:v1"


def test_a_store_that_cannot_be_written_is_told(
    mill: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(mill.write("a-file", "") / "store"))
    assert run("mill/grow") == 2
    assert "cannot write in" in (told := capsys.readouterr().err)
    assert "choose another store" in told


def test_a_package_that_is_not_installed_is_named(mill: Any, capsys: Capture) -> None:
    mill.write("code/milling/recipe.py", "import no_such_package\n")
    assert run("mill/grow") == 2
    assert "the step needs the package 'no_such_package'; install it" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_that_gives_way_to_the_log(mill: Any) -> None:
    terminal = Terminal()
    screen = Screen(terminal)
    handle = JobHandle("local", mill.root, 1)
    report = {"done": 5, "total": 10, "figures": {"loss": 0.123456}}
    write_json(mill.root / "attempts/1/progress.json", report)
    screen.follow("", handle)
    bar = f"{'━' * 5}╺{'━' * 4}  5/10  loss=0.1235"
    assert terminal.shown() == [bar]
    screen.follow("a line\n4/10  loss=0.2\nhalf a", handle)
    assert terminal.shown() == ["a line", bar]
    screen.follow(" line\n", handle)
    assert terminal.shown() == ["a line", "half a line", bar]
    write_json(mill.root / "attempts/1/progress.json", {**report, "done": 10})
    with screen:
        screen.follow("10/10  loss=0.1\nthe end", handle)
    assert terminal.shown() == ["a line", "half a line", "10/10  loss=0.1", "the end"]


@pytest.mark.parametrize(("action", "notes"), [("run", "note: 12 GB\n"), ("reuse", "")])
def test_a_run_that_is_reused_has_no_notes_of_a_job(action: str, notes: str) -> None:
    pipe = io.StringIO()
    plan = SimpleNamespace(step="mill/grow", config_name="tiny", notes=("12 GB",))
    decision = SimpleNamespace(action=action, reason="so")
    with Screen(pipe) as screen:
        screen.begin(SimpleNamespace(plan=plan, decision=decision))
    assert pipe.getvalue() == f"== mill/grow (tiny)  {action}: so\n{notes}"


def test_a_pipe_gets_the_log_as_it_is(mill: Any) -> None:
    pipe = io.StringIO()
    write_json(mill.root / "attempts/1/progress.json", {"done": 5, "total": 10, "figures": {}})
    with Screen(pipe) as screen:
        screen.follow("4/10  loss=0.2\nhalf a", JobHandle("local", mill.root, 1))
    assert pipe.getvalue() == "4/10  loss=0.2\nhalf a"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        """The lines that stand on the screen, in plain text."""
        lines = [""]
        for code, text in re.findall(
            r"(\x1b\[[0-9;?]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", self.getvalue()
        ):
            if code == "\n":
                lines.append("")
            elif code == "\x1b[1A":
                lines.pop()
            elif code == "\x1b[2K":
                lines[-1] = ""
            lines[-1] += text
        return [line for line in lines if line]


def test_both_sorts_of_samples_and_the_board_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "sft-1"
    for name in ("samples/samples.md", "samples/step-1.jsonl", "samples/step-2.jsonl"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    (run / "tensorboard").mkdir()
    monkeypatch.chdir(tmp_path)
    assert list_results(RunFolder(run), []) == [
        ("samples", "runs/sft-1/samples/samples.md"),
        ("samples", "runs/sft-1/samples/step-2.jsonl"),
        ("TensorBoard", "tensorboard --logdir runs/sft-1/tensorboard"),
    ]
