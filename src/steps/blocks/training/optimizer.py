"""AdamW on the gradients that DDP gathered, with a norm taken over the whole model.

On CUDA it is megatron-core's optimizer (float32 master weights, optionally spread over data
ranks); that one refuses CPU tensors, so on CPU it is torch's fused AdamW on ``main_grad``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
)
from megatron.core.tensor_parallel.layers import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import nn

from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.update_guard import UpdateGuard

_MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, gradient_clip: float | None = 1.0
) -> Optimizer:
    """The optimizer of a DDP-wrapped model; ``gradient_clip`` None or 0 leaves gradients alone."""
    if torch.cuda.is_available():
        return CudaAdam(model, config, gradient_clip=gradient_clip or 0.0)
    return CpuAdamW(model, config, gradient_clip=gradient_clip or 0.0)


class CpuAdamW:
    """torch's AdamW for CPU tensors; vectors (norms) are not decayed, as in megatron-core."""

    def __init__(self, model: nn.Module, config: OptimConfig, *, gradient_clip: float) -> None:
        self.guard = UpdateGuard(model, config.max_skipped_updates)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradient_clip = gradient_clip
        matrices = [p for p in self.parameters if p.dim() > 1]
        vectors = [p for p in self.parameters if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._adam = _FusedAdamW(groups, betas=config.betas, eps=config.eps)

    def step(self, lr: float, *, step: int, loss: float) -> float:
        """Clip and update; the norm of the gradient before clipping.

        ``loss`` is that of the global batch. No weight changes where loss or norm are not
        finite: see :meth:`UpdateGuard.allows`.
        """
        norm = gradient_norm(self.parameters)
        if not self.guard.allows(step=step, loss=loss, grad_norm=norm):
            return norm
        clipped = self.gradient_clip and norm > self.gradient_clip
        # The kernel divides by it on its way through the gradients, which saves a pass over them.
        scale = torch.tensor((norm + 1e-6) / self.gradient_clip) if clipped else None
        self._adam.step(lr, scale)
        return norm

    def sharded_state(self, weights: dict[str, Any], *, loading: bool) -> dict[str, Any]:
        """Moments in megatron-core's sharded form; ``weights`` is the model's sharded state."""
        self._adam.create_moments()  # so that a state before the first update has all its parts
        sharded = get_param_id_to_sharded_param_map(weights, self.parameters)
        return {
            f"{moment}.{number}": make_sharded_optimizer_tensor(
                sharded[number], self._adam.state[parameter][moment], prefix=f"optimizer.{moment}"
            )
            for number, parameter in enumerate(self.parameters)
            for moment in _MOMENTS
        } | {"updates": self.updates}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`sharded_state` described, as loaded."""
        for number, parameter in enumerate(self.parameters):
            moments = self._adam.state[parameter]
            for moment in _MOMENTS:
                moments[moment].copy_(state[f"{moment}.{number}"])
            moments["step"].fill_(state["updates"])

    @property
    def updates(self) -> int:
        """Number of updates made so far."""
        steps = {int(moments["step"]) for moments in self._adam.state.values()}
        return steps.pop() if steps else 0


class _FusedAdamW:
    """The kernel of ``torch.optim.AdamW(fused=True)``, on gradients in ``main_grad``.

    That class loads torch's compiler before its first step, which takes most of a second.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        self.param_groups = groups
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = {}
        self._betas, self._eps = betas, eps

    def create_moments(self) -> None:
        """Moments of zero for the weights that have none."""
        for parameter in (each for group in self.param_groups for each in group["params"]):
            if parameter not in self.state:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
                }

    @torch.no_grad()
    def step(self, lr: float, scale: torch.Tensor | None) -> None:
        """Update all weights by their gradients, divided by ``scale``."""
        self.create_moments()
        for group in self.param_groups:
            if not (parameters := group["params"]):
                continue
            states = [self.state[parameter] for parameter in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                parameters,
                [parameter.main_grad for parameter in parameters],
                *([state[moment] for state in states] for moment in _MOMENTS),
                [],  # the largest second moments, of AMSGrad
                steps,
                amsgrad=False,
                lr=lr,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=group["weight_decay"],
                eps=self._eps,
                maximize=False,
                grad_scale=scale,
            )


class CudaAdam:
    """megatron-core's Adam on CUDA: decoupled weight decay, float32 master weights."""

    def __init__(self, model: nn.Module, config: OptimConfig, *, gradient_clip: float) -> None:
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

        self.guard = UpdateGuard(model, config.max_skipped_updates)
        self._weight_decay, self._gradient_clip = config.weight_decay, gradient_clip
        dtype = next(model.parameters()).dtype
        settings = OptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            min_lr=config.sched.min_lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            adam_eps=config.eps,
            clip_grad=gradient_clip,
            bf16=dtype is torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=model.ddp_config.use_distributed_optimizer,
        )
        self._adam = get_megatron_optimizer(settings, [model])
        if model.ddp_config.use_distributed_optimizer:
            for part in self._adam.chained_optimizers:
                _prepare_torch_adam(part)

    def step(self, lr: float, *, step: int, loss: float) -> float:
        # The parts of megatron-core's own `step`, which applies whatever it finds.
        self._adam.prepare_grads()
        norm = float(self._adam.get_grad_norm())
        if self.guard.allows(step=step, loss=loss, grad_norm=norm):
            self._update(lr, norm)
        # In float32 `grad` is now `main_grad` itself: the next backward pass would add to both.
        self._adam.zero_grad()
        return norm

    def _update(self, lr: float, norm: float) -> None:
        from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

        for group in self._adam.param_groups:
            # megatron-core leaves both products to its own scheduler: without them it would decay
            # the vectors (norms) too.
            group["lr"] = lr * group["lr_mult"]
            group["weight_decay"] = self._weight_decay * group["wd_mult"]
        if self._gradient_clip:
            weights = self._adam.get_parameters()
            clip_grad_by_total_norm_fp32(weights, max_norm=self._gradient_clip, total_norm=norm)
        self._adam.step_with_ready_grads()

    def sharded_state(self, weights: dict[str, Any], *, loading: bool) -> dict[str, Any]:
        return self._adam.sharded_state_dict(weights, is_loading=loading, metadata=_SHARDING)

    def load(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state)


def _prepare_torch_adam(part: Any) -> None:
    """Make megatron-core's distributed optimizer ready to load the state of torch's Adam.

    That is the one where nothing faster is installed. It has a number of steps for each weight,
    which megatron-core asks for before there is one, and looks for among the tensors of a file.
    """
    adam, set_tensors = part.optimizer, part._set_main_param_and_optimizer_states
    if not isinstance(adam, torch.optim.Adam):  # AdamW is one
        return
    for parameter in (each for group in adam.param_groups for each in group["params"]):
        zeros = {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
        adam.state[parameter] = {"step": torch.zeros(()), **zeros}

    def set_all_but_step(weight: nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        own = part._get_main_param_and_optimizer_states(weight)
        # megatron-core has given all weights one tensor for their number of steps: an update would
        # count itself once for each weight.
        adam.state[own["param"]]["step"] = own["step"].clone()
        set_tensors(weight, {"step": own["step"], **tensors})

    part._set_main_param_and_optimizer_states = set_all_but_step


# State that data ranks share among them is saved by weight, so that any division reads it; what
# megatron-core does by default, its own files no longer hold. One data rank gathers it on the CPU.
_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,
}

Optimizer = CpuAdamW | CudaAdam


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """Euclidean norm of ``main_grad`` over the whole model, every weight counted once.

    Weights that tensor ranks hold alike count on the first of them, tied embeddings on the first
    pipeline stage.
    """
    counted = [
        p.main_grad
        for p in parameters
        if param_is_not_shared(p) and param_is_not_tensor_parallel_duplicate(p)
    ]
    squares = torch.zeros((), dtype=torch.float64)
    if counted:
        squares = torch.stack(torch._foreach_norm(counted)).double().square().sum()
    group = parallel_state.get_model_parallel_group()
    if group.size() > 1:
        dist.all_reduce(squares, group=group)
    return math.sqrt(squares.item())
