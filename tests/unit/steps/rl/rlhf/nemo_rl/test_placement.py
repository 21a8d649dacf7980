"""Which GPUs policy and judge take: what is claimed adds up to what there is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.runtime.validation import put_key
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import Draft, merge
from nemotron_style.steps.rl.rlhf.nemo_rl.placement import SERVE, Placement, place
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import JUDGE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

BASE: dict[str, Any] = {
    "grpo": {"num_prompts_per_step": 16, "num_generations_per_prompt": 8},
    "policy": {"train_global_batch_size": 128},
    "cluster": {},
}


def placed(nodes: int | None = 1, gpus: int | None = 8, /, **given: Any) -> tuple[Draft, Placement]:
    values: dict[str, Any] = {}
    for key, value in given.items():
        put_key(values, key, value)
    draft = Draft(Version.V0_7_0, values, merge(BASE, values))
    return draft, place(draft, JobSite("slurm", nodes=nodes, gpus_per_node=gpus))


def test_one_node_is_shared_and_the_judge_takes_what_the_policy_leaves() -> None:
    draft, plan = placed()
    assert (plan.policy_gpus, plan.judge_gpus, plan.judge_nodes) == (4, 4, 0)
    assert draft.get(f"{SERVE}.data_parallel_size") == 4
    assert list(plan.lines()) == [
        "node 0    GPU 0-3     policy, reference, vLLM (4 x 1 GPUs)",
        "node 0    GPU 4-7     judge (4 GPUs)",
    ]


@pytest.mark.parametrize(
    ("given", "policy", "judge"),
    [
        ({f"{SERVE}.tensor_parallel_size": 2}, 4, 4),
        ({f"{SERVE}.data_parallel_size": 1}, 4, 1),
        ({"cluster.gpus_per_node": 2}, 2, 6),
        ({"cluster.gpus_per_node": 8}, 4, 4),  # nothing is left for the judge
        ({f"{JUDGE}.base_url": ["http://judge:8000/v1"]}, 8, 0),
        ({"policy.megatron_cfg.tensor_model_parallel_size": 2}, 4, 4),
        ({"policy.train_global_batch_size": 126, "grpo.num_prompts_per_step": 63}, 7, 1),
    ],
)
def test_the_policy_takes_the_most_gpus_that_divide_the_batch(
    given: dict[str, Any], policy: int, judge: int
) -> None:
    draft, plan = placed(**given)
    assert (plan.policy_gpus, plan.judge_gpus) == (policy, judge)
    assert draft.get("cluster.gpus_per_node") == policy
    assert plan.gpus <= 8


def test_more_nodes_give_the_judge_its_own() -> None:
    _, plan = placed(None, **{"cluster.num_nodes": 4})
    assert (plan.nodes, plan.policy_nodes, plan.judge_nodes, plan.policy_gpus) == (5, 4, 1, 8)
    assert plan.judge_gpus == 8  # nobody else is on its node
    _, plan = placed(5)
    assert (plan.policy_nodes, plan.judge_nodes) == (4, 1)
    _, plan = placed(None, **{"cluster.num_nodes": 1, f"{SERVE}.tensor_parallel_size": 8})
    assert (plan.policy_nodes, plan.judge_nodes, plan.nodes) == (1, 1, 2)
    assert list(plan.lines())[-1] == "node 1    GPU 0-7     judge (8 GPUs)"


def test_nodes_that_the_profile_does_not_offer_are_told_with_both_numbers() -> None:
    draft, _ = placed(4, **{"cluster.num_nodes": 4})
    (problem,) = draft.problems
    assert (problem.got, problem.allowed) == ("4 of the profile", "4 + 1 = 5")


def test_gpus_that_hold_no_copy_are_told() -> None:
    draft, _ = placed(**{"policy.megatron_cfg.tensor_model_parallel_size": 8})
    (problem,) = draft.problems
    assert "8 GPUs of a node less 1 of the judge" in problem.got


@settings(max_examples=200, deadline=None)
@drawn(
    node=st.sampled_from([1, 2, 4, 8]),
    nodes=st.integers(1, 6),
    prompts=st.integers(1, 24),
    group=st.integers(2, 16),
    tensor=st.sampled_from([1, 2, 4]),
    judge=st.sampled_from([1, 2, 4, 8]),
)
def test_what_is_placed_fits_the_nodes_and_divides_the_batch(
    node: int, nodes: int, prompts: int, group: int, tensor: int, judge: int
) -> None:
    draft, plan = placed(
        nodes,
        node,
        **{
            "grpo.num_prompts_per_step": prompts,
            "grpo.num_generations_per_prompt": group,
            "policy.train_global_batch_size": prompts * group,
            "policy.megatron_cfg.tensor_model_parallel_size": tensor,
            f"{SERVE}.tensor_parallel_size": judge,
        },
    )
    if draft.problems:
        return
    assert plan.nodes <= nodes
    assert plan.gpus <= node
    assert (plan.policy_nodes * plan.policy_gpus) % tensor == 0
    assert prompts * group % plan.data_parallel == 0
    shared = plan.policy_gpus * plan.policy_nodes + plan.judge_gpus
    assert shared <= plan.nodes * node
    assert plan.judge_gpus % judge == 0
