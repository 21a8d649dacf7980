"""The job as a whole: a stand-in for NeMo-RL's script runs in it, fails, stalls, is continued."""

from __future__ import annotations

import json
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nemo_rl_job import JobWorld
from nemotron_style.runtime.errors import InputError, Interrupted, StepFailed
from nemotron_style.runtime.step.context import Stop
from nemotron_style.steps.rl.rlhf.nemo_rl.job import recipe, watch


def draw_nothing(lines: Any, panels: Any, path: Path) -> None:
    """Matplotlib takes longer than all of the rest."""
    assert all("step" in line for line in lines)
    assert panels
    path.parent.mkdir(exist_ok=True)
    path.touch()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobWorld:
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(recipe, "draw_metrics", draw_nothing)
    return JobWorld(tmp_path, monkeypatch)


def hurry(world: JobWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time stand still until the script hangs, and then pass by looks at the clock.

    There are two or three of them a look, so that what was written before is read in time.
    """
    hangs, seconds = world.run_dir / "nemo_rl/logs/hangs", count()

    def clock() -> float:
        return 10.0 * next(seconds) if hangs.exists() else 0.0

    monkeypatch.setattr(recipe, "Watch", partial(watch.Watch, clock=clock))
    world.stall_minutes = 1.0


def metric(world: JobWorld, name: str) -> dict[int, float]:
    lines = world.ctx.metrics.history()
    return {line["step"]: line[name] for line in lines if name in line}


def test_the_last_checkpoint_and_the_best_become_outputs(
    world: JobWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    ctx = world.run(rewards={"1": 2.0, "2": 4.5, "3": 3.0, "4": 3.5}, judge_fails=1)
    model, best = ctx.output("model"), ctx.output("best")
    weights = "weights/iter_0000000/__0_1.distcp"
    assert (model.path / weights).read_text() == "__0_1.distcp of step 4"
    assert (best.path / weights).read_text() == "__0_1.distcp of step 2"
    tracker = model.path / "weights/latest_checkpointed_iteration.txt"
    assert tracker.read_text() == "0"
    names = sorted(path.name for path in (model.path / "hf").iterdir())
    assert names == ["config.json", "tokenizer.json"]
    assert (model.facts["step"], model.facts["is_last"], model.facts["is_best"]) == (4, True, False)
    assert (best.facts["step"], best.facts["ranked_value"]) == (2, 4.5)
    assert model.facts["judge"] == "a-judge"
    assert model.facts["reward"] == {"num_rollouts_per_prompt": 4}
    assert model.facts["policy"] == world.inputs["model"].digest
    assert (model.facts["nemo_rl_version"], model.facts["nemo_rl_package"]) == ("v0.6.0", "0.6.0")
    assert "--megatron-ckpt-path $CHECKPOINT/weights/iter_0000000" in model.facts["export"]
    assert (model.facts["steps_done"], model.facts["stopped_early"]) == (4, False)
    figures = ctx.figures
    assert "warning" not in figures
    assert (figures["steps"], figures["best_step"], figures["best_value"]) == (4, 2, 4.5)
    assert figures["judge_failed_share"] == 1 / 8  # of 2 prompts with 4 pairs each
    # metrics by the names of the embedded loop
    assert metric(world, "reward") == {1: 2.25, 2: 2.5, 3: 2.75, 4: 3.0}
    assert metric(world, "validation/accuracy") == {1: 2.0, 2: 4.5, 3: 3.0, 4: 3.5}
    assert metric(world, "hacking/kl_to_start")[4] == pytest.approx(0.08)
    assert metric(world, "judge/given_up_unparseable") == dict.fromkeys(range(1, 5), 1.0)
    assert metric(world, "hacking/sign_length") == {3: 1.0, 4: 1.0}
    assert not metric(world, "ray/node.0.gpu.0.util")
    told = capsys.readouterr().out
    (rows,) = (world.run_dir / "nemo_rl/data").iterdir()
    assert json.loads(rows.read_text().splitlines()[0]) == {
        "prompt": "question 0",
        "responses_create_params": {"input": [{"role": "user", "content": "question 0"}]},
        "agent_ref": {"type": "responses_api_agents", "name": "genrm_simple_agent"},
    }
    assert (world.run_dir / "plots/rlhf.png").is_file()
    assert "[GenRM] Parse failed" in told  # all of NeMo-RL's output is in the log of the run
    assert told.count("Answers grow or shrink far beyond") == 1
    progress = json.loads((world.run_dir / "attempts/1/progress.json").read_text())
    assert (progress["done"], progress["total"]) == (4, 4)


def test_a_crash_names_the_exit_code_and_the_last_lines_and_the_next_attempt_continues(
    world: JobWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StepFailed) as error:
        world.run(crash_at=3)
    told = str(error.value)
    assert "ended with exit code 1 after step 2 of 4" in told
    assert "ValueError: the loss of step 3 is not a number" in told
    ctx = world.run()
    assert "continuing from step_2" in capsys.readouterr().out
    assert ctx.output("model").facts["step"] == 4
    assert list(metric(world, "loss")) == [1, 2, 3, 4]  # those of the first attempt stayed
    assert metric(world, "start_tokens") == dict.fromkeys(range(1, 5), 10.0)


def test_a_run_that_was_killed_while_it_saved_continues_from_the_checkpoint_before(
    world: JobWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StepFailed, match="was killed by signal 9 after step 2 of 4"):
        world.run(die_in_save=3)
    world.run()
    told = capsys.readouterr().out
    assert "tmp_step_3 is half of a checkpoint: moved to" in told
    assert "continuing from step_2" in told
    assert world.ctx.output("model").facts["step"] == 4


def test_a_run_in_which_nothing_moves_is_ended_with_the_reason(
    world: JobWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(world, monkeypatch)
    with pytest.raises(StepFailed) as error:
        world.run(stall_at=2)
    told = str(error.value)
    assert "nemo_rl.stall_minutes" in told
    assert "after step 1 of 4" in told
    assert "Preparing batch" in told
    assert "num_rollouts_per_prompt is 4, grpo.num_generations_per_prompt is 4" in told
    assert list(metric(world, "loss")) == [1]
    monkeypatch.setattr(recipe, "Watch", watch.Watch)
    assert world.run().output("model").facts["step"] == 4


def test_a_script_that_hangs_after_its_last_step_is_ended_and_its_result_taken(
    world: JobWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(world, monkeypatch)
    assert world.run(never_ends=True).output("model").facts["step"] == 4


def test_a_run_that_is_told_to_stop_ends_the_script_and_continues_later(world: JobWorld) -> None:
    world.stop = Stop(file=world.checkpoints / "step_2")
    with pytest.raises(Interrupted, match=r"stopped after step \d of 4; the same"):
        world.run(stall_at=3)
    world.stop = Stop()
    assert world.run().output("model").facts["step"] == 4


def test_a_run_whose_time_was_up_is_no_finished_one(world: JobWorld) -> None:
    with pytest.raises(Interrupted, match=r"after step 2 of 4 .* continues from step_2"):
        world.run(time_out_at=2)
    assert world.run().output("model").facts["step"] == 4


def test_a_run_that_was_complete_before_it_was_sealed_is_not_run_again(world: JobWorld) -> None:
    world.run()
    world.run(crash_at=4)
    assert world.ctx.output("model").facts["step"] == 4


def test_other_inputs_in_the_same_run_are_refused_with_all_that_differs(world: JobWorld) -> None:
    with pytest.raises(StepFailed):
        world.run(crash_at=2)
    before = dict(world.inputs)
    world.inputs = {"prompts": world.add_prompts(6), "model": world.add_model("others")}
    with pytest.raises(InputError) as error:
        world.run()
    problems = error.value.problems
    assert [problem.key for problem in problems] == ["train data", "model"]
    assert (problems[1].got, problems[1].allowed) == (
        world.inputs["model"].digest,
        before["model"].digest,
    )
    world.inputs = before
    assert world.run().output("model").facts["step"] == 4


def test_without_event_files_the_log_gives_the_metrics(world: JobWorld) -> None:
    world.compiled["logger"]["tensorboard_enabled"] = False
    world.compiled["logger"]["log_dir"] = str(world.root / "elsewhere")
    world.run()
    assert metric(world, "reward") == {1: 2.25, 2: 2.5, 3: 2.75, 4: 3.0}
    assert metric(world, "mean_gen_tokens_per_sample") == {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0}


def test_a_last_save_that_is_not_whole_is_told_and_the_checkpoint_before_it_is_kept(
    world: JobWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    ctx = world.run(lose_shards_of=4)
    told = (
        "the newest whole checkpoint is that of step 3, and the last step that was done is 4:"
        " step_4 lacks policy/weights/iter_0000000/*.distcp"
    )
    assert f"warning: {told}\n" in capsys.readouterr().out
    assert next(iter(ctx.figures.items())) == ("warning", told)
    facts = ctx.output("model").facts
    names = ("step", "steps_done", "steps_planned", "stopped_early")
    assert [facts[name] for name in names] == [3, 4, 4, False]


def test_an_end_before_the_last_step_is_told_with_the_key_that_may_have_caused_it(
    world: JobWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.compiled["grpo"]["stop_at_validation_metric"] = "accuracy"
    ctx = world.run(stop_at=2)
    told = "NeMo-RL ended after step 2 of 4 (grpo.stop_at_validation_metric is accuracy)"
    assert f"warning: {told}\n" in capsys.readouterr().out
    facts = ctx.output("model").facts
    names = ("step", "steps_done", "steps_planned", "stopped_early")
    assert [facts[name] for name in names] == [2, 2, 4, True]


def test_a_run_whose_only_save_is_not_whole_has_failed_and_says_what_it_lacks(
    world: JobWorld,
) -> None:
    world.compiled["checkpointing"]["save_period"] = 9
    with pytest.raises(StepFailed, match=r"no whole checkpoint; step_4 lacks .*distcp"):
        world.run(lose_shards_of=4)


def test_a_run_that_leaves_no_checkpoint_has_failed(world: JobWorld) -> None:
    world.compiled["grpo"]["max_num_steps"] = 0
    with pytest.raises(StepFailed, match="left no whole checkpoint"):
        world.run()


def test_fewer_rows_than_a_step_takes_are_refused_before_anything_starts(world: JobWorld) -> None:
    world.inputs["prompts"] = world.add_prompts(1)
    with pytest.raises(InputError, match="a step takes P 2 rows, and the rows are 1"):
        world.run()
    assert not list(world.checkpoints.glob("step_*"))


def test_a_prompt_that_stands_twice_in_a_step_is_refused_where_the_judge_cannot_tell(
    world: JobWorld,
) -> None:
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in ("why?", "why?", "how?", "who?"))
    world.inputs["prompts"] = world.add("prompts", "prompts_jsonl", {"rows.jsonl": rows})
    with pytest.raises(InputError, match="lines 1, 2 have the same prompt"):
        world.run()
    world.version = "v0.7.0"  # from here on each row gets an id of its own
    world.run()


def test_without_gym_a_reward_model_scores_and_no_judge_is_counted(world: JobWorld) -> None:
    world.compiled["env"] = {
        "should_use_nemo_gym": False,
        "reward_model": {"model_name": "a/scorer"},
    }
    world.compiled["checkpointing"]["metric_name"] = "val:accuracy"
    ctx = world.run(rewards={"1": 2.0, "2": 4.5, "3": 3.0, "4": 3.5})
    facts = ctx.output("best").facts
    assert (facts["step"], facts["ranked_value"], facts["judge"]) == (2, 4.5, "a/scorer")
    assert metric(world, "reward")
    assert not metric(world, "judge/failed_share")
    (rows,) = (world.run_dir / "nemo_rl/data").iterdir()
    assert json.loads(rows.read_text().splitlines()[0]) == {"input": "question 0", "output": ""}
