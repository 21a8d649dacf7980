"""Nodes, ports and loggers: each rule is broken alone."""

import pytest

from nemo_rl_rules import Case, check_case, uncovered
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import cluster

CASES = [
    Case(
        "cluster.nodes_are_there",
        {"cluster.num_nodes": 2},
        "cluster.num_nodes",
        ("got 2", "up to 1"),
        facts={"knows_all_variables": False},
    ),
    Case(
        "cluster.nodes_are_there",
        {"cluster.gpus_per_node": 16},
        "cluster.gpus_per_node",
        ("got 16", "up to 8"),
    ),
    Case(
        "cluster.gpus_are_used",
        {"cluster.gpus_per_node": 2},
        "cluster.gpus_per_node",
        ("2 of 1 x 8", "takes 2", "judge 4"),
    ),
    Case(
        "cluster.port_ranges",
        {
            "policy.generation.port_range_low": 3000,
            "policy.generation.port_range_high": 5500,
            "env.nemo_gym.port_range_low": 5000,
            "env.nemo_gym.port_range_high": 5999,
        },
        "policy.generation.port_range_low",
        ("3000-5500 and 5000-5999", "env.nemo_gym.port_range"),
    ),
    Case(
        "cluster.port_ranges",
        {"env.nemo_gym.port_range_low": 11000, "env.nemo_gym.port_range_high": 12000},
        "env.nemo_gym.port_range_low",
        ("Ray's workers", "10002-11000"),
        facts={"ray_worker_ports": (10002, 11000)},
    ),
    Case(
        "cluster.port_ranges",
        {"cluster.master_port_range_low": 1999, "cluster.master_port_range_high": 1400},
        "cluster.master_port_range_low",
        ("1999-1400",),
    ),
    Case(
        "cluster.wandb_key",
        {"logger.wandb_enabled": True, "logger.wandb": {}},
        "logger.wandb_enabled",
        ("WANDB_API_KEY", "logger.wandb_enabled=false"),
    ),
    Case(
        "cluster.logger_settings",
        {"logger.wandb_enabled": True, "logger.wandb": None},
        "logger.wandb",
        ("got null", "logger.wandb_enabled"),
        facts={"variables": frozenset({"WANDB_API_KEY"})},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_the_rule_alone_is_broken_and_told(case: Case) -> None:
    check_case(case, cluster)


def test_every_rule_has_a_case() -> None:
    assert not uncovered(CASES, cluster)
