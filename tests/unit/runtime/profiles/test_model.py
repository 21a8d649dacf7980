from __future__ import annotations

import json

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.paths import find_project_root
from nemotron_style.runtime.planning.profile_check import check_profile
from nemotron_style.runtime.profiles.files import is_base, read_profiles
from nemotron_style.runtime.profiles.keys import EXECUTORS, INSTEAD, OWNER, USERS
from nemotron_style.runtime.profiles.model import OWN, Profile, load_profile
from nemotron_style.runtime.secrets.names import is_secret_variable

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
    assert [str(mount) for mount in profile.mounts] == ["/lustre:/lustre:ro", "/home:/home"]
    assert profile.tasks_per_node == 8
    assert profile.memory == "0"
    assert profile.setup == ("echo hello",)
    assert profile.env == {"HF_HOME": "/lustre/me/hf", "OMP_NUM_THREADS": "16"}
    assert profile.secrets == ("HF_TOKEN",)
    assert profile.ignored == ("host", "build_partition")


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
    project.write("env.toml", '[x]\nstore = "${oc.env:HF_TOKEN}"\n')
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
    assert is_secret_variable(name) is secret


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
    assert "time: does not fit; got 'two hours'; allowed: such as 90 (minutes), 04:00:00" in text
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


SHARED = """
[site]
account = "acc"
node_group = "ng"
image = "nvcr.io/x:1"
env = { A = "1" }

[cluster]
extends = "site"
executor = "slurm"
partition = "batch"

[cloud]
extends = "site"
executor = "lepton"
resource_shape = "gpu.8"

[cloud-from-cluster]
extends = "cluster"
executor = "lepton"
node_group = "other"

[here]
extends = "cluster"
executor = "local"
"""


def test_one_base_serves_executors_of_every_kind(toy):
    toy.write("env.toml", SHARED)
    cluster, cloud = load_profile("cluster"), load_profile("cloud")
    assert (cluster.account, cluster.node_group, cluster.image) == ("acc", None, "nvcr.io/x:1")
    assert (cloud.account, cloud.node_group, cloud.image) == (None, "ng", "nvcr.io/x:1")
    assert cluster.ignored == ("node_group",)
    assert load_profile("cloud-from-cluster").node_group == "other"
    assert load_profile("cloud-from-cluster").partition is None
    assert load_profile("here").env == {"A": "1"}
    tables = read_profiles()
    assert [name for name in tables if is_base(name, tables)] == ["site"]
    assert "account: belongs to the slurm executor, and this profile's is local" in refusal("site")


@pytest.mark.parametrize(
    ("table", "key", "owner", "takes"),
    [
        ('executor = "slurm"\nresource_shape = "x"', "resource_shape", "lepton", "partition"),
        ('executor = "lepton"\nqos = "x"', "qos", "slurm", "resource_shape"),
        ('executor = "local"\npartition = "x"', "partition", "slurm", "engine"),
        ('executor = "slurm"\nengine = "docker"', "engine", "local", "account"),
        ('extends = "slurm"\nnode_group = "x"', "node_group", "lepton", "account"),
    ],
)
def test_a_key_of_another_executor_is_refused(toy, table, key, owner, takes):
    toy.write("env.toml", f"[x]\n{table}\n[y]\nextends = 'x'\n")
    text = refusal("x")
    assert f"env.toml [x]: {key}: belongs to the {owner} executor" in text
    allowed = text.partition("allowed: ")[2].partition(";")[0].split(", ")
    assert takes in allowed
    assert key not in allowed
    assert "nodes" in allowed
    if owner != "local":
        assert f"env.toml [x]: {key}" in refusal("y")  # told where it stands


UNHONOURED = {
    "local": ("time", "memory", "cpus_per_task", "max_requeues", "shared_memory_mb"),
    "slurm": ("shared_memory_mb",),
    "lepton": ("time", "memory", "cpus_per_task", "grace_seconds", "secrets_file"),
}
VALUES = {"time": '"01:00:00"', "memory": '"8G"', "secrets_file": '"/s"'}


@pytest.mark.parametrize(
    ("executor", "key"), [(name, key) for name, keys in UNHONOURED.items() for key in keys]
)
def test_a_key_that_its_executor_cannot_honour_is_refused_with_what_to_do(toy, executor, key):
    image = 'image = "x:1"\nresource_shape = "s"\n' if executor == "lepton" else ""
    toy.write(
        "env.toml",
        f'[x]\nexecutor = "{executor}"\n{image}{key} = {VALUES.get(key, 7)}\n'
        f"[child]\nextends = 'x'\n",
    )
    for name in ("x", "child"):
        text = refusal(name)
        assert f"env.toml [x]: {key}: is honoured by " in text
        assert f"this profile's executor is {executor}" in text
        assert "take it out" in text or "leave it out" in text


def test_each_key_of_a_profile_is_honoured_refused_or_for_all(toy):
    """A key that is added to the schema and to no executor's list is one for all of them."""
    for_all = {key for key in OWN if key not in USERS}
    assert for_all == {
        *("executor", "extends", "description", "image", "mounts", "env", "secrets", "setup"),
        *("store", "remote_store", "scratch", "workdir", "steps", "python", "gpu_memory"),
    }
    for executor in EXECUTORS:
        unhonoured = {key for key, users in USERS.items() if executor not in users}
        assert unhonoured - set(OWNER) == set(INSTEAD[executor]), "each says what to do instead"


def test_a_value_that_asks_for_nothing_is_no_mistake(toy):
    toy.write("env.toml", "[x]\nmax_requeues = 0\n")
    assert load_profile("x").max_requeues == 0


def test_limits_of_a_base_are_left_out_where_nobody_would_keep_them(toy):
    toy.write(
        "env.toml",
        '[base]\ntime = "01:00:00"\nmax_requeues = 3\nenv = { A = "1" }\n'
        '[cluster]\nextends = "base"\nexecutor = "slurm"\n'
        '[here]\nextends = "cluster"\nexecutor = "local"\n',
    )
    cluster, here = load_profile("cluster"), load_profile("here")
    assert (cluster.time, cluster.max_requeues, cluster.ignored) == ("01:00:00", 3, ())
    assert (here.time, here.max_requeues, here.env) == (None, 0, {"A": "1"})
    assert here.ignored == ("time", "max_requeues")
    text = next(check.text for check in check_profile(here) if check.name == "keys")
    assert text.endswith("all of them fit; without effect here: time, max_requeues")


def test_a_shared_file_of_nvidias_dialect_is_told_about_and_not_refused(toy):
    toy.write(
        "env.toml",
        '[x]\nexecutor = "lepton"\ncontainer_image = "x:1"\nresource_shape = "s"\n'
        'time = "01:00:00"\nmem = "8G"\n[y]\nexecutor = "lepton"\nhost = "h"\nqos = "x"\n',
    )
    assert load_profile("x").ignored == ("time", "memory")
    assert load_profile("x").time is None
    assert "qos: belongs to the slurm executor" in refusal("y")


def test_values_that_would_break_a_line_are_refused(toy):
    toy.write(
        "env.toml",
        '[x]\nexecutor = "slurm"\naccount = "a\\n#SBATCH --uid=0"\nqos = "a\\u0000b"\n'
        'constraint = "a\\\\b"\nmounts = ["/a\\r:/b"]\nsetup = ["a\\nb \\\\ c"]\n'
        'env = { A = "two\\nlines \\\\", B = "a\\u0000b" }\n',
    )
    text = refusal("x")
    assert "env.toml [x]: account: holds a line break" in text
    assert "env.toml [x]: qos: holds a null character" in text
    assert "env.toml [x]: constraint: holds a backslash" in text
    assert "env.toml [x]: mounts[0]: holds a line break" in text
    assert "env.toml [x]: env.B: holds a null character" in text
    assert len(text.splitlines()) == 5


def test_mounts_are_absolute_and_targets_differ(toy, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    toy.write("env.toml", '[x]\nmounts = ["~/data:/data:ro", { path = "/a", mount_path = "/b" }]\n')
    assert [str(mount) for mount in load_profile("x").mounts] == ["/home/me/data:/data:ro", "/a:/b"]
    toy.write(
        "env.toml",
        '[x]\nexecutor = "lepton"\nmounts = ["data:/data", "/a:b", "./c", '
        '{ path = "team", mount_path = "/m", from = "node-nfs:x" }]\n'
        '[y]\nmounts = ["/a:/data", "/b:/data/", "/c"]\n',
    )
    text = refusal("x")
    assert "mounts[0]: must be an absolute path, and is 'data'" in text
    assert "mounts[1]: must be an absolute path, and is 'b'" in text
    assert "mounts[2]: must be an absolute path, and is './c'" in text
    assert "mounts[3].path: must be an absolute path, and is 'team'" in text
    assert "mounts[1]: /data is the target of mounts[0] too; got '/b:/data/'" in refusal("y")


LEAKS = {
    "image": '"docker://me:c4n4ry@registry/x"',
    "account": '"ghp_c4n4ry0123456789abcdef"',
    "store": '"s3://key:c4n4ry@bucket/x"',
    "upload": '"https://h/c?sig=c4n4ry"',
    "hf_token": '"c4n4ry"',
    "custom_spec": '{ envs = [{ name = "X_TOKEN", value = "c4n4ry" }] }',
    "setup": '["export X_TOKEN=c4n4ry"]',
    "mounts": '[{ path = "/a", mount_path = "/b", from = "nfs://u:c4n4ry@h" }]',
    "env": '{ DATABASE_URL = "postgres://u:c4n4ry@h/x" }',
    "env_vars": '{ HF_TOKEN = "c4n4ry" }',
    "description": '"with a-value-c4n4ry in it"',
    "constraint": '"${oc.env:SITE_VALUE}"',
    "workdir": '"/x/${oc.env:SITE_URL}"',
}


@pytest.mark.parametrize("key", LEAKS)
def test_no_field_of_a_profile_takes_a_secret(toy, monkeypatch, key):
    monkeypatch.setenv("SITE_TOKEN", "a-value-c4n4ry")
    monkeypatch.setenv("SITE_VALUE", "a-value-c4n4ry")
    monkeypatch.setenv("SITE_URL", "https://u:c4n4ry@h/x")
    toy.write("env.toml", f'[x]\nexecutor = "lepton"\nnodes = 0\n{key} = {LEAKS[key]}\n')
    text = refusal("x")
    assert "c4n4ry" not in text
    assert "secrets = [" in text
    assert "nodes: does not fit; got 0" in text  # all problems at once


def test_words_of_language_models_are_no_secrets(toy):
    toy.write(
        "env.toml", '[x]\nenv = { EOS_TOKEN = "</s>", MAX_NEW_TOKENS = "64", SORT_KEY="a" }\n'
    )
    assert load_profile("x").env == {"EOS_TOKEN": "</s>", "MAX_NEW_TOKENS": "64", "SORT_KEY": "a"}


def test_a_profile_for_ssh_loads_and_says_where_to_type(project):
    (note,) = load_profile("base").notes
    assert "login node" in note


def test_an_ancestor_that_is_missing_and_a_long_circle_are_named(toy):
    toy.write("env.toml", '[a]\nextends="b"\n[b]\nextends="c"\n[c]\nextends="a"\n[d]\nextends="d"')
    assert "circle: a -> b -> c -> a" in refusal("a")
    assert "circle: d -> d" in refusal("d")


def test_a_file_that_windows_wrote_is_read(project):
    (project.root / "env.toml").write_bytes(
        b"\xef\xbb\xbf" + b'[x]\r\nexecutor = "slurm"\r\naccount = "a"\r\n'
    )
    assert load_profile("x").account == "a"
