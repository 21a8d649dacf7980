"""Models and training states on disk: the same bits back, and nothing executed while reading."""

import io
import json
import os
import pickle
import random
import zipfile
from enum import Enum
from http import HTTPStatus
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    MetadataIndex,
    StorageMeta,
)

from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.steps.blocks.checkpoint import torch_dist
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    full_weights,
    load_model,
    save_model,
    weights_digest,
    written_digest,
)
from nemotron_style.steps.blocks.model import parallel, rank_zero
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import load_state, save_state

CONFIG = ModelConfig(
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=2,
    num_query_groups=1,
    vocab_size=30,
    max_sequence_length=32,
)


@pytest.fixture(autouse=True, scope="module")
def _job():
    parallel.initialize()


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def saved(tmp_path, tokenizer):
    path = tmp_path / "model"
    save_model(build_model(CONFIG), path, config=CONFIG, tokenizer=tokenizer)
    return path


def test_a_model_comes_back_bit_for_bit(tmp_path, tokenizer):
    model = build_model(CONFIG, seed=7)
    save_model(model, tmp_path / "m", config=CONFIG, tokenizer=tokenizer)
    back, config = load_model(tmp_path / "m")
    assert config == CONFIG
    for (name, whole), (same, loaded) in zip(full_weights(model), full_weights(back), strict=True):
        assert name == same
        assert torch.equal(whole, loaded)


def test_the_checkpoint_has_the_agreed_files(saved):
    assert json.loads((saved / "model_config.json").read_text()) == CONFIG.model_dump()
    assert (saved / "tokenizer" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert (saved / "tokenizer" / "chat_template.jinja").is_file()
    names = {path.name for path in (saved / "weights").iterdir()}
    assert {".metadata", "metadata.json", "common.pt"} < names


def test_the_digest_is_that_of_the_weights_wherever_they_are(saved):
    model, _ = load_model(saved)
    assert weights_digest(saved) == weights_digest(model) == weights_digest(build_model(CONFIG))
    with torch.no_grad():
        model.module.decoder.final_layernorm.weight[3] += 1e-6
    assert weights_digest(saved) != weights_digest(model)


def test_the_digest_of_what_was_written_sends_no_weight_to_any_rank(saved, monkeypatch):
    sent = []
    two_ranks = SimpleNamespace(
        barrier=lambda: None,
        is_initialized=lambda: True,
        get_rank=lambda: 0,
        get_world_size=lambda: 2,
        broadcast_object_list=lambda found, src: sent.extend(found),
    )
    monkeypatch.setattr(rank_zero, "dist", two_ranks)
    assert written_digest(saved) == weights_digest(saved)
    assert sent == [weights_digest(saved)]


def test_half_precision_weights_keep_their_type(tmp_path, tokenizer):
    model = build_model(CONFIG, dtype=torch.bfloat16, ddp=False)
    save_model(model, tmp_path / "m", config=CONFIG, tokenizer=tokenizer)
    back, _ = load_model(tmp_path / "m", dtype=torch.bfloat16, ddp=False)
    assert weights_digest(back) == weights_digest(tmp_path / "m")


def edit_config(path, **change):
    file = path / "model_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def test_a_folder_that_is_no_checkpoint_says_so(tmp_path):
    with pytest.raises(InputError, match=r"no model_config\.json"):
        load_model(tmp_path)


def test_another_architecture_and_an_unknown_size_are_told_at_once(saved):
    edit_config(saved, architecture="mamba", num_experts=8)
    with pytest.raises(InputError) as caught:
        load_model(saved)
    assert {problem.key for problem in caught.value.problems} == {"architecture", "num_experts"}


def test_a_missing_tokenizer_and_a_wrong_shape_are_told_at_once(saved):
    (saved / "tokenizer" / "tokenizer.json").unlink()
    edit_config(saved, vocab_size=31)
    with pytest.raises(InputError) as caught:
        load_model(saved)
    said = str(caught.value)
    assert "has no tokenizer" in said
    assert "embedding.word_embeddings.weight" in said
    assert "got [30, 16]; allowed: [31, 16]" in said


def test_missing_and_surplus_tensors_are_named(saved):
    edit_config(saved, num_layers=3)
    with pytest.raises(InputError, match="a tensor is missing") as caught:
        load_model(saved)
    assert len(caught.value.problems) == 6
    assert all("decoder.layers.2." in problem.key for problem in caught.value.problems)
    edit_config(saved, num_layers=2, tie_embeddings=True)
    with pytest.raises(InputError, match=r"output_layer\.weight.*another architecture"):
        load_model(saved)


def test_layers_that_are_only_promised_are_not_even_listed(saved):
    edit_config(saved, num_layers=9_999)
    with pytest.raises(InputError, match=r"num_layers: promises more layers.*allowed: 15 at most"):
        load_model(saved)
    edit_config(saved, num_layers=10**6)
    with pytest.raises(InputError, match=r"num_layers"):
        load_model(saved)


def test_a_truncated_weight_file_is_an_input_error(saved):
    (file,) = (saved / "weights").glob("*.distcp")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_model(saved)
    with pytest.raises(InputError, match="cannot be read"):
        weights_digest(saved)


class Trap:
    """Unpickled without care, this makes a directory."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("read", [load_model, weights_digest])
def test_a_table_of_contents_cannot_run_code(saved, tmp_path, read):
    (saved / "weights" / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match="mkdir"):
        read(saved)
    assert not (tmp_path / "sprung").exists()


def test_a_trap_inside_a_real_table_is_found(saved, tmp_path):
    file = saved / "weights" / ".metadata"
    contents = torch_dist.read_contents(file.parent)
    contents.planner_data = {"x": Trap(tmp_path / "sprung")}
    file.write_bytes(pickle.dumps(contents))
    with pytest.raises(InputError, match="mkdir"):
        load_model(saved)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("forced", [False, True], ids=["default", "environment asks for pickle"])
def test_objects_beside_the_tensors_cannot_run_code(saved, tmp_path, forced, monkeypatch):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"x": Trap(tmp_path / "sprung")}, saved / "weights" / "common.pt")
    with pytest.raises(InputError, match="cannot be read"):
        load_model(saved)
    assert not (tmp_path / "sprung").exists()
    assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == ("1" if forced else None)


def test_objects_stored_among_the_tensors_cannot_run_code(saved, tmp_path):
    """A tensor's entry pointed at a pickled object: refused, whatever its name promises."""
    (file,) = (saved / "weights").glob("*.distcp")
    contents = torch_dist.read_contents(file.parent)
    trap = tmp_path / "trap"
    torch.save(Trap(tmp_path / "sprung"), trap)
    where = len(file.read_bytes())
    file.write_bytes(file.read_bytes() + trap.read_bytes())
    for index, entry in contents.storage_data.items():
        if index.fqn == "decoder.final_layernorm.weight":
            entry.offset, entry.length = where, trap.stat().st_size
    (file.parent / ".metadata").write_bytes(pickle.dumps(contents))
    with pytest.raises(InputError, match="cannot be read"):
        load_model(saved)
    assert not (tmp_path / "sprung").exists()


def test_a_table_that_points_outside_is_refused(saved):
    file = saved / "weights" / ".metadata"
    contents = torch_dist.read_contents(file.parent)
    for entry in contents.storage_data.values():
        entry.relative_path = "../../elsewhere.distcp"
    file.write_bytes(pickle.dumps(contents))
    with pytest.raises(InputError, match="not the table of contents"):
        load_model(saved)


@pytest.mark.parametrize(
    "promise",
    [
        lambda entry, stored: setattr(entry, "size", torch.Size([10**9, 10**9])),
        lambda entry, stored: setattr(entry.chunks[0], "sizes", torch.Size([10**9, 16])),
        lambda entry, stored: setattr(stored, "length", 10**12),
        lambda entry, stored: setattr(stored, "relative_path", "__9_9.distcp"),
        lambda entry, stored: entry.chunks.clear(),
        lambda entry, stored: entry.chunks.append({}),
    ],
    ids=["tensor", "piece", "bytes", "file", "no piece", "no chunk"],
)
def test_no_memory_is_taken_for_what_a_table_only_promises(saved, promise):
    file = saved / "weights" / ".metadata"
    contents = torch_dist.read_contents(file.parent)
    name = "output_layer.weight"
    stored = {index.fqn: entry for index, entry in contents.storage_data.items()}
    promise(contents.state_dict_metadata[name], stored[name])
    file.write_bytes(pickle.dumps(contents))
    for read in (load_model, weights_digest):
        with pytest.raises(InputError, match=r"cannot be read|not the table"):
            read(saved)


def with_archive(path, target, data, *, method=zipfile.ZIP_STORED):
    """Put an archive with the pickle ``data`` in place of ``common.pt`` or of a small tensor."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", bytes(64))
    if target == "common":
        (path / "weights" / "common.pt").write_bytes(archive.getvalue())
        return
    (weights,) = (path / "weights").glob("*.distcp")
    contents = torch_dist.read_contents(weights.parent)
    for index, entry in contents.storage_data.items():
        if index.fqn == "decoder.final_layernorm.weight":
            entry.offset, entry.length = weights.stat().st_size, len(archive.getvalue())
    weights.write_bytes(weights.read_bytes() + archive.getvalue())
    (weights.parent / ".metadata").write_bytes(pickle.dumps(contents))


# A key whose hash takes 2**60 steps: a tuple of two of the tuple before, and so on.
ENDLESS = b"\x80\x02})q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))


@pytest.mark.parametrize("target", ["common", "tensor"])
@pytest.mark.parametrize(
    ("data", "method", "what"),
    [
        (ENDLESS + b"K\x01s.", zipfile.ZIP_STORED, "uses a value twice, by BINGET"),
        (b"\x80\x02}2.", zipfile.ZIP_STORED, "uses a value twice, by DUP"),
        (b"\x80\x02}" + b"0" * 10_000 + b".", zipfile.ZIP_STORED, "one short pickle"),
        (b"\x80\x02}q\x00.", zipfile.ZIP_DEFLATED, "compressed"),
    ],
    ids=["endless", "dup", "long", "compressed"],
)
def test_the_pickle_of_a_tensor_is_bounded_too(saved, target, data, method, what):
    with_archive(saved, target, data, method=method)
    for read in (load_model, weights_digest):
        with pytest.raises(InputError, match=what):
            read(saved)


def test_pieces_that_share_bytes_are_refused(saved):
    """A file of one tensor under ten thousand names would be ten thousand tensors in memory."""
    file = saved / "weights" / ".metadata"
    contents = torch_dist.read_contents(file.parent)
    [(index, stored)] = [
        pair for pair in contents.storage_data.items() if pair[0].fqn == "output_layer.weight"
    ]
    for number in range(100):
        name = f"copy{number}"
        contents.state_dict_metadata[name] = contents.state_dict_metadata[index.fqn]
        contents.storage_data[MetadataIndex(name, index.offset)] = stored
    file.write_bytes(pickle.dumps(contents))
    with pytest.raises(InputError, match="too short for its tensors"):
        weights_digest(saved)


def test_equal_weights_are_equal_files(tmp_path, tokenizer):
    def save(name):
        path = tmp_path / name
        save_model(build_model(CONFIG, seed=7), path, config=CONFIG, tokenizer=tokenizer)
        return digest_tree(path)[0]

    assert save("here") == save("there/and further")


def test_equal_states_are_equal_files(tmp_path):
    def save(name):
        random.seed(3)
        torch.manual_seed(3)
        model = build_model(CONFIG, seed=7)
        optimizer = build_optimizer(model, OptimConfig())
        train(model, optimizer, steps=2)
        save_state(tmp_path / name, model, optimizer, extra={"step": 2})
        return digest_tree(tmp_path / name)[0]

    assert save("here") == save("there")


def test_a_table_that_names_the_folder_it_was_written_to_is_read(saved):
    """As earlier versions wrote it, and as other programs do."""
    file = saved / "weights" / ".metadata"
    contents = torch_dist.read_contents(file.parent)
    contents.storage_meta = StorageMeta(checkpoint_id=file.parent, save_id="0d3e")
    file.write_bytes(pickle.dumps(contents))
    load_model(saved)


def test_a_damaged_or_foreign_table_is_an_input_error(saved):
    file = saved / "weights" / ".metadata"
    for content in (b"", b"\x80", file.read_bytes()[:100], pickle.dumps({"not": "a table"})):
        file.write_bytes(content)
        with pytest.raises(InputError, match="not the table of contents"):
            load_model(saved)
    file.unlink()
    with pytest.raises(InputError, match="no table of contents"):
        load_model(saved)


class GetattrPickler(pickle.Pickler):
    """Pickles members of an Enum as CPython 3.11.2 does: as ``getattr(Enum, name)``."""

    def reducer_override(self, value):
        if isinstance(value, Enum):
            return getattr, (type(value), value.name)
        return NotImplemented


def test_a_table_whose_enums_are_pickled_by_getattr_is_read(saved):
    file = saved / "weights" / ".metadata"
    contents = torch_dist.read_contents(file.parent)
    with file.open("wb") as stream:
        GetattrPickler(stream).dump(contents)
    assert b"getattr" in file.read_bytes()
    assert torch_dist.read_contents(file.parent) == contents
    load_model(saved)


class Getattr:
    """Pickled as ``getattr(owner, name)``."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_MEM_FORMAT_ENCODING, "__class__"),
        (_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT.name"),
        (_MEM_FORMAT_ENCODING, "_member_map_"),
        (_MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT, "name"),
        (Metadata, "__init__"),
        (torch.Size, "numel"),
        ({}, "pop"),
        ("text", "format"),
    ],
)
def test_getattr_reaches_nothing_but_members_of_an_enum(saved, owner, name):
    (saved / "weights" / ".metadata").write_bytes(pickle.dumps(Getattr(owner, name)))
    with pytest.raises(InputError, match=r"it names builtins\.getattr"):
        torch_dist.read_contents(saved / "weights")


def test_getattr_takes_no_enum_from_outside_the_table(saved):
    (saved / "weights" / ".metadata").write_bytes(pickle.dumps(Getattr(HTTPStatus, "OK")))
    with pytest.raises(InputError, match=r"it names http\.HTTPStatus"):
        torch_dist.read_contents(saved / "weights")


def test_an_honest_table_is_read(saved):
    assert isinstance(torch_dist.read_contents(saved / "weights"), Metadata)
    assert torch_dist.tensor_shapes(saved / "weights")["output_layer.weight"] == (30, 16)


def train(model, optimizer, *, steps):
    """Updates on random data drawn from the very generators that a state keeps."""
    norms = []
    for _ in range(steps):
        prompt = [random.randrange(30) for _ in range(4)]
        response = torch.randint(30, (5,)).tolist()
        packed = pack([Group(prompt, [response, prompt])])
        accumulate_gradients(model, [(packed, None)], lambda logprobs, _: (-logprobs.mean(), None))
        norms.append(optimizer.step(1e-2, step=1, loss=1.0))
    return norms


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    model = build_model(CONFIG)
    optimizer = build_optimizer(model, OptimConfig())
    train(model, optimizer, steps=3)
    save_state(tmp_path / "s", model, optimizer, extra={"step": 3, "epoch": [1, 2]})
    expected = train(model, optimizer, steps=3)

    random.seed(99)
    torch.manual_seed(99)
    again = build_model(CONFIG, seed=99)
    resumed = build_optimizer(again, OptimConfig())
    assert load_state(tmp_path / "s", again, resumed) == {"step": 3, "epoch": [1, 2]}
    assert resumed.updates == 3
    assert train(again, resumed, steps=3) == expected
    assert weights_digest(again) == weights_digest(model)


def test_a_state_of_more_processes_goes_on_with_the_random_numbers_of_the_first(tmp_path):
    model = build_model(CONFIG)
    optimizer = build_optimizer(model, OptimConfig())
    train(model, optimizer, steps=1)
    save_state(tmp_path / "s", model, optimizer, extra={})
    expected = random.random()
    file = tmp_path / "s" / "extra.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"world_size": 4}))
    load_state(tmp_path / "s", model, optimizer)
    assert random.random() == expected


def test_a_state_before_the_first_update_can_be_resumed(tmp_path):
    model = build_model(CONFIG)
    optimizer = build_optimizer(model, OptimConfig())
    save_state(tmp_path / "s", model, optimizer, extra={})
    load_state(tmp_path / "s", model, optimizer)
    assert optimizer.updates == 0
