"""Which backend trains the policy, and what each of them can do."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

MEGATRON = "policy.megatron_cfg.enabled"
PRECISIONS = ("bfloat16", "float16", "float32")
FORMATS = ("megatron_bridge", "megatron_lm")


@rule(Effect.STOPS, "ValueError `Configure either Megatron ... or DTensor`")
def one_backend(job: View) -> Iterator[Problem]:
    """Exactly one of the two backends is enabled."""
    other = job.flag(f"{job.automodel}.enabled")
    if job.megatron == other:
        state = show(other)
        yield Problem(
            key=MEGATRON,
            what="exactly one backend trains the policy",
            got=f"{MEGATRON} {state}, {job.automodel}.enabled {state}",
            allowed="one true, one false",
            fix=f"set {MEGATRON}=true {job.automodel}.enabled=false",
        )


@rule(Effect.SILENT, "checkpoints are shards of Automodel, which nothing here goes on from")
def artifact(job: View) -> Iterator[Problem]:
    """What is published as `checkpoint_nemo_rl` is trained by Megatron."""
    if job.facts.publishes_megatron and job.flag(f"{job.automodel}.enabled") and not job.megatron:
        yield Problem(
            key=f"{job.automodel}.enabled",
            what="Automodel writes no checkpoint_nemo_rl, which this step makes",
            got="true",
            allowed="false",
            fix=f"set {MEGATRON}=true {job.automodel}.enabled=false",
        )


@rule(Effect.STOPS, "ValueError `has been renamed to policy.automodel_cfg`", since=Version.V0_8_0)
def renamed_backend(job: View) -> Iterator[Problem]:
    """From v0.8.0 on, without Megatron, `policy.dtensor_cfg` is `policy.automodel_cfg`."""
    if job.has("policy.dtensor_cfg") and not job.megatron:
        yield Problem(
            key="policy.dtensor_cfg",
            what="is called policy.automodel_cfg from v0.8.0 on",
            got=f"NeMo-RL {job.version}",
            fix="rename it, and leave _v2 out",
        )


@rule(Effect.STOPS, "ValueError for `_v2` when the configuration is read", since=Version.V0_8_0)
def no_second_worker(job: View) -> Iterator[Problem]:
    """From v0.8.0 on there is one Automodel worker, and no `_v2`."""
    if job.has("policy.automodel_cfg._v2") and not job.megatron:
        got = show(job.get("policy.automodel_cfg._v2"))
        what = "is gone in v0.8.0: there is one worker"
        yield Problem(key="policy.automodel_cfg._v2", what=what, got=got, fix="leave it out")


@rule(
    Effect.STOPS,
    "ValueError `model_save_format must be None` at the first save, with Megatron too",
    before=Version.V0_8_0,
)
def save_format(job: View) -> Iterator[Problem]:
    """`checkpointing.model_save_format` is null while `policy.dtensor_cfg._v2` is not true."""
    form = job.get("checkpointing.model_save_format")
    is_saving = job.flag("checkpointing.enabled", default=True)
    if form is not None and is_saving and not job.flag("policy.dtensor_cfg._v2"):
        yield Problem(
            key="checkpointing.model_save_format",
            what="is refused at the first save while policy.dtensor_cfg._v2 is not true,"
            " with Megatron too",
            got=show(form),
            allowed="null",
            fix="set it to null, or policy.dtensor_cfg._v2=true",
        )


@rule(Effect.STOPS, "the configuration is refused at load", since=Version.V0_8_0)
def automodel_checkpoint(job: View) -> Iterator[Problem]:
    """From v0.8.0 on Automodel has a save format of its own."""
    section = "policy.automodel_cfg.checkpoint"
    if not job.flag("policy.automodel_cfg.enabled"):
        return
    if job.get(f"{section}.model_save_format") is None:
        yield Problem(
            key=f"{section}.model_save_format",
            what="is required from v0.8.0 on, where it left checkpointing",
            allowed="safetensors or torch_save",
        )
    consolidated = job.get(f"{section}.save_consolidated", "false")
    if consolidated not in ("false", "final", "every"):
        yield Problem(
            key=f"{section}.save_consolidated",
            what="is a word from v0.8.0 on",
            got=show(consolidated),
            allowed='"false", "final" or "every"',
        )


@rule(Effect.STOPS, "ValueError when the policy is made")
def draft_backend(job: View) -> Iterator[Problem]:
    """A draft model is trained by Megatron without packing."""
    if not job.flag("policy.draft.enabled"):
        return
    for lacks, key in (
        (not job.megatron, f"{MEGATRON}=true"),
        (job.packs, "policy.sequence_packing.enabled=false"),
    ):
        if lacks:
            what = f"a draft model needs {key}"
            yield Problem(key="policy.draft.enabled", what=what, got="true", fix=f"set {key}")


@rule(Effect.STOPS, "NotImplementedError in the set-up of Megatron")
def reward_model_backend(job: View) -> Iterator[Problem]:
    """Reward models are not trained by Megatron."""
    if job.megatron and job.flag("policy.reward_model_cfg.enabled"):
        yield Problem(
            key="policy.reward_model_cfg.enabled",
            what="is not possible with Megatron",
            got="true",
            allowed="false",
        )


@rule(Effect.STOPS, "KeyError / `Unknown precision` in the set-up of the workers")
def precision(job: View) -> Iterator[Problem]:
    """`policy.precision` and Megatron's `pipeline_dtype` are one of three names."""
    keys = ["policy.precision"] + ["policy.megatron_cfg.pipeline_dtype"] * job.megatron
    for key in keys:
        value = job.get(key)
        if value is not None and value not in PRECISIONS:
            allowed = ", ".join(PRECISIONS)
            yield Problem(key=key, what="is unknown", got=show(value), allowed=allowed)


@rule(Effect.STOPS, "AssertionError: context parallel together with sequence parallel (RL#659)")
def automodel_context_parallel(job: View) -> Iterator[Problem]:
    """Automodel's context parallelism excludes its sequence parallelism with TP > 1."""
    if job.megatron or job.context_parallel <= 1 or job.tensor_parallel <= 1:
        return
    if job.flag(f"{job.automodel}.sequence_parallel"):
        yield Problem(
            key=f"{job.automodel}.context_parallel_size",
            what=f"excludes sequence_parallel with TP {job.tensor_parallel}",
            got=show(job.context_parallel),
            allowed="1",
            fix=f"or set {job.automodel}.sequence_parallel=false",
        )


@rule(Effect.STOPS, "FileNotFoundError or ValueError in the set-up", since=Version.V0_7_0)
def pretrained_format(job: View) -> Iterator[Problem]:
    """A Megatron checkpoint to start from needs the Megatron backend and a known format."""
    for section in ("policy", "checkpointing"):
        key = f"{section}.pretrained_checkpoint"
        given = job.table(key)
        if given.get("path") is None:
            continue
        if not job.megatron:
            what = "is read by the Megatron backend only"
            yield Problem(key=key, what=what, fix=f"set {MEGATRON}=true, or leave it out")
        form = job.get(f"{key}.format")
        if form not in FORMATS:
            allowed = " or ".join(FORMATS)
            what = "is unknown"
            yield Problem(key=f"{key}.format", what=what, got=show(form), allowed=allowed)


@rule(Effect.SILENT, "the key is not read: training starts from model_name", before=Version.V0_7_0)
def pretrained_unread(job: View) -> Iterator[Problem]:
    """NeMo-RL v0.6.0 starts from Hugging Face weights only."""
    for section in ("policy", "checkpointing"):
        key = f"{section}.pretrained_checkpoint"
        if job.table(key).get("path") is not None:
            yield Problem(
                key=key,
                what="is not read by v0.6.0, which would start from policy.model_name",
                got=show(job.raw("policy.model_name")),
                fix="convert the checkpoint to Hugging Face weights and name them there,"
                " or use v0.7.0",
            )


@rule(
    Effect.STOPS,
    "FileNotFoundError `Pretrained run config not found` on all nodes but the first",
    advice=True,
)
def shared_conversion(job: View) -> Iterator[Problem]:
    """The converted model of several nodes stands on storage that all of them see."""
    names = {"NRL_MEGATRON_CHECKPOINT_DIR", "HF_HOME"}
    is_home = job.facts.knows_all_variables and not job.facts.variables & names
    if job.megatron and job.num_nodes > 1 and is_home:
        yield Problem(
            key="cluster.num_nodes",
            what=f"{job.num_nodes} nodes read the converted model, which the first of them"
            " writes to its home directory",
            fix="set NRL_MEGATRON_CHECKPOINT_DIR to a folder that all nodes see",
        )
