"""Every step on a part of SmolLM2, in the chat template that it came with, and back.

The configs are those of ``docs/examples/real-models``, made shorter. What is trained, sampled,
scored, judged and written out has one format: the model's own. With ``SMOLLM2_CHAIN=whole`` it is
the whole model, which takes many minutes.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.config.resolve import import_object, resolve_config
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.step.metrics import read_metrics
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER
from rlhf_world import Judge
from small_smollm2 import cut_smollm2
from waiting import until

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "docs" / "examples" / "real-models"
QUESTIONS = ("Name a river.", "Why is the sky blue?", "Say it in one word.", "2 + 2?")
ANSWERS = ("The Rhine.", "Because of the air.", "Well", "4")
WHOLE = os.environ.get("SMOLLM2_CHAIN") == "whole"
FEW_SAMPLES = ("trainer.samples.prompts=1", "trainer.samples.max_new_tokens=8")
SPOKEN = re.compile(r"<response_([12])-\w+>\n(.*?)\n</response", re.S)


def answered(number: int) -> list[dict[str, str]]:
    question, answer = QUESTIONS[number % 4], ANSWERS[number % 3]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def training_row(number: int) -> dict[str, Any]:
    """Plain, or with its label before or behind the answer."""
    kind = (None, "VALUE_TO_TEXT", "TEXT_TO_VALUE")[number % 3]
    label = {"label": f"verbosity:{number % 2}", "type": kind} if kind else {}
    return {"messages": answered(number), **label}


def rated_row(number: int) -> dict[str, Any]:
    return {"messages": answered(number), "attributes": {"verbosity": number % 3}}


def prefer_longer(body: dict[str, Any]) -> dict[str, int]:
    """The verdict of a judge that is asked by an instruction: the longer answer is better."""
    lengths = {number: len(text) for number, text in SPOKEN.findall(body["messages"][0]["content"])}
    first = lengths["1"] >= lengths["2"]
    return {"score_1": 4 if first else 2, "score_2": 2 if first else 4, "ranking": 3}


class Chain:
    """Runs steps in this process, with the configs of the documentation."""

    def __init__(self, root: Path) -> None:
        self.root, self.steps = root, load_catalog().steps
        self.runs: dict[str, StepContext] = {}

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> SimpleNamespace:
        folder = self.root / name
        folder.mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(text, encoding="utf-8")
        return SimpleNamespace(path=folder, facts={})

    def run(
        self,
        name: str,
        step: str,
        *overrides: str,
        config: str = "default",
        outputs: tuple[str, ...] = ("model",),
        stop: Stop | None = None,
        **inputs: Any,
    ) -> StepContext:
        """Run ``step`` and keep its context as ``name``."""
        path = CONFIGS / f"{config}.yaml"
        resolved = resolve_config(
            self.steps[step], name=str(path) if path.exists() else config, overrides=overrides
        )
        run = import_object(resolved.manifest.run.entrypoint, where=step, key="run.entrypoint")
        ctx = StepContext(
            run_dir=self.root / "runs" / name, inputs=inputs, outputs=outputs, stop=stop or Stop()
        )
        self.runs[name] = ctx
        try:
            run(resolved.parsed, ctx)
        finally:
            ctx.metrics.close()
        return ctx

    def model(self, name: str) -> Any:
        output = self.runs[name].output("model")
        return SimpleNamespace(path=output.path, facts=output.facts, digest="sha256:1", ref=name)

    def metrics(self, name: str) -> list[dict[str, Any]]:
        return read_metrics(self.runs[name].run_dir / "metrics.jsonl")

    @contextmanager
    def serve(self, name: str, step: str, *overrides: str, **inputs: Any) -> Iterator[int]:
        """Run a service in a thread of its own; its port."""
        stop = Stop()
        thread = threading.Thread(
            target=self.run, args=(name, step, *overrides), kwargs={**inputs, "stop": stop}
        )
        thread.start()
        try:
            file = self.root / "runs" / name / "endpoint.json"
            until(file.exists)
            yield json.loads(file.read_text())["port"]
        finally:
            stop.requested = True
            thread.join()


@pytest.fixture(scope="module")
def chain(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The whole way, two updates a step: from Hugging Face through every step and back."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("chain")
    made = Chain(root)
    whole = root / "source"
    if WHOLE:
        whole.symlink_to(smollm2)
    source = SimpleNamespace(path=whole if WHOLE else cut_smollm2(smollm2, whole), facts={})
    prompts = made.write("prompts", [{"messages": answered(n)[:1]} for n in range(4)])
    rows = made.write("train", [training_row(n) for n in range(12)])
    rated = made.write("rated", [rated_row(n) for n in range(12)])

    made.run("base", "convert/hf_to_megatron", model=source)
    base = made.model("base")
    made.run("sft", "sft/chat", *FEW_SAMPLES, config="sft", model=base, data=rows, validation=rows)
    made.run(
        "groups",
        "data/steerlm2",
        *("data.validation_prompts=1", "data.train_groups=8", "data.validation_groups=1"),
        *("sampling.max_new_tokens=48", "sampling.max_attempts=8"),
        config="groups",
        outputs=("train", "validation"),
        sampler=made.model("sft"),
        prompts=prompts,
    )
    groups = {slot: made.runs["groups"].output(slot) for slot in ("train", "validation")}
    made.run(
        "steerlm2",
        "sft/steerlm2",
        *FEW_SAMPLES,
        config="steerlm2",
        model=made.model("sft"),
        data=groups["train"],
        validation=groups["validation"],
    )
    made.run("reward", "reward/regression", config="reward", model=base, data=rated)
    with made.serve("scores", "reward/serve", "port=0", model=made.model("reward")) as port:
        made.run(
            "rs",
            "rs/actor",
            *("remote_rm.host=127.0.0.1", f"remote_rm.port={port}"),
            "model.rs.length_params.max_length=48",
            config="rs",
            model=base,
            prompts=prompts,
        )
    with Judge(prefer_longer).serve() as judge:
        made.run(
            "rlhf",
            "rl/rlhf",
            *(f"judge.url={judge.url}", "env.nemo_gym.genrm_model_name=judge"),
            *("judge.ready_seconds=120", "policy.generation.max_new_tokens=48"),
            config="rlhf",
            model=base,
            prompts=prompts,
        )
    for name in ("base", "sft", "steerlm2", "rs", "rlhf"):
        made.run(f"{name} out", "convert/megatron_to_hf", model=made.model(name))
    return made


TRAINED = ("sft", "steerlm2", "rs", "rlhf")


def test_every_step_makes_two_updates(chain: Chain) -> None:
    for name in (*TRAINED, "reward"):
        steps = [line["step"] for line in chain.metrics(name) if "grad_norm" in line]
        assert steps == [1, 2], name
    # sft/steerlm2 keeps its best model, and two updates of the whole model make none better
    changed = [name for name in ("base", *TRAINED) if not (WHOLE and name == "steerlm2")]
    weights = {chain.model(name).facts["weights_digest"] for name in changed}
    assert len(weights) == len(changed)


def test_no_step_changes_the_template(chain: Chain) -> None:
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    source = chain.root / "source"
    for name in ("base", *TRAINED):
        for file in files:
            expected = (source / file).read_bytes()
            assert (chain.model(name).path / TOKENIZER / file).read_bytes() == expected
            assert (chain.model(f"{name} out").path / file).read_bytes() == expected
    digests = {chain.model(name).facts["template_digest"] for name in ("base", *TRAINED)}
    assert len(digests) == 1


def test_finished_samples_are_used(chain: Chain) -> None:
    """All that end with the model's own end of turn, but for those that say nothing."""
    for line in chain.metrics("rs"):
        if "loss" in line:
            assert line["finished_share"] > 0.3
            assert line["unusable_samples"] <= 4  # of 16: the small model may say nothing


def test_exports_answer_in_the_models_own_format(chain: Chain) -> None:
    import transformers

    for name in TRAINED:
        path = chain.model(f"{name} out").path
        words = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(path)
        asked = [answered(0)[:1]] * 8
        given = words.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        torch.manual_seed(1)
        longest = 128 if WHOLE else 48  # the whole model has more to say
        said = model.generate(**given, do_sample=True, top_k=0, max_new_tokens=longest)
        answers = [row[given["input_ids"].shape[1] :].tolist() for row in said]
        end = words.convert_tokens_to_ids("<|im_end|>")
        finished = [row[: row.index(end)] for row in answers if end in row]
        assert len(finished) >= 4
        foreign = set(words.all_special_ids) & {one for row in finished for one in row}
        assert not foreign
        facts = chain.model(f"{name} out").facts
        assert facts["max_logit_difference"] < 1e-4
