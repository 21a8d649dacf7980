"""Two hundred secrets, put wherever people put them, and none is ever seen again.

Each is a canary with a number of its own. What could be stored is refused; what is only there, in
the environment, is masked wherever it would come up: on the screen, in logs, in records.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.cli import main

MARK = "c4n4ry"
NUMBERS = count()
PLACED: list[str] = []


def canary(form: str = "{}") -> str:
    """A new secret, in the form of ``form``."""
    number = next(NUMBERS)
    PLACED.append(f"{MARK}{number:03d}Zq81xyW{number * 7919:06d}")
    return form.replace("{}", PLACED[-1])


URLS = (
    "https://me:{}@host.example/x.jsonl",
    "https://{}@host.example/x.jsonl",
    "s3://AKIDEXAMPLE:{}@bucket/x.jsonl",
    "postgres://me:{}@db.example:5432/x",
    "redis://:{}@host.example:6379/0",
    "https://host.example/x.jsonl?X-Amz-Algorithm=a&X-Amz-Signature={}",
    "https://host.example/x.jsonl?X-Amz-Credential={}&a=b",
    "https://host.example/x.jsonl?sv=1&sig={}",
    "https://host.example/x.jsonl?token={}",
    "https://host.example/x.jsonl?access_token={}&b=1",
    "https://host.example/x.jsonl?X-Goog-Signature={}",
    "https://host.example/x.jsonl?key={}",
    "https://host.example/x.jsonl?AWSAccessKeyId={}&Signature=x",
)
FORMS = ("hf_{}", "ghp_{}", "github_pat_{}", "nvapi-{}", "sk-{}", "glpat-{}", "xoxb-{}")
VARIABLES = (
    *("HF_TOKEN", "GH_PAT", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "NGC_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GITHUB_TOKEN"),
    *("DB_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "CLIENT_SECRET", "SSH_PRIVATE_KEY", "X_TOKEN"),
    *("AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "NPM_AUTH", "SIGNING_PASSPHRASE"),
    *("HUGGING_FACE_HUB_TOKEN", "LEPTON_WORKSPACE_TOKEN", "MY_APIKEY", "JWT_SECRET", "DB_PASS"),
)
KEYS = (
    *("hf_token", "api_key", "access_key", "secret", "password", "passwd", "auth_token", "token"),
    *("access_token", "aws_secret_access_key", "apiKey", "client_secret", "wandb_api_key"),
    *("private_key", "credentials", "bearer_token", "github_pat", "passphrase", "HF_TOKEN"),
)
FIELDS = {
    "image": '"docker://me:{}@registry.example/x"',
    "account": '"ghp_{}"',
    "partition": '"hf_{}"',
    "qos": '"nvapi-{}"',
    "store": '"s3://key:{}@bucket/x"',
    "workdir": '"/x/${oc.env:SITE_URL}"',
    "upload": '"https://host.example/c?sig={}"',
    "hf_token": '"{}"',
    "api_key": '"{}"',
    "custom_spec": '{ envs = [{ name = "X_TOKEN", value = "{}" }], a = { password = "{}" } }',
    "setup": '["export X_TOKEN={}", "export GH_PAT=\'{}\'", "login --token {}"]',
    "startup_commands": '["echo {\\"auth\\": {\\"password\\": \\"{}\\"}} > x", "wandb login {}"]',
    "pre_launch_commands": '["curl -H \\"Authorization: Bearer {}\\" x"]',
    "mounts": '[{ path = "/a", mount_path = "/b", from = "nfs://me:{}@host" }]',
    "env": '{ HF_TOKEN = "{}", WANDB_API_KEY = "{}", DATABASE_URL = "postgres://a:{}@h/x" }',
    "env_vars": '{ AWS_SECRET_ACCESS_KEY = "{}", HF_TOKEN = "${oc.env:HF_TOKEN,{}}" }',
    "description": '"about {}"',
    "resource_shape": '"${oc.env:HF_TOKEN}"',
    "node_group": '"${oc.env:SITE_URL}"',
}
LEAK = """
import os


def run(config, ctx):
    for name, value in sorted(os.environ.items()):
        ctx.say(f"{name} is {value}")
        print(repr({name: value}), value.encode("unicode_escape").decode())
    print("Authorization: Bearer " + os.environ["HF_TOKEN"], end="")
    ctx.output("sack").note(fetched_from=os.environ["DATABASE_URL"], by=[os.environ["GH_PAT"]])
    ctx.summarise(source=os.environ["SITE_URL"])
    if config.raise_at:
        raise RuntimeError("cannot reach " + os.environ["DATABASE_URL"] + " as " + str(os.environ))
    (ctx.output("sack").path / "sack.txt").write_text("grain")
    (ctx.output("chaff").path / "chaff.txt").write_text("chaff")
"""


class Watch:
    """Runs commands, and looks at everything that they print and write."""

    def __init__(self, mill: Any, capfd: Any) -> None:
        self.mill, self.capfd, self.commands = mill, capfd, 0

    def __call__(self, *words: str, code: int = 2) -> str:
        assert main(words) == code, f"{words}\n{self.capfd.readouterr()}"
        shown = self.capfd.readouterr()
        self.commands += 1
        self.look(shown.out + shown.err, " ".join(words))
        if "--json" in words and "--" not in words:
            json.loads(shown.out)
        return shown.out + shown.err

    def look(self, text: str, where: str) -> None:
        assert MARK not in text, where

    def look_at_files(self) -> int:
        """How many files of the store were searched."""
        files = [path for path in self.mill.home.rglob("*") if path.is_file()]
        for path in files:
            self.look(path.read_bytes().decode("utf-8", "replace"), str(path))
            self.look(str(path), "a name")
        return len(files)


@pytest.fixture
def watch(mill: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> Watch:
    for name in VARIABLES:
        monkeypatch.setenv(name, canary())
    monkeypatch.setenv("TLS_PRIVATE_KEY", canary("-----BEGIN KEY-----\n{}{}\n-----END KEY-----"))
    monkeypatch.setenv("ODD_TOKEN", canary("a\"b\\{} c'd/é"))
    for name, url in (("DATABASE_URL", URLS[3]), ("SITE_URL", URLS[0]), ("http_proxy_x", URLS[4])):
        monkeypatch.setenv(name, canary(url))
    mill.add_step("mill/leak", makes="grain")
    mill.write("code/milling/leak.py", LEAK)
    manifest = mill.root / "manifests/mill/leak/step.toml"
    manifest.write_text(manifest.read_text().replace("milling.recipe:run", "milling.leak:run"))
    return Watch(mill, capfd)


def refuse_overrides(watch: Watch) -> None:
    places: list[Callable[[str], str]] = [
        lambda key: canary(f"mill.{key}={{}}"),
        lambda key: canary(f"+mill.{key}='{{}} and more'"),
        lambda key: canary("mill={" + key + ": {}}"),
    ]
    for at, key in enumerate(KEYS):
        word = places[at % 3](key)
        watch("steps", "run", "mill/grow", word, *(["-d"] if at % 2 else []))
    for form in (*URLS, *FORMS):
        watch("steps", "run", "mill/grow", canary(f"mill.input_path={form}"), "--json")
    watch("steps", "run", "mill/grow", canary("mill={hf_token: {}"))
    watch("steps", "run", "mill/grow", "mill.input_path=${oc.env:GH_PAT}", "-d")
    watch("steps", "run", "mill/grow", "mill.input_path=${oc.env:SITE_URL}", "-d")
    watch("steps", "run", "mill/grow", f"mill.input_path={os.environ['HF_TOKEN']}")


def refuse_inputs_and_arguments(watch: Watch) -> None:
    for at, url in enumerate(URLS):
        word = canary(f"input={url}")
        watch("steps", "run", "mill/bake", "-i", word, *(["-d", "--json"] if at % 2 else []))
    for key in KEYS[:12]:
        watch("steps", "run", "mill/bake", "-d", "--", f"--{key}", canary())
        watch("steps", "run", "mill/bake", "--", canary(f"--{key.replace('_', '-')}={{}}"))
    for form in (*URLS, *FORMS):
        watch("steps", "run", "mill/bake", "--", "--from", canary(form))
    watch("steps", "run", "mill/bake", "--hf-token", canary())
    watch("steps", "run", canary("ghp_{}"), "--json")
    watch("steps", "run", "mill/grow", "--name", canary("hf_{}"))
    for url in URLS[:6]:
        watch("artifacts", "adopt", canary(url), "--kind", "grain", "--name", "x")
    for word in (canary("nvapi-{}"), os.environ["GH_PAT"]):
        watch("runs", "show", word)
        watch("artifacts", "show", word, "--json")


def refuse_profiles(watch: Watch) -> None:
    tables = []
    for at, (key, value) in enumerate(FIELDS.items()):
        executor = "lepton" if key in ("upload", "custom_spec", "node_group") else "slurm"
        while "{}" in value:
            value = value.replace("{}", canary(), 1)
        tables.append(f'[p{at}]\nexecutor = "{executor}"\nnodes = 0\n{key} = {value}\n')
    watch.mill.write("env.toml", "\n".join(tables))
    watch("profiles", "list", code=0)
    watch("profiles", "list", "--json", code=0)
    for at in range(len(FIELDS)):
        for words in (("profiles", "show"), ("profiles", "check", "--json")):
            watch(*words, f"p{at}")
        watch("steps", "run", "mill/grow", "-d", "-r", f"p{at}")
    watch.mill.write("env.toml", canary('[x]\nhf_token = "{}\n'))
    watch("profiles", "show", "x")
    watch.mill.write("env.toml", "")


def refuse_configs(watch: Watch) -> None:
    lines = [canary(f"mill: {{{key}: '{{}}'}}") for key in KEYS]
    lines += [canary(f"mill: {{input_path: '{form}'}}") for form in (*URLS, *FORMS)]
    lines += [f"mill: {{input_path: '${{oc.env:{name}}}'}}" for name in ("HF_TOKEN", "SITE_URL")]
    lines += [canary("inputs: {input: {ref: '" + url + "'}}") for url in URLS[:3]]
    lines += [canary("mill: {hf_token: '{}'"), "mill: {input_path: '${oc.env:${oc.env:W}}'}"]
    for at, line in enumerate(lines):
        watch.mill.write("leaky.yaml", f"{line}\n")
        watch("steps", "run", "mill/bake", "-c", "./leaky.yaml", *(["-d"] if at % 2 else []))


def mask_what_steps_tell(watch: Watch) -> None:
    watch("steps", "run", "mill/leak", "-d", code=0)
    watch("steps", "run", "mill/leak", "-d", "--json", code=0)
    shown = watch("steps", "run", "mill/leak", code=0)
    assert "HF_TOKEN is [secret]" in shown
    watch("steps", "run", "mill/leak", "--fresh", "--json", code=0)
    shown = watch("steps", "run", "mill/leak", "raise_at=1", code=1)
    assert "cannot reach postgres://me:[secret]@db.example:5432/x" in shown
    watch("steps", "run", "mill/leak", "raise_at=1", "--json", code=1)
    watch("steps", "run", "mill/leak", "raise_at=2", "-d", code=0)


def look_back(watch: Watch) -> None:
    watch("runs", "list", code=0)
    watch("runs", "list", "--json", code=0)
    for word in ("show", "logs", "why"):
        watch("runs", word, "latest", code=0)
    watch("runs", "show", "latest", "--json", code=0)
    watch("artifacts", "list", "--json", code=0)
    for word in ("show", "lineage", "verify"):
        watch("artifacts", word, "mill-leak-default", code=0)
    for words in (("steps", "list"), ("steps", "show", "mill/leak"), ("profiles", "show", "slurm")):
        watch(*words, code=0)


def test_two_hundred_canaries_are_never_seen_again(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W", "GH_PAT")
    refuse_overrides(watch)
    refuse_inputs_and_arguments(watch)
    refuse_profiles(watch)
    refuse_configs(watch)
    assert not watch.mill.home.exists()  # what was refused has left nothing
    mask_what_steps_tell(watch)
    look_back(watch)
    assert watch.look_at_files() > 20
    assert len(set(PLACED)) >= 200
    assert watch.commands > 200


def test_a_bug_and_a_refused_store_tell_no_secret(mill: Any, cli: Any) -> None:
    """Whole processes: what the interpreter itself prints at the end is looked at too."""
    broken = "import nemotron_style.runtime.catalog.catalog as c\n"
    broken += "def load_catalog(): raise RuntimeError(__import__('os').environ['HF_TOKEN'])\n"
    broken += "c.load_catalog = load_catalog\n"
    mill.write("code/sitecustomize.py", broken)
    plain = {**os.environ, "HF_TOKEN": canary(), "PYTHONPATH": str(mill.root / "code")}
    done = subprocess.run(cli("steps", "list"), env=plain, capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError: [secret]" in done.stderr
    assert MARK not in done.stderr
    Path(mill.root / "code/sitecustomize.py").unlink()
    home = {**plain, "NEMOTRON_STYLE_HOME": canary("s3://key:{}@bucket/x")}
    done = subprocess.run(cli("runs", "list"), env=home, capture_output=True, text=True)
    assert done.returncode == 2
    assert "$NEMOTRON_STYLE_HOME: holds a password inside a URL" in done.stderr
    assert MARK not in done.stdout + done.stderr


def test_words_of_language_models_are_shown_as_they_are(mill: Any, capfd: Any) -> None:
    schema = mill.root / "code/milling/config.py"
    fields = (
        "    eos_token: str = '</s>'\n    max_new_tokens: int = 64\n    tokenizer: str = 'bpe'\n"
    )
    fields += "    key: str = 'k'\n    config_key: str = 'a.b'\n    pad_token: str = '<pad>'\n"
    schema.write_text(schema.read_text() + fields)
    mill.write("env.toml", '[x]\nenv = { EOS_TOKEN = "<|end|>", CONFIG_KEY = "c.d" }\n')
    words = ("eos_token=<|end|>", "key=some-key", "pad_token='[PAD]'", "max_new_tokens=128")
    assert main(["steps", "run", "mill/grow", "-d", "-r", "x", *words]) == 0
    shown = capfd.readouterr().out
    for text in (
        "eos_token: <|end|>",
        "key: some-key",
        "pad_token: '[PAD]'",
        "EOS_TOKEN='<|end|>'",
    ):
        assert text in shown
    for text in ("max_new_tokens: 128", "tokenizer: bpe", "config_key: a.b", "CONFIG_KEY=c.d"):
        assert text in shown
    assert "[secret]" not in shown
