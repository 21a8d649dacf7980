from __future__ import annotations

import json

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.profile import Profile, find_project_root, load_profile, read_profiles
from nemotron_style.runtime.secret import looks_secret

DIALECT = """
[wandb]
project = "p"

[base]
executor = "slurm"
tunnel = "ssh"
host = "${oc.env:TOY_HOST,login.example.com}"
account = "acc"
container_image = "nvcr.io/nvidia/nemo:25.04"
remote_job_dir = "/lustre/jobs"
mounts = ["/lustre:/lustre:ro", "/home"]
lustre_mount = ""
ntasks_per_node = 8
mem = "0"
time = "02:00:00"
build_partition = "cpu"
startup_commands = ["echo hello"]

[base.env_vars]
HF_TOKEN = "${oc.env:HF_TOKEN,''}"
HF_HOME = "${oc.env:HF_HOME,/lustre/${oc.env:TOY_USER,me}/hf}"
OMP_NUM_THREADS = 16

[big]
extends = "base"
nodes = 4
mounts = ["/scratch:/data"]
secrets = ["WANDB_API_KEY"]
env_vars = { OMP_NUM_THREADS = "8" }

[cloud]
executor = "lepton"
node_group = "ng"
resource_shape = "gpu.8xh100-80gb"
shared_memory_size = 65536
mounts = [{ path = "/team", mount_path = "/mnt", from = "node-nfs:lustre" }]
"""


@pytest.fixture
def project(toy, monkeypatch):
    for name in ("HF_TOKEN", "HF_HOME", "TOY_HOST", "TOY_USER"):
        monkeypatch.delenv(name, raising=False)
    toy.write("env.toml", DIALECT)
    return toy


def refusal(name: str) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    return str(caught.value)


def test_no_name_is_this_machine():
    assert load_profile(None) == Profile(name="local")


def test_nemotrons_dialect_is_read_as_it_is(project):
    profile = load_profile("base")
    assert profile.executor == "slurm"
    assert profile.image == "nvcr.io/nvidia/nemo:25.04"
    assert profile.workdir == "/lustre/jobs"
    assert profile.host == "login.example.com"
    assert [str(mount) for mount in profile.mounts] == ["/lustre:/lustre:ro", "/home:/home"]
    assert profile.tasks_per_node == 8
    assert profile.memory == "0"
    assert profile.setup == ("echo hello",)
    assert profile.env == {"HF_HOME": "/lustre/me/hf", "OMP_NUM_THREADS": "16"}
    assert profile.secrets == ("HF_TOKEN",)
    assert profile.ignored == ("build_partition",)


def test_a_child_replaces_lists_and_adds_to_env_and_secrets(project):
    profile = load_profile("big")
    assert profile.nodes == 4
    assert profile.account == "acc"
    assert [str(mount) for mount in profile.mounts] == ["/scratch:/data"]
    assert profile.env == {"HF_HOME": "/lustre/me/hf", "OMP_NUM_THREADS": "8"}
    assert profile.secrets == ("HF_TOKEN", "WANDB_API_KEY")


def test_lepton_mounts_keep_their_volume(project):
    (mount,) = load_profile("cloud").mounts
    assert (mount.source, mount.target, mount.volume) == ("/team", "/mnt", "node-nfs:lustre")
    assert load_profile("cloud").shared_memory_mb == 65536


def test_the_value_of_a_secret_never_enters_a_profile(project, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    assert "hf_very_secret" not in json.dumps(load_profile("big").model_dump(mode="json"))
    project.write("env.toml", '[x]\nenv = { MY_TOKEN = "hf_very_secret", A = "1" }\n')
    text = refusal("x")
    assert "hf_very_secret" not in text
    assert 'secrets = ["MY_TOKEN"]' in text
    project.write("env.toml", '[x]\nhost = "${oc.env:HF_TOKEN}"\n')
    assert "hf_very_secret" not in refusal("x")
    project.write("env.toml", '[x]\nenv = { MY_TOKEN = "${oc.env:HF_TOKEN}" }\n')
    assert "env.MY_TOKEN: looks like a secret" in refusal("x")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("github_pat", True),
        ("DB_PASSWORD", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("KEYBOARD", False),
        ("PATH", False),
        ("MONKEY_BUSINESS", False),
    ],
)
def test_secrets_are_known_by_whole_words(name, secret):
    assert looks_secret(name) is secret


def test_every_problem_of_a_profile_is_told_at_once(project):
    project.write(
        "env.toml",
        '[x]\nexecutor = "slrum"\npartion = "a"\nnodes = 0\ntime = "two hours"\n'
        'env = { "1A" = "x" }\nimage = "a"\ncontainer_image = "b"\n',
    )
    text = refusal("x")
    assert len(text.splitlines()) == 6
    assert "env.toml [x]: partion: is not a known key; did you mean 'partition'" in text
    assert "executor: does not fit; got 'slrum'" in text
    assert "did you mean 'slurm'?" in text
    assert "nodes: does not fit; got 0; allowed: a number >= 1" in text
    assert "time: does not fit" in text
    assert "'1A' is no name of an environment variable" in text
    assert "container_image: says something else" in text


def test_a_circle_and_an_unknown_parent_are_named(project):
    project.write("env.toml", '[a]\nextends="b"\n[b]\nextends="a"\n[c]\nextends="slrum"')
    assert "a -> b -> a" in refusal("a")
    text = refusal("c")
    assert "env.toml [c]: there is no profile 'slrum'" in text
    assert "did you mean 'slurm'" in text


def test_an_unknown_profile_lists_what_there_is(project):
    text = refusal("bigg")
    assert "big" in text
    assert "local" in text
    assert "wandb" not in text
    assert "did you mean 'big'" in text


def test_one_broken_profile_leaves_the_others_alone(project):
    project.write("env.toml", DIALECT + "\n[broken]\nnodes = 0\n")
    assert load_profile("big").nodes == 4


def test_broken_toml_and_stray_keys_name_the_place(project):
    project.write("env.toml", "[a]\nx = \n")
    assert "env.toml:2: is not valid TOML" in refusal("a")
    project.write("env.toml", 'executor = "slurm"\n')
    assert "put it below a line [name]" in refusal("a")


def test_env_toml_is_found_upwards_and_a_variable_wins(project, monkeypatch):
    deep = project.root / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_project_root(deep) == project.root
    assert "big" in read_profiles()
    other = project.write("other.toml", "[mine]\nnodes = 3\n")
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(other))
    assert load_profile("mine").nodes == 3
    assert "big" not in read_profiles()
    monkeypatch.setenv("NEMOTRON_ENV_FILE", "/nowhere/env.toml")
    assert "there is no such file" in refusal("mine")


def test_a_projects_profile_wins_over_a_shipped_one(project):
    project.write("env.toml", '[slurm]\nexecutor = "slurm"\naccount = "mine"\n')
    profile = load_profile("slurm")
    assert profile.account == "mine"
    assert profile.image is None


def test_a_mistyped_list_is_refused_and_not_taken_apart(project):
    project.write("env.toml", '[x]\nsecrets = "HF_TOKEN"\n[y]\nextends = ["a"]\n')
    assert "secrets: does not fit; got 'HF_TOKEN'; allowed: a list" in refusal("x")
    assert "extends: must be one name" in refusal("y")


def test_every_shipped_profile_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    names = set(read_profiles())
    assert {"local", "slurm", "lepton"} <= names
    for name in names:
        assert load_profile(name).name == name
