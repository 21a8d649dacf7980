"""Without NeMo-Gym: rewards by NeMo-RL's own environment, a scalar reward model of Hugging Face.

NeMo-RL starts it on GPUs of ``cluster`` (``env.reward_model.resources``): on one node beside the
policy's, on more nodes as the last of ``cluster.num_nodes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.steps.blocks.data.jsonl import read_rows
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import ABSENT, Draft, find, show
from nemotron_style.steps.rl.rlhf.nemo_rl.job.rows import read_text
from nemotron_style.steps.rl.rlhf.nemo_rl.placement import (
    GPUS_OF_A_NODE,
    Placement,
    check_site,
    count_ranks,
    find_fitting,
    nothing_fits,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import GYM, JUDGE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

SWITCH = "env.should_use_nemo_gym"
MODEL = "env.reward_model"
RESOURCES = f"{MODEL}.resources"
SCRIPT = "examples/run_grpo.py"
"""Of NeMo-RL, run as it is."""
DATA = ("dataset_name", "env_name", "processor", "input_key", "output_key")
"""How NeMo-RL reads the rows that the job makes, and sends them to the reward model."""
NEEDS_GYM = ("grpo.invalid_tool_call_advantage", "grpo.malformed_thinking_advantage")
DOUBLE_TEMPLATE = (
    "the reward model reads a prompt with the marks of the policy's chat template, inside of its"
    " own: NeMo-RL's data processor leaves them in"
)


def choose_rewards(draft: Draft) -> bool:
    """Whether NeMo-Gym gives the rewards, as it does where nobody says otherwise.

    Where it does not, what was given for it is taken out: it stands in the step's own config too.
    """
    gym = _uses_gym(draft)
    if not gym:
        _leave_gym(draft)
    return gym


def _uses_gym(draft: Draft) -> bool:
    return find(draft.given, SWITCH) in (ABSENT, True)


def _leave_gym(draft: Draft) -> None:
    if find(draft.given, f"{JUDGE}.base_url") not in (ABSENT, None, []):
        what = "is of a judge elsewhere; a reward model without NeMo-Gym runs on GPUs of the job"
        fix = f"leave it out, or set {SWITCH}=true"
        draft.problems.append(Problem(key=f"{JUDGE}.base_url", what=what, fix=fix))
    if draft.take(GYM) not in (ABSENT, None, {}):
        draft.told.append(f"{GYM} is dropped: {SWITCH} is false")
    for key in NEEDS_GYM:
        if (value := draft.take(key)) not in (ABSENT, None):
            draft.told.append(f"{key}={show(value)} is dropped: only NeMo-Gym tells such answers")
    for part in ("default", "train", "validation"):
        for name in (*DATA, "repeat"):
            if (value := draft.take(f"data.{part}.{name}")) not in (ABSENT, None):
                why = "the rows that the job makes are read in one way, each once"
                draft.told.append(f"data.{part}.{name}={show(value)} is dropped: {why}")


def values_without_gym(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The base values by dotted key, with those of the reward model for those of NeMo-Gym."""
    return {key: value for key, value in base.items() if not key.startswith("env.")} | dict(own)


def check_rewards(draft: Draft, site: JobSite) -> Iterator[Problem]:
    """Why there are no rewards, or not those that were asked for."""
    if _uses_gym(draft):
        if find(draft.given, MODEL) not in (ABSENT, None, {}):
            what = "would not be asked: NeMo-Gym gives the rewards"
            yield Problem(key=MODEL, what=what, fix=f"leave it out, or set {SWITCH}=false")
        return
    yield from _check_rows(site)
    if draft.version >= Version.V0_8_0:
        what = f"how NeMo-RL {draft.version} reads {MODEL} was not seen"
        fix = f"take {Version.HEAD} or an older one (nemo_rl.version, image), or set {SWITCH}=true"
        yield Problem(key=SWITCH, what=what, got=show(draft.get(SWITCH)), fix=fix)
    elif not draft.get(f"{MODEL}.model_name"):
        yield Problem(
            key=SWITCH,
            what="without NeMo-Gym a scalar reward model gives the rewards, and none is named",
            got=show(draft.get(SWITCH)),
            fix=f"name one of Hugging Face in {MODEL}.model_name,"
            f" or set {SWITCH}=true for a judge in NeMo-Gym",
        )


def _check_rows(site: JobSite) -> Iterator[Problem]:
    """Rows that the job would refuse, where they can be read from here."""
    for slot in ("prompts", "validation"):
        if slot not in site.files:
            continue
        try:
            read_rows(site.files[slot], read_text)
        except InputError as error:
            yield from error.problems


def derive_reward_model(draft: Draft, site: JobSite) -> Placement:
    """What its environment and the data of its path want, and its GPUs."""
    name = draft.get(f"{MODEL}.model_name")
    draft.derive(f"{MODEL}.tokenizer.name", name, f"{MODEL}.model_name")
    draft.derive(f"{MODEL}.precision", draft.get("policy.precision"), "policy.precision")
    if draft.get("data.max_input_seq_length") is None:
        length = draft.get("policy.max_total_sequence_length")
        why = "NeMo-RL compares every prompt with it; one that is longer teaches nothing"
        draft.force("data.max_input_seq_length", length, why)
    _derive_validation_sizes(draft)
    return _place(draft, site)


def _derive_validation_sizes(draft: Draft) -> None:
    """How many rows a validation takes: whole batches alone, and one at least."""
    batch = draft.get("grpo.val_batch_size")
    if batch is None:
        batch = 256
        draft.force("grpo.val_batch_size", batch, "NeMo-RL divides by it")
    if draft.get("grpo.max_val_samples") is None:
        why = f"one batch: a validation takes the first {batch} rows at most"
        draft.force("grpo.max_val_samples", batch, why)
    if draft.get("grpo.max_val_samples") < batch:
        draft.problems.append(
            Problem(
                key="grpo.max_val_samples",
                what="holds no whole batch of validation, so nothing would be validated",
                got=show(draft.get("grpo.max_val_samples")),
                allowed=f"at least grpo.val_batch_size={batch}",
            )
        )


def _place(draft: Draft, site: JobSite) -> Placement:
    """Decide the GPUs of the policy beside those of the reward model.

    A problem is added where no number of GPUs fits. ``cluster`` counts both, as NeMo-RL does.
    """
    asked = draft.get("cluster.gpus_per_node")
    node = site.gpus_per_node or max(GPUS_OF_A_NODE, asked or 0)
    own, own_nodes = (draft.get(f"{RESOURCES}.{name}") for name in ("gpus_per_node", "num_nodes"))
    given = draft.was_given("cluster.num_nodes")
    total = draft.get("cluster.num_nodes") if given else site.nodes or 1
    shares = total == 1
    nodes = 1 if shares else total - own_nodes
    room = node - own if shares else node
    if nodes < 1 or room < 1 or own > node or (shares and own_nodes > 1):
        draft.problems.append(_no_room(total, node, own_nodes, own))
    fitting = find_fitting(draft, max(nodes, 1), max(room, 1))
    wanted = (asked or node) - (own if shares else 0)
    gpus = wanted if wanted in fitting else next(iter(fitting), 0)
    if not gpus:
        gpus = max(1, min(wanted, room))
        left = f"{nodes} x {room} GPUs without those of the reward model"
        fix = "change cluster.num_nodes, the parallel sizes, or policy.train_global_batch_size"
        draft.problems.append(nothing_fits(draft, left, fix))
    placed = Placement(
        node_gpus=node,
        policy_nodes=max(nodes, 1),
        policy_gpus=gpus,
        judge_gpus=own * own_nodes,
        judge_nodes=0 if shares else own_nodes,
        ranks=count_ranks(draft),
        judge="reward model",
    )
    taken = gpus + own if shares else gpus
    why = f"{placed.policy_nodes} x {gpus} GPUs = {placed.data_parallel} copies of the policy"
    why += f", and {own} of the reward model" if shares else ""
    draft.force("cluster.gpus_per_node", taken, why)
    why = "nodes of the profile" if shares else f"{nodes} of the policy, {own_nodes} of rewards"
    draft.derive("cluster.num_nodes", total, why)
    draft.problems += [*check_site(placed, site), *_check_copies(draft, placed)]
    return placed


def _no_room(total: int, node: int, own_nodes: int, own: int) -> Problem:
    return Problem(
        key=RESOURCES,
        what="the reward model leaves no GPUs for the policy",
        got=f"{own_nodes} x {own} GPUs of {total} x {node}",
        fix="give the job more nodes (cluster.num_nodes counts both), or it fewer GPUs",
    )


def _check_copies(draft: Draft, placed: Placement) -> Iterator[Problem]:
    """Copies of the reward model share evenly what is sent to them at once."""
    sizes = (draft.get(f"{MODEL}.dtensor_cfg.{n}_parallel_size") for n in ("tensor", "context"))
    tensor, context = (size or 1 for size in sizes)
    copies, rest = divmod(placed.judge_gpus, tensor * context)
    one_by_one = draft.get("policy.generation.vllm_cfg.async_engine")
    samples = draft.get("grpo.num_prompts_per_step") * draft.get("grpo.num_generations_per_prompt")
    sent = 1 if one_by_one else samples
    if rest or sent % max(1, copies):
        yield Problem(
            key=RESOURCES,
            what="the reward model's copies do not share evenly what is scored at once",
            got=f"{placed.judge_gpus} GPUs / (TP {tensor} x CP {context}) for {sent} answers"
            + (" (async_engine sends them one by one)" if one_by_one else ""),
            fix="change its GPUs, or env.reward_model.dtensor_cfg.tensor_parallel_size",
        )
