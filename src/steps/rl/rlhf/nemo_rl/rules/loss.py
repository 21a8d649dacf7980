"""The policy loss and the advantages."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

TRUNCATION = "loss_fn.truncated_importance_sampling_type"
RATIO = "loss_fn.truncated_importance_sampling_ratio"
CORRECTION = "loss_fn.use_importance_sampling_correction"
SEQUENCE_LEVEL = "loss_fn.sequence_level_importance_ratios"
KL = "loss_fn.reference_policy_kl_penalty"
TYPES = ("tis", "icepop", "seq-mask-tis")


def is_truncated(job: View) -> bool:
    """Whether the ratios are truncated: up to v0.6.0 the ratio decides, then the type."""
    return job.get(RATIO if job.version < Version.V0_7_0 else TRUNCATION) is not None


@rule(Effect.STOPS, "AssertionError when the loss is made")
def truncation_corrects(job: View) -> Iterator[Problem]:
    """Truncated importance sampling needs the importance sampling correction."""
    if is_truncated(job) and not job.flag(CORRECTION):
        key = RATIO if job.version < Version.V0_7_0 else TRUNCATION
        yield Problem(
            key=key,
            what=f"needs {CORRECTION}=true",
            got=f"{job.get(key)} with {CORRECTION} false",
            fix=f"set {CORRECTION}=true, or {key}=null",
        )


@rule(Effect.STOPS, "AssertionError when the loss is made")
def truncation_type(job: View) -> Iterator[Problem]:
    """The type of truncation is tis, icepop or seq-mask-tis."""
    value = job.get(TRUNCATION)
    if is_truncated(job) and value not in TYPES:
        yield Problem(key=TRUNCATION, what="is unknown", got=show(value), allowed=", ".join(TYPES))


@rule(Effect.STOPS, "AssertionError when the loss is made")
def truncation_ratio(job: View) -> Iterator[Problem]:
    """The ratio of truncation is positive."""
    value = job.get(RATIO)
    if is_truncated(job) and (value is None or job.number(RATIO) <= 0):
        what, got = f"with {TRUNCATION} {job.get(TRUNCATION)}", show(value)
        yield Problem(key=RATIO, what=what, got=got, allowed="a number above 0")


@rule(
    Effect.STOPS,
    "the loss is made and raises in its first call",
    since=Version.V0_7_0,
)
def ratio_without_type(job: View) -> Iterator[Problem]:
    """From v0.7.0 on a ratio needs its type."""
    if job.get(RATIO) is not None and job.get(TRUNCATION) is None:
        got = f"{job.get(RATIO)} with type null"
        fix = f"set {TRUNCATION}=tis, or the ratio to null"
        yield Problem(key=RATIO, what=f"needs {TRUNCATION}", got=got, fix=fix)


@rule(Effect.STOPS, "AssertionError when the loss is made", since=Version.V0_7_0)
def truncation_bounds(job: View) -> Iterator[Problem]:
    """icepop and seq-mask-tis have a lower bound, and it is not above the ratio."""
    key, form = f"{RATIO}_min", job.get(TRUNCATION)
    if not is_truncated(job):
        return
    if job.get(key) is None:
        if form in ("icepop", "seq-mask-tis"):
            what = f"{form} needs a lower bound"
            yield Problem(key=key, what=what, got="null", allowed=f"up to {job.get(RATIO)}")
    elif job.number(key) > job.number(RATIO):
        what = "is above the upper bound"
        yield Problem(key=key, what=what, got=show(job.get(key)), allowed=f"up to {job.get(RATIO)}")


@rule(Effect.STOPS, "AssertionError when the loss is made")
def masked_tokens(job: View) -> Iterator[Problem]:
    """seq-mask-tis excludes sequence-level ratios."""
    if is_truncated(job) and job.get(TRUNCATION) == "seq-mask-tis" and job.flag(SEQUENCE_LEVEL):
        what, fix = f"seq-mask-tis excludes {SEQUENCE_LEVEL}", f"set {SEQUENCE_LEVEL}=false"
        yield Problem(key=TRUNCATION, what=what, got="both", fix=fix)


@rule(Effect.STOPS, "AssertionError when the loss is made")
def sequence_level(job: View) -> Iterator[Problem]:
    """Sequence-level ratios exclude the token-level loss."""
    if job.flag(SEQUENCE_LEVEL) and job.flag("loss_fn.token_level_loss", default=True):
        yield Problem(
            key=SEQUENCE_LEVEL,
            what="excludes the token-level loss",
            got="both true",
            fix="set loss_fn.token_level_loss=false",
        )


@rule(Effect.STOPS, "AssertionError when the loss is made", since=Version.V0_7_0)
def cispo(job: View) -> Iterator[Problem]:
    """CISPO needs the token-level ratio and nothing that replaces it."""
    if not job.flag("loss_fn.use_cispo"):
        return
    flags = ("disable_ppo_ratio", "force_on_policy_ratio", "sequence_level_importance_ratios")
    against = {f"{name}=false": job.flag(f"loss_fn.{name}") for name in flags}
    against["ratio_clip_c=null"] = job.get("loss_fn.ratio_clip_c") is not None
    against["token_level_loss=true"] = not job.flag("loss_fn.token_level_loss", default=True)
    for wanted in (text for text, breaks in against.items() if breaks):
        name = wanted.partition("=")[0]
        yield Problem(
            key="loss_fn.use_cispo",
            what=f"needs loss_fn.{wanted}",
            got=show(job.get(f"loss_fn.{name}")),
            fix=f"set loss_fn.{wanted}",
        )


@rule(Effect.STOPS, "AssertionError in the first update")
def dual_clip(job: View) -> Iterator[Problem]:
    """The dual clip is above 1."""
    if job.get("loss_fn.ratio_clip_c") is not None and job.number("loss_fn.ratio_clip_c") <= 1:
        got = str(job.get("loss_fn.ratio_clip_c"))
        what = "the dual clip is above 1"
        yield Problem(key="loss_fn.ratio_clip_c", what=what, got=got, allowed="null, or above 1")


@rule(Effect.STOPS, "ValueError in the first update")
def kl_type(job: View) -> Iterator[Problem]:
    """The estimator of the KL is k1, k2 or k3."""
    value = job.get("loss_fn.reference_policy_kl_type", "k3")
    if job.number(KL, 0) != 0 and value not in ("k1", "k2", "k3"):
        key = "loss_fn.reference_policy_kl_type"
        yield Problem(key=key, what="is unknown", got=show(value), allowed="k1, k2, k3")


@rule(Effect.STOPS, "ValueError `Invalid adv_estimator name` when training starts")
def advantage_estimator(job: View) -> Iterator[Problem]:
    """The estimator of advantages is one that the version has."""
    names = ["grpo", "gdpo", "reinforce_plus_plus"]
    names += ["opd"] if job.version >= Version.V0_7_0 else []
    value = job.get("grpo.adv_estimator.name", "grpo")
    if value not in names:
        key = "grpo.adv_estimator.name"
        yield Problem(key=key, what="is unknown", got=show(value), allowed=", ".join(names))


@rule(
    Effect.SILENT,
    "advantages of nearly constant groups grow without bound (RL#1518, RL#4158, RL#4161)",
    since=Version.V0_7_0,  # v0.6.0 has no clip to advise
    advice=True,
)
def unclipped_advantages(job: View) -> Iterator[Problem]:
    """Normalised leave-one-out advantages are clipped."""
    flags = ("normalize_rewards", "use_leave_one_out_baseline")
    normalises = all(job.flag(f"grpo.adv_estimator.{name}", default=True) for name in flags)
    bounds = [job.get(f"grpo.advantage_clip_{side}") for side in ("low", "high")]
    if normalises and job.generations > 1 and None in bounds:
        yield Problem(
            key="grpo.adv_estimator.normalize_rewards",
            what="with use_leave_one_out_baseline, nearly equal rewards of a group give"
            " very large advantages",
            fix="set grpo.advantage_clip_low and grpo.advantage_clip_high",
        )


@rule(Effect.SILENT, "the standard deviation is not a number and becomes 0", advice=True)
def pairs_are_normalised(job: View) -> Iterator[Problem]:
    """With a leave-one-out baseline, groups have more than two responses."""
    baseline = job.flag("grpo.adv_estimator.use_leave_one_out_baseline", default=True)
    normalises = job.flag("grpo.adv_estimator.normalize_rewards", default=True)
    if job.generations == 2 and baseline and normalises:
        yield Problem(
            key="grpo.num_generations_per_prompt",
            what="with groups of 2 and a leave-one-out baseline, advantages are not normalised",
        )


@rule(
    Effect.SILENT,
    "only `adv_estimator.normalize_rewards` is read",
    since=Version.HEAD,
)
def normalisation_unread(job: View) -> Iterator[Problem]:
    """From head on, rewards are normalised as `grpo.adv_estimator` says."""
    key = "grpo.adv_estimator.normalize_rewards"
    asked = job.get("grpo.normalize_rewards")
    used = job.get(key, True)
    if asked is not None and asked is not used:
        yield Problem(
            key="grpo.normalize_rewards",
            what=f"is not read by NeMo-RL {job.version}; {key} is",
            got=f"{show(asked)}, and {show(used)} there",
            fix=f"set {key}={show(asked)}",
        )


@rule(Effect.STOPS, "AssertionError in `setup` (v0.6.0: when training starts)")
def skipped_reference(job: View) -> Iterator[Problem]:
    """Log-probs of the reference are skipped only without a KL penalty."""
    key = "grpo.skip_reference_policy_logprobs_calculation"
    if job.flag(key) and job.number(KL, 0) != 0:
        yield Problem(
            key=key,
            what=f"{KL} is {job.number(KL)}, which needs the reference",
            got="true",
            allowed="false",
            fix=f"set {key}=false or {KL}=0",
        )


@rule(Effect.STOPS, "AssertionError in `setup`: the KL would be taken to zeros", since=Version.HEAD)
def kl_in_reward(job: View) -> Iterator[Problem]:
    """A KL in the reward needs log-probs, which `force_on_policy_ratio` skips."""
    is_skipped = job.flag("loss_fn.force_on_policy_ratio")
    is_skipped = is_skipped and job.get("grpo.seq_logprob_error_threshold") is None
    if job.flag("loss_fn.use_kl_in_reward") and job.number(KL, 0) != 0 and is_skipped:
        yield Problem(
            key="loss_fn.use_kl_in_reward",
            what="needs log-probs that loss_fn.force_on_policy_ratio leaves out",
            got=f"{KL} {job.number(KL)}",
            fix="set grpo.seq_logprob_error_threshold, or loss_fn.force_on_policy_ratio=false",
        )
