"""NeMo-Gym's judge of pairs: groups that fill, GPUs that are free, servers that are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import (
    COMPARE_FILE,
    JUDGE_SIZES,
    View,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

GENERATIONS = "grpo.num_generations_per_prompt"
POLICY_FILE = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
KINDS = ("resources_servers", "responses_api_models", "responses_api_agents")
GENRM = "env.nemo_gym.genrm_model.responses_api_models"
COHORT_KEY = f"{COMPARE}.num_rollouts_per_prompt"


@rule(Effect.HANGS, "the judge waits for responses that are never sent, without a time limit")
def cohort_fills(job: View) -> Iterator[Problem]:
    """`num_rollouts_per_prompt` of the judge is `grpo.num_generations_per_prompt`."""
    if job.cohort not in (0, 1, job.generations):
        yield Problem(
            key=COHORT_KEY,
            what=f"the judge waits for {job.cohort} responses to a prompt,"
            f" and {GENERATIONS} sends {job.generations}: it would wait for ever",
            got=show(job.cohort),
            allowed=str(job.generations),
            fix=f"set {COHORT_KEY}={job.generations}",
        )


@rule(Effect.HANGS, "the judge waits for responses to validation prompts without a time limit")
def validation_cohort_fills(job: View) -> Iterator[Problem]:
    """Each validation prompt is sent as often as the judge waits for."""
    if not job.validates or job.get("data.validation") is None or job.cohort <= 1:
        return
    agents = set(job.validation_rows.agents or ()) if _knows_validation(job) else set()
    if agents and not agents & default_agents(job):
        return  # none of these rows goes to the judge
    wanted = job.generations  # which the judge waits for, or the rule above says so
    repeat, groups = "data.validation.repeat", "grpo.val_num_generations_per_prompt"
    sent = job.number(repeat, 1)
    has_groups = job.version >= Version.HEAD
    sent *= job.number(groups, 1) if has_groups else 1
    copies = _copies_in_file(job)
    if copies is None or sent * copies != wanted:
        come = sent * copies if copies else "different numbers"
        key = groups if has_groups else repeat
        unrepeated = f", {repeat}=1" if has_groups and job.number(repeat, 1) != 1 else ""
        yield Problem(
            key=key,
            what=f"the judge waits for {wanted} responses to a validation prompt, and {come} come",
            got=show(job.get(key, 1)),
            allowed=str(wanted),
            fix=f"set {key}={wanted}{unrepeated}, with each prompt once in the file",
        )


def _knows_validation(job: View) -> bool:
    return job.facts.rows is not None and job.facts.rows.validation is not None


def _copies_in_file(job: View) -> int | None:
    """How often the judge sees each validation prompt in an unrepeated file."""
    rows = job.facts.rows
    if rows is None or rows.validation is None:
        return 1
    if job.version < Version.V0_7_0:  # its NeMo-Gym knows prompts by their text alone
        return rows.validation.copies
    # Where a row has no id, the job gives it one of its own.
    reads_ids = rows.are_final or rows.validation.all_have_ids
    return rows.validation.copies_of_ids if reads_ids else 1


@rule(Effect.HANGS, "one server process holds the group of another, and neither fills")
def one_worker(job: View) -> Iterator[Problem]:
    """The comparing server has one process."""
    workers = job.number(f"{COMPARE}.num_workers", 1)
    if job.compares and workers > 1:
        what = "each process collects groups of its own, which never fill"
        key = f"{COMPARE}.num_workers"
        yield Problem(key=key, what=what, got=show(workers), allowed="1")


@rule(Effect.HANGS, "the last response of a group gets an error, the others wait for ever")
def comparison_names(job: View) -> Iterator[Problem]:
    """The aggregator and the strategy of comparison are known."""
    for name, allowed in (
        ("aggregator_method", ("simple_tiebreaker",)),
        ("comparison_strategy", ("circular", "all_pairs")),
    ):
        value = job.get(f"{COMPARE}.{name}", allowed[0])
        if job.compares and value not in allowed:
            key, names = f"{COMPARE}.{name}", " or ".join(allowed)
            yield Problem(key=key, what="is unknown", got=show(value), allowed=names)


@rule(Effect.HANGS, "the judge waits for its placement group without a time limit")
def judge_has_gpus(job: View) -> Iterator[Problem]:
    """The job has GPUs for the judge beside those of the policy."""
    gpus, nodes = job.facts.gpus_per_node, job.facts.nodes or 1
    if gpus is None:
        return
    taken, policy_nodes = job.gpus_per_node, job.num_nodes
    if taken > gpus or policy_nodes > nodes:
        return  # the policy alone does not fit, which has a rule of its own
    for server in job.local_servers if job.gym else ():
        if server.gpus > gpus:
            continue
        beside, free = (gpus - taken) // server.gpus, gpus // server.gpus
        room = policy_nodes * beside + (nodes - policy_nodes) * free
        if room >= server.replicas:
            continue
        needed = server.replicas * server.gpus
        left = nodes * gpus - policy_nodes * taken
        one_node = f"set cluster.gpus_per_node={gpus - needed}"
        more = -(-(server.replicas - room) // free)
        yield Problem(
            key=f"{server.key}.vllm_serve_kwargs",
            what=f"{nodes} x {gpus} GPUs, the policy takes {policy_nodes} x {taken},"
            f" the judge needs DP {server.replicas} * (TP * PP) {server.gpus} = {needed}",
            got=f"{left} left",
            fix=(f"{one_node}, or " if nodes == 1 and 0 < needed < gpus else "")
            + f"start the job on {nodes + more} nodes",
        )


@rule(Effect.HANGS, "the judge waits for its placement group without a time limit")
def judge_fits_a_node(job: View) -> Iterator[Problem]:
    """A copy of the judge fits one node, unless its strategy is span."""
    gpus = job.facts.gpus_per_node
    if gpus is None or not job.gym:
        return
    for server in job.local_servers:
        if server.gpus > gpus and server.strategy != "span":
            yield Problem(
                key=f"{server.key}.vllm_serve_kwargs.tensor_parallel_size",
                what="TP * PP of the judge do not fit a node",
                got=show(server.gpus),
                allowed=f"up to {gpus}",
                fix="or set vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY=span",
            )


@rule(Effect.STOPS, "AssertionError when the judge starts")
def serve_settings(job: View) -> Iterator[Problem]:
    """A model that NeMo-Gym serves has its three sizes and its packing strategy."""
    wanted = [f"vllm_serve_kwargs.{name}" for name in JUDGE_SIZES]
    wanted.append("vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY")
    for server in job.local_servers if job.gym else ():
        # The block of this name amends that of NeMo-Gym's file, which has all four.
        is_amended = COMPARE_FILE in job.config_paths and server.key == f"{GENRM}.genrm_model"
        for key in (f"{server.key}.{name}" for name in wanted):
            if not job.get(key, is_amended):
                got = show(job.get(key))
                yield Problem(key=key, what="is needed to serve the model", got=got)


@rule(Effect.STOPS, "`Interpolation key 'genrm_model_name' not found` when NeMo-Gym starts")
def judge_is_named(job: View) -> Iterator[Problem]:
    """The judge has a model."""
    if set(job.config_paths) - {POLICY_FILE, COMPARE_FILE}:
        return  # another file may name it
    key, _ = job.judge
    name = "env.nemo_gym.genrm_model_name"
    if not (job.get(f"{key}.model") or job.get(name)):
        fix = f"set {key}.model, or RL_REWARD_MODEL"
        yield Problem(key=name, what="there is no judge", fix=fix)


@rule(Effect.SILENT, "the judge gets a conversation without the two responses, or is not started")
def judge_implementation(job: View) -> Iterator[Problem]:
    """The judge is one server, implemented by `genrm_model`."""
    names = list(job.table(job.judge_key))
    if job.compares and names and names != ["genrm_model"]:
        yield Problem(
            key=job.judge_key,
            what="only genrm_model puts the responses and the principle into the request",
            got=", ".join(names),
            allowed="genrm_model alone",
            fix=f"give the settings under {job.judge_key}.genrm_model",
        )


@rule(Effect.SILENT, "a server on GPUs of the job starts all the same", before=Version.V0_7_0)
def external_judge(job: View) -> Iterator[Problem]:
    """A judge elsewhere (`base_url`) needs the NeMo-Gym of v0.7.0."""
    key, table = job.judge
    if table.get("base_url"):
        yield Problem(
            key=f"{key}.base_url",
            what="is not read by the NeMo-Gym of v0.6.0, which starts a judge of its own",
            got=show(table["base_url"]),
            allowed="null",
            fix="use NeMo-RL v0.7.0 or newer",
        )


@rule(Effect.SILENT, "every reward is `default_score`, every advantage 0")
def cohort_compares(job: View) -> Iterator[Problem]:
    """The judge compares at least two responses."""
    if job.cohort <= 1 and job.get("grpo.adv_estimator.name") != "opd":  # which has no rewards
        yield Problem(
            key=COHORT_KEY,
            what="a response alone is not compared: each reward would be default_score",
            got=show(job.cohort),
            allowed=f"{GENERATIONS}, 2 or more",
        )


@rule(Effect.SILENT, "the block is no server and is ignored (Gym#2220)")
def blocks_are_servers(job: View) -> Iterator[Problem]:
    """A block of `env.nemo_gym` is a server: it has an entrypoint, or amends a known one."""
    if not job.gym:
        return
    known = {"policy_model", "genrm_model", "genrm_compare_resources_server", *default_agents(job)}
    if set(job.config_paths) - {POLICY_FILE, COMPARE_FILE}:
        known |= set(job.table("env.nemo_gym")) - {"genrm_compare"}  # of files not known here
    for name, block in job.table("env.nemo_gym").items():
        if not isinstance(block, Mapping) or name in known or "_copy" in block:
            continue
        for kind in (kind for kind in KINDS if isinstance(block.get(kind), Mapping)):
            tables = [table for table in block[kind].values() if isinstance(table, Mapping)]
            if not any("entrypoint" in table for table in tables):
                is_judge = "genrm_compare" in block[kind]
                yield Problem(
                    key=f"env.nemo_gym.{name}",
                    what="is no server of NeMo-Gym (it has no entrypoint) and would be ignored",
                    fix=f"move it to {COMPARE.partition('.resources')[0]}"
                    if is_judge
                    else "use the name of a server, or give its entrypoint",
                )


@rule(Effect.STOPS, "`Could not find policy_model_reasoning_off` when NeMo-Gym starts")
def second_policy(job: View) -> Iterator[Problem]:
    """The second agent of genrm_compare.yaml finds its `policy_model_reasoning_off`."""
    name = "env.nemo_gym.policy_model_reasoning_off"
    if job.gym and COMPARE_FILE in job.config_paths and not job.has(name):
        yield Problem(
            key=name,
            what=f"is asked for by an agent of {COMPARE_FILE}",
            fix="copy the block of policy_model under this name",
        )


@rule(Effect.SILENT, "the key is not read", before=Version.V0_7_0)
def style_penalty(job: View) -> Iterator[Problem]:
    """The NeMo-Gym of v0.6.0 has no penalty for style."""
    key = f"{COMPARE}.group_style_penalty_coeff"
    value = job.number(key, 0)
    if job.compares and value > 0:
        what = "is not read by the NeMo-Gym of v0.6.0"
        fix = "leave it out, or use v0.7.0"
        yield Problem(key=key, what=what, got=show(value), allowed="0", fix=fix)


@rule(Effect.SILENT, "judgements are cut, cannot be parsed, and become default scores")
def judge_has_room(job: View) -> Iterator[Problem]:
    """The judge's answer fits its context."""
    key = f"{COMPARE}.genrm_responses_create_params.max_output_tokens"
    judge, _ = job.judge
    context = job.number(f"{judge}.vllm_serve_kwargs.max_model_len")
    answer = job.number(key)
    if answer >= context:
        yield Problem(
            key=key,
            what="the judge's answer leaves no room for the two responses",
            got=show(answer),
            allowed=f"less than max_model_len {context} of the judge",
        )


@rule(Effect.SILENT, "the policy judges itself, and its taste is what is learned", advice=True)
def judge_is_another(job: View) -> Iterator[Problem]:
    """The judge is another model than the policy."""
    key, table = job.judge
    name = table.get("model") or job.get("env.nemo_gym.genrm_model_name")
    if job.text("policy.model_name") == name:
        yield Problem(key=f"{key}.model", what="the policy would judge itself", got=show(name))


def default_agents(job: View) -> set[str]:
    """The agents that NeMo-Gym's file for the judge defines."""
    names = {"genrm_simple_agent", "genrm_simple_agent_reasoning_off"}
    return names if COMPARE_FILE in job.config_paths else set()
