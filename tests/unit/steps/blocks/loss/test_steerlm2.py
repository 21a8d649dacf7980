"""SteerLM 2.0's arithmetic against closed forms, hand-made numbers and its invariances."""

import math

import pytest
import torch

from nemotron_style.steps.blocks.loss import steerlm2
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.training.microbatch_plan import plan_microbatches


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


LOG_P_A = row(-1.0, -2.0, -0.5, -3.0)
LOG_P_Y = row(-40.0, -42.0, -41.0, -39.0)
LOG_Q = row(-41.0, -41.5, -42.0, -40.0)


def random_batch(groups=3, width=4, tokens=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lengths = 1 + (draw(groups, width) * tokens).long().clamp(max=tokens - 1)
    return {
        "logprobs": -draw(groups, width, tokens) * 4,
        "mask": (torch.arange(tokens) < lengths[..., None]).double(),
        "log_p_a": -draw(groups, width) * 5,
        "log_p_y": -draw(groups, width) * 40,
        "log_q": -draw(groups, width) * 40,
    }


def loss_and_gradient(batch, size=None):
    """The whole loss of a batch cut into passes of ``size`` responses, and its gradient."""
    logprobs = batch["logprobs"].clone().requires_grad_()
    mask, log_q = batch["mask"], batch["log_q"]
    groups, width = log_q.shape
    target = steerlm2.target_weights(batch["log_p_a"], batch["log_p_y"], log_q)
    current = steerlm2.baseline(steerlm2.response_logprob(logprobs, mask), log_q)
    scales = steerlm2.response_scales(target - current, mask.sum(-1), groups=groups)
    total = 0.0
    rows = [Group([0], [[0]] * width)] * groups
    for microbatch in plan_microbatches(rows, max_responses=size, deal=False):
        part = microbatch.index
        loss = steerlm2.group_loss(logprobs[part], mask[part], scales[part])
        loss.backward()
        total += loss.item()
    return total, logprobs.grad


def test_published_example():
    weights = steerlm2.target_weights(LOG_P_A, LOG_P_Y, LOG_Q)
    expected = row(0.348901, 0.028640, 0.575241, 0.047219)
    torch.testing.assert_close(weights, expected, atol=5e-7, rtol=0)
    assert steerlm2.effective_sample_size(weights).item() == pytest.approx(2.1945, abs=5e-5)
    at_start = weights - steerlm2.baseline(LOG_Q, LOG_Q)
    expected = row(0.098901, -0.221360, 0.325241, -0.202781)
    torch.testing.assert_close(at_start, expected, atol=5e-7, rtol=0)


def test_two_responses_are_a_logistic_function():
    weights = steerlm2.target_weights(row(-1.0, -3.0), row(-5.0, -5.0), row(-5.0, -5.0))
    assert weights[0, 0].item() == pytest.approx(1 / (1 + math.exp(-2.0)), abs=1e-15)


def test_log_probabilities_far_below_zero_keep_their_differences():
    weights = steerlm2.target_weights(LOG_P_A, LOG_P_Y - 90_000, LOG_Q - 90_000)
    torch.testing.assert_close(weights, steerlm2.target_weights(LOG_P_A, LOG_P_Y, LOG_Q))


def test_float32_inputs_are_exponentiated_in_float64():
    weights = steerlm2.target_weights(LOG_P_A.float(), LOG_P_Y.float(), LOG_Q.float())
    assert weights.dtype is torch.float64
    assert steerlm2.response_logprob(torch.zeros(1, 2, 3), torch.ones(1, 2, 3)).dtype is (
        torch.float64
    )


def test_at_the_sampler_the_baseline_is_uniform():
    batch = random_batch()
    current = steerlm2.baseline(batch["log_q"], batch["log_q"])
    assert steerlm2.sampler_gap(current) < 1e-15
    shifted = batch["log_q"].clone()
    shifted[1, 2] += 0.1
    assert steerlm2.sampler_gap(steerlm2.baseline(shifted, batch["log_q"])) > 0.01


def test_baseline_carries_no_gradient():
    log_q_theta = LOG_Q.clone().requires_grad_()
    assert not steerlm2.baseline(log_q_theta, LOG_Q).requires_grad


@pytest.mark.parametrize("seed", range(5))
def test_coefficients_of_a_group_sum_to_nothing(seed):
    batch = random_batch(seed=seed)
    target = steerlm2.target_weights(batch["log_p_a"], batch["log_p_y"], batch["log_q"])
    log_q_theta = steerlm2.response_logprob(batch["logprobs"], batch["mask"])
    current = steerlm2.baseline(log_q_theta, batch["log_q"])
    assert (target - current).sum(-1).abs().max().item() < 1e-15


def test_a_target_that_is_reached_gives_no_gradient():
    batch = random_batch()
    batch["log_p_y"] = steerlm2.response_logprob(batch["logprobs"], batch["mask"])
    batch["log_p_a"] = torch.zeros_like(batch["log_p_y"])
    loss, gradient = loss_and_gradient(batch)
    assert abs(loss) < 1e-14
    assert gradient.abs().max().item() < 1e-15


@pytest.mark.parametrize("name", ["log_p_a", "log_p_y", "log_q"])
def test_a_constant_for_a_group_changes_nothing(name):
    batch = random_batch()
    loss, gradient = loss_and_gradient(batch)
    shifted = dict(batch) | {name: batch[name] - torch.tensor([[3.0], [700.0], [0.25]])}
    other_loss, other_gradient = loss_and_gradient(shifted)
    assert other_loss == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(other_gradient, gradient, atol=1e-12, rtol=0)


def test_order_of_groups_and_responses_does_not_matter():
    batch = random_batch()
    loss, gradient = loss_and_gradient(batch)
    groups, responses = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    turned = {name: values[groups][:, responses] for name, values in batch.items()}
    other_loss, other_gradient = loss_and_gradient(turned)
    assert other_loss == pytest.approx(loss, abs=1e-14)
    torch.testing.assert_close(other_gradient, gradient[groups][:, responses], atol=1e-15, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 12, 100])
def test_any_cut_gives_the_same_loss_and_gradient(size):
    batch = random_batch()
    loss, gradient = loss_and_gradient(batch)
    other_loss, other_gradient = loss_and_gradient(batch, size=size)
    assert other_loss == pytest.approx(loss, abs=1e-14)
    torch.testing.assert_close(other_gradient, gradient, atol=1e-15, rtol=0)


def test_gradient_is_that_of_the_divergence():
    """With one token a response, T = 1 and dL/dlogprob = b - w = dKL/dlogprob."""
    batch = random_batch(groups=1, tokens=1)
    logprobs = batch["logprobs"].clone().requires_grad_()
    target = steerlm2.target_weights(batch["log_p_a"], batch["log_p_y"], batch["log_q"])
    share = torch.softmax(logprobs[..., 0] - batch["log_q"], dim=-1)
    (target * (target / share).log()).sum().backward()
    _, gradient = loss_and_gradient(batch)
    torch.testing.assert_close(gradient, logprobs.grad, atol=1e-14, rtol=0)


def test_masked_tokens_get_no_gradient_and_do_not_count():
    batch = random_batch()
    loss, gradient = loss_and_gradient(batch)
    assert gradient[batch["mask"] == 0].abs().max().item() == 0
    other = dict(batch) | {"logprobs": batch["logprobs"] - 50 * (1 - batch["mask"])}
    assert loss_and_gradient(other)[0] == loss


def test_length_of_a_group_is_the_mean_of_its_responses():
    scales = steerlm2.response_scales(row(0.5, -0.5), torch.tensor([[1, 3]]), groups=4)
    torch.testing.assert_close(scales, row(0.5, -0.5) / (4 * 2))


def test_distance_closed_forms():
    assert steerlm2.distance(row(0.5, 0.5), row(0.5, 0.5)).item() == 0
    got = steerlm2.distance(row(0.75, 0.25), row(0.5, 0.5)).item()
    assert got == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)
    assert math.isfinite(steerlm2.distance(row(1.0, 0.0), row(0.0, 1.0)).item())


def test_effective_sample_size_closed_forms():
    sizes = steerlm2.effective_sample_size(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]]))
    assert sizes.tolist() == [4.0, 1.0]
