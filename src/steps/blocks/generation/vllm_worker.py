"""The process that holds vLLM: reads calls as lines of JSON, answers each with one.

vLLM changes the process it is in: it binds memory and threads, starts torch.distributed, takes
signals and prints. So it gets one of its own, which ends when the trainer does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TextIO


class VllmWorker:
    """The calls that are answered; vLLM is loaded at once, the model with the first weights."""

    def __init__(self) -> None:
        from vllm import LLM
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self.open, self.params = LLM, SamplingParams
        self.kind = RequestOutputKind.FINAL_ONLY
        self.llm: Any = None

    def load(self, path: str, options: dict[str, Any]) -> None:
        """Take the weights in ``path``; ``options`` are those of ``vllm.LLM``."""
        if self.llm is None:
            self.llm = self.open(path, **options)
            return
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("keys and values of the weights before could not be dropped")

    def generate(
        self, prompts: list[list[int]], settings: dict[str, Any], seeds: list[list[int]]
    ) -> list[list[dict[str, Any]]]:
        """A response to prompt i for each of ``seeds[i]``."""
        requests = [
            ({"prompt_token_ids": prompt}, self._params(settings, seed))
            for prompt, own in zip(prompts, seeds, strict=True)
            for seed in own
        ]
        if not requests:
            return [[] for _ in prompts]
        asked, params = zip(*requests, strict=True)
        outputs = iter(self.llm.generate(list(asked), list(params), use_tqdm=False))
        return [[_sample(next(outputs).outputs[0]) for _ in own] for own in seeds]

    def _params(self, settings: dict[str, Any], seed: int) -> Any:
        return self.params(**settings, seed=seed, output_kind=self.kind)


def _sample(output: Any) -> dict[str, Any]:
    tokens = list(output.token_ids)
    found = zip(tokens, output.logprobs, strict=True)
    return {
        "tokens": tokens,
        "log_probs": [at[token].logprob for token, at in found],
        "finish": output.finish_reason,
    }


def serve(calls: Any, lines: Any, answers: TextIO) -> None:
    """Answer each of ``lines`` with what the method of ``calls`` returned, or with its error."""
    for line in lines:
        asked = json.loads(line)
        try:
            answer = {"told": getattr(calls, asked["call"])(**asked["given"])}
        except Exception as error:  # it is the trainer's to tell
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve on stdin and stdout; ``argv[1]`` is the folder to remove at the end."""
    # Whoever stops the run stops the trainer, which saves its state before it closes this.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what vLLM prints is no answer
    waiting: SimpleQueue[str] = SimpleQueue()
    Thread(target=_read, args=(waiting, Path(sys.argv[1])), daemon=True).start()
    serve(VllmWorker(), iter(waiting.get, ""), answers)


def _read(waiting: SimpleQueue[str], folder: Path) -> None:
    """Queue what comes. The end of it is the end of the trainer, however that came about: then
    nobody waits for what is being sampled.
    """
    for line in sys.stdin:
        waiting.put(line)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
