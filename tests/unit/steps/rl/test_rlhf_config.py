"""The settings of rl/rlhf as users of NeMo-RL and NeMo-Gym type them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.config.resolve import load_config_class, resolve_config
from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import find_key, split_key
from nemotron_style.steps.blocks.training.lr_schedule import megatron_decay
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.fixed_values import HELD_ELSEWHERE, HELD_WITH_VLLM, held_keys
from nemotron_style.steps.rl.rlhf.grpo_config import MegatronCfg
from nemotron_style.steps.rl.rlhf.hacking_alert import ALERTS

ROOT = Path(__file__).parents[4]
KEYS = (ROOT / "tests" / "golden" / "rlhf_keys.txt").read_text().split()
PAGE = ROOT / "docs" / "steps" / "rl-rlhf.md"
MODELS = "env.nemo_gym.genrm_model.responses_api_models"
COMPARE = "resources_servers.genrm_compare"


@pytest.fixture(scope="module")
def manifest():
    return load_catalog().find("rl/rlhf")


def resolve(manifest, *overrides, name="tiny"):
    return resolve_config(manifest, name=name, overrides=overrides)


def parse(manifest, *overrides, name="tiny"):
    return parse_config(
        load_config_class(manifest), resolve(manifest, *overrides, name=name).values, where=str
    )


def told(manifest, *overrides, name="tiny"):
    with pytest.raises(ConfigError) as caught:
        resolve(manifest, *overrides, name=name)
    return str(caught.value)


@pytest.mark.parametrize("name", ["default", "tiny", "tiny_nemo_rl"])
def test_shipped_configs_are_valid_and_round_trip(manifest, name):
    resolved = resolve(manifest, name=name)
    schema = load_config_class(resolved.manifest)
    assert parse_config(schema, resolved.values, where=str).model_dump(mode="json") == (
        resolved.values
    )


def test_the_seed_s_name_is_an_alias(manifest):
    assert load_catalog().find("rl/nemo_rl/rlhf") == manifest


def test_every_key_of_the_seed_is_known():
    unknown = [key for key in KEYS if find_key(Config, split_key(key)).status == "unknown"]
    assert not unknown


def test_the_batch_follows_prompts_and_samples(manifest):
    config = parse(manifest, "grpo.num_generations_per_prompt=16")
    assert config.policy.train_global_batch_size == 16 * config.grpo.num_prompts_per_step
    assert config.env.compare.num_rollouts_per_prompt == 16


def test_a_group_of_one_is_refused(manifest):
    assert "one has none" in told(manifest, "grpo.num_generations_per_prompt=1")


def test_a_batch_that_does_not_divide_the_samples_is_refused(manifest):
    text = told(manifest, "policy.train_global_batch_size=48")
    assert "a divisor of" in text
    text = told(manifest, "policy.train_global_batch_size=32")
    assert "the second is off policy" in text


@pytest.mark.parametrize("name", ["vllm_model", "genrm_model"])
def test_both_names_of_the_judge_mean_one(manifest, name):
    assert parse(manifest, f"{MODELS}.{name}.model=mine").env.judge_name == "mine"
    [service] = resolve(manifest, f"{MODELS}.{name}.model=mine").services.values()
    assert service.overrides["model"] == "mine"


def test_two_names_of_two_judges_are_refused(manifest):
    given = (f"{MODELS}.vllm_model.model=a", f"{MODELS}.genrm_model.model=b")
    text = told(manifest, *given)
    assert "is another name of" in text
    assert "got a; allowed: b" in text
    same = parse(manifest, f"{MODELS}.vllm_model.model=a", f"{MODELS}.genrm_model.model=a")
    assert same.env.judge_name == "a"


def test_the_judge_s_default_is_that_of_the_seed(manifest, monkeypatch):
    monkeypatch.delenv("RL_REWARD_MODEL", raising=False)
    gym = resolve(manifest, name="default").values["env"]["nemo_gym"]
    assert gym["genrm_model_name"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert parse(manifest).env.judge_name is None
    monkeypatch.setenv("RL_REWARD_MODEL", "/models/judge")
    gym = resolve(manifest, name="default").values["env"]["nemo_gym"]
    assert gym["genrm_model_name"] == "/models/judge"
    [service] = resolve(manifest).services.values()
    assert service.overrides["model"] == "/models/judge"


def test_settings_of_the_comparison_may_stand_under_the_name_that_gym_ignores(manifest):
    text = f"env.nemo_gym.genrm_compare.{COMPARE}"
    config = parse(manifest, f"{text}.comparison_strategy=all_pairs", f"{text}.answer_bonus=0.5")
    assert config.judge_plan.comparison_strategy == "all_pairs"
    assert config.env.compare.aggregation.answer_bonus == 0.5
    assert config.env.compare.num_rollouts_per_prompt == config.grpo.num_generations_per_prompt
    assert config.env.nemo_gym.genrm_compare is None


def test_a_cohort_of_another_size_is_refused(manifest):
    text = f"env.nemo_gym.genrm_compare_resources_server.{COMPARE}.num_rollouts_per_prompt"
    assert "must agree with it" in told(manifest, f"{text}=16")


def test_what_our_own_loop_does_not_do_is_refused_with_the_reason(manifest):
    given = ("backend=embedded", "policy.train_global_batch_size=128")
    text = told(manifest, *given, name="default")
    for key in ("policy.model_name", "grpo.invalid_tool_call_advantage"):
        assert key in text
    assert "-i model=REF" in told(manifest, "policy.model_name=mine")
    text = told(manifest, "policy.generation.top_p=0.9", "grpo.use_dynamic_sampling=true")
    assert "policy.generation.top_p" in text
    assert "grpo.use_dynamic_sampling" in text


HELD = dict([*held_keys(Config), *HELD_ELSEWHERE, *HELD_WITH_VLLM])


def test_our_own_loop_holds_these_many_keys():
    assert len(HELD) == 47 + len(HELD_WITH_VLLM)


@pytest.mark.parametrize("key", HELD)
def test_every_key_that_is_held_exists_and_says_why(key):
    assert find_key(Config, split_key(key)).status in ("declared", "open")
    assert HELD[key].why
    assert f"`{key}`" in PAGE.read_text()


PEFT = "policy.megatron_cfg.peft"


def test_adapters_have_nemo_rl_s_names(manifest):
    on = f"{PEFT}.enabled=true"
    lora = parse(manifest, on, f"{PEFT}.dim=4").policy.megatron_cfg.peft.as_peft.lora
    assert (lora.adapter_dim, lora.alpha, lora.scale) == (4, 32.0, 8.0)
    assert len(lora.modules) == 4
    chosen = parse(
        manifest, on, f"{PEFT}.target_modules=[linear_qkv,linear_fc2]"
    ).policy.megatron_cfg.peft
    assert chosen.as_peft.lora.modules == ("self_attention.linear_qkv", "mlp.linear_fc2")
    left = parse(
        manifest, on, f"{PEFT}.exclude_modules=[linear_qkv,linear_proj]"
    ).policy.megatron_cfg.peft
    assert left.as_peft.lora.modules == ("mlp.linear_fc1", "mlp.linear_fc2")
    assert parse(manifest).policy.megatron_cfg.peft.as_peft.lora is None


@pytest.mark.parametrize(
    ("words", "key", "told"),
    [
        (["target_modules=[q_proj]"], "target_modules", "no such linear layer.*linear_qkv"),
        (
            ["target_modules=[linear_qkv]", "exclude_modules=[linear_fc1]"],
            "exclude_modules",
            "goes with no target_modules",
        ),
        (["dropout=0.1"], "dropout_position", "dropout_position=pre"),
        (["lora_A_init_method=zero"], "lora_A_init_method", "nothing learns"),
        (["lora_dtype=float32"], "lora_dtype", "type of the weights"),
        (["dim=0"], "dim", "a number >= 1"),
    ],
)
def test_adapters_that_cannot_be_are_refused_by_their_key(manifest, words, key, told):
    with pytest.raises(ConfigError, match=rf"{PEFT}.*{key}.*{told}"):
        parse(manifest, f"{PEFT}.enabled=true", *(f"{PEFT}.{word}" for word in words))


def test_vllm_may_draw_with_an_engine_of_each_process_as_it_is(manifest):
    vllm, tables = "policy.generation.backend=vllm", "policy.generation.vllm_cfg"
    ours, theirs = parse(manifest), parse(manifest, vllm, f"+{tables}.precision=float32")
    assert (ours.gate, theirs.gate) == (1.001, 1.1)
    elsewhere = ("+policy.generation.colocated.enabled=false", f"+{tables}.tensor_parallel_size=2")
    parse(manifest, *elsewhere)  # nothing of it has an effect
    text = told(manifest, vllm, *elsewhere, f"+{tables}.precision=fp8")
    assert "vllm_cfg.tensor_parallel_size: each process has an engine of its own" in text
    assert "got 2; allowed: null or 1" in text
    assert "colocated.enabled: the engine runs beside its trainer" in text
    assert "vllm_cfg.precision: repeats policy.precision" in text
    text = told(manifest, vllm, "policy.generation.temperature=0.001")
    assert "temperature: vLLM does not sample at so low a temperature; got 0.001" in text


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("policy.dtensor_cfg.enabled=true", "checkpoint_megatron"),
        ("policy.megatron_cfg.enabled=false", "checkpoint_megatron"),
        ("+policy.optimizer.name=adamw", "policy.megatron_cfg.optimizer"),
        ("data.manifest_path=/x", "lineage"),
        ("+env.nemo_gym.genrm_model.vllm.max_model_len=10", "vllm_serve_kwargs"),
        ("env.should_use_nemo_gym=false", "generative judge"),
        ("logger.swanlab_enabled=true", "logger.wandb_enabled"),
        ("+run.env.container_image=x", "profile"),
        ("judge.url=nemo_gym", "NeMo-Gym serves the judge"),
        ("judge.url=ftp://there:1", "judge.url"),
        ("loss_fn.ratio_clip_c=0.5", "allowed: a number > 1.0"),
        ("grpo.reward_scaling.source_max=-1.0", "must exceed source_min"),
        ("grpo.seed=7", "repeats seed"),
        ("grpo.skip_reference_policy_logprobs_calculation=true", "KL penalty needs them"),
        ("loss_fn.use_cispo=true", "use_cispo"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_message(manifest, override, word):
    assert word in told(manifest, override)


def test_the_loss_of_the_seed_is_the_seed_s(manifest):
    for name in ("default", "tiny"):
        options = resolve(manifest, name=name).parsed.loss_fn
        assert (options.ratio_clip_min, options.ratio_clip_max) == (0.2, 0.28)
        assert options.force_on_policy_ratio
        assert options.use_on_policy_kl_approximation


def test_words_of_alerts_are_those_of_the_manifest(manifest):
    folder = manifest.folder / "step.toml"
    strategies = tomllib.loads(folder.read_text())["strategies"]
    advice = {each["when"]: each["then"] for each in strategies}
    for alert in ALERTS:
        assert advice[alert.when] == alert.then


def rates(**scheduler):
    config = MegatronCfg.model_validate(
        {"optimizer": {"lr": 1.0, "min_lr": 0.1}, "scheduler": scheduler}
    )
    return [
        megatron_decay(config.optimizer, config.scheduler, update, updates=8)
        for update in range(10)
    ]


def test_learning_rates_are_those_of_megatron():
    assert rates() == [1.0] * 10
    warm = rates(lr_warmup_iters=4, lr_warmup_init=0.2)
    assert warm == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 6])
    line = rates(lr_decay_style="linear", lr_warmup_iters=2)
    assert line[:3] == pytest.approx([0.0, 0.5, 1.0])
    assert line[5] == pytest.approx(0.55)
    assert line[8:] == [0.1, 0.1]
    wave = rates(lr_decay_style="cosine", lr_decay_iters=4)
    assert wave[2] == pytest.approx(0.55)
    assert wave[4:] == [0.1] * 6


def test_a_decay_that_ends_within_the_warm_up_is_refused():
    scheduler = {"lr_warmup_iters": 10, "lr_decay_iters": 10}
    with pytest.raises(ValidationError, match="lr_decay_iters 10 must exceed lr_warmup_iters 10"):
        MegatronCfg.model_validate({"scheduler": scheduler})


def test_log_probs_of_before_the_step_are_computed_where_the_version_uses_them(manifest):
    forced = ("loss_fn.force_on_policy_ratio=true", "grpo.seq_logprob_error_threshold=null")
    assert not parse(manifest, *forced).needs_previous_logprobs
    assert parse(manifest, *forced, "loss_fn.compat=v0.6.0").needs_previous_logprobs
    assert parse(manifest, "loss_fn.force_on_policy_ratio=false").needs_previous_logprobs


def test_what_overrides_break_together_is_blamed_on_them(manifest):
    with pytest.raises(ConfigError) as refused:
        resolve(manifest, "loss_fn.sequence_level_importance_ratios=true")
    assert "override 'loss_fn.sequence_level_importance_ratios=true'" in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        resolve(
            manifest,
            "policy.megatron_cfg.scheduler.lr_warmup_iters=9",
            "policy.megatron_cfg.scheduler.lr_decay_iters=3",
            "grpo.val_period=7",
        )
    assert str(refused.value).count("override") == 2


def test_the_optimizer_s_state_is_shared_in_bfloat16_unless_one_of_two_keys_says_no(manifest):
    half = ("policy.precision=bfloat16",)
    assert parse(manifest, *half).policy.optim.distributed
    assert not parse(manifest).policy.optim.distributed
    of_ddp = "+policy.megatron_cfg.distributed_data_parallel_config.use_distributed_optimizer=false"
    for key in ("policy.megatron_cfg.optimizer.use_distributed_optimizer=false", of_ddp):
        assert not parse(manifest, *half, key).policy.optim.distributed
