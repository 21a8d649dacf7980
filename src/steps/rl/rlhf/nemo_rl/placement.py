"""Which GPUs of which nodes do what: policy and its vLLM share theirs, the judge has its own.

NeMo-RL claims ``cluster.num_nodes`` x ``cluster.gpus_per_node`` GPUs of Ray, and NeMo-Gym's judge
waits, without a deadline, for a placement group of its own. On one node both share its GPUs;
otherwise the judge gets nodes beside those of the policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.steps.blocks.preflight.machine import look_at_machine
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import Draft
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import GYM, JUDGE

GPUS_OF_A_NODE = 8
"""Where nobody says how many a node has."""
SERVE = f"{JUDGE}.vllm_serve_kwargs"
MEGATRON = "policy.megatron_cfg"
VLLM = "policy.generation.vllm_cfg"


@dataclass(frozen=True)
class Placement:
    """``policy_gpus`` are those of each of ``policy_nodes``; ``judge_gpus`` are all of the judge.

    ``judge_nodes`` are 0 where the judge shares the policy's node or is not ours to start.
    """

    node_gpus: int
    policy_nodes: int
    policy_gpus: int
    judge_gpus: int
    judge_nodes: int
    ranks: int  # GPUs of one copy of the policy: TP x PP x CP
    judge: str = "judge"  # what gives the rewards

    @property
    def nodes(self) -> int:
        """Nodes of the job."""
        return self.policy_nodes + self.judge_nodes

    @property
    def gpus(self) -> int:
        """GPUs that the job takes of each node."""
        return self.node_gpus if self.nodes > 1 else self.policy_gpus + self.judge_gpus

    @property
    def data_parallel(self) -> int:
        """Copies of the policy."""
        return self.policy_nodes * self.policy_gpus // self.ranks

    def lines(self) -> Iterator[str]:
        """The plan as a small table."""
        copies = f"{self.data_parallel} x {self.ranks} GPUs"
        policy = _span(0, self.policy_gpus)
        yield f"{_nodes(0, self.policy_nodes):9} {policy:11} policy, reference, vLLM ({copies})"
        if self.judge_nodes:
            first, last = self.policy_nodes, self.nodes
            used = -(-self.judge_gpus // self.judge_nodes)
            own = f"{self.judge} ({self.judge_gpus} GPUs)"
            yield f"{_nodes(first, last):9} {_span(0, used):11} {own}"
        elif self.judge_gpus:
            judge = _span(self.policy_gpus, self.policy_gpus + self.judge_gpus)
            yield f"{_nodes(0, 1):9} {judge:11} {self.judge} ({self.judge_gpus} GPUs)"
        idle = self.node_gpus - self.policy_gpus - (0 if self.judge_nodes else self.judge_gpus)
        if idle > 0:
            yield f"{'':9} {f'{idle} GPUs':11} of each policy node idle"


def _nodes(first: int, end: int) -> str:
    return f"node {first}" if end - first == 1 else f"node {first}-{end - 1}"


def _span(first: int, end: int) -> str:
    return f"GPU {first}" if end - first == 1 else f"GPU {first}-{end - 1}"


def miss_gpus(placed: Placement, site: JobSite) -> Iterator[str]:
    """A note where this machine has fewer GPUs than the job takes, and no profile promises them."""
    here = look_at_machine().gpus if site.executor == "local" else None
    if here is None or site.gpus_per_node is not None or here >= placed.gpus:
        return
    yield f"  this machine has {here}: choose a profile of one with {placed.gpus} (-r PROFILE), or"
    yield "  train with the loop of this project, which runs on CPUs too (backend=embedded)"


def place(draft: Draft, site: JobSite) -> Placement:
    """Decide the GPUs of policy and judge, and write them into ``draft``.

    A problem is added where no number of GPUs fits.
    """
    asked = draft.get("cluster.gpus_per_node")
    node = site.gpus_per_node or max(GPUS_OF_A_NODE, asked or 0)
    copy = _product(draft, SERVE, "tensor_parallel_size", "pipeline_parallel_size")
    copies = draft.get(f"{SERVE}.data_parallel_size") or 1
    # The NeMo-Gym of v0.6.0 starts its own, whatever base_url says.
    external = bool(draft.get(f"{JUDGE}.base_url")) and draft.version > "v0.6.0"
    judge = 0 if external else copies * copy
    policy_nodes = _policy_nodes(draft, site, judge, node)
    shares = policy_nodes == 1 and (site.nodes or 1) == 1 and judge < node
    room = node - judge if shares else node
    fitting = find_fitting(draft, policy_nodes, room)
    if asked and asked <= room:
        gpus = asked  # the rules say whether it divides the batch
    elif fitting:
        gpus = fitting[0]
    else:
        gpus = max(1, min(asked or room, room))
        left = f"{node} GPUs of a node" + (f" less {judge} of the judge" if shares else "")
        fix = "change the parallel sizes, policy.train_global_batch_size, or the judge's GPUs"
        draft.problems.append(nothing_fits(draft, left, fix))
    if shares and not external and not draft.was_given(f"{SERVE}.data_parallel_size"):
        spare = node if site.gpus_per_node or not asked or asked > room else 0
        copies = max(1, (spare - gpus) // copy)
        judge = copies * copy
    elif judge and not shares and not draft.was_given(f"{SERVE}.data_parallel_size"):
        copies = max(1, -(-judge // node) * node // copy)  # its nodes are nobody else's
        judge = copies * copy
    placed = Placement(
        node_gpus=node,
        policy_nodes=policy_nodes,
        policy_gpus=gpus,
        judge_gpus=judge,
        judge_nodes=0 if shares or external else -(-judge // node),
        ranks=count_ranks(draft),
    )
    _write(draft, placed, copies, asked)
    draft.problems += check_site(placed, site)
    return placed


def _policy_nodes(draft: Draft, site: JobSite, judge: int, node: int) -> int:
    if draft.was_given("cluster.num_nodes"):
        return int(draft.get("cluster.num_nodes"))
    judge_nodes = -(-judge // node) if (site.nodes or 1) > 1 else 0
    return max(1, (site.nodes or 1) - judge_nodes)


def count_ranks(draft: Draft) -> int:
    """GPUs of one copy of the policy."""
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    return _product(draft, MEGATRON, *sizes)


def _product(draft: Draft, table: str, *names: str) -> int:
    product = 1
    for name in names:
        product *= draft.get(f"{table}.{name}") or 1
    return product


def find_fitting(draft: Draft, nodes: int, room: int) -> list[int]:
    """GPUs a node, most first, with which the copies of the policy share the batch evenly."""
    ranks = count_ranks(draft)
    vllm = _product(draft, VLLM, "tensor_parallel_size", "pipeline_parallel_size")
    batch = draft.get("policy.train_global_batch_size") or 1
    samples = draft.get("grpo.num_prompts_per_step") * draft.get("grpo.num_generations_per_prompt")
    fitting = []
    for gpus in range(room, 0, -1):
        copies, rest = divmod(nodes * gpus, ranks)
        even = not rest and copies and not batch % copies and not samples % copies
        if even and not (nodes * gpus) % vllm:
            fitting.append(gpus)
    return fitting


def nothing_fits(draft: Draft, left: str, fix: str) -> Problem:
    """No part of the GPUs that are ``left`` for the policy can be used."""
    batch = draft.get("policy.train_global_batch_size")
    return Problem(
        key="cluster.gpus_per_node",
        what="no number of GPUs holds whole copies of the policy that share the batch evenly",
        got=f"{left}; copies of TP x PP x CP = {count_ranks(draft)} GPUs; batch of {batch}",
        fix=fix,
    )


def _write(draft: Draft, placed: Placement, copies: int, asked: int | None) -> None:
    shared = placed.judge_gpus and not placed.judge_nodes
    why = f"{placed.policy_nodes} x {placed.policy_gpus} GPUs = {placed.data_parallel} copies"
    why += f" of the policy divide the batch of {draft.get('policy.train_global_batch_size')}"
    why += f"; {placed.judge_gpus} of the node's {placed.node_gpus} are the judge's" * bool(shared)
    if asked != placed.policy_gpus:
        draft.force("cluster.gpus_per_node", placed.policy_gpus, why)
    draft.derive("cluster.num_nodes", placed.policy_nodes, "nodes of the profile without judge's")
    if placed.judge_gpus:
        why = f"{copies} copies of the judge take {placed.judge_gpus} GPUs"
        draft.derive(f"{SERVE}.data_parallel_size", copies, why)
    if draft.version > "v0.6.0":
        nodes = placed.judge_nodes or int(bool(placed.judge_gpus))
        draft.force(f"{GYM}.num_gpu_nodes", nodes, "nodes with GPUs of the judge")


def check_site(placed: Placement, site: JobSite) -> Iterator[Problem]:
    """Whether the profile has the nodes."""
    if site.nodes is not None and placed.nodes > site.nodes:
        yield Problem(
            key="cluster.num_nodes",
            what=f"the job needs nodes for the policy and for the {placed.judge}",
            got=f"{site.nodes} of the profile",
            allowed=f"{placed.policy_nodes} + {placed.judge_nodes} = {placed.nodes}",
            fix=f"let the profile offer {placed.nodes} nodes, or set cluster.num_nodes",
        )
