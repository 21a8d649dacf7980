"""What a compiled job leaves open: variables of its environment, set before NeMo-RL starts.

The compiled YAML holds ``${oc.env:NAME}`` where only the job knows the value, so the same text can
be shown by the dry run and be read by NeMo-RL's own loader.
"""

from __future__ import annotations

from enum import StrEnum

CONFIG_FILE = "nemo_rl.yaml"
"""The file in the plan that NeMo-RL reads."""
JOB_FILE = "nemo_rl_job.json"
"""The file in the plan for our own job: ``{"version": ..., "script": ..., "environment": {...}}``.

``environment`` has the variables, as strings, that a variable of the machine does not replace.
"""


class JobVariable(StrEnum):
    """A variable that the job sets."""

    POLICY_MODEL = "NEMOTRON_STYLE_POLICY_MODEL"  # a Hugging Face folder made of the input
    PRETRAINED = "NEMOTRON_STYLE_PRETRAINED"  # the Megatron checkpoint to start from
    PRETRAINED_FORMAT = "NEMOTRON_STYLE_PRETRAINED_FORMAT"  # megatron_bridge or megatron_lm
    TRAIN_DATA = "NEMOTRON_STYLE_TRAIN_DATA"  # rows in the form of its data, JSON Lines
    VALIDATION_DATA = "NEMOTRON_STYLE_VALIDATION_DATA"
    CHECKPOINTS = "NEMOTRON_STYLE_CHECKPOINTS"  # where this run keeps its step_N
    LOGS = "NEMOTRON_STYLE_LOGS"

    @property
    def reference(self) -> str:
        """How the variable stands in the compiled YAML."""
        return "${oc.env:" + self + "}"
