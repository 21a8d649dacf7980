"""vLLM as the judge of rl/rlhf: SmolLM2 in the ``instruct`` form, a small one in ``genrm``.

The policy is a part of SmolLM2, with its tokenizer: what is looked at here is the judge.
The server is vLLM's own, the interpreter that of ``test_vllm.py``. ``vllm serve`` is started by
its module: the command of the CPU build asks for the version of a package that it is not.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from held_port import hold_port
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.http.endpoint import read_address
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.judge.client import JudgeClient, JudgeFailure, NamedQuestion
from nemotron_style.steps.blocks.judge.prompt import JudgeSampling, Question, ask_messages
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.serving.local_chat_model import load_chat_model
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.convert.megatron_to_hf import config as export_config
from nemotron_style.steps.convert.megatron_to_hf import recipe as export_recipe
from small_smollm2 import cut_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("vllm_python")]

COMMAND = [sys.executable, "-m", "nemotron_style.runtime", "steps", "run"]
TOKENS = '{system_turn_start: "<repo_name>", turn_start: "<|im_start|>", label_start: "<file_sep>"}'
ASKED = {
    "train": (
        "Why is the sky blue?",
        "How do I boil an egg?",
        "Name three uses of a brick.",
        "What does a bee make?",
    ),
    "heldout": ("What is the capital of France?", "Why do leaves fall in autumn?"),
}
SLOTS = {"prompts": "train", "validation": "heldout"}
GYM = "env.nemo_gym"
COMPARE = f"{GYM}.genrm_compare_resources_server.resources_servers.genrm_compare"
SMALL = [
    *("grpo.num_prompts_per_step=2", "grpo.num_generations_per_prompt=3", "grpo.max_num_steps=2"),
    *("grpo.val_num_generations_per_prompt=1", "policy.generation.max_new_tokens=24"),
    *("policy.max_total_sequence_length=256", "policy.train_micro_batch_size=6"),
    *("policy.logprob_batch_size=6", "policy.megatron_cfg.optimizer.lr=1e-6"),
    "policy.megatron_cfg.optimizer.min_lr=1e-6",
    "policy.megatron_cfg.scheduler.lr_warmup_iters=0",
    *("judge.form=instruct", "judge.min_accuracy=null", "judge.at_once=4"),
    f"{GYM}.genrm_model.responses_api_models.vllm_model.model=smollm2",
    f"{COMPARE}.genrm_responses_create_params.max_output_tokens=64",
    f"{COMPARE}.genrm_parse_retries=0",
    "samples.prompts=0",
    "judge.min_swap_agreement=0",  # a model of this size looks at the place
]
SCHEMA = {
    "type": "object",
    "properties": {
        name: {"type": "integer", "minimum": 1, "maximum": most}
        for name, most in (("score_1", 5), ("score_2", 5), ("ranking", 6))
    },
    "required": ["score_1", "score_2", "ranking"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}}
UNREADABLE = ("failed_unparseable", "failed_unfinished", "failed_empty")


@contextmanager
def serve(python: Path, model: Path, name: str, log: Path, *, context: int) -> Iterator[str]:
    """The address of a vLLM that serves ``model`` as ``name``; it is gone at the end."""
    held = hold_port()
    port = held.getsockname()[1]
    words = [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model, "--served-model-name", name, "--host", "127.0.0.1"),
        *("--port", str(port), "--max-model-len", str(context), "--max-num-seqs", "8"),
        *("--dtype", "float32", "--enforce-eager"),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONWARNINGS": "ignore",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    with log.open("w") as file:
        server = subprocess.Popen(
            words, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_until_healthy(server, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(server)
        held.close()


def wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=60) as told:
            if told.status == 200:
                return
        time.sleep(0.5)
    pytest.fail(f"vLLM does not serve:\n{log.read_text()[-4000:]}")


def end(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and then end whatever it started."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(timeout=60)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A step from the command line, run to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        cwd=home,
        env=os.environ | {"NEMOTRON_STYLE_HOME": str(home / "store"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
        check=False,
    )


# -- two steps of a small policy, judged by a real model


@pytest.fixture(scope="module")
def home(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts, and a store with a part of SmolLM2 as the policy."""
    home = tmp_path_factory.mktemp("home")
    for name, texts in ASKED.items():
        rows = [{"messages": [{"role": "user", "content": text}]} for text in texts]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spoken = f"model.data.chat_prompt_tokens={TOKENS}"
    policy = cut_smollm2(smollm2, home / "part", answer_length=24.0)
    source = ("-i", f"model={policy}", "--name", "policy")
    done = command(home, "convert/hf_to_megatron", *source, spoken)
    assert done.returncode == 0, done.stdout
    return home


@pytest.fixture(scope="module")
def judge(
    vllm_python: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    log = tmp_path_factory.mktemp("judge") / "vllm.log"
    with serve(vllm_python, smollm2, "smollm2", log, context=1024) as url:
        yield url


@dataclass(frozen=True)
class Done:
    """A run of rl/rlhf: what it printed at its end, its steps, and the verdicts that it kept."""

    output: str
    steps: list[dict[str, Any]]
    verdicts: list[dict[str, float]]

    def total(self, name: str) -> float:
        """A count over the steps."""
        return sum(line.get(f"judge/{name}", 0) for line in self.steps)


def align(home: Path, judge: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """rl/rlhf on a part of SmolLM2 under the judge."""
    inputs = [f"{slot}=./{name}.jsonl" for slot, name in SLOTS.items()]
    given = [word for one in ("model=policy", *inputs) for word in ("-i", one)]
    words = ("-c", "tiny", *given, "~inputs.truth", f"judge.url={judge}", *SMALL, *overrides)
    return command(home, "rl/rlhf", *words)


def align_whole(home: Path, judge: str, *overrides: str) -> Done:
    """Both steps of :func:`align`."""
    before = set(home.glob("store/runs/rl-rlhf-*"))
    ended = align(home, judge, *overrides)
    assert ended.returncode == 0, ended.stdout
    [run] = set(home.glob("store/runs/rl-rlhf-*")) - before
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    file = run / "verdicts.jsonl"
    kept = file.read_text().splitlines() if file.exists() else []
    steps = [line for line in lines if "judge/requests" in line]
    return Done(ended.stdout, steps, [json.loads(line) for line in kept])


def check_reported(done: Done) -> float:
    """What the judge said was counted as it was, and told at the end. Returns the failure rate."""
    assert [line["step"] for line in done.steps] == [1, 2]
    for line in done.steps:
        unreadable = sum(line.get(f"judge/{name}", 0) for name in UNREADABLE)
        assert line["judge/answers"] == line["judge/requests"] > 0
        assert line["judge/answers"] == line.get("judge/verdicts", 0) + unreadable
        assert line["judge/parse_failure_rate"] == pytest.approx(unreadable / line["judge/answers"])
        assert line["num_mask_sample_filtered"] == 3 * line["judge/masked_groups"]
        assert line.get("num_valid_samples", 0) == 6 - line["num_mask_sample_filtered"]
        assert ("reward" in line) == (line["judge/masked_groups"] < 2)
    rate = 1 - done.total("verdicts") / done.total("answers")
    print(f"parse failure rate of the run: {rate:.3f} of {done.total('answers'):g} answers")
    assert f"judge_parse_failure_rate={rate:.5g}" in done.output
    assert f"judge_failed_share={rate:.5g}" in done.output
    for verdict in done.verdicts:
        assert all(verdict[name] in range(1, 6) for name in ("score_1", "score_2"))
    return rate


def test_a_model_that_is_only_asked_for_json_stops_the_run(home: Path, judge: str) -> None:
    """Most of its answers hold no verdict, and the default budget is spent before any update."""
    ended = align(home, judge)
    assert ended.returncode == 1, ended.stdout
    assert re.search(r"\d+ of \d+ judgements failed and \d+ may", ended.stdout)


def test_a_model_that_is_held_to_the_schema_is_read(home: Path, judge: str) -> None:
    done = align_whole(home, judge, f"judge.response_format={json.dumps(FORMAT)}")
    assert check_reported(done) <= 0.2
    assert done.total("verdicts") >= 8
    assert any(line["lr"] > 0 and line["grad_norm"] > 0 for line in done.steps)
    assert "judge_win_rate=" in done.output


# -- a judge of ours, in the roles that its chat template writes


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as convert/megatron_to_hf writes judges for their servers."""
    root = tmp_path_factory.mktemp("own")
    initialize(seed=1)
    texts = ["System User Assistant Principle Response 1 Response 2 the river is deep"] * 4
    tokenizer = train_tokenizer(texts, 320, root / "tokenizer", tokens=ChatPromptTokens())
    sizes = ModelConfig(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        num_attention_heads=2,
        num_query_groups=1,
        vocab_size=tokenizer.vocab_size,
        max_sequence_length=256,
    )
    save_model(
        build_model(sizes, seed=3, ddp=False), root / "m", config=sizes, tokenizer=tokenizer.path
    )
    inputs: Any = {"model": SimpleNamespace(path=root / "m", facts={})}
    ctx = StepContext(run_dir=root, inputs=inputs, outputs=("model",))
    export_recipe.run(export_config.Config.model_validate_json("{}"), ctx)
    return ctx.output("model").path


def test_vllm_asks_a_judge_of_ours_in_its_own_roles(
    vllm_python: Path, own: Path, tmp_path: Path
) -> None:
    """The very tokens of our own server; and what a random model answers is no verdict."""
    history = ({"role": "user", "content": "describe the river"},)
    question = Question(history, "the river is deep", "the river", principle="be brief")
    with serve(vllm_python, own, "own", tmp_path / "vllm.log", context=256) as url:
        client = JudgeClient(
            read_address(url),
            retry_policy=RetryPolicy(tries=2, timeout=60),
            model="own",
            form="genrm",
            sampling=JudgeSampling(max_tokens=16),
        )
        with client:
            client.wait_ready(10)
            [found] = client.judge(
                [NamedQuestion((1, "river", 0, 1, 0), question)], most_failures=1
            )
            asked = client.body(question, seed=3) | {"return_token_ids": True}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as told:
            seen = json.loads(told.read())["prompt_token_ids"]
    assert isinstance(found, JudgeFailure)
    assert set(found.kinds) <= {"unparseable", "unfinished", "empty"}
    assert client.counts["answers"] == 2
    assert seen == load_chat_model(own).encode(ask_messages(question, form="genrm"))
