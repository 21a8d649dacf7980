"""Variables of a NeMo-RL job that its config cannot hold."""

from __future__ import annotations

from nemotron_style.steps.rl.rlhf.nemo_rl.config import Config
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

ALWAYS = {
    "NRL_IGNORE_VERSION_MISMATCH": "1",  # the image's own sources are what we run
    "NRL_FORCE_REBUILD_VENVS": "false",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NEMO_GYM_VENV_DIR": "/opt/gym_venvs",
    "OMP_NUM_THREADS": "16",
    "UV_HTTP_TIMEOUT": "300",
}
ONLY_OLDEST = {"NRL_VLLM_USE_V1": "1", "VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}
"""vLLM 0.17 of v0.6.0 reads these; newer ones choose by themselves."""


def compile_environment(config: Config, version: Version) -> dict[str, str]:
    """Names and values, those of ``nemo_rl.environment`` over ours; never a secret."""
    old = ONLY_OLDEST if version == Version.V0_6_0 else {}
    return {**ALWAYS, **old, **config.nemo_rl.environment}
