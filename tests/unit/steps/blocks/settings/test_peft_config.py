"""``model.peft``: names of layers, values, and what is refused."""

import pytest
from pydantic import ValidationError

from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import explain_errors
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning, Peft

ALL = (
    *("self_attention.linear_qkv", "self_attention.linear_proj"),
    *("mlp.linear_fc1", "mlp.linear_fc2"),
)


def messages(schema, values):
    with pytest.raises((ValidationError, ConfigError)) as caught:
        schema.model_validate(values)
    if isinstance(caught.value, ConfigError):
        return str(caught.value)
    problems = explain_errors(caught.value, schema, values, where=lambda _: "here")
    return "\n".join(map(str, problems))


def test_collective_names_mean_their_layers_once_and_in_order():
    assert LoraTuning().modules == ALL[:1]
    assert LoraTuning(target_modules=["mlp", "attention_dense", "mlp_fc2"]).modules == ALL[1:]
    assert LoraTuning(target_modules=["all"]).modules == ALL


def test_alpha_is_the_rank_where_it_is_not_said():
    assert LoraTuning(adapter_dim=8).scale == 1
    assert LoraTuning(adapter_dim=8, alpha=16).scale == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"target_modules": ["attention_qvk"]}, "allowed: attention_qkv, attention_dense, mlp_fc1"),
        ({"target_modules": ["all", "up_proj"]}, "for up_proj say mlp_fc1"),
        ({"target_modules": []}, "peft_scheme=none"),
        ({"adapter_dim": 0}, ">= 1"),
        ({"adapter_dropout": 1.0}, "< 1"),
        ({"column_init_method": "zero"}, "nothing learns"),
        ({"variant": "canonical"}, "share one A"),
        ({"layer_selection": [1]}, "every layer gets adapters"),
    ],
)
def test_settings_that_no_adapter_has_are_refused(values, said):
    assert said in messages(LoraTuning, values)


@pytest.mark.parametrize("scheme", ["ptuning", "ia3", "adapter", "lora+ptuning"])
def test_other_schemes_are_refused_with_one_message(scheme):
    found = messages(Peft, {"peft_scheme": scheme})
    assert "there is LoRA" in found
    assert f'"{scheme}"' in found
    assert 'allowed: "none" or "lora"' in found


def test_an_adapter_to_go_on_from_needs_the_scheme():
    assert "convert/merge_lora" in messages(Peft, {"restore_from_path": "adapter:v1"})
    assert Peft(peft_scheme="lora", restore_from_path="adapter:v1").lora == LoraTuning()
    assert Peft().lora is None
