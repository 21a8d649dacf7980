"""sft/chat on a few rows: it learns, repeats itself to the bit, resumes, and refuses early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from card import card, fail_where_devices_mix
from nemotron_style.runtime.errors import InputError, Interrupted, StepFailed
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import TOKENIZER, weights_digest
from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.tokenizer import TEMPLATE_FILE, Tokenizer
from nemotron_style.steps.blocks.model.language_model import unwrap
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.training_config import Samples
from nemotron_style.steps.sft.chat.config import Config
from nemotron_style.steps.sft.chat.initial_model import Start
from nemotron_style.steps.sft.chat.recipe import run
from nonfinite import fail_at_every_spot, nan_at

WORDS = ("wide", "calm", "deep", "old")
STEPS = 8


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def row(place: int) -> dict:
    noun, word = ("river", "tower")[place % 2], WORDS[place % 4]
    messages = [
        {"role": "user", "content": f"Describe the {noun}" + " again" * (place % 3) + "."},
        {"role": "assistant", "content": f"The {noun} is {word}."},
    ]
    label = {"label": f"helpfulness:{place % 5}"}
    kinds = ({}, {**label, "type": "TEXT_TO_VALUE"}, {**label, "type": "VALUE_TO_TEXT"})
    return {"messages": messages, **kinds[place % 3]}


def write(path: Path, rows: list[dict]) -> SimpleNamespace:
    path.mkdir(parents=True, exist_ok=True)
    (path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return SimpleNamespace(path=path, facts={})


def settings(**changes: object) -> Config:
    sizes = {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "max_sequence_length": 64,
        "tokenizer_vocab_size": 400,
        "make_vocab_size_divisible_by": 8,
    }
    train = {"global_batch_size": 6, "micro_batch_size": changes.pop("micro_batch_size", 6)}
    data = {"sample": True, "train_ds": train, **changes.pop("data", {})}
    sft = {"max_steps": STEPS, "val_check_interval": 4, "save_interval": 3}
    model = {
        "architecture": changes.pop("architecture", sizes),
        "data": data,
        "optim": {"name": "adamw", "lr": 1e-2},
    }
    values = {"trainer": {"precision": "32", "sft": sft}, "model": model, **changes}
    return Config.model_validate_json(json.dumps(values))


def context(path: Path, **more: object) -> StepContext:
    inputs = {
        "data": write(path / "in", [row(place) for place in range(20)]),
        "validation": write(path / "validation", [row(place) for place in range(6)]),
        **more.pop("inputs", {}),
    }
    return StepContext(run_dir=path / "run", inputs=inputs, outputs=("model",), **more)


def lines(ctx: StepContext) -> list[dict]:
    """The metrics without what the clock decides."""
    text = (ctx.run_dir / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in text]
    return [{k: v for k, v in one.items() if k != "tokens_per_second"} for one in kept]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    torch.set_num_threads(1)
    ctx = context(tmp_path_factory.mktemp("trained"))
    run(settings(), ctx)
    return ctx


def test_it_learns_and_says_what_it_made(trained: StepContext) -> None:
    losses = [line["train_loss"] for line in lines(trained) if "train_loss" in line]
    assert len(losses) == STEPS
    assert losses[-1] < 0.8 * losses[0]
    output = trained.output("model")
    assert output.facts["weights_digest"] == weights_digest(output.path)
    tokenizer = Tokenizer(output.path / TOKENIZER)
    assert output.facts["tokenizer_digest"] == tokenizer.digest
    assert output.facts["canary"]["text"] == open_chat(tokenizer).canary()
    by_type = {"plain", "text_to_value", "value_to_text"}
    assert {f"validation_loss_{name}" for name in by_type} <= set(trained.figures)


def test_people_see_what_it_said_before_and_says_now(trained: StepContext) -> None:
    table = (trained.run_dir / "samples" / "samples.md").read_text().splitlines()
    assert table[2] == f"| prompt | in the data | before | after {STEPS} steps |"
    assert "Describe the" in table[4]
    masked = json.loads((trained.run_dir / "samples" / "loss_mask.json").read_text())
    assert {counts for row in masked for _, counts in row} == {True, False}
    assert (trained.run_dir / "plots" / "sft.png").is_file()


def test_two_runs_are_the_same_to_the_bit_with_samples_and_without(
    trained: StepContext, tmp_path: Path
) -> None:
    again, config = context(tmp_path), settings()
    trainer = config.trainer.model_copy(update={"samples": Samples(prompts=0)})
    run(config.model_copy(update={"trainer": trainer}), again)
    assert not (again.run_dir / "samples").exists()
    assert lines(again) == lines(trained)
    digest = trained.output("model").facts["weights_digest"]
    assert again.output("model").facts["weights_digest"] == digest
    content = digest_tree(trained.output("model").path)[0]
    assert digest_tree(again.output("model").path)[0] == content


@pytest.mark.parametrize("step", [2, 5])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    trained: StepContext, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()
    first = context(tmp_path, stop=stop)

    def watch(done: int, _total: int, **_figures: float) -> None:
        stop.requested = done >= step

    monkeypatch.setattr(first, "progress", watch)
    with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}"):
        run(settings(), first)
    second = context(tmp_path, attempt=2)
    run(settings(), second)
    assert lines(second) == lines(trained)
    assert digest_tree(second.run_dir / "samples") == digest_tree(trained.run_dir / "samples")
    digest = trained.output("model").facts["weights_digest"]
    assert second.output("model").facts["weights_digest"] == digest


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    trained: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def die(done: int, _total: int, **_figures: float) -> None:
        if done == 5:  # after the checkpoint of step 3, with steps 4 and 5 in the metrics
            raise Killed

    first = context(tmp_path)
    monkeypatch.setattr(first, "progress", die)
    with pytest.raises(Killed):
        run(settings(), first)
    second = context(tmp_path, attempt=2)
    run(settings(), second)
    assert lines(second) == lines(trained)
    digest = trained.output("model").facts["weights_digest"]
    assert second.output("model").facts["weights_digest"] == digest


def test_micro_batches_do_not_change_the_loss(trained: StepContext, tmp_path: Path) -> None:
    small = context(tmp_path)
    run(settings(micro_batch_size=2), small)
    pairs = zip(lines(small), lines(trained), strict=True)
    for one, other in pairs:
        for name in ("train_loss", "validation_loss", "grad_norm"):
            assert one.get(name, 0) == pytest.approx(other.get(name, 0), rel=1e-3)


def test_a_checkpoint_is_trained_further_with_its_own_tokenizer(
    trained: StepContext, tmp_path: Path
) -> None:
    parent = trained.output("model")
    start = SimpleNamespace(path=parent.path, facts=parent.facts)
    ctx = context(tmp_path, inputs={"model": start})
    run(settings(architecture=None), ctx)
    facts = ctx.output("model").facts
    assert facts["tokenizer_digest"] == parent.facts["tokenizer_digest"]
    assert facts["weights_digest"] != parent.facts["weights_digest"]
    first = next(line["train_loss"] for line in lines(ctx) if "train_loss" in line)
    assert first < next(line["train_loss"] for line in lines(trained) if "train_loss" in line)


@pytest.mark.parametrize("given", [True, False])
def test_one_start_is_needed_and_no_more(trained: StepContext, tmp_path: Path, given: bool) -> None:
    start = {"model": SimpleNamespace(path=trained.output("model").path, facts={})}
    ctx = context(tmp_path, inputs=start if given else {})
    with pytest.raises(InputError, match="not both"):
        run(settings() if given else settings(architecture=None), ctx)


def test_a_new_model_is_drawn_as_wide_as_the_config_says(tmp_path: Path) -> None:
    initialize(seed=1)
    sizes = settings().model.architecture
    assert sizes is not None
    wide = settings(architecture=sizes.model_dump() | {"init_method_std": 0.1})
    start, ctx = Start(None, None, sizes.sizes(400)), context(tmp_path)
    usual, other = (unwrap(start.build(each, ctx)).state_dict() for each in (settings(), wide))
    name = "embedding.word_embeddings.weight"
    assert torch.allclose(other[name], 5 * usual[name], rtol=1e-5)


def test_a_long_row_is_refused_with_its_line(tmp_path: Path) -> None:
    long = row(0)
    long["messages"][0]["content"] = "Describe " * 80
    rows = write(tmp_path / "long", [row(1), long, row(2)])
    ctx = context(tmp_path, inputs={"data": rows})
    with pytest.raises(InputError, match=r"rows\.jsonl:2: messages: the row is longer"):
        run(settings(), ctx)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    config = settings(trainer={"precision": "32", "devices": 2, "sft": {"max_steps": 1}})
    with pytest.raises(InputError, match="another number of processes"):
        run(config, context(tmp_path))


def test_nothing_that_is_not_finite_is_kept_and_the_run_goes_on(tmp_path: Path) -> None:
    config = settings().model_copy(deep=True)
    sft = config.trainer.sft.model_copy(
        update={"max_steps": 2, "val_check_interval": 1, "save_interval": 1}
    )
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"sft": sft})})

    def train(path: Path = tmp_path / "hit") -> StepContext:
        ctx = context(path)
        run(config, ctx)
        return ctx

    fail_at_every_spot(train, tmp_path / "hit" / "run", last=2)
    digests = [one.output("model").facts["weights_digest"] for one in (train(), train(tmp_path))]
    assert digests[0] == digests[1]


def test_a_learning_rate_that_runs_away_is_no_success(tmp_path: Path) -> None:
    config = settings(data={"sample": True, "train_ds": {"global_batch_size": 6}})
    optim = config.model.optim.model_copy(update={"lr": 1e9})
    model = config.model.model_copy(update={"optim": optim})
    ctx = context(tmp_path)
    with pytest.raises(StepFailed, match="not finite"):
        run(config.model_copy(update={"model": model}), ctx)
    assert not any(ctx.output("model").path.iterdir())


def test_updates_that_may_be_skipped_are_counted(tmp_path: Path) -> None:
    config = settings()
    optim = config.model.optim.model_copy(update={"max_skipped_updates": 1})
    config = config.model_copy(update={"model": config.model.model_copy(update={"optim": optim})})
    ctx = context(tmp_path)
    with nan_at("log-prob", 2):
        run(config, ctx)
    assert ctx.figures["skipped_updates"] == 1
    assert [line["step"] for line in lines(ctx) if line.get("grad_norm") == "nan"] == [2]


def test_it_trains_on_a_card_as_on_the_cpu(trained: StepContext, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    with card():
        run(settings(), ctx)
    for ours, theirs in zip(lines(ctx), lines(trained), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_mix_of_devices_ends_the_run(tmp_path: Path) -> None:
    fail_where_devices_mix(lambda: run(settings(), context(tmp_path)))


def test_a_checkpoint_is_trained_in_the_template_that_it_came_with(
    trained: StepContext, tmp_path: Path
) -> None:
    """All answers of a row; what is written is the same template, byte for byte."""
    model, end = tmp_path / "start", "\x12"
    shutil.copytree(trained.output("model").path, model)
    file = model / TOKENIZER / "tokenizer_config.json"
    told = json.loads(file.read_text())
    del told["chat_prompt_tokens"]
    file.write_text(json.dumps(told | {"eos_token": end}))
    template = (
        "{% for m in messages %}{{ '\x11' + m.role + '\n' + m.content + '\x12\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\x11assistant\n' }}{% endif %}"
    )
    (model / TOKENIZER / TEMPLATE_FILE).write_text(template)
    several = [*row(0)["messages"], *row(1)["messages"]]
    inputs = {
        "model": SimpleNamespace(path=model, facts={}),
        "data": write(tmp_path / "several", [{"messages": several}]),
        "validation": write(tmp_path / "one", [{"messages": several[:2]}]),
    }
    ctx = context(tmp_path, inputs=inputs)
    trainer = {"precision": "32", "sft": {"max_steps": 1}}
    data = {"sample": True, "train_ds": {"global_batch_size": 1}, "train_on": "all"}
    run(settings(architecture=None, data=data, trainer=trainer), ctx)
    output = ctx.output("model")
    tokenizer = Tokenizer(output.path / TOKENIZER)
    assert tokenizer.template == template
    assert output.facts["chat_format"] == "chat_template"
    assert output.facts["template_digest"] == open_chat(tokenizer).digest()
    answers = [f"{one['content']}{end}\n" for one in several if one["role"] == "assistant"]
    [first] = [line for line in lines(ctx) if "target_tokens" in line]
    wanted = sum(len(tokenizer.encode(text, control=True)) for text in answers)
    assert first["target_tokens"] == wanted
