"""Sampling with vLLM, in a process beside the trainer: weights go over as files in memory.

The engine follows :class:`engine.Engine` in what it takes and gives: token ids, log-probs
under the distribution that was sampled from, the stop token as the last one. Every sample is a
request with a seed of its own.

Left out on purpose: vLLM's server (nothing here needs HTTP between two processes of one machine),
tensor parallel engines, and quantised weights, which would no longer be the trainer's.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from nemotron_style.runtime.errors import InputError, Problem, StepFailed, raise_all
from nemotron_style.runtime.shell_environment import find_rank_variables
from nemotron_style.steps.blocks.data.tokenizer_files import export_tokenizer
from nemotron_style.steps.blocks.generation.engine import BROKEN_LOGITS, Sample
from nemotron_style.steps.blocks.generation.random_stream import sample_keys
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams, check_prompts
from nemotron_style.steps.blocks.generation.vllm_weights import make_folder, plan_files
from nemotron_style.steps.blocks.model.parallel import current_parallel
from nemotron_style.steps.blocks.settings.generation_config import check_temperature
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

WHERE = "generation engine vllm"
WORKER = "nemotron_style.steps.blocks.generation.vllm_worker"
LOG = "vllm.log"

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONWARNINGS": "ignore",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process, and a schedule that repeats
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines would be bound to one core
}
_LOG_LINES = 12


class VllmEngine:
    """Draws responses with vLLM from the weights that the model had at the last :meth:`update`.

    ``max_rows`` bounds the responses decoded side by side, and with them the memory of the cache,
    which is never more than half of what is free. ``dtype`` decodes in another type than the
    weights have. End strings need the ``tokenizer``, a folder. Raises StepFailed where vLLM is not
    installed, or cannot hold the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        *,
        max_rows: int = 512,
        dtype: torch.dtype | None = None,
        tokenizer: Path | None = None,
    ) -> None:
        assert current_parallel().model == 1, "a divided model cannot be handed over by one process"
        _require_vllm()
        self.model, self.config, self.max_rows = model, config, max_rows
        self.tokenizer = tokenizer
        self.files = plan_files(model, config, dtype)
        weights = sum(parameter.numel() for parameter in model.parameters())
        self.folder = make_folder(weights * self.files.dtype.itemsize)
        self.process = _start(self.folder, next(model.parameters()).device)
        self._loaded = False
        self._end = weakref.finalize(self, _end, self.process, self.folder)

    def update(self) -> None:
        """Hand over the model's weights as they are now, and forget what was computed with others.

        The first call starts vLLM with them. Raises StepFailed when vLLM does not take them.
        """
        path = self.folder / "model"
        path.mkdir()
        try:
            self.files.write_settings(path)
            self.files.write_weights(self.model, path)
            if self.tokenizer:
                export_tokenizer(self.tokenizer, path)
            self._ask("load", path=str(path), options={} if self._loaded else self._options())
        finally:
            shutil.rmtree(path, ignore_errors=True)  # they take as much memory as the model
        self._loaded = True

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        samples_per_prompt: int = 1,
        seed: int | Sequence[int],
    ) -> list[list[Sample]]:
        """See :meth:`engine.Engine.generate`; what is sampled for a seed is not what that samples.

        Raises InputError for prompts that do not fit and for settings that vLLM would change, and
        StepFailed when vLLM ended, failed, or gave log-probs that are not numbers.
        """
        assert self.tokenizer or not sampling.end_strings, "end strings need the tokens' text"
        check_prompts(prompts, sampling, room=self.config.max_sequence_length)
        if not self._loaded:
            self.update()
        groups = self._ask(
            "generate",
            prompts=[list(prompt) for prompt in prompts],
            settings=sampling_settings(sampling),
            seeds=sample_seeds(seed, len(prompts), samples_per_prompt),
        )
        return [[_read(sample) for sample in group] for group in groups]

    def close(self) -> None:
        """End vLLM and remove its files."""
        self._end()

    def _options(self) -> dict[str, Any]:
        """Arguments of ``vllm.LLM``."""
        device = next(self.model.parameters()).device
        return {
            "skip_tokenizer_init": self.tokenizer is None,
            "dtype": self.files.type_name,
            "load_format": "safetensors",
            "use_tqdm_on_load": False,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "max_model_len": self.config.max_sequence_length,
            "max_num_seqs": self.max_rows,
            "kv_cache_memory_bytes": min(self.files.cache_bytes(self.max_rows), _free(device) // 2),
            "enforce_eager": device.type == "cpu",  # to compile takes longer there than it saves
            "seed": 0,
        }

    def _ask(self, call: str, **given: Any) -> Any:
        """What the worker tells. Raises StepFailed with its error, or with its last words."""
        questions, answers = self.process.stdin, self.process.stdout
        assert questions is not None
        assert answers is not None
        line = ""
        try:
            questions.write(json.dumps({"call": call, "given": given}) + "\n")
            questions.flush()
            line = answers.readline()
        except OSError:
            pass  # it is gone, which the empty line tells
        if not line.endswith("\n"):
            raise StepFailed(self._obituary(call))
        answer = json.loads(line)
        if "error" in answer:
            what = f"vLLM could not {call}"
            raise StepFailed(Problem(where=WHERE, what=what, got=answer["error"]))
        return answer["told"]

    def _obituary(self, call: str) -> Problem:
        code = self.process.wait()
        end = f"signal {-code}" if code < 0 else f"exit code {code}"
        try:
            words = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            words = ""
        said = "\n".join(words.splitlines()[-_LOG_LINES:])
        return Problem(
            where=WHERE,
            what=f"the process of vLLM ended ({end}) when it was to {call}",
            got=f"its last words:\n{said}" if said else "",
            fix="the run continues from its last checkpoint when it is started again",
        )


def sampling_settings(sampling: SamplingParams) -> dict[str, Any]:
    """Arguments of vLLM's ``SamplingParams``, without a seed.

    Token ids alone end a response, ``ignore_eos`` sees to that; text is made only where an end
    string has to be found in it. Raises InputError for a temperature that vLLM would change.
    """
    raise_all(InputError, [*check_temperature("vllm", sampling.temperature, key="temperature")])
    return {
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(sampling.stop_ids),
        "stop": list(sampling.end_strings),
        "ignore_eos": True,
        "logprobs": 0,  # those of the sampled token and of no other
        "detokenize": bool(sampling.end_strings),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "include_stop_str_in_output": True,
    }


def sample_seeds(seed: int | Sequence[int], prompts: int, samples: int) -> list[list[int]]:
    """A seed for every sample, ``[prompts][samples]``, from 0 to 2**63 - 1.

    They are the names of the in-process engine's random streams, so what is sampled belongs to the
    sample here too; vLLM makes other numbers of them.
    """
    keys = sample_keys(seed, prompts, samples) & (2**63 - 1)
    return keys.tolist()


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise StepFailed(
            Problem(
                where=WHERE,
                what="vLLM is not installed",
                fix="pip install 'nemotron-style[vllm]', or set generation=in_process",
            )
        )


def _start(folder: Path, device: torch.device) -> subprocess.Popen[str]:
    ranks = find_rank_variables(os.environ)  # vLLM is one process, whatever this one is part of
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    environment = {**_ENVIRONMENT, **kept, "TMPDIR": str(folder)}
    if device.type == "cpu":
        environment["TORCH_COMPILE_DISABLE"] = "1"  # needs a C++ compiler, and saves nothing
    else:  # the trainer's own
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        number = device.index or 0
        environment["CUDA_VISIBLE_DEVICES"] = seen.split(",")[number] if seen else str(number)
    with open(folder / LOG, "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )


def _end(process: subprocess.Popen[str], folder: Path) -> None:
    process.kill()  # it holds nothing that is worth a goodbye
    process.communicate()
    shutil.rmtree(folder, ignore_errors=True)


def _free(device: torch.device) -> int:
    """Bytes that are free where the model is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _read(sample: dict[str, Any]) -> Sample:
    if not all(map(math.isfinite, sample["log_probs"])):
        raise StepFailed(BROKEN_LOGITS)
    if sample["finish"] not in ("stop", "length"):
        what = "vLLM gave up a response"
        raise StepFailed(Problem(where=WHERE, what=what, got=str(sample["finish"])))
    return Sample(sample["tokens"], sample["log_probs"], sample["finish"])
