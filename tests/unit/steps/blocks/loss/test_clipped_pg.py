"""The policy loss: worked examples of the reference, gradients, and one denominator for a batch."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from nemotron_style.steps.blocks.loss.clipped_pg import PolicyBatch, clipped_pg_loss
from nemotron_style.steps.blocks.loss.clipped_pg_config import ClippedPGConfig
from nemotron_style.steps.blocks.loss.importance_sampling import importance_weights
from nemotron_style.steps.blocks.loss.loss_metrics import loss_metrics, merge_metrics
from nemotron_style.steps.blocks.loss.masked_mean import Counts

GOLDEN = Path(__file__).parents[4] / "golden" / "grpo.json"
CASES = {case["id"]: case for case in json.loads(GOLDEN.read_text())["cases"]}
NO_KL = {"reference_policy_kl_penalty": 0.0}
CORRECTED = NO_KL | {"use_importance_sampling_correction": True}
RECIPE = {
    "reference_policy_kl_penalty": 1e-4,
    "kl_input_clamp_value": None,
    "kl_output_clamp_value": None,
    "ratio_clip_max": 0.28,
    "use_on_policy_kl_approximation": True,
    "use_importance_sampling_correction": True,
    "truncated_importance_sampling_type": "tis",
    "truncated_importance_sampling_ratio": 5.0,
    "force_on_policy_ratio": True,
}
SEQUENCES = {"token_level_loss": False}
GSPO = SEQUENCES | {"sequence_level_importance_ratios": True}


def truncated(kind, low, high):
    names = ("type", "ratio_min", "ratio")
    values = zip(names, (kind, low, high), strict=True)
    return CORRECTED | {f"truncated_importance_sampling_{name}": value for name, value in values}


def batch_of(name="loss_default_ppo_k3", *, dtype=torch.float64, **changes):
    inputs = CASES[name]["inputs"]

    def cut(key):
        return torch.tensor(inputs[key], dtype=dtype)[:, 1:]

    current = torch.tensor(inputs["curr_logprobs"], dtype=dtype).requires_grad_()
    batch = PolicyBatch(
        current_BT=current,
        previous_BT=cut("prev_logprobs"),
        generation_BT=cut("generation_logprobs"),
        reference_BT=cut("reference_policy_logprobs"),
        advantages_BT=cut("advantages"),
        token_mask_BT=cut("token_mask"),
        sample_mask_B=torch.tensor(inputs["sample_mask"], dtype=dtype),
        rewards_B=torch.tensor([1.0, -0.5, 0.0], dtype=dtype),
    )
    return replace(batch, **changes)


def counts_of(batch):
    return Counts.of(batch.token_mask_BT, batch.sample_mask_B, batch.rewards_B)


def compute(batch, counts=None, **options):
    options = ClippedPGConfig(**options)
    counts = counts or counts_of(batch)
    done = clipped_pg_loss(batch, options, counts)
    return done, loss_metrics(done, options, counts)


@pytest.mark.parametrize(
    ("options", "loss", "metrics"),
    [
        (NO_KL, -0.3866256, {"kl_penalty": 0.0}),
        ({"reference_policy_kl_type": "k1"}, -0.3861811, {}),
        ({"reference_policy_kl_type": "k2", "reference_policy_kl_penalty": 0.1}, -0.3850700, {}),
        (SEQUENCES, -0.3069679, {}),
        (GSPO | {"use_importance_sampling_correction": True}, -0.5595993, {}),
        (truncated("tis", None, 1.05), -0.3975067, {"is_oob_ratio": 0.4444444}),
        (truncated("icepop", 0.95, 1.2), -0.2634978, {"is_oob_ratio": 0.1111111}),
        (truncated("seq-mask-tis", 0.95, 1.05), 0.1771472, {"is_oob_ratio": 0.3333333}),
        (NO_KL | {"force_on_policy_ratio": True}, -0.3777778, {"probs_ratio": 1.0}),
        (RECIPE, -0.4747075, {}),
        (RECIPE | {"compat": "v0.6.0"}, -0.4367378, {}),
        (
            {
                "kl_input_clamp_value": 0.15,
                "kl_output_clamp_value": 0.01,
                "reference_policy_kl_penalty": 1.0,
            },
            -0.3799932,
            {},
        ),
    ],
)
def test_worked_examples_of_the_reference(options, loss, metrics):
    done, found = compute(batch_of(), **options)
    assert done.loss.item() == pytest.approx(loss, abs=2e-6)
    assert {name: found[name] for name in metrics} == pytest.approx(metrics, abs=1e-6)


def test_positive_examples_are_learnt_by_likelihood():
    """The mean over the four tokens of the only sample with a positive reward is 1.05."""
    done, found = compute(batch_of(), positive_example_nll_weight=0.1, **NO_KL)
    assert found["positive_nll_loss"] == pytest.approx(1.05)
    assert done.loss.item() == pytest.approx(-0.2816256, abs=2e-6)


def test_dual_clip_bounds_what_a_bad_sample_can_cost():
    batch = batch_of("loss_dual_clip_reference_without_c")
    assert compute(batch, **NO_KL)[0].loss.item() == pytest.approx(0.1630038, abs=2e-6)
    bounded = compute(batch, ratio_clip_c=3.0, **NO_KL)[0].loss.item()
    assert bounded <= compute(batch, **NO_KL)[0].loss.item()


def test_dual_clip_by_hand():
    """A = -1 and r = e^2: the loss is 7.39 without a bound and c = 3 with it."""
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = PolicyBatch(one * 0, one * -2, one * -2, -one, one, one[0])
    assert compute(batch, **NO_KL)[0].loss.item() == pytest.approx(math.e**2, rel=1e-7)
    assert compute(batch, ratio_clip_c=3.0, **NO_KL)[0].loss.item() == pytest.approx(3.0, rel=1e-7)


def test_nothing_that_counts_gives_zero_and_no_gradient():
    batch = batch_of(sample_mask_B=torch.zeros(3, dtype=torch.float64))
    done, found = compute(batch)
    done.loss.backward()
    assert done.loss.item() == 0.0
    assert not batch.current_BT.grad.any()
    assert (found["probs_ratio_min"], found["probs_ratio_max"]) == (math.inf, -math.inf)
    assert merge_metrics([found])["probs_ratio_min"] == -1.0


# --- gradients -----------------------------------------------------------------------------------


def gradient(batch, counts=None, **options):
    done, _ = compute(batch, counts, **options)
    (grad,) = torch.autograd.grad(done.loss, batch.current_BT)
    return grad


def test_on_policy_the_gradient_is_that_of_reinforce():
    batch = batch_of()
    batch = replace(batch, previous_BT=batch.current_BT.detach())
    expected = -batch.advantages_BT * batch.mask_BT / batch.mask_BT.sum()
    for options in (NO_KL, NO_KL | {"force_on_policy_ratio": True}):
        assert torch.allclose(gradient(batch, **options), expected, atol=1e-9)
    assert torch.allclose(gradient(batch, disable_ppo_ratio=True, **NO_KL), expected, atol=1e-9)


def test_a_clipped_token_has_no_gradient():
    """``d/dlp max(-A r, -A rc)`` is ``-A r`` where r is inside or clipping would help, else 0."""
    batch = batch_of()
    ratio = (batch.current_BT.detach() - batch.previous_BT).exp()
    inside = (ratio >= 0.8) & (ratio <= 1.2)
    helps = torch.where(batch.advantages_BT > 0, ratio < 0.8, ratio > 1.2)
    expected = -batch.advantages_BT * ratio * batch.mask_BT * (inside | helps) / 9
    assert torch.allclose(gradient(batch, **NO_KL), expected, atol=1e-9)


@pytest.mark.parametrize("by_sequence", [False, True])
def test_the_gradient_of_a_mean_over_sequences(by_sequence):
    batch = batch_of()
    batch = replace(batch, previous_BT=batch.current_BT.detach())
    options = NO_KL | (GSPO if by_sequence else SEQUENCES)
    share = batch.mask_BT / batch.mask_BT.sum(-1, keepdim=True) / 3
    assert torch.allclose(gradient(batch, **options), -batch.advantages_BT * share, atol=1e-8)


def test_the_gradient_of_gspo_is_that_of_its_naive_formula():
    batch = batch_of()
    lengths = batch.mask_BT.sum(-1, keepdim=True)
    mean = ((batch.current_BT - batch.previous_BT) * batch.mask_BT).sum(-1, keepdim=True) / lengths
    ratio = mean.exp()
    advantage = batch.advantages_BT[:, :1]
    naive = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
    (expected,) = torch.autograd.grad(naive, batch.current_BT)
    assert torch.allclose(gradient(batch, **GSPO, **NO_KL), expected, atol=1e-8)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_which_gradients_of_the_kl_are_unbiased(kind):
    """Averaged over all tokens a policy can say: is it the gradient of the true divergence?

    With k1 and k3 it is when the weight has a gradient (head), and not without (v0.6.0). k2 is
    the other way round: its own gradient is already right.
    """
    logits = torch.tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.4, -0.2, 1.0], dtype=torch.float64), 0)
    logprobs = torch.log_softmax(logits, 0)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    (expected,) = torch.autograd.grad(exact, logits)

    current = torch.log_softmax(logits, 0)[:, None]  # every token once, weighted by its chance
    zero, one = torch.zeros_like(current.detach()), torch.ones_like(current.detach())
    for compat in ("head", "v0.6.0"):
        batch = PolicyBatch(current, current.detach(), current.detach(), zero, one, one[:, 0])
        batch = replace(batch, reference_BT=reference[:, None])
        total = torch.zeros((), dtype=torch.float64)
        for token, chance in enumerate(current.detach()[:, 0].exp()):
            row = [getattr(batch, each.name) for each in fields(PolicyBatch)]
            row = [None if value is None else value[token : token + 1] for value in row]
            counts, options = Counts(1, 1), {"compat": compat}
            options |= {"reference_policy_kl_type": kind, "reference_policy_kl_penalty": 1.0}
            total = total + chance * compute(PolicyBatch(*row), counts, **options)[0].loss
        (found,) = torch.autograd.grad(total, logits, retain_graph=True)
        unbiased = torch.allclose(found, expected, atol=1e-7)
        assert unbiased == ((kind == "k2") == (compat == "v0.6.0"))


def test_where_a_clamp_of_the_kl_acts_its_gradient_is_zero():
    """The input clamp at 0.15, or the output clamp at 0.01; the tokens between keep theirs."""
    batch = batch_of()
    batch = replace(batch, advantages_BT=torch.zeros_like(batch.advantages_BT))
    gap = (batch.reference_BT - batch.current_BT.detach()).abs()
    for clamps, acts in (
        ({"kl_input_clamp_value": 0.15, "kl_output_clamp_value": None}, gap > 0.15),
        ({"kl_input_clamp_value": None, "kl_output_clamp_value": 0.01}, gap > 0.15),
    ):
        grad = gradient(batch, use_on_policy_kl_approximation=True, **clamps)
        counted = batch.mask_BT > 0
        assert not grad[acts & counted].any()
        assert (grad[~acts & counted] != 0).all()
        assert 0 < int((acts & counted).sum()) < int(counted.sum())


def test_every_gradient_is_that_of_the_loss():
    """Finite differences, for options whose loss is smooth here and has no stopped gradient."""
    batch = batch_of()
    for options in (
        {"use_on_policy_kl_approximation": True, "reference_policy_kl_penalty": 0.5},
        {"ratio_clip_min": 0.9, "ratio_clip_max": 3.0, **NO_KL},
        GSPO | CORRECTED | {"positive_example_nll_weight": 0.3},
    ):
        choice, counts = ClippedPGConfig(**options), counts_of(batch)

        def loss(current, choice=choice, counts=counts):
            return clipped_pg_loss(replace(batch, current_BT=current), choice, counts).loss

        assert torch.autograd.gradcheck(loss, batch.current_BT)


def test_the_sampling_weights_have_no_gradient():
    batch = batch_of()
    plain, weighted = gradient(batch, **NO_KL), gradient(batch, **CORRECTED)
    weight = (batch.previous_BT - batch.generation_BT).exp()
    assert torch.allclose(weighted, plain * weight, atol=1e-9)


# --- one denominator -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        RECIPE,
        SEQUENCES,
        GSPO | CORRECTED,
        truncated("icepop", 0.95, 1.2),
        truncated("seq-mask-tis", 0.95, 1.05),
        {"positive_example_nll_weight": 0.1},
        {"use_cispo": True, "ratio_clip_max": 0.28},
    ],
    ids=str,
)
def test_any_cut_of_the_batch_gives_the_same_loss_and_gradient(options):
    drawn = torch.Generator().manual_seed(5)
    rows, width = 12, 9

    def noise(scale):
        return torch.randn(rows, width, generator=drawn, dtype=torch.float64) * scale

    current = (-noise(1.0).abs()).requires_grad_()
    lengths = torch.randint(1, width + 1, (rows, 1), generator=drawn)
    whole = PolicyBatch(
        current_BT=current,
        previous_BT=current.detach() + noise(0.3),
        generation_BT=current.detach() + noise(0.3),
        reference_BT=current.detach() + noise(0.3),
        advantages_BT=noise(1.0)[:, :1].expand(-1, width),
        token_mask_BT=(torch.arange(width) < lengths).double(),
        sample_mask_B=torch.tensor([1.0] * 9 + [0.0] * 3),
        rewards_B=noise(1.0)[:, 0],
    )
    counts = counts_of(whole)
    done, metrics = compute(whole, counts, **options)
    grad = gradient(whole, counts, **options)
    for size in (1, 3, 5):
        parts = [take(whole, slice(at, at + size)) for at in range(0, rows, size)]
        summed = sum((counts_of(part) for part in parts), Counts(0, 0))
        assert summed == counts
        pieces = [compute(part, summed, **options) for part in parts]
        assert sum(piece.loss.item() for piece, _ in pieces) == pytest.approx(
            done.loss.item(), abs=1e-9
        )
        merged = merge_metrics([each for _, each in pieces])
        assert merged == pytest.approx(metrics, abs=1e-9)
        grads = [torch.autograd.grad(piece.loss, current)[0] for piece, _ in pieces]
        assert torch.allclose(torch.stack(grads).sum(0), grad, atol=1e-9)


def take(batch, rows):
    values = {each.name: getattr(batch, each.name)[rows] for each in fields(PolicyBatch)}
    return PolicyBatch(**values)


def test_float32_micro_batches_agree_to_1e_6():
    whole = batch_of(dtype=torch.float32)
    counts = counts_of(whole)
    total = compute(whole, counts)[0].loss.item()
    parts = [compute(take(whole, slice(i, i + 1)), counts)[0].loss.item() for i in range(3)]
    assert sum(parts) == pytest.approx(total, abs=1e-6)


# --- what must not leak --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, RECIPE, SEQUENCES, GSPO | CORRECTED], ids=str)
def test_what_is_masked_is_never_read(options):
    clean = batch_of()
    expected, grad = compute(clean, **options)[0].loss.item(), gradient(clean, **options)
    outside = clean.mask_BT == 0
    dirty = {
        name: torch.where(outside, float("nan"), getattr(clean, name).detach())
        for name in ("previous_BT", "generation_BT", "reference_BT", "advantages_BT")
    }
    current = torch.where(outside, float("-inf"), clean.current_BT.detach()).requires_grad_()
    batch = replace(clean, current_BT=current, **dirty)
    assert compute(batch, **options)[0].loss.item() == expected
    assert torch.equal(gradient(batch, **options), grad)


@pytest.mark.parametrize("name", ["previous_BT", "generation_BT", "reference_BT"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_missing_logprob_is_refused_and_never_a_certainty(name, value):
    batch = batch_of()
    broken = getattr(batch, name).clone()
    broken[0, 2] = value
    with pytest.raises(ValueError, match=f"{name[:-3]}: 1 of the tokens"):
        compute(replace(batch, **{name: broken}))


def test_what_an_option_needs_must_be_there():
    with pytest.raises(ValueError, match="reference policy"):
        compute(replace(batch_of(), reference_BT=None))
    compute(replace(batch_of(), reference_BT=None), **NO_KL)
    counts = Counts(9, 3)
    with pytest.raises(ValueError, match="rewards"):
        compute(replace(batch_of(), rewards_B=None), counts, positive_example_nll_weight=0.1)


def test_half_precision_is_widened():
    done, _ = compute(batch_of(dtype=torch.bfloat16))
    assert done.loss.dtype is torch.float32


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"sequence_level_importance_ratios": True}, "token_level_loss"),
        ({"truncated_importance_sampling_type": "tis"}, "use_importance_sampling_correction"),
        (truncated("clip", None, 2.0), "Input should be 'tis', 'icepop' or 'seq-mask-tis'"),
        (truncated("icepop", None, 2.0), "icepop needs .*_min"),
        (truncated("seq-mask-tis", None, 2.0), "seq-mask-tis needs .*_min"),
        (truncated("seq-mask-tis", 0.5, 2.0) | GSPO, "does not go with sequence_level"),
        (truncated("tis", 3.0, 2.0), "exceeds"),
        (truncated("tis", None, None), "tis needs truncated_importance_sampling_ratio"),
        (truncated(None, None, 2.0), "needs truncated_importance_sampling_type"),
        ({"ratio_clip_c": 1.0}, "greater than 1"),
        ({"reference_policy_kl_type": "k4"}, "Input should be 'k1', 'k2' or 'k3'"),
        ({"reference_policy_kl_penalty": float("nan")}, "finite number"),
        ({"kl_output_clamp_value": 0.0}, "greater than 0"),
        ({"use_cispo": True, "disable_ppo_ratio": True}, "disable_ppo_ratio"),
        ({"use_cispo": True, "force_on_policy_ratio": True}, "force_on_policy_ratio"),
        ({"use_cispo": True, "ratio_clip_c": 3.0}, "ratio_clip_c"),
        ({"use_cispo": True, "token_level_loss": False}, "token_level_loss"),
        ({"use_cispo": True, "compat": "v0.6.0"}, "not in v0.6.0"),
        (truncated("tis", 0.9, 2.0) | {"compat": "v0.6.0"}, "in v0.6.0"),
        ({"compat": "v0.5"}, "compat\n  Input should be"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(options, what):
    with pytest.raises(ValueError, match=what):
        ClippedPGConfig(**options)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ValidationError, match="ratio_clip_c") as caught:
        ClippedPGConfig(ratio_clip_c=0.5, reference_policy_kl_type="k9", ratio_clip_min=-1)
    assert caught.value.error_count() == 3
    with pytest.raises(ValidationError) as caught:
        ClippedPGConfig(use_cispo=True, ratio_clip_c=3, truncated_importance_sampling_type="tis")
    assert str(caught.value).count(";") == 2


def test_truncations_differ_in_what_they_do_outside():
    previous = torch.log(torch.tensor([[0.5, 1.0, 3.0]], dtype=torch.float64))
    ones = torch.ones(1, 3, dtype=torch.float64)

    def weights(kind):
        options = ClippedPGConfig(**truncated(kind, 0.9, 2.0))
        return importance_weights(previous, torch.zeros_like(previous), ones, options).values_BW

    assert weights("tis").tolist() == [[0.9, 1.0, 2.0]]
    assert weights("icepop").tolist() == [[0.0, 1.0, 0.0]]
    assert weights("seq-mask-tis")[0].tolist() == pytest.approx([0.5, 1.0, 3.0])  # mean 1.14


def test_merging_follows_the_names():
    merged = merge_metrics(
        [
            {"loss": 1.0, "a_min": math.inf, "a_max": 2.0, "lr": 0.1, "global_valid_toks": 9},
            {"loss": 0.5, "a_min": 3.0, "a_max": 5.0, "lr": 0.3, "global_valid_toks": 9},
        ]
    )
    assert merged == pytest.approx(
        {"loss": 1.5, "a_min": 3.0, "a_max": 5.0, "lr": 0.2, "global_valid_toks": 9}
    )


def far(gap, advantage, options, *, dtype=torch.float32, reference=0.0, generation=None):
    """Loss, gradient and excluded tokens of two tokens, the second with a log-ratio of ``gap``."""
    current = torch.tensor([[-1.0, -1.0]], dtype=dtype).requires_grad_()
    previous = torch.tensor([[-1.0, -1.0 - gap]], dtype=dtype)
    sampled = previous if generation is None else torch.tensor([[-1.0, generation]], dtype=dtype)
    batch = PolicyBatch(
        current_BT=current,
        previous_BT=previous,
        generation_BT=sampled,
        reference_BT=torch.tensor([[-1.0, -1.0 + reference]], dtype=dtype),
        advantages_BT=torch.full((1, 2), float(advantage), dtype=dtype),
        token_mask_BT=torch.tensor([[0.0, 1.0]], dtype=dtype),
        sample_mask_B=torch.ones(1, dtype=dtype),
    )
    counts = Counts.of(batch.token_mask_BT, batch.sample_mask_B)
    config = ClippedPGConfig(**options)
    done = clipped_pg_loss(batch, config, counts)
    done.loss.backward()
    metrics = loss_metrics(done, config, counts)
    assert current.grad[0, 0] == 0
    return done.loss.item(), current.grad[0, 1].item(), metrics["num_excluded_tokens"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", [NO_KL, NO_KL | GSPO, NO_KL | SEQUENCES])
@pytest.mark.parametrize(
    ("advantage", "more", "expected"),
    [
        (1, {"ratio_clip_max": 0.1}, (-1.1, 0, 0)),
        (0, {}, (0, 0, 0)),
        (-1, {"ratio_clip_c": 3.0}, (3, 0, 0)),
        (-1, {}, (0, 0, 1)),  # e^800 has no bound: left out and counted
    ],
)
def test_a_ratio_that_overflows_leaves_value_and_gradient_right(
    dtype, form, advantage, more, expected
):
    gap = 100 if dtype is torch.float32 else 800
    assert far(gap, advantage, form | more, dtype=dtype) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("compat", ["head", "v0.6.0"])
def test_a_divergence_that_overflows_is_what_the_output_clamp_says(compat):
    clamped = {"reference_policy_kl_penalty": 1.0, "kl_input_clamp_value": None, "compat": compat}
    assert far(0, 0, clamped, reference=100) == pytest.approx((10, 0, 0))
    unbounded = clamped | {"kl_output_clamp_value": None}
    assert far(0, 0, unbounded, reference=100) == (0, 0, 1)
    loss, gradient, excluded = far(0, 0, unbounded, reference=2)
    assert loss == pytest.approx(math.exp(2) - 3)
    assert math.isfinite(gradient)
    assert excluded == 0


@pytest.mark.parametrize("compat", ["head", "v0.6.0"])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_an_on_policy_weight_that_overflows_is_left_out(compat, kind):
    options = {
        "reference_policy_kl_penalty": 1.0,
        "reference_policy_kl_type": kind,
        "use_on_policy_kl_approximation": True,
        "compat": compat,
    }
    assert far(0, 0, options, reference=1.0, generation=-101.0) == (0, 0, 1)


def test_no_ratio_below_the_bound_is_changed():
    for gap in (-200.0, -30.0, 0.5, 3.0, 70.0):
        loss, gradient, excluded = far(gap, -1, NO_KL)
        # beside a lone token the reference's epsilon in the denominator is 1e-8
        assert loss == pytest.approx(max(math.exp(gap), 0.8), rel=1e-5)
        assert gradient == pytest.approx(math.exp(gap) if gap > math.log(0.8) else 0, rel=1e-5)
        assert excluded == 0
