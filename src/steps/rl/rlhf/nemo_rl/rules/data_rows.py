"""The rows of prompts: enough of them, whole, told apart, and in the form that is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from nemotron_style.runtime.errors import Problem, suggest
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import FileRows
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.gym_judge import POLICY_FILE, default_agents
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import COMPARE_FILE, View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

PROMPTS = "grpo.num_prompts_per_step"


@rule(Effect.TRAINS_NOTHING, "incomplete batches are dropped: no batch is left")
def rows_fill_a_step(job: View) -> Iterator[Problem]:
    """The training file has at least P rows."""
    rows, needed = _train_rows(job), _loader_batch(job)
    if rows < needed:
        yield Problem(
            where=job.train_rows.path,
            key=PROMPTS,
            what=f"a step takes P {needed} rows, and the rows are {rows}: no step is possible",
            got=str(job.prompts),
            allowed=f"up to {rows}",
            fix="give more rows, or lower it",
        )


@rule(Effect.SILENT, "incomplete batches are dropped each epoch", advice=True)
def rows_are_used(job: View) -> Iterator[Problem]:
    """The rows of an epoch are a multiple of P."""
    rows, needed = _train_rows(job), _loader_batch(job)
    steps, dropped = divmod(rows, needed)
    if steps and dropped:
        yield Problem(
            key=PROMPTS,
            what=f"{rows} rows, P {needed}: {steps} steps an epoch, {dropped} rows dropped",
        )


@rule(
    Effect.HANGS,
    "responses to both meet in one group of the judge: an error, or groups that never fill",
)
def prompts_are_told_apart(job: View) -> Iterator[Problem]:
    """No prompt comes twice in one step, unless its rows have ids (NeMo-Gym of v0.7.0 on)."""
    reads_ids = job.version >= Version.V0_7_0
    if not job.compares or job.facts.rows is None:
        return
    for same in job.train_rows.same_prompts:
        steps = [(line - 1) // job.prompts for line in same.lines]
        meets = any(first == second for first, second in pairwise(steps))
        can_meet = meets or job.flag("data.shuffle")
        # From v0.7.0 on the job gives each row an id where it has none.
        told_apart = reads_ids and (same.have_ids or not job.facts.rows.are_final)
        if can_meet and not told_apart:
            yield Problem(
                where=job.train_rows.path,
                what=f"lines {_numbers(same.lines)} have the same prompt,"
                " and the judge cannot tell their responses apart",
                fix="leave one row out" + (", or give each a prompt_id" if reads_ids else ""),
            )


@rule(Effect.STOPS, "JSONDecodeError when the row is drawn, perhaps after hours")
def rows_are_whole(job: View) -> Iterator[Problem]:
    """Each line is a JSON object."""
    for file in _files(job):
        if file.broken:
            what = f"lines {_numbers(file.broken)} are no JSON objects"
            yield Problem(where=file.path, what=what, fix="correct or remove them")


@rule(Effect.STOPS, "KeyError when the row is drawn")
def rows_ask(job: View) -> Iterator[Problem]:
    """Each row holds a prompt."""
    for file in _files(job):
        if file.without_prompt:
            yield Problem(
                where=file.path,
                what=f"lines {_numbers(file.without_prompt)} hold no prompt",
                allowed="responses_create_params.input, messages, prompt or question",
            )


@rule(Effect.STOPS, "JSONDecodeError when the empty line is drawn")
def no_blank_rows(job: View) -> Iterator[Problem]:
    """No line is blank."""
    for file in _final_files(job):
        if file.blank:
            what = f"lines {_numbers(file.blank)} are blank, and a blank line is a row"
            yield Problem(where=file.path, what=what, fix="remove them")


@rule(Effect.STOPS, "KeyError or TypeError when the row is drawn")
def rows_have_params(job: View) -> Iterator[Problem]:
    """Each row has an object `responses_create_params`."""
    for file in _final_files(job):
        if file.without_params:
            lines = _numbers(file.without_params)
            what = f"lines {lines} have no object responses_create_params"
            yield Problem(where=file.path, what=what)


@rule(Effect.STOPS, "KeyError when the row is drawn")
def rows_have_agents(job: View) -> Iterator[Problem]:
    """Each row names its agent."""
    for file in _final_files(job):
        if file.without_agent:
            yield Problem(
                where=file.path,
                key="agent_ref",
                what=f"lines {_numbers(file.without_agent)} name no agent",
                fix='give {"type": "responses_api_agents", "name": "genrm_simple_agent"}',
            )


@rule(Effect.STOPS, "ServerRefNotFoundError when the row is drawn")
def agents_exist(job: View) -> Iterator[Problem]:
    """The agents of the rows are servers of the configuration."""
    if set(job.config_paths) - {POLICY_FILE, COMPARE_FILE}:
        return  # agents of files that are not known here
    blocks = job.table("env.nemo_gym")
    known = default_agents(job) | {
        name for name in blocks if job.table(f"env.nemo_gym.{name}.responses_api_agents")
    }
    for file in _files(job):
        for name, line in (file.agents or {}).items():
            if name not in known:
                yield Problem(
                    where=f"{file.path}:{line}",
                    key="agent_ref",
                    what="names an agent that no server of env.nemo_gym is",
                    got=name,
                    allowed=", ".join(sorted(known)) or "none is configured",
                    fix=suggest(name, known),
                )


@rule(Effect.SILENT, "the judge sees empty turns instead of the prompt (NeMo-Gym up to 0.6.0)")
def input_is_text(job: View) -> Iterator[Problem]:
    """`input` is a list of messages whose content is a text."""
    for file in _final_files(job):
        if job.compares and file.flat_input:
            yield Problem(
                where=file.path,
                key="responses_create_params.input",
                what=f"lines {_numbers(file.flat_input)}: the judge would see empty turns",
                allowed='a list of {"role", "content": text}',
            )


@rule(
    Effect.SILENT,
    "responses grow to max_model_len: max_new_tokens is not read",
    before=Version.V0_7_0,
)
def responses_are_limited(job: View) -> Iterator[Problem]:
    """At v0.6.0 the rows limit the responses."""
    limit = job.number("policy.generation.max_new_tokens")
    context = job.number("policy.generation.vllm_cfg.max_model_len")
    for file in _final_files(job):
        if limit < context and file.without_limit:
            yield Problem(
                where=file.path,
                key="responses_create_params.max_output_tokens",
                what=f"{file.without_limit} rows lack it, and v0.6.0 does not read"
                f" policy.generation.max_new_tokens {limit} with NeMo-Gym",
                fix=f"write {limit} into each row",
            )


@rule(Effect.STOPS, "`NeMo Gym returned a result with no generation data` ends the run")
def prompts_fit(job: View) -> Iterator[Problem]:
    """The longest prompt leaves room for a response."""
    context = job.number("policy.generation.vllm_cfg.max_model_len")
    for file in _files(job):
        tokens = file.longest_tokens or 0
        if tokens >= context:
            line = file.longest[1] if file.longest else 0
            yield Problem(
                where=f"{file.path}:{line}" if line else file.path,
                what=f"the prompt has {tokens} tokens; data.max_input_seq_length does not cut it",
                allowed=f"less than policy.generation.vllm_cfg.max_model_len {context}",
                fix="leave the row out",
            )


@rule(Effect.SILENT, "both files share one task name", advice=True)
def files_have_names(job: View) -> Iterator[Problem]:
    """Training and validation files differ in their folder or in their name up to the first dot."""
    names = {
        key: "-".join(job.text(f"data.{key}.data_path").split("/")[-2:]).split(".")[0]
        for key in ("train", "validation")
    }
    if job.gym and names["train"] == names["validation"]:
        what = f"has the task name of the training file, {names['train']!r}"
        yield Problem(key="data.validation.data_path", what=what)


def _train_rows(job: View) -> int:
    return job.train_rows.rows * int(job.number("data.train.repeat", 1))


def _loader_batch(job: View) -> int:
    """Rows that the loader takes at once."""
    several = job.flag("data.use_multiple_dataloader")
    prompts = job.size("data.num_prompts_per_dataloader") if several else job.prompts
    samples = job.flag("grpo.use_dynamic_sampling")
    factor = job.number("grpo.batch_multiplier", 1) if samples else 1
    return max(1, int(prompts * factor))


def _files(job: View) -> list[FileRows]:
    rows = job.facts.rows
    return [file for file in (rows.train, rows.validation) if file] if rows and job.gym else []


def _final_files(job: View) -> list[FileRows]:
    return _files(job) if job.facts.rows and job.facts.rows.are_final else []


def _numbers(lines: tuple[int, ...]) -> str:
    return ", ".join(map(str, lines))
