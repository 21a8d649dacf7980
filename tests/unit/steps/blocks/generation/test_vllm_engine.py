"""What vLLM is asked and how its answers are read: the real process, with a stand-in for vLLM."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemotron_style.runtime.errors import InputError, StepFailed
from nemotron_style.steps.blocks.generation.backend import open_engine
from nemotron_style.steps.blocks.generation.engine import Engine, Sample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.generation.vllm_engine import (
    VllmEngine,
    sample_seeds,
    sampling_settings,
)
from nemotron_style.steps.blocks.generation.vllm_weights import CPU_HEAD_SIZES, Files, plan_files
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

# Notes what it is called with, draws the prompt backwards, and fails as the first token says.
STAND_IN = """
import json, os, pathlib
from types import SimpleNamespace as Some

print("a banner on stdout")
notes = pathlib.Path(os.environ["VLLM_NOTES"])

def note(**facts):
    with open(notes, "a") as file:
        file.write(json.dumps(facts) + "\\n")

class LLM:
    def __init__(self, path, **options):
        note(init=options, env=dict(os.environ), files=sorted(os.listdir(path)))
        if options["max_num_seqs"] == 13:
            raise ValueError("no room for 13")

    def collective_rpc(self, method, kwargs):
        note(rpc=method, files=sorted(os.listdir(kwargs["weights_path"])))

    def reset_prefix_cache(self):
        note(reset=True)
        return True

    def generate(self, prompts, params, use_tqdm):
        return [self.one(*pair) for pair in zip(prompts, params, strict=True)]

    def one(self, prompt, params):
        note(params={**params, "output_kind": str(params["output_kind"])})
        ids = prompt["prompt_token_ids"][::-1]
        if ids[-1] == 20:
            os._exit(3)
        if ids[-1] == 21:
            raise RuntimeError("out of blocks")
        value = float("nan") if ids[-1] == 22 else -0.1
        end = "abort" if ids[-1] == 23 else "length"
        logprobs = [{token: Some(logprob=value - token)} for token in ids]
        return Some(outputs=[Some(token_ids=ids, logprobs=logprobs, finish_reason=end)])
"""
PARAMS = """
import enum

class RequestOutputKind(enum.Enum):
    FINAL_ONLY = 2

SamplingParams = dict
"""
CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=48,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=24,
    max_sequence_length=48,
)
SAMPLING = SamplingParams(max_new_tokens=9, stop_ids=[2])


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    initialize(seed=1)
    return build_model(CONFIG, ddp=False)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in notes its calls, and the stand-in where ``import vllm`` finds it."""
    package = tmp_path / "code" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "sampling_params.py").write_text(PARAMS)
    monkeypatch.syspath_prepend(str(package.parent))
    path = [str(package.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("VLLM_NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    return tmp_path / "notes"


@pytest.fixture
def engine(notes: Path, model: torch.nn.Module) -> Iterator[VllmEngine]:
    engine = VllmEngine(model, CONFIG, max_rows=4)
    yield engine
    engine.close()


def read(notes: Path, key: str) -> list[dict]:
    told = [json.loads(line) for line in notes.read_text().splitlines()]
    return [one for one in told if key in one]


def test_every_sample_is_a_request_with_a_seed_of_its_own(engine: VllmEngine, notes: Path) -> None:
    drawn = engine.generate([[3, 4], [5]], SAMPLING, samples_per_prompt=2, seed=[7, 8])
    one = Sample([4, 3], pytest.approx([-4.1, -3.1]), "length")
    assert drawn[0] == [one, one]
    assert [sample.tokens for sample in drawn[1]] == [[5], [5]]
    asked = [one["params"] for one in read(notes, "params")]
    assert [one["seed"] for one in asked] == [
        seed for own in sample_seeds([7, 8], 2, 2) for seed in own
    ]
    assert len({one["seed"] for one in asked}) == 4
    assert asked[0]["output_kind"] == "RequestOutputKind.FINAL_ONLY"


def test_the_engine_starts_with_weights_and_takes_new_ones(engine: VllmEngine, notes: Path) -> None:
    engine.generate([[3]], SAMPLING, seed=1)
    engine.update()
    [started] = read(notes, "init")
    assert started["files"] == ["config.json", "model.safetensors"]
    options = started["init"]
    assert options["logprobs_mode"] == "processed_logprobs"
    assert options["skip_tokenizer_init"]
    assert (options["dtype"], options["max_model_len"], options["max_num_seqs"]) == (
        "float32",
        48,
        4,
    )
    assert started["env"]["HF_HUB_OFFLINE"] == started["env"]["VLLM_NO_USAGE_STATS"] == "1"
    assert "MASTER_ADDR" not in started["env"]
    [loaded] = read(notes, "rpc")
    assert (loaded["rpc"], loaded["files"]) == ("reload_weights", started["files"])
    assert len(read(notes, "reset")) == 1
    assert not (engine.folder / "model").exists()


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (20, r"ended \(exit code 3\) when it was to generate"),
        (21, "could not generate; got RuntimeError: out of blocks"),
        (22, "not finite"),
        (23, "gave up a response; got abort"),
    ],
)
def test_what_goes_wrong_in_vllm_fails_the_step(engine: VllmEngine, first: int, error: str) -> None:
    with pytest.raises(StepFailed, match=error):
        engine.generate([[3], [first, 3]], SAMPLING, seed=1)


def test_a_killed_engine_stays_dead_and_leaves_nothing(engine: VllmEngine) -> None:
    engine.update()
    os.kill(engine.process.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(StepFailed, match=r"ended \(signal 9\)"):
            engine.generate([[3]], SAMPLING, seed=1)
    engine.close()
    engine.close()
    assert not engine.folder.exists()


def test_a_signal_to_the_whole_run_leaves_the_engine_to_the_trainer(engine: VllmEngine) -> None:
    engine.update()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine.process.pid, number)
    assert engine.generate([[3]], SAMPLING, seed=1)


def test_a_model_that_vllm_refuses_is_told_in_its_words(notes: Path, model) -> None:
    engine = VllmEngine(model, CONFIG, max_rows=13)
    with pytest.raises(StepFailed, match="could not load; got ValueError: no room for 13"):
        engine.update()
    engine.close()


def test_without_vllm_the_extra_is_named(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StepFailed, match=r"pip install 'nemotron-style\[vllm\]'"):
        open_engine("vllm", model, CONFIG)
    assert isinstance(open_engine("in_process", model, CONFIG), Engine)


def test_prompts_are_refused_as_in_process(engine: VllmEngine) -> None:
    with pytest.raises(InputError) as caught:
        engine.generate([[], [3], [3] * 40], SAMPLING, seed=1)
    assert [problem.where for problem in caught.value.problems] == ["prompt 0", "prompt 2"]


def test_settings_are_told_in_vllms_words() -> None:
    sampling = SamplingParams(
        max_new_tokens=9,
        min_new_tokens=2,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        repetition_penalty=1.2,
        stop_ids=(1, 2),
        end_strings=("end",),
    )
    told = sampling_settings(sampling)
    assert told == {
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "stop_token_ids": [1, 2],
        "stop": ["end"],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "include_stop_str_in_output": True,
    }
    assert not sampling_settings(SAMPLING)["detokenize"]


def test_a_temperature_that_vllm_would_raise_is_refused() -> None:
    with pytest.raises(InputError, match=r"temperature: .*got 0\.005; allowed: 0, or 0\.01"):
        sampling_settings(SamplingParams(max_new_tokens=1, temperature=0.005))
    for temperature in (0.0, 0.01):
        sampling_settings(SamplingParams(max_new_tokens=1, temperature=temperature))


def test_seeds_belong_to_samples_and_fit_vllm() -> None:
    few, many = sample_seeds(5, 2, 3), sample_seeds(5, 4, 6)
    assert [own[:3] for own in many[:2]] == few
    assert all(0 <= seed < 2**63 for own in many for seed in own)
    assert len({seed for own in many for seed in own}) == 24


@pytest.mark.parametrize("tied", [False, True])
def test_wider_heads_weigh_as_the_model_does(tmp_path: Path, tied: bool) -> None:
    """Scores of queries and keys, and what the values become, through the written tensors."""
    initialize(seed=1)
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    model = build_model(config, ddp=False)
    files = plan_files(model, config, None)
    assert (config.head_size, files.head_size) == (12, 32)
    for name, plan in {"wide": files, "same": Files(config, torch.float32, 12)}.items():
        (tmp_path / name).mkdir()
        plan.write_settings(tmp_path / name)
        plan.write_weights(model, tmp_path / name)
    wide, same = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "same"))
    assert set(wide) == set(same)
    assert torch.equal(wide["lm_head.weight"], same["lm_head.weight"])
    states_T = torch.randn(5, config.hidden_size)

    def attention(tensors: dict[str, torch.Tensor], size: int) -> torch.Tensor:
        prefix = "model.layers.1.self_attn"
        project = {
            name: (states_T @ tensors[f"{prefix}.{name}_proj.weight"].T).unflatten(1, (-1, size))
            for name in "qkv"
        }
        keys, values = (project[name].repeat_interleave(2, dim=1) for name in "kv")
        weights = torch.einsum("thd,shd->hts", project["q"], keys) * size**-0.5
        mixed = torch.einsum("hts,shd->thd", weights.softmax(-1), values).flatten(1)
        return mixed @ tensors[f"{prefix}.o_proj.weight"].T

    torch.testing.assert_close(attention(wide, 32), attention(same, 12))
    settings = json.loads((tmp_path / "wide" / "config.json").read_text())
    share = settings["rope_parameters"]["partial_rotary_factor"]
    assert (settings["head_dim"], int(32 * share)) == (32, 12)
    assert not settings["tie_word_embeddings"]


def test_every_width_is_turned_whole() -> None:
    """vLLM cuts ``width * factor`` to an integer: no rounding may take a pair from it."""
    for size in range(2, CPU_HEAD_SIZES[-1] + 1, 2):
        config = CONFIG.model_copy(update={"hidden_size": 4 * size})
        wide = next(known for known in CPU_HEAD_SIZES if known >= size)
        rope = Files(config, torch.float32, wide)._head_settings().get("rope_parameters")
        assert size == wide or int(wide * rope["partial_rotary_factor"]) == size


def test_a_head_that_is_wider_than_any_is_refused(model: torch.nn.Module) -> None:
    config = CONFIG.model_copy(update={"hidden_size": 4 * 600})
    with pytest.raises(StepFailed, match=r"head_size: .*got 600; allowed: up to 512"):
        plan_files(model, config, None)


def test_what_cannot_be_written_for_vllm_is_refused(model: torch.nn.Module) -> None:
    """Heads with norms of their own in a width that vLLM lacks, and a Gemma with a head."""
    config = CONFIG.model_copy(update={"architecture": "qwen3", "qk_norm": "head"})
    with pytest.raises(StepFailed, match=r"head_size: .*got 12; allowed: 32, 64"):
        plan_files(model, config, None)
    config = CONFIG.model_copy(update={"architecture": "gemma", "kv_channels": 32})
    with pytest.raises(StepFailed, match=r"tie_embeddings: .*from its embeddings"):
        plan_files(model, config, None)


def test_gemma_is_written_without_a_head(tmp_path: Path) -> None:
    initialize(seed=1)
    config = CONFIG.model_copy(
        update={
            "architecture": "gemma",
            "activation": "geglu",
            "zero_centered_gamma": True,
            "embedding_multiplier": CONFIG.hidden_size**0.5,
            "kv_channels": 32,
            "tie_embeddings": True,
        }
    )
    model = build_model(config, ddp=False)
    files = plan_files(model, config, None)
    files.write_settings(tmp_path)
    files.write_weights(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_the_cache_holds_every_row_at_its_full_length() -> None:
    files = Files(CONFIG.model_copy(update={"max_sequence_length": 130}), torch.bfloat16, 32)
    tokens = (3 * 2 + 1) * 128  # two blocks a row, and the one that vLLM keeps for itself
    assert files.cache_bytes(3) == tokens * 2 * 2 * 2 * 32 * 2
