"""A ``.nemo`` file becomes a checkpoint that computes what it was made of; the rest is refused."""

from __future__ import annotations

import argparse
import builtins
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from nemo_file import (
    CHAT,
    LLAMA,
    NEMOTRON,
    RANDOM,
    VOCABULARY,
    pack,
    stack_weights,
    write_folder,
    write_weights,
)
from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.logit_parity import model_logits, sample_rows
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    load_model,
    read_config,
)
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.convert.nemo_to_megatron.compiler import compile_job
from nemotron_style.steps.convert.nemo_to_megatron.config import Config
from nemotron_style.steps.convert.nemo_to_megatron.recipe import run

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}


def make_model(kind: str, **settings: Any) -> torch.nn.Module:
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **settings})
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, tensor in model.named_parameters():
        if "norm" in name:  # which begin as ones, and would hide a wrong place
            tensor.data.uniform_(-0.5, 0.5).add_("weight" in name and kind != "nemotron")
    return model


def make_llama(**settings: Any) -> torch.nn.Module:
    return make_model("llama", rms_norm_eps=1e-5, **settings)


def convert(path: Path, run_dir: Path, *, tokenizer: Path | None = None, **values: Any) -> Any:
    given = {"model": path, "tokenizer": tokenizer}
    inputs = {slot: SimpleNamespace(path=at, facts={}) for slot, at in given.items() if at}
    ctx = StepContext(run_dir=run_dir, inputs=inputs, outputs=("model",))  # type: ignore[arg-type]
    run(Config.model_validate_json(json.dumps(values)), ctx)
    return ctx.output("model")


def assert_same_logits(path: Path, model: torch.nn.Module) -> None:
    rows = sample_rows(VOCABULARY, rows=3, tokens=40, seed=1)
    with torch.no_grad():
        theirs = model(rows).logits
    ours = model_logits(load_model(path, ddp=False)[0], rows)
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max().item())
    assert theirs.abs().max() > 1


@pytest.fixture(scope="module")
def llama() -> torch.nn.Module:
    return make_llama()


@pytest.fixture(scope="module")
def whole(llama: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    initialize(seed=1)
    return write_folder(llama, LLAMA, tmp_path_factory.mktemp("nemo") / "folder")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "folder"))


def change_keys(folder: Path, **keys: Any) -> Path:
    file = folder / "model_config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))
    return folder


# -- what is read


@pytest.mark.parametrize("form", ["folder", "w:", "w:gz"])
def test_a_llama_computes_what_its_original_does(
    form: str, folder: Path, llama: torch.nn.Module, tmp_path: Path
) -> None:
    path = folder
    if form != "folder":
        (tmp_path / "adopted").mkdir()
        path = pack(folder, tmp_path / "adopted" / "llama.nemo", mode=form).parent
        (path / "artifact.json").write_text("{}")  # as the store writes it
    made = convert(path, tmp_path / "run")
    assert_same_logits(made.path, llama)
    assert read_config(made.path).vocab_size == VOCABULARY
    assert Tokenizer(made.path / TOKENIZER).encode("w7", control=False) == [7]
    assert not (tmp_path / "run" / "unpacked").exists()


def test_a_nemotron_computes_what_its_original_does(tmp_path: Path) -> None:
    initialize(seed=1)
    model = make_model("nemotron", norm_eps=1e-5, partial_rotary_factor=0.5, head_dim=8)
    made = convert(write_folder(model, NEMOTRON, tmp_path / "folder"), tmp_path / "run")
    assert_same_logits(made.path, model)
    assert read_config(made.path).architecture == "nemotron"


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        (
            {"scale_positional_embedding": True, "scale_factor": 4, "old_context_len": 32},
            {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        ({"seq_len_interpolation_factor": 2}, {"rope_type": "linear", "factor": 2.0}),
    ],
    ids=["llama3", "linear"],
)
def test_scaled_positions_are_those_of_the_original(
    keys: Any, rope: Any, folder: Path, llama: torch.nn.Module, tmp_path: Path
) -> None:
    model = make_llama(rope_scaling={**rope, "rope_theta": 10000.0})
    model.load_state_dict(llama.state_dict())
    assert_same_logits(convert(change_keys(folder, **keys), tmp_path / "run").path, model)


def test_the_chat_format_of_nemo_aligner_comes_with_the_model(folder: Path, tmp_path: Path) -> None:
    data = {"chat": True, "chat_prompt_tokens": CHAT}
    made = convert(change_keys(folder, data=data), tmp_path / "run")
    settings = json.loads((made.path / TOKENIZER / "tokenizer_config.json").read_text())
    assert settings["chat_prompt_tokens"] == CHAT


def test_a_tokenizer_that_is_given_is_taken(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "words"
    other.mkdir()
    (folder / f"{RANDOM}tokenizer.json").rename(other / "tokenizer.json")
    made = convert(folder, tmp_path / "run", tokenizer=other)
    assert (made.path / TOKENIZER / "tokenizer.json").is_file()


def test_a_sentencepiece_model_in_the_file_gives_its_own_ids(
    folder: Path, llama: torch.nn.Module, tmp_path: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    file = folder / f"{RANDOM}words.model"
    words, model = iter(["the river is deep", "a stone", "cold water"]), io.BytesIO()
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words,
        model_writer=model,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        pad_id=-1,
        **plain,
    )
    file.write_bytes(model.getvalue())
    (folder / f"{RANDOM}tokenizer.json").unlink()

    def enlarge(stacked: Any) -> None:
        for name in ("model.embedding.word_embeddings.weight", "model.output_layer.weight"):
            stacked[name] = [torch.cat(4 * stacked[name])]

    change_weights(folder, llama, enlarge)
    named = {"library": "sentencepiece", "model": f"nemo:{file.name}"}
    made = convert(change_keys(folder, tokenizer=named), tmp_path / "run")
    text = "the river is cold"
    ids = Tokenizer(made.path / TOKENIZER).encode(text)
    assert ids == sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode(text)


def test_rows_are_added_to_the_embedding_on_demand(folder: Path, tmp_path: Path) -> None:
    model = {"make_vocab_size_divisible_by": 64}
    made = convert(folder, tmp_path / "run", model=model, dtype="bfloat16")
    assert read_config(made.path).vocab_size == 128
    assert made.facts["dtype"] == "bfloat16"


ARGS = {
    "num_layers": 3,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 8,
    "max_position_embeddings": 64,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "use_rope_scaling": False,
    "rope_scaling_factor": 8.0,
    "norm_epsilon": 1e-5,
    "normalization": "RMSNorm",
    "apply_layernorm_1p": False,
    "swiglu": True,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "num_experts": None,
    "window_size": None,
    "params_dtype": torch.bfloat16,
    "tokenizer_model": "/train/tokenizer.model",
}


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("import builtins; builtins.was_executed = True",))


def write_megatron(path: Path, llama: torch.nn.Module, **args: Any) -> Path:
    """A directory that Megatron-LM trained into; an argument in it runs code when it is read."""
    weights = path / "iter_0000100"
    stacked = stack_weights(llama.state_dict(), LLAMA)
    plain = {name.removeprefix("model."): tensors for name, tensors in stacked.items()}
    write_weights(plain, weights)
    named = argparse.Namespace(**ARGS, evil=Evil(), **args)
    torch.save({"args": named, "checkpoint_version": 3.0}, weights / "common.pt")
    (path / "latest_checkpointed_iteration.txt").write_text("100")
    return path


def test_a_directory_of_megatron_computes_what_its_original_does(
    whole: Path, llama: torch.nn.Module, tmp_path: Path
) -> None:
    path = write_megatron(tmp_path / "trained", llama)
    words = tmp_path / "words"
    words.mkdir()
    shutil.copy(whole / f"{RANDOM}tokenizer.json", words / "tokenizer.json")
    made = convert(path, tmp_path / "run", tokenizer=words)
    assert_same_logits(made.path, llama)
    assert not hasattr(builtins, "was_executed")
    given = ("model", path / "iter_0000100"), ("tokenizer", words)
    site = JobSite(executor="local", files=dict(given), inputs=dict.fromkeys(["tokenizer"], "x"))
    assert "llama, 3 layers of 32" in compile_job(Config(), site).notes[0]


def test_arguments_of_megatron_that_no_model_here_computes_are_refused(
    llama: torch.nn.Module, tmp_path: Path
) -> None:
    path = write_megatron(tmp_path / "trained", llama, mtp_num_layers=1, qk_l2_norm=True)
    told = refuse(path, tmp_path / "run")
    assert "mtp_num_layers" in told
    assert "qk_l2_norm" in told
    (path / "iter_0000100" / "common.pt").write_bytes(b"no archive")
    assert "holds no arguments" in refuse(path, tmp_path / "again")


# -- what is refused


def refuse(path: Path, run_dir: Path, **values: Any) -> str:
    with pytest.raises(InputError) as refused:
        convert(path, run_dir, **values)
    assert not any((run_dir / "staging" / "1" / "model").iterdir())
    return str(refused.value)


def test_all_keys_that_no_model_here_computes_are_named_at_once(
    folder: Path, tmp_path: Path
) -> None:
    keys = {
        "bias": True,
        "num_moe_experts": 8,
        "activation": "reglu",
        "position_embedding_type": "alibi",
        "strange_new_key": 3,
        "another_strange_key": None,
        "window_size": [127, 0],
    }
    change_keys(folder, **keys)
    told = refuse(folder, tmp_path / "run")
    for key in keys:
        assert (f"model_config.yaml: {key}: " in told) == (key != "another_strange_key"), key
    assert "model.ignore_keys=[strange_new_key]" in told


def test_a_key_that_the_user_knows_is_passed_over(folder: Path, tmp_path: Path) -> None:
    change_keys(folder, strange_new_key=3)
    convert(folder, tmp_path / "run", model={"ignore_keys": ["strange_new_key"]})


def test_a_key_that_is_not_there_means_what_it_means_to_nemo(folder: Path, tmp_path: Path) -> None:
    file = folder / "model_config.yaml"
    keys = yaml.safe_load(file.read_text())
    for key in ("bias", "mcore_gpt", "position_embedding_type", "num_layers"):
        del keys[key]
    file.write_text(yaml.safe_dump(keys))
    told = refuse(folder, tmp_path / "run")
    assert told.count("got no such key") == 4


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model_weights.ckpt", "mcore_gpt=True"),
        ("mp_rank_00/model_weights.ckpt", "mcore_gpt=True"),
        ("tp_rank_00_pp_rank_001/model_weights.ckpt", "mcore_gpt=True"),
        ("model_weights/model.embedding.word_embeddings.weight/.zarray", "torch_dist"),
    ],
)
def test_weights_that_cannot_be_read_are_refused_with_the_way_out(
    name: str, advice: str, folder: Path, tmp_path: Path
) -> None:
    shutil.rmtree(folder / "model_weights")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    told = refuse(pack(folder, tmp_path / "old.nemo"), tmp_path / "run")
    assert name in told
    assert advice in told


def test_no_pickle_is_executed(folder: Path, tmp_path: Path) -> None:
    code = pickle.dumps(Evil())
    (folder / "model_weights" / "common.pt").write_bytes(code)
    convert(folder, tmp_path / "run")  # which nothing looks at
    (folder / "model_weights" / ".metadata").write_bytes(code)
    assert ".metadata" in refuse(folder, tmp_path / "again")
    assert not hasattr(builtins, "was_executed")


def change_weights(folder: Path, llama: torch.nn.Module, change: Any) -> Path:
    stacked = stack_weights(llama.state_dict(), LLAMA)
    change(stacked)
    shutil.rmtree(folder / "model_weights")
    write_weights(stacked, folder / "model_weights")
    return folder


FC1, FC2 = (
    "model.decoder.layers.mlp.linear_fc1.weight",
    "model.decoder.layers.mlp.linear_fc2.weight",
)


def test_missing_extra_and_misshapen_tensors_are_named_at_once(
    folder: Path, llama: torch.nn.Module, tmp_path: Path
) -> None:
    def change(stacked: Any) -> None:
        del stacked[FC2]
        stacked["model.rm_head.weight"] = [torch.zeros(1, 32)]
        stacked[FC1] = [tensor[:-1] for tensor in stacked[FC1]]

    told = refuse(change_weights(folder, llama, change), tmp_path / "run")
    assert "decoder.layers.*.mlp.linear_fc2.weight: a tensor is missing, in 3 layers" in told
    assert "rm_head.weight: this tensor has no place" in told
    assert "decoder.layers.*.mlp.linear_fc1.weight: a tensor has another shape" in told
    assert "got [95, 32]; allowed: [96, 32]" in told


def test_fewer_layers_than_the_config_says_are_refused(
    folder: Path, llama: torch.nn.Module, tmp_path: Path
) -> None:
    def change(stacked: Any) -> None:
        for name, tensors in stacked.items():
            if ".layers." in name:
                tensors.pop()

    told = refuse(change_weights(folder, llama, change), tmp_path / "run")
    assert "decoder.layers.2.mlp.linear_fc1.weight: a tensor is missing" in told


def test_numbers_that_are_not_finite_are_refused(
    folder: Path, llama: torch.nn.Module, tmp_path: Path
) -> None:
    weights = folder / "model_weights"
    [file] = weights.glob("*.distcp")
    data = bytearray(file.read_bytes())
    value = llama.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy().tobytes()[:8]
    place = data.index(value)
    data[place : place + 4] = b"\xff\xff\xff\x7f"
    file.write_bytes(data)
    with pytest.raises(InputError) as refused:  # when its turn has come
        convert(folder, tmp_path / "run")
    told = str(refused.value)
    assert "decoder.layers.1.mlp.linear_fc2.weight" in told
    assert "not finite" in told


def test_weights_that_were_cut_off_are_refused(folder: Path, tmp_path: Path) -> None:
    [file] = (folder / "model_weights").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-100])
    assert "too short" in refuse(folder, tmp_path / "run")


@pytest.mark.parametrize(
    ("tokenizer", "told"),
    [
        ({"library": "huggingface", "type": "meta-llama/Llama-3.1-8B"}, "meta-llama/Llama-3.1-8B"),
        ({"library": "sentencepiece", "model": "nemo:gone.model"}, "nemo:gone.model"),
        ({"library": "sentencepiece", "model": "/train/a.model"}, "/train/a.model"),
    ],
)
def test_a_model_without_its_tokenizer_is_refused_with_the_command(
    tokenizer: Any, told: str, folder: Path, tmp_path: Path
) -> None:
    (folder / f"{RANDOM}tokenizer.json").unlink()
    text = refuse(change_keys(folder, tokenizer=tokenizer), tmp_path / "run")
    assert told in text
    assert "-i tokenizer=FOLDER" in text


def test_a_tokenizer_that_is_larger_than_the_embedding_is_refused(
    folder: Path, llama: torch.nn.Module, tmp_path: Path
) -> None:
    def change(stacked: Any) -> None:
        for name in ("model.embedding.word_embeddings.weight", "model.output_layer.weight"):
            stacked[name] = [stacked[name][0][:80]]

    told = refuse(change_weights(folder, llama, change), tmp_path / "run")
    assert "got 80; allowed: at least 90" in told


def member(name: str, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (member("../outside"), "points outside"),
        (member("/etc/outside"), "points outside"),
        (member("a/../../outside"), "points outside"),
        (member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
        (member("link", type=tarfile.LNKTYPE, linkname="model_config.yaml"), "is a link"),
        (member("device", type=tarfile.CHRTYPE), "a device"),
        (member("./model_config.yaml"), "is there twice"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
def test_a_tar_that_reaches_outside_is_refused(
    bad: tarfile.TarInfo, told: str, mode: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.nemo"
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        archive.addfile(member("model_config.yaml", size=2), io.BytesIO(b"{}"))
        archive.addfile(bad)
    run_dir = tmp_path / "run"
    assert told in refuse(file, run_dir)
    assert not list(tmp_path.glob("outside"))


def test_a_tar_that_was_cut_off_or_unpacks_to_too_much_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    file = pack(folder, tmp_path / "a.nemo")
    file.write_bytes(file.read_bytes()[:-60_000])
    refuse(file, tmp_path / "run")
    with tarfile.open(tmp_path / "zeros.nemo", "w:gz") as archive:
        archive.addfile(member("zeros", size=10_000_000), io.BytesIO(bytes(10_000_000)))
    assert "grows by more than" in refuse(tmp_path / "zeros.nemo", tmp_path / "again")
    (tmp_path / "text.nemo").write_text("no tar")
    assert "can be read" in refuse(tmp_path / "text.nemo", tmp_path / "third")


# -- before it starts


def test_what_is_wrong_is_seen_before_the_conversion_starts(folder: Path) -> None:
    site = JobSite(executor="local", files={"model": folder})
    [note] = compile_job(Config(), site).notes
    assert "llama, 3 layers of 32" in note
    change_keys(folder, bias=True, num_moe_experts=4)
    (folder / f"{RANDOM}tokenizer.json").unlink()
    problems = compile_job(Config(), site).problems
    assert [problem.key for problem in problems] == ["bias", "num_moe_experts", "tokenizer"]
