from __future__ import annotations

import json

import pytest
import yaml

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.config.model import InputSource, parse_config
from nemotron_style.runtime.config.resolve import load_config_class, resolve_config
from nemotron_style.runtime.config.yaml_file import Dumper, Loader, parse_value
from nemotron_style.runtime.errors import ConfigError, ManifestError, UsageError
from nemotron_style.runtime.planning.inputs import parse_input_options
from nemotron_style.runtime.run.plan import identify
from nemotron_style.runtime.validation import find_key, flatten, split_key


def resolve(*overrides: str, name: str = "default"):
    return resolve_config(load_catalog().find("toy/train"), name=name, overrides=overrides)


def refusal(*overrides: str, name: str = "default") -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(*overrides, name=name)
    return str(caught.value)


def write_default(toy, extra: str) -> None:
    toy.write_step("default.yaml", (toy.folder / "default.yaml").read_text() + extra)


# Files ---------------------------------------------------------------------------------------


def test_a_config_inherits_and_is_complete(toy):
    config = resolve(name="tiny")
    assert config.name == "tiny"
    assert config.values["steps"] == 2
    assert config.values["model"]["optim"] == {
        "name": "adamw",
        "lr": 1e-4,
        "betas": [0.9, 0.999],
    }
    assert config.values["model"]["restore_from_path"] is None
    json.dumps(config.values)


def test_tables_merge_and_lists_are_replaced(toy):
    toy.write_step("base.yaml", "data: {files: [a, b], path: /x}\n")
    write_default(toy, "")
    toy.write_step("default.yaml", "defaults: [base.yaml]\nmodel: {restore_from_path: '???'}\n")
    toy.write_step(
        "more.yaml", "defaults: default\nmodel: {optim: {lr: 1.0}}\ndata: {files: [c]}\n"
    )
    data = resolve(name="more").values["data"]
    assert data == {"path": "/x", "files": ["c"]}


def test_every_problem_of_files_overrides_and_values_is_told_at_once(toy):
    write_default(toy, "stepz: 3\nlimit: ${model.encoder_seq_lengt}\n")
    lines = refusal("seed=abc", "nosuchthing=1", "model.optim.lr").splitlines()
    assert len(lines) == 5
    text = "\n".join(lines)
    assert "manifests/toy/train/default.yaml:6: stepz: is not a known key" in text
    assert "did you mean 'steps'?" in text
    assert "default.yaml:7: limit: ${model.encoder_seq_lengt} points to" in text
    assert "did you mean 'model.encoder_seq_length'?" in text
    assert "seed: does not fit; got 'abc'; allowed: a whole number" in text
    assert "override 'nosuchthing=1': nosuchthing: is not a key of this step" in text
    assert "override 'model.optim.lr': model.optim.lr: has no value" in text


def test_an_unknown_key_names_the_file_of_the_chain_it_stands_in(toy):
    write_default(toy, "data:\n  paht: x\n")
    text = refusal(name="tiny")
    assert "default.yaml:7: data.paht: is not a known key; did you mean 'data.path'?" in text


def test_malformed_yaml_names_line_and_column(toy):
    toy.write_step("default.yaml", "model:\n  optim: {lr: 1\nsteps: 3\n")
    assert "manifests/toy/train/default.yaml:3:6: is not valid YAML" in refusal()


def test_every_duplicate_key_is_refused(toy):
    write_default(toy, "steps: 1\nlimit: 9\nsteps: 2\nlimit: 8\n")
    text = refusal()
    assert "default.yaml:8: steps: stands twice (before in line 6)" in text
    assert "default.yaml:9: limit: stands twice (before in line 7)" in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b\n", "must be a table of keys"),
        ("1: a\n", "put it in quotes: '1'"),
        ("a: &x [*x]\n", "an alias contains itself"),
        ("a: !!python/object/apply:os.system [id]\n", "cannot be used: write plain"),
        ("a: {b: ???}\n", "inside braces put it in quotes"),
        ("defaults: 3\n", "must be a file name or a list"),
        ("defaults: defualt.yaml\n", "did you mean 'default.yaml'"),
    ],
)
def test_a_file_that_is_no_config_is_refused(toy, text, part):
    toy.write_step("odd.yaml", text)
    assert part in refusal(name="odd")


def test_a_circle_of_defaults_names_its_members(toy):
    toy.write_step("one.yaml", "defaults: two.yaml\n")
    toy.write_step("two.yaml", "defaults: one.yaml\n")
    assert "one.yaml -> two.yaml -> one.yaml" in refusal(name="one")


def test_an_unknown_name_lists_what_there_is(toy):
    text = refusal(name="tin")
    assert "allowed: default, tiny" in text
    assert "did you mean 'tiny'?" in text


def test_a_path_may_inherit_from_the_configs_of_the_step(toy):
    path = toy.write("mine/My Run.yaml", "defaults: tiny.yaml\nsteps: 7\n")
    config = resolve(name=str(path))
    assert config.values["steps"] == 7
    assert config.name == "my-run"
    assert "there is no such file" in refusal(name="./nowhere.yaml")
    assert "there is no such file" in refusal(name="nowhere.yaml")


def test_mandatory_values_are_demanded_unless_a_slot_fills_them(toy):
    toy.write_step("open.yaml", "defaults: default.yaml\nmodel: {optim: {lr: '???'}}\n")
    text = refusal(name="open")
    assert "open.yaml:2: model.optim.lr: is mandatory and was not given" in text
    assert "restore_from_path" not in text
    assert resolve("model.optim.lr=1", name="open").values["model"]["optim"]["lr"] == 1.0


def test_a_required_key_that_no_file_gives_is_told_with_the_remedy(toy):
    toy.write_step("default.yaml", "steps: 3\n")
    text = refusal()
    assert "model.optim: is required and was not given; give model.optim=VALUE" in text


# Overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.optim.lr=1e-4", "model.optim.lr", 1e-4),
        ("model.optim.lr=5E-6", "model.optim.lr", 5e-6),
        ("model.optim.lr=2", "model.optim.lr", 2.0),
        ("limit=null", "limit", None),
        ("data.files=[a, 'b c']", "data.files", ["a", "b c"]),
        ("data.files=[]", "data.files", []),
        ("data.path='123'", "data.path", "123"),
        ("data.path=2024-01-01", "data.path", "2024-01-01"),
        ("data.path=a=b", "data.path", "a=b"),
        ("data.path=''", "data.path", ""),
        ("model.optim.betas[1]=0.5", "model.optim.betas", [0.9, 0.5]),
        ("model={optim: {name: sgd}}", "model.optim.name", "sgd"),
        ("+model.extra.a.b={c: true}", "model.extra.a.b.c", True),
        ("++model.extra.a=1", "model.extra.a", 1),
        ("++seed=3", "seed", 3),
    ],
)
def test_values_are_read_by_yaml_rules(toy, override, key, value):
    write_default(toy, "    betas: [0.9, 0.999]\n")
    assert flatten(resolve(override).values)[key] == value


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed='7'", "got '7'; allowed: a whole number"),
        ("seed=7.0", "allowed: a whole number"),
        ("seed=true", "allowed: a whole number"),
        ("model.optim.lr='1e-4'", "allowed: a number"),
        ("model.optim.lr=.inf", "a finite number"),
        ("seed=-1", "allowed: a number >= 0"),
        ("model.encoder_seq_length=0", "allowed: a number > 0"),
        ("data.path=3", "allowed: a string"),
        ("data.files=a", "allowed: a list"),
        ("model.optim.name=adam", "did you mean 'adamw'?"),
        ("model.optim=3", "allowed: a table of keys"),
        ("limit=1", "limit (1) is below steps (4)"),
        ("data.path=", "data.path=null for nothing, data.path='\"\"' for an empty string"),
        ("data.path=#x", "YAML takes it for a comment; quote it"),
        ("data.path=a #x", "YAML takes a part of it for a comment"),
        ("data.files=[1, 2", "the value cannot be read"),
        ("data.path=*.jsonl", "quote it"),
        ("=3", "is no key"),
        ("a b=3", "is no key"),
        ("+++seed=3", "is no key"),
        ("++sead=3", "did you mean 'seed'?"),
        ("model.optim.lrr=3", "did you mean 'model.optim.lr'?"),
        ("lr=3", "did you mean 'model.optim.lr'?"),
        ("seed.x=3", "is not a key of this step"),
        ("+seed=3", "exists already; drop the plus: seed=3"),
        ("+sead=3", "did you mean 'seed'?"),
        ("model.extra.a=3", "to add it, write +model.extra.a=3"),
        ("data.files[3]=x", "+data.files[3]=x"),
        ("+data.files[3]=x", "a list of 0 has no index '3'"),
        ("~model", "is required and cannot be removed"),
        ("~seed=3", "takes no value; ~seed"),
        ("~model.extra.a", "is not set in the config"),
        ("~nosuch", "is not a key of this step"),
        ("defaults=tiny.yaml", "is not a key of this step"),
    ],
)
def test_an_override_that_cannot_be_is_refused(toy, override, part):
    text = refusal(override)
    assert part in text
    assert len(text.splitlines()) == 1


def test_a_tilde_brings_the_schemas_default_back(toy):
    assert resolve("~steps", name="tiny").values["steps"] == 4
    assert resolve("~data").values["data"] == {"path": None, "files": []}


def test_the_last_override_of_a_key_wins(toy):
    assert resolve("seed=1", "seed=2").values["seed"] == 2


def test_nothing_can_be_set_below_an_interpolation(toy):
    toy.write_step("default.yaml", "model: ${oc.decode:x}\n")
    assert "nothing can be set below it" in refusal("model.optim.lr=1")


# Interpolations ------------------------------------------------------------------------------


def test_interpolations_reach_files_defaults_relatives_and_the_environment(toy, monkeypatch):
    monkeypatch.setenv("TOY_PATH", "/from/env")
    monkeypatch.delenv("TOY_NOTHING", raising=False)
    write_default(
        toy,
        """
data:
  path: ${oc.env:TOY_PATH}
  files: ["${..path}/a", "${oc.env:TOY_NOTHING,fallback}"]
limit: ${model.encoder_seq_length}
steps: ${mul:2,${log_every}}
""",
    )
    values = resolve().values
    assert values["data"] == {"path": "/from/env", "files": ["/from/env/a", "fallback"]}
    assert values["limit"] == 128
    assert values["steps"] == 20


def test_the_environment_is_part_of_the_identity(toy, monkeypatch):
    write_default(toy, "steps: ${oc.decode:${oc.env:TOY_STEPS,4}}\n")
    before = resolve().semantic
    monkeypatch.setenv("TOY_STEPS", "5")
    after = resolve().semantic
    assert (before["steps"], after["steps"]) == (4, 5)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("limit: ${a.b}", "points to 'a.b', which is not set"),
        ("limit: ${oc.env:TOY_UNSET}", "export TOY_UNSET=..., or give a default"),
        ("limit: ${steps", "is malformed"),
        ("limit: ${square:3}", "uses 'square', which is not known"),
        ("limit: ${limit}", "limit: ${limit} cannot be resolved"),
        ("data: {path: '${model.restore_from_path}'}", "has no value yet"),
        ("data: {path: '${oc.env:MY_API_KEY,x}'}", "would write the secret MY_API_KEY"),
    ],
)
def test_a_dangling_interpolation_names_file_key_and_itself(toy, line, part):
    write_default(toy, line + "\n")
    text = refusal()
    assert part in text
    assert "manifests/toy/train/default.yaml:6: " in text
    assert len(text.splitlines()) == 1


def test_a_number_from_the_environment_needs_decoding_and_says_so(toy, monkeypatch):
    monkeypatch.setenv("TOY_STEPS", "5")
    write_default(toy, "steps: ${oc.env:TOY_STEPS}\n")
    assert "write ${oc.decode:${oc.env:TOY_STEPS}}" in refusal()


# Identity, sources, the worker ---------------------------------------------------------------


def test_cosmetic_and_slot_bound_keys_are_no_part_of_the_meaning(toy):
    plain = resolve().semantic
    assert resolve("log_every=3", "data.path=/x", "model.restore_from_path=/y").semantic == plain
    assert "log_every" not in plain
    assert plain["model"]["optim"]["betas"] == [0.9, 0.999]
    assert "restore_from_path" not in plain["model"]
    assert plain["data"] == {"files": []}
    assert resolve("model.optim.lr=1").semantic != plain


def test_writing_a_number_another_way_does_not_change_the_meaning(toy):
    texts = [json.dumps(resolve(f"model.optim.lr={lr}").semantic) for lr in ("1", "1.0", "1e0")]
    assert len(set(texts)) == 1


def test_sources_are_read_and_overridden(toy):
    write_default(toy, "inputs:\n  model: {step: toy/train, config: tiny}\n  data: {ref: 'd:v1'}\n")
    sources = resolve(
        "inputs.model.config=big",
        "+inputs.model.overrides.model.optim.lr=1e-5",
        "inputs.data=null",
    ).sources
    assert set(sources) == {"model"}
    assert sources["model"].config == "big"
    (text,) = sources["model"].as_overrides()
    assert text == "model.optim.lr=1e-05"
    assert resolve(text).values["model"]["optim"]["lr"] == 1e-5


def test_wrong_sources_are_told_with_their_key(toy):
    write_default(toy, "inputs:\n  modle: {step: a/b}\n  data: {step: a/b, ref: c, x: 1}\n")
    text = refusal()
    assert "default.yaml:7: inputs.modle: toy/train has no such input" in text
    assert "did you mean 'model'?" in text
    assert "inputs.data.x: is not a known key" in text
    with pytest.raises(ValueError, match="exactly one"):
        InputSource()


def test_the_worker_reads_back_what_was_resolved(toy):
    manifest = load_catalog().find("toy/train")
    resolved = resolve("model.restore_from_path=/m", name="tiny")
    schema = load_config_class(manifest)
    config = parse_config(schema, resolved.values, where=str)
    assert config.model.optim.betas == (0.9, 0.999)
    assert config.model_dump(mode="json") == resolved.values
    with pytest.raises(ConfigError, match=r"seed: does not fit"):
        parse_config(schema, {**resolved.values, "seed": "x"}, where=str)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('config = "toy_step_config:Config"', 'config = "toy_step_config:Confg"', "imported"),
        ('config = "toy_step_config:Config"', 'config = "no_such_module:Config"', "imported"),
        ('config = "toy_step_config:Config"', 'config = "toy_step_config:Optim"', "StepConfig"),
        ('"model.restore_from_path"', '"model.restore_from"', "did you mean 'model.restore_"),
    ],
)
def test_a_manifest_that_does_not_fit_its_config_class_is_refused(toy, old, new, part):
    text = (toy.folder / "step.toml").read_text()
    toy.write_step("step.toml", text.replace(old, new))
    with pytest.raises(ManifestError) as caught:
        resolve()
    assert part in str(caught.value)


def test_every_shipped_config_resolves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in load_catalog().steps.values():
        for name in step.configs:
            resolve_config(step, name=name)
        schema = load_config_class(step)
        for parameter in step.parameters:
            place = find_key(schema, split_key(parameter.name))
            assert place.status == "declared", f"{step.id}: {parameter.name}"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("010", "write 10, without leading zeros"),
        ("1_000", "write 1000, without _"),
        ("0o10", ""),
        ("0b11", ""),
        ("1:30", ""),
        ("2024-01-01", ""),
    ],
)
def test_a_number_that_yaml_would_read_in_another_base_is_refused(toy, text, fix):
    problem = refusal(f"seed={text}")
    assert f"seed: does not fit; got {text!r}; allowed: a whole number" in problem
    assert fix in problem


def test_plain_numbers_and_truth_values_keep_their_meaning(toy):
    written = {"0x1F": 31, "+7": 7, "-0": 0, "1e-4": 1e-4, ".5": 0.5, "true": True, "~": None}
    for text, value in written.items():
        assert parse_value(text) == value
        assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["no", "Yes", "off", "on", "007", "2024_01_15", "1:30", "="])
def test_what_looks_like_a_value_of_yaml_1_1_is_text(toy, text):
    assert resolve(f"+model.extra.word={text}").values["model"]["extra"] == {"word": text}
    write_default(toy, f"data: {{files: [{text}]}}\n")
    assert resolve().values["data"]["files"] == [text]


@pytest.mark.parametrize(
    "text", ["!!int '010'", "!!set {a}", "!!binary 'aGk='", "!!timestamp '2001-01-01'", "!x y"]
)
def test_a_tag_that_changes_what_stands_there_is_refused(toy, text):
    assert "cannot be " in refusal(f"+model.extra.word={text}")
    write_default(toy, f"data: {{files: [{text}]}}\n")
    assert "cannot be used: write plain text" in refusal()


TREES = [
    "{w.help: 1}",
    "{w: {help: 1}}",
    "{a.b: 1, a: {b: 2}}",
    "{a.b: 2, a: {b: 1}}",
    "{a: {b: 2}}",
    "{a: {}}",
    "{}",
    '{"a[0]": 1}',
    "{a: [1]}",
    '{"a": 1}',
    """{'"a"': 1}""",
    "{a: true}",
    "{a: 1.0}",
    '{a: "1"}',
    '{"": 1}',
    '{"a.": {b: 1}}',
    '{a: {".b": 1}}',
    '{"a..b": 1}',
]


def test_every_tree_has_an_identity_of_its_own(toy):
    def identity(tree):
        semantic = resolve(f"model.extra={tree}").semantic
        return identify({"config": semantic}), *flatten(semantic).items()

    assert len({repr(identity(tree)) for tree in TREES}) == len(TREES)
    assert len({identity(tree)[0] for tree in TREES}) == len(TREES)
    assert len({str(sorted(map(repr, identity(tree)[1:]))) for tree in TREES}) == len(TREES)


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_in_a_file_is_the_one_on_the_command_line_and_of_an_upstream_step(toy, tree):
    plain = (toy.folder / "default.yaml").read_text()
    write_default(toy, f"  extra: {tree}\n")
    expected = resolve().values["model"]["extra"]
    toy.write_step("default.yaml", plain)
    assert resolve(f"model.extra={tree}").values["model"]["extra"] == expected
    source = InputSource(step="toy/train", overrides={"++model": {"extra": expected}})
    assert resolve(*source.as_overrides()).values["model"]["extra"] == expected


@pytest.mark.parametrize("text", ["\U0001f600", "\x7f", "a\u2028b", "\x85", "\ufeff", "é", "a\nb"])
def test_an_override_of_an_upstream_step_is_the_text_that_stands_there(toy, text):
    source = InputSource(step="toy/train", overrides={"data.files": [text]})
    assert resolve(*source.as_overrides()).values["data"]["files"] == [text]


def test_an_override_that_is_given_in_two_ways_is_refused():
    with pytest.raises(ValueError, match=r"overrides say model\.x twice"):
        InputSource(step="toy/train", overrides={"model.x": 1, "model": {"x": 2}})


def test_a_config_that_is_shown_reads_as_what_it_is():
    words = "010 0o10 1e5 1e-4 1_000 1:30 yes off true null ~ 0x1F 2024-01-01 = << é .5 5. - x:y"
    values = {"text": [*words.split(), "", " a", "a #b", "\n"], "rest": [1e-5, 1e20, True, None, 7]}
    shown = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    assert yaml.load(shown, Loader) == values
    assert yaml.safe_load(shown)["text"] == values["text"]


# Slots that depend on the config -------------------------------------------------------------

OPTIONAL_SLOTS = """
[[consumes]]
name = "start"
type = "checkpoint_hf"
required = false
when = { "model.optim.name" = "sgd" }

[[produces]]
name = "trace"
type = "eval_results"
when = { "model.optim.name" = "sgd", steps = 4 }

[[produces]]
name = "data"
type = "eval_results"
when = { seed = -1 }
"""


def slots(manifest) -> tuple[list[str], list[str]]:
    return [one.name for one in manifest.consumes], [one.name for one in manifest.produces]


def test_a_slot_is_there_where_the_config_has_its_values_defaults_included(toy):
    text = (toy.folder / "step.toml").read_text()
    toy.write_step("step.toml", text + OPTIONAL_SLOTS)
    assert slots(resolve().manifest) == (["model", "data"], ["model"])
    chosen = "model.optim.name=sgd"
    assert slots(resolve(chosen).manifest) == (["model", "data", "start"], ["model", "trace"])
    assert slots(resolve(chosen, name="tiny").manifest)[1] == ["model"]  # of two steps
    resolve("+inputs.data={ref: 'a:v1'}")  # the output of that name is another slot
    source = "+inputs.start={ref: 'a:v1'}"
    assert resolve(chosen, source).sources["start"] == InputSource(ref="a:v1")
    assert 'it is one where model.optim.name is "sgd"' in refusal(source)
    with pytest.raises(UsageError, match="it is one where model"):
        parse_input_options(["start=a:v1"], resolve().manifest)


def test_a_slot_that_waits_for_a_key_that_is_none_is_refused(toy):
    text = (toy.folder / "step.toml").read_text()
    toy.write_step("step.toml", text + OPTIONAL_SLOTS.replace("optim.name", "optim.nmae"))
    with pytest.raises(ManifestError, match=r"model\.optim\.nmae"):
        resolve()
