"""``-b local``: jobs that outlive whoever submitted them, and what is told of them afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime import process
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch.local import LocalLauncher
from nemotron_style.runtime.launch.session import kill_job
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest
from nemotron_style.runtime.process import find_marked, is_alive, kill_family
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import list_runs
from nemotron_style.runtime.run.state import FINAL, JobState
from waiting import until

Capture = pytest.CaptureFixture[str]
SECONDS_TO_WAIT = 180.0
AT_ONCE = 5


@pytest.fixture(autouse=True)
def clean(mill: Any) -> Iterator[None]:
    """End whatever a test left behind."""
    yield
    for run in list_runs(mill.home):
        for attempt in run.attempts:
            launcher = attempt.record.get("launcher", {})
            if attempt.record.get("detached") and is_alive(launcher):
                os.kill(launcher["pid"], signal.SIGKILL)
            kill_job(attempt)


@pytest.fixture(autouse=True)
def code(mill: Any, kept: Path) -> Iterator[None]:
    """The copy of the code that the first job was given, with the bytecode that Python wrote.

    It is named by what it holds: the next jobs find it, unless a test changes its recipe.
    """
    if (kept / "code").is_dir():
        shutil.copytree(kept / "code", mill.home / "code")
    yield
    if not (kept / "code").is_dir() and (mill.home / "code").is_dir():
        shutil.copytree(mill.home / "code", kept / "code")


def submit(capsys: Capture, *words: str, profile: str = "local") -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["steps", "run", *words, "-b", profile, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    runs = document["runs"]
    assert isinstance(runs, list)
    return runs


def folder(run: dict[str, Any]) -> RunFolder:
    return RunFolder(Path(run["path"]))


def state(run: dict[str, Any]) -> JobState:
    return read_status(folder(run))


def last(run: dict[str, Any]) -> Attempt:
    attempt = folder(run).last_attempt
    assert attempt is not None
    return attempt


def end_of(run: dict[str, Any]) -> JobState:
    until(lambda: state(run).is_final)
    return state(run)


def held(mill: Any, *more: str) -> list[str]:
    return ["mill/grow", "hold_at=3", f"gate={mill.root}/gate", "save_every=1", *more]


def submit_held(mill: Any, capsys: Capture, *more: str, profile: str = "local") -> dict[str, Any]:
    """A job that waits at its gate."""
    (run,) = submit(capsys, *held(mill, *more), profile=profile)
    until(lambda: "holding" in last(run).log.read_text())
    return run


def open_gate(mill: Any) -> None:
    (mill.root / "gate").write_text("")


def kill_supervisor(run: dict[str, Any]) -> None:
    launcher = last(run).record["launcher"]
    os.kill(launcher["pid"], signal.SIGKILL)
    until(lambda: not is_alive(launcher))


def await_gone(run: dict[str, Any]) -> None:
    """Until no process is left: a worker writes down its end while it still lives."""
    until(lambda: find_marked(last(run).mark) == [])


def test_a_job_is_handed_over_and_completes(mill: Any, capsys: Capture) -> None:
    run = submit_held(mill, capsys)
    assert (run["decision"], run["executor"], run["attempt"]) == ("run", "local", 1)
    assert state(run).state == "RUNNING"
    open_gate(mill)
    assert end_of(run) == JobState("COMPLETED", 0)
    assert mill.store.resolve("mill-grow-default").record.producer.run_id == run["run_id"]
    until(lambda: not is_alive(last(run).record["launcher"]))
    assert last(run).record["exit_code"] == 0


def test_the_command_returns_and_holds_no_pipe_open(mill: Any, cli: Any) -> None:
    """As by ssh: the caller waits for the end of the output, while the job goes on."""
    words = cli("steps", "run", *held(mill), "-b", "local", "--json")
    done = subprocess.run(words, capture_output=True, timeout=SECONDS_TO_WAIT, check=True)
    (run,) = json.loads(done.stdout)["runs"]
    until(lambda: "holding" in last(run).log.read_text())
    open_gate(mill)
    assert end_of(run).state == "COMPLETED"


def test_what_the_dry_run_shows_is_what_runs(mill: Any, capsys: Capture) -> None:
    words, before = held(mill), mill.files()
    assert main(["steps", "run", *words, "-b", "local", "-d"]) == 0
    shown = capsys.readouterr().out
    assert mill.files() == before
    assert main(["steps", "run", *words, "-b", "local", "-d", "--json"]) == 0
    argv = json.loads(capsys.readouterr().out)["runs"][0]["argv"]
    run = submit_held(mill, capsys)
    launcher = last(run).record["launcher"]["pid"]
    command = Path(f"/proc/{launcher}/cmdline").read_text().split("\0")[:-1]
    assert command == argv
    for name in ("plan.json", "launch.sh"):
        written = (folder(run).path / name).read_text()
        assert f"# runs/{run['run_id']}/{name}\n{written.rstrip()}\n" in shown
    code = folder(run).plan.snapshot.path
    assert f'$ PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}" {argv[0]} -P -m ' in shown
    environment = Path(f"/proc/{launcher}/environ").read_text().split("\0")
    assert f"PYTHONPATH={code}:{os.environ['PYTHONPATH']}" in environment
    assert os.getsid(launcher) == launcher
    child = last(run).child["pid"]
    assert os.getsid(child) == child


def test_ctrl_c_and_a_closed_terminal_do_not_reach_it(mill: Any, cli: Any, capsys: Capture) -> None:
    """The command is typed in a terminal, which then gets Ctrl-C and is closed."""
    words = cli("steps", "run", *held(mill), "-b", "local")
    script = 'trap : INT; "$@"; echo "ended with $?"; while :; do read -r _ || exit; done'
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash", "-c", script, "bash", *words])
    shown = ""
    while "ended with" not in shown:
        shown += os.read(terminal, 4096).decode(errors="replace")  # half a character
    assert "ended with 0" in shown
    assert "runs logs -f" in shown
    (found,) = list_runs(mill.home)
    run = {"path": str(found.path)}
    until(lambda: "holding" in last(run).log.read_text())
    os.write(terminal, b"\x03")
    os.killpg(pid, signal.SIGINT)
    os.close(terminal)
    os.waitpid(pid, 0)
    launcher = last(run).record["launcher"]["pid"]
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(launcher, number)  # and if it got them, it would not mind
    assert state(run).state == "RUNNING"
    open_gate(mill)
    assert end_of(run).state == "COMPLETED"


def test_a_killed_supervisor_is_lost_and_its_child_can_be_cancelled(
    mill: Any, capsys: Capture, cli: Any
) -> None:
    run = submit_held(mill, capsys)
    kill_supervisor(run)
    told = state(run)
    assert (told.state, told.live, told.is_final) == ("LOST", True, False)
    assert "it still runs" in told.reason
    assert main(["runs", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["state"] == "LOST"
    assert last(run).record["state"] == "RUNNING"  # looking at it has written nothing
    done = subprocess.run(cli("runs", "cancel", run["run_id"]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CANCELLED" in done.stdout
    assert (folder(run).path / "checkpoints/step-00000003").is_dir()
    await_gone(run)


def test_a_lost_job_that_lives_is_taken_hold_of(mill: Any, capsys: Capture, cli: Any) -> None:
    run = submit_held(mill, capsys)
    kill_supervisor(run)
    (again,) = submit(capsys, *held(mill))
    assert (again["decision"], again["attempt"], again["state"]) == ("attach", 1, "LOST")
    command = subprocess.Popen(
        cli("steps", "run", *held(mill)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert command.stdout is not None
    while b"holding" not in command.stdout.readline():
        assert command.poll() is None
    open_gate(mill)
    command.communicate(timeout=SECONDS_TO_WAIT)
    assert command.returncode == 0
    assert state(run).state == "COMPLETED"
    assert len(folder(run).attempts) == 1


def test_a_job_that_outlives_its_supervisor_completes(mill: Any, capsys: Capture) -> None:
    run = submit_held(mill, capsys)
    kill_supervisor(run)
    open_gate(mill)
    assert end_of(run).state == "COMPLETED"
    assert main(["runs", "wait", run["run_id"]]) == 0
    # The outputs say COMPLETED a moment before the worker, which nobody watches, writes it down.
    until(lambda: last(run).record["state"] == "COMPLETED")


def test_a_lost_dead_job_is_resumed(mill: Any, capsys: Capture) -> None:
    run = submit_held(mill, capsys)
    kill_supervisor(run)
    os.kill((last(run).owner or {})["pid"], signal.SIGKILL)
    told = end_of(run)
    assert (told.state, told.reason) == ("LOST", "its supervisor ended without a word")
    open_gate(mill)
    (again,) = submit(capsys, *held(mill))
    assert again["decision"] == "resume"
    assert "attempt 1 was lost; continues from the checkpoint of step 2" in again["reason"]
    assert again["attempt"] == 2
    assert end_of(run).state == "COMPLETED"


def test_a_supervisor_that_breaks_tells_its_last_words(mill: Any, capsys: Capture) -> None:
    run = submit_held(mill, capsys)
    kill_supervisor(run)
    kill_family(last(run).child["pid"])
    (last(run).path / "supervisor.log").write_text("Traceback\nOSError: the disk melted\n")
    assert end_of(run).reason == "its supervisor ended without a word: OSError: the disk melted"


def test_a_child_without_a_worker_yet_is_reached_too(mill: Any, capsys: Capture) -> None:
    """Its setup lines take a while, and the supervisor dies meanwhile."""
    fifo = mill.root / "fifo"
    os.mkfifo(fifo)
    mill.write("env.toml", f'[slow]\nexecutor = "local"\nsetup = ["cat {fifo}"]\n')
    (run,) = submit(capsys, "mill/grow", profile="slow")
    until(lambda: len(find_marked(last(run).mark)) == 2)  # the script, and cat
    assert state(run).state == "PENDING"
    kill_supervisor(run)
    assert state(run).live
    assert last(run).owner is None
    assert main(["runs", "cancel", run["run_id"]]) == 0
    assert state(run).state == "CANCELLED"
    await_gone(run)


def test_after_a_reboot_nothing_lives(
    mill: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit_held(mill, capsys)
    kill_supervisor(run)
    kill_family(last(run).child["pid"])
    await_gone(run)
    living = process.identify_process(os.getpid()) | {"boot": "another"}
    for name in ("owner", "child"):  # the numbers are taken again, by others
        (last(run).path / f"{name}.json").write_text(json.dumps(living | {"leader": os.getpid()}))
    last(run).update(launcher=living)
    assert state(run).state == "RUNNING"  # what gave signs since then was not ended by it
    for path in last(run).path.iterdir():
        os.utime(path, (0, 0))
    assert state(run).state == "LOST"
    assert state(run).is_final


def test_a_chain_of_three_completes_in_its_order(mill: Any, capsys: Capture, cli: Any) -> None:
    words = ["mill/bake", f"+inputs.input.overrides.gate={mill.root}/gate"]
    words += ["+inputs.input.overrides.hold_at=1"]
    runs = submit(capsys, *words)
    _, grind, bake = runs
    assert [run["step"] for run in runs] == ["mill/grow", "mill/grind", "mill/bake"]
    until(lambda: state(bake).reason)
    assert state(bake) == JobState("PENDING", reason=f"waits for {grind['run_id']}")
    assert last(bake).child == {}
    assert main(["runs", "show", bake["run_id"]]) == 0
    assert f"waits for {grind['run_id']}" in capsys.readouterr().out
    waiting = subprocess.Popen(cli("runs", "wait", bake["run_id"]))
    open_gate(mill)
    assert waiting.wait(SECONDS_TO_WAIT) == 0
    assert [end_of(run).state for run in runs] == ["COMPLETED"] * 3
    begun = [last(run).record["begun"] for run in runs]
    # Whoever waits for a run waits for this, which is there before its worker writes the end.
    ended = [(folder(run).path / "outputs.json").stat().st_mtime for run in runs]
    assert ended[0] <= begun[1]
    assert ended[1] <= begun[2]
    assert submit(capsys, *words)[2]["decision"] == "reuse"


def test_what_is_complete_is_not_waited_for(mill: Any, capsys: Capture) -> None:
    (grow,) = submit(capsys, "mill/grow")
    assert end_of(grow).state == "COMPLETED"
    runs = submit(capsys, "mill/grind")
    assert [run["decision"] for run in runs] == ["reuse", "run"]
    argv = LocalLauncher().compile(folder(runs[1]).plan).argv
    assert argv[argv.index("--after") + 1] == str(folder(grow).path)
    assert end_of(runs[1]).state == "COMPLETED"


def test_a_run_below_a_failing_one_is_cancelled(mill: Any, capsys: Capture) -> None:
    runs = submit(capsys, "mill/bake", "+inputs.input.overrides.raise_at=1")
    _, grind, bake = runs
    assert [end_of(run).state for run in runs] == ["COMPLETED", "FAILED", "CANCELLED"]
    assert state(grind).exit_code == 1
    assert state(bake).reason.startswith(f"needs {grind['run_id']}, which is FAILED: RuntimeError")
    assert main(["runs", "wait", bake["run_id"]]) == 1
    assert last(bake).child == {}


def test_a_run_that_waits_can_be_cancelled(mill: Any, capsys: Capture) -> None:
    words = ["mill/bake", f"+inputs.input.overrides.gate={mill.root}/gate"]
    _, grind, bake = submit(capsys, *words, "+inputs.input.overrides.hold_at=1")
    until(lambda: state(bake).reason)
    assert main(["runs", "cancel", bake["run_id"]]) == 0
    assert "CANCELLED" in capsys.readouterr().out
    assert last(bake).child == {}
    assert not state(grind).is_final
    assert main(["runs", "cancel", grind["run_id"]]) == 0


def test_cancel_lets_the_step_save(mill: Any, capsys: Capture, cli: Any) -> None:
    run = submit_held(mill, capsys)
    done = subprocess.run(cli("runs", "cancel", run["run_id"]), capture_output=True, text=True)
    assert done.returncode == 0
    assert state(run) == JobState("CANCELLED", 130, "stopped after step 3")
    assert (folder(run).path / "checkpoints/step-00000003").is_dir()
    open_gate(mill)
    (again,) = submit(capsys, *held(mill))
    assert "was stopped; continues from the checkpoint of step 3" in again["reason"]
    assert end_of(run).state == "COMPLETED"


@pytest.mark.parametrize(
    ("recipe", "code"), [("sys.exit(0)", 1), ("os._exit(0)", 0), ("raise KeyError(1)", 1)]
)
def test_whatever_it_exits_with_after_a_cancel_is_cancelled(
    mill: Any, capsys: Capture, recipe: str, code: int
) -> None:
    source = mill.root / "code/milling/recipe.py"
    text = source.read_text().replace("import json\n", "import json\nimport os\nimport sys\n", 1)
    text = text.replace(
        "        if ctx.stopping:\n", f"        if ctx.stopping:\n            {recipe}\n"
    )
    source.write_text(text)
    run = submit_held(mill, capsys)
    assert main(["runs", "cancel", run["run_id"]]) == 0
    told = state(run)
    assert (told.state, told.exit_code) == ("CANCELLED", code)


def deafen(mill: Any) -> None:
    recipe = mill.root / "code/milling/recipe.py"
    recipe.write_text(recipe.read_text().replace(" and not ctx.stopping:", ":"))


def test_one_that_does_not_listen_is_killed_after_the_grace(mill: Any, capsys: Capture) -> None:
    deafen(mill)
    mill.write("env.toml", '[short]\nexecutor = "local"\ngrace_seconds = 1\n')
    run = submit_held(mill, capsys, profile="short")
    assert main(["runs", "cancel", run["run_id"]]) == 0
    assert state(run) == JobState("CANCELLED", 137, "ended by SIGKILL")
    await_gone(run)


def test_force_does_not_wait(mill: Any, capsys: Capture) -> None:
    deafen(mill)
    run = submit_held(mill, capsys)
    assert main(["runs", "cancel", run["run_id"], "--grace", "0"]) == 1
    assert "--force ends it at once" in capsys.readouterr().err
    assert main(["runs", "cancel", run["run_id"], "--force"]) == 0
    assert state(run).state == "CANCELLED"
    await_gone(run)


def test_the_log_is_followed_from_another_process(mill: Any, capsys: Capture, cli: Any) -> None:
    words = ["mill/grind", f"+inputs.input.overrides.gate={mill.root}/gate"]
    _, grind = submit(capsys, *words, "+inputs.input.overrides.hold_at=1")
    until(lambda: state(grind).reason)
    follower = subprocess.Popen(
        cli("runs", "logs", "-f", grind["run_id"]), stdout=subprocess.PIPE, text=True
    )
    open_gate(mill)
    shown, _ = follower.communicate(timeout=SECONDS_TO_WAIT)
    assert follower.returncode == 0
    assert "4/4" in shown
    assert end_of(grind).state == "COMPLETED"
    assert main(["runs", "logs", "-f", "--node", "1", grind["run_id"]]) == 2


def test_sources_edited_meanwhile_do_not_matter(mill: Any, capsys: Capture) -> None:
    words = ["mill/grind", f"+inputs.input.overrides.gate={mill.root}/gate"]
    _, grind = submit(capsys, *words, "+inputs.input.overrides.hold_at=1")
    recipe = mill.root / "code/milling/recipe.py"
    recipe.write_text("raise RuntimeError('edited')\n")
    open_gate(mill)
    assert end_of(grind).state == "COMPLETED"


def test_a_job_that_cannot_be_started_says_so(mill: Any, capsys: Capture) -> None:
    plan = compile_pipeline(RunRequest("mill/grow"), context=mill.context()).target.plan
    launcher = LocalLauncher()
    request = launcher.compile(plan)
    missing = type(request)(plan, 1, request.files, ("/nowhere/bash", "x"))
    with pytest.raises(Exception, match=r"cannot start it: .*No such file"):
        launcher.submit(missing)
    assert read_status(RunFolder(plan.run_dir)).state == "FAILED"


RANKS = """
    if not ctx.is_first:
        while not ctx.stopping:
            time.sleep(0.005)
        raise Interrupted("stopped")
"""


@pytest.fixture
def pair(mill: Any) -> Any:
    """A mill that two processes turn; torchrun starts them."""
    recipe = mill.root / "code/milling/recipe.py"
    first, newline, rest = recipe.read_text().partition("def run(config, ctx):\n")
    recipe.write_text(first + newline + RANKS + rest)
    run = 'launch = "torchrun"\n[run.resources]\nprocesses = 2\n'
    mill.add_step("mill/pair", makes="grain", run=run)
    return mill


def submit_pair(mill: Any, capsys: Capture) -> dict[str, Any]:
    words = ["mill/pair", "hold_at=3", f"gate={mill.root}/gate", "save_every=1"]
    (run,) = submit(capsys, *words)
    until(lambda: "holding" in last(run).log.read_text())
    until(lambda: len(find_marked(last(run).mark)) == 3)
    return run


@pytest.mark.slow
def test_all_ranks_save_and_stop(pair: Any, capsys: Capture) -> None:
    pytest.importorskip("torch")
    run = submit_pair(pair, capsys)
    assert main(["runs", "cancel", run["run_id"]]) == 0
    assert (state(run).state, state(run).reason) == ("CANCELLED", "stopped after step 3")
    await_gone(run)


@pytest.mark.slow
def test_ranks_without_anybody_above_them_are_found(pair: Any, capsys: Capture) -> None:
    pytest.importorskip("torch")
    run = submit_pair(pair, capsys)
    kill_supervisor(run)
    for known in (last(run).child, last(run).owner or {}):  # torchrun, then the first rank
        os.kill(known["pid"], signal.SIGKILL)
        until(lambda known=known: not is_alive(known))
    assert state(run).live
    assert main(["runs", "cancel", run["run_id"], "--force"]) == 0
    assert state(run).state == "CANCELLED"
    await_gone(run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(mill: Any, capsys: Capture, seed: int) -> None:
    """Kill the supervisor, the job or both at a random moment, three times over."""
    chance = random.Random(seed)
    words = ["mill/grow", "steps=60", "save_every=3", "pause=0.01"]
    for _ in range(3):
        (run,) = submit(capsys, *words)
        moment = time.monotonic() + chance.uniform(0.0, 0.9)
        until(lambda moment=moment: time.monotonic() > moment)
        victims = chance.choice(["launcher", "child", "both"])
        attempt = last(run)
        if victims != "child" and attempt.record["state"] not in FINAL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(attempt.record["launcher"]["pid"], signal.SIGKILL)
        if victims != "launcher" and is_alive(attempt.child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(attempt.child["pid"], signal.SIGKILL)
    until(lambda: state(run).is_final)
    (run,) = submit(capsys, *words)
    assert end_of(run).state == "COMPLETED"
    figures = (folder(run).outputs or {})["figures"]
    assert figures == {"total": 1830}
    names = [one.ref.partition(":")[0] for one in mill.store.artifacts()]
    assert sorted(names) == ["mill-grow-default", "mill-grow-default.chaff"]
    assert [
        bad for one in mill.store.artifacts() for bad in mill.store.verify(one, deep=True)
    ] == []


def test_a_job_handed_over_by_a_job_is_no_part_of_it(
    mill: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMOTRON_STYLE_JOB", "/another/job")
    run = submit_held(mill, capsys)
    assert find_marked("NEMOTRON_STYLE_JOB=/another/job") == []
    assert find_marked(last(run).mark) == [last(run).child["pid"]]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_a_chain_is_handed_over_whole_or_not_at_all(
    mill: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: type, code: int
) -> None:
    submit_one, calls = LocalLauncher.submit, []

    def refuse(self: LocalLauncher, request: Any, **after: Any) -> Any:
        calls.append(request)
        if len(calls) == 3:
            raise error("not this one")
        return submit_one(self, request, **after)

    monkeypatch.setattr(LocalLauncher, "submit", refuse)
    words = ["mill/bake", f"+inputs.input.overrides.gate={mill.root}/gate"]
    words += ["+inputs.input.overrides.hold_at=1"]
    with contextlib.suppress(RuntimeError):
        assert main(["steps", "run", *words, "-b", "local"]) == code
    for request in calls[:2]:
        run = {"path": str(request.plan.run_dir)}
        assert end_of(run).state in ("CANCELLED", "COMPLETED")  # the first may have been quick
        await_gone(run)
    assert end_of({"path": str(calls[1].plan.run_dir)}).state == "CANCELLED"


def submit_at_once(mill: Any, cli: Any, *words: str, **each: list[str]) -> list[dict[str, Any]]:
    """Several command lines at once, many more than there are cores; each copies the code."""
    shutil.rmtree(mill.home / "code", ignore_errors=True)
    more = each.get("more") or [""] * AT_ONCE
    commands = [
        subprocess.Popen(
            cli("steps", "run", "mill/grow", "steps=1", *words, *filter(None, [extra]), "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for extra in more
    ]
    told = [command.communicate(timeout=240) for command in commands]
    assert [err or out for out, err in told if not out.startswith('{\n  "dry_run')] == []
    return [json.loads(out)["runs"][0] for out, _ in told]


@pytest.mark.slow
def test_fresh_submissions_at_once_get_a_folder_each(mill: Any, cli: Any) -> None:
    runs = submit_at_once(mill, cli, "-b", "local", "--fresh")
    assert len({run["path"] for run in runs}) == AT_ONCE
    assert {end_of(run).state for run in runs} == {"COMPLETED"}


@pytest.mark.slow
def test_different_submissions_at_once_get_a_folder_each(mill: Any, cli: Any) -> None:
    runs = submit_at_once(
        mill, cli, "-b", "local", more=[f"seed={number}" for number in range(AT_ONCE)]
    )
    assert len({run["path"] for run in runs}) == AT_ONCE
    assert {end_of(run).state for run in runs} == {"COMPLETED"}
    assert len(list(mill.store.artifacts())) == 2 * AT_ONCE


@pytest.mark.slow
def test_equal_submissions_at_once_are_one_run(mill: Any, cli: Any) -> None:
    runs = submit_at_once(mill, cli, "-b", "local")
    assert len({run["path"] for run in runs}) == 1
    assert end_of(runs[0]).state == "COMPLETED"
    assert len(folder(runs[0]).attempts) == 1
    assert len(list(mill.store.artifacts())) == 2
