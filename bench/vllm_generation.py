"""Sampling in the training process against vLLM's CPU build, on the same weights and work.

Run it with the interpreter of an environment that has vLLM (``make bench-vllm``). CPU time counts
both processes; vLLM's holds one thread, as this one does. Both draw what they are asked without
stop tokens, each sample with a seed of its own. The second part starts a process of its own for
each engine and times it from its start to its first sample.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import psutil
import torch
from measure import SMOKE, compare
from twin import NEW_TOKENS, PROMPT_TOKENS, PROMPTS, SAMPLES, sizes

from nemotron_style.steps.blocks.generation.backend import GenerationEngine, open_engine
from nemotron_style.steps.blocks.generation.logprob_gap import measure_sample_gap
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.generation.vllm_engine import VllmEngine
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.settings.generation_config import EngineName

ENGINES: tuple[EngineName, ...] = ("in_process", "vllm")
STARTS = 1 if SMOKE else 5


def cpu_seconds() -> float:
    """CPU time of this process and of those it started, as far as they still live."""
    others = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(one.cpu_times()[:2]) for one in others)


def bench_sampling() -> None:
    config = sizes("1M")
    model = build_model(config, ddp=False)
    engines = {
        name: open_engine(name, model, config, max_rows=PROMPTS * SAMPLES) for name in ENGINES
    }
    prompts = torch.randint(3, config.vocab_size, (PROMPTS, PROMPT_TOKENS)).tolist()
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS)

    def draw(engine: GenerationEngine) -> object:
        return engine.generate(prompts, sampling, samples_per_prompt=SAMPLES, seed=1)

    compare(
        f"{PROMPTS} x {SAMPLES} x {NEW_TOKENS} tokens, 1M parameters, float32",
        {name: lambda engine=engine: draw(engine) for name, engine in engines.items()},
        rounds=15,
        clock=cpu_seconds,
    )
    update = {"vllm takes over new weights": engines["vllm"].update}
    compare("in process there is nothing to take over", update, rounds=15, clock=cpu_seconds)
    for name, engine in engines.items():
        gap = measure_sample_gap(model, prompts, draw(engine))
        print(f"  {name}: {gap}")
        engine.close()


def start(name: EngineName) -> None:
    """Draw one token, and tell the CPU time and the moment."""
    parallel.initialize(seed=0)
    config = sizes("1M")
    engine = open_engine(name, build_model(config, ddp=False), config, max_rows=32)
    engine.generate([[3, 4, 5]], SamplingParams(max_new_tokens=1), seed=1)
    print(cpu_seconds(), time.time(), flush=True)
    if isinstance(engine, VllmEngine):
        engine.close()


def bench_start() -> None:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ENGINES}
    for _ in range(STARTS):
        for name, times in taken.items():
            begin = time.time()
            command = [sys.executable, __file__, "start", name]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            cpu, end = map(float, told.split()[-2:])
            times.append((cpu, end - begin))
    print(f"from the start of the process to the first sample ({STARTS} starts)")
    for name, times in taken.items():
        cpu, wall = (statistics.median(part) for part in zip(*times, strict=True))
        print(f"  {name:44s} {cpu:6.2f} s of CPU, {wall:6.2f} s")


def main() -> None:
    if sys.argv[1:2] == ["start"]:
        start(sys.argv[2])
        return
    assert os.environ.get("OMP_NUM_THREADS") == "1", "one thread for both: OMP_NUM_THREADS=1"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parallel.initialize(seed=0)
    bench_sampling()
    bench_start()


if __name__ == "__main__":
    main()
