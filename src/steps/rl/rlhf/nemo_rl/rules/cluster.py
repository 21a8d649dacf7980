"""Nodes, ports and loggers of a job."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import show
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, rule
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View

RANGES = {
    "policy.generation": "port_range",
    "env.nemo_gym": "port_range",
    "cluster": "master_port_range",
}


@rule(Effect.STOPS, "ResourceInsufficientError after six tries, about a minute")
def nodes_are_there(job: View) -> Iterator[Problem]:
    """The job has the nodes and GPUs that NeMo-RL takes."""
    for key, has in (
        ("cluster.num_nodes", job.facts.nodes),
        ("cluster.gpus_per_node", job.facts.gpus_per_node),
    ):
        if has is not None and job.number(key) > has:
            yield Problem(
                key=key,
                what="NeMo-RL takes more than the job has",
                got=show(job.number(key)),
                allowed=f"up to {has}",
            )


@rule(Effect.SILENT, "GPUs are reserved and idle", advice=True)
def gpus_are_used(job: View) -> Iterator[Problem]:
    """Every GPU of the job has work."""
    nodes, gpus = job.facts.nodes, job.facts.gpus_per_node
    if nodes is None or gpus is None:
        return
    judge = sum(server.replicas * server.gpus for server in job.local_servers if job.gym)
    policy = job.num_nodes * job.gpus_per_node
    idle = nodes * gpus - policy - judge
    if idle > 0:
        yield Problem(
            key="cluster.gpus_per_node",
            what=f"{idle} of {nodes} x {gpus} GPUs are idle: the policy takes {policy},"
            f" the judge {judge}",
        )


@rule(Effect.STOPS, "two servers take one port, now and then")
def port_ranges(job: View) -> Iterator[Problem]:
    """The ranges of ports are not empty and do not overlap."""
    ranges = {}
    for section, name in RANGES.items():
        low, high = (job.get(f"{section}.{name}_{end}") for end in ("low", "high"))
        if not (isinstance(low, int) and isinstance(high, int)):
            continue
        ranges[f"{section}.{name}"] = (low, high)
        if low > high:
            yield Problem(key=f"{section}.{name}_low", what="is above its end", got=f"{low}-{high}")
    if job.facts.ray_worker_ports:
        ranges["Ray's workers"] = job.facts.ray_worker_ports
    for (name, own), (other, theirs) in combinations(ranges.items(), 2):
        if max(own[0], theirs[0]) <= min(own[1], theirs[1]):
            yield Problem(
                key=f"{name}_low",
                what=f"shares ports with {other}",
                got=f"{own[0]}-{own[1]} and {theirs[0]}-{theirs[1]}",
                allowed="ranges that do not overlap",
            )


@rule(Effect.STOPS, "wandb asks for a login, and nobody answers")
def wandb_key(job: View) -> Iterator[Problem]:
    """wandb has its key (or WANDB_MODE, for those who keep the key elsewhere)."""
    has_key = job.facts.variables & {"WANDB_API_KEY", "WANDB_MODE"}
    if job.flag("logger.wandb_enabled") and job.facts.knows_all_variables and not has_key:
        yield Problem(
            key="logger.wandb_enabled",
            what="the job has neither WANDB_API_KEY nor WANDB_MODE",
            got="true",
            fix="name the key among the profile's secrets, or set logger.wandb_enabled=false",
        )


@rule(Effect.STOPS, "TypeError when the logger is made")
def logger_settings(job: View) -> Iterator[Problem]:
    """A logger that is enabled has its settings."""
    for name in ("wandb", "swanlab", "tensorboard", "mlflow"):
        given = job.get(f"logger.{name}")
        if job.flag(f"logger.{name}_enabled") and not isinstance(given, dict):
            key, what = f"logger.{name}", f"is needed by logger.{name}_enabled"
            yield Problem(key=key, what=what, got=show(given), allowed="a table, {} too")
