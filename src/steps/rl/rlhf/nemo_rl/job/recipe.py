"""NeMo-RL's GRPO with a judge in NeMo-Gym: prepare, start its script, watch it, collect.

The loop is NeMo-RL's own: its script runs as it is, on the cluster that the launcher made, with the
file that the compiler wrote into the plan.  What this adds around it:

* inputs in the form that NeMo-RL and NeMo-Gym take, under names that follow from their contents;
* a guard before it continues: from whole checkpoints only, and only from those of this very run;
* its metrics among ours, its progress, and an end with a reason when nothing moves any more;
* its last checkpoint, and its best one where that is another, as artifacts.

This process runs in NeMo-RL's image on the first machine, and imports nothing but the core
dependencies of this package.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from nemotron_style.runtime.errors import Interrupted
from nemotron_style.runtime.step.child_process import ChildProcess
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.stats.metric_plot import draw_metrics
from nemotron_style.steps.rl.rlhf.nemo_rl.job.checkpoints import (
    find_best,
    list_halves,
    whole_checkpoints,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.job.collect import (
    Ending,
    choose_checkpoints,
    describe_origin,
    describe_upstream,
    export_command,
    summarise,
    write_checkpoint,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.job.event_folder import EventFolder
from nemotron_style.steps.rl.rlhf.nemo_rl.job.log_reader import LogReader
from nemotron_style.steps.rl.rlhf.nemo_rl.job.plot import PANELS
from nemotron_style.steps.rl.rlhf.nemo_rl.job.policy_source import HF_TWIN
from nemotron_style.steps.rl.rlhf.nemo_rl.job.prepare import prepare
from nemotron_style.steps.rl.rlhf.nemo_rl.job.resume_guard import find_resume
from nemotron_style.steps.rl.rlhf.nemo_rl.job.script import build_command, find_home
from nemotron_style.steps.rl.rlhf.nemo_rl.job.settings import Settings
from nemotron_style.steps.rl.rlhf.nemo_rl.job.watch import Watch, follow
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import CONFIG_FILE, JOB_FILE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

if TYPE_CHECKING:
    from nemotron_style.steps.rl.rlhf.nemo_rl.config import Config


def run(config: Config, ctx: StepContext) -> None:
    """Align ``model`` on ``prompts`` by NeMo-RL; produce its last checkpoint, and its best one."""
    # -- what the compiler wrote into the plan, and the tree of NeMo-RL that will read it
    settings = Settings.parse(ctx.file(CONFIG_FILE))
    job = json.loads(ctx.file(JOB_FILE))
    version, script = Version(job["version"]), job["script"]
    home = find_home(script)

    # -- the inputs, in its form; everything that it would not take is refused here
    prepared = prepare(
        ctx, settings, version, config.data.default_agent_ref if config.data else None
    )
    folders = prepared.folders
    steps = settings.count_steps(prepared.rows)
    ctx.say(f"NeMo-RL {version} in {home}: {prepared.rows} prompts, {steps} steps")
    for note in prepared.notes:
        ctx.say(note)

    # -- a new run, or one that continues: from its own newest whole checkpoint
    resumed = find_resume(
        folders.checkpoints, prepared.made_of, version=version, aside=folders.aside, say=ctx.say
    )
    log = LogReader(done=resumed.step if resumed else 0)
    watch = Watch(
        ctx,
        settings,
        EventFolder(folders.logs),
        log,
        steps=steps,
        notes=folders.root / "judge_failures.json",
        stall_seconds=60 * job["stall_minutes"],
    )
    watch.replay()

    # -- its script, as it is, while it runs
    if log.done < steps or not resumed:
        command = build_command(home, script, folders.config)
        ctx.say(" ".join(command))
        compiled = {**job["environment"], **prepared.variables}
        process = ChildProcess(
            command,
            folder=home,
            environment={**os.environ, **compiled, "PYTHONUNBUFFERED": "1"},
            own_session=True,  # `uv run` has children; all of them are told to end
            on_line=log.feed,
        )
        follow(process, watch, ctx)
    whole = whole_checkpoints(folders.checkpoints)
    if log.timed_out:
        newest = whole[-1].path.name if whole else "the start"
        raise Interrupted(
            f"NeMo-RL stopped after step {log.done} of {steps} for checkpoint_must_save_by;"
            f" the same command continues from {newest}"
        )

    # -- what is produced: its last checkpoint, and its best one where that is another
    best = find_best(whole, settings.metric, higher_is_better=settings.higher_is_better)
    halves = list_halves(folders.checkpoints, after=whole[-1].step if whole else 0)
    chosen = choose_checkpoints(whole, best, halves)
    last, twin = chosen["model"], prepared.policy.hf_folder
    name = f"$CHECKPOINT/{HF_TWIN}" if twin else settings.get("policy.model_name")
    export = export_command(home, name)
    ending = Ending(
        saved=last.step,
        done=max(watch.done, last.step),
        planned=steps,
        halves=halves,
        metric=settings.get("grpo.stop_at_validation_metric"),
    )
    if ending.warning:
        ctx.say(f"warning: {ending.warning}")
    for slot, checkpoint in chosen.items():
        output = ctx.output(slot)
        write_checkpoint(checkpoint, output.path, twin)
        is_best, is_last = checkpoint == best, checkpoint == last
        output.note(
            **describe_origin(checkpoint, settings, is_best=is_best, is_last=is_last),
            **ending.facts,
            **describe_upstream(home, version, os.environ),
            image=job["image"],
            policy=prepared.made_of["model"],
            export=export,
        )
        ctx.say(f"{slot}: the checkpoint of step {checkpoint.step}")
    ctx.say(f"as a Hugging Face folder, in NeMo-RL's image: {export}")
    lines = ctx.metrics.history()
    draw_metrics(lines, PANELS, ctx.run_dir / "plots" / "rlhf.png")
    ctx.summarise(**summarise(lines, last, best, settings, ending.warning))
