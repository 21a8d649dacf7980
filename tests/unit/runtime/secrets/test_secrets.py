"""What counts as a secret, and that none gets through."""

from __future__ import annotations

import io
import json

import pytest

from nemotron_style.runtime.catalog.manifest import load_manifest
from nemotron_style.runtime.config.resolve import resolve_config
from nemotron_style.runtime.errors import ConfigError, UsageError
from nemotron_style.runtime.secrets.detect import announce_secrets, secret_values
from nemotron_style.runtime.secrets.names import is_secret_key, is_secret_variable
from nemotron_style.runtime.secrets.redact import MASK, RedactedStream, redact
from nemotron_style.runtime.secrets.reject import (
    find_argument_secrets,
    reject_secrets,
    remove_secrets,
)

VALUE = "c4n4ry-Zq81/xy+w"


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize(
    "name",
    words("""HF_TOKEN WANDB_API_KEY github_pat GH_PAT DB_PASSWORD PGPASSWORD MYSQL_PWD DB_PASS
    X_TOKEN AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN HF_TOKEN_17 API_KEYS HFTOKEN
    SECRET_KEY_BASE DOCKER_AUTH_CONFIG AZURE_STORAGE_CONNECTION_STRING NPM_AUTH KEY"""),
)
def test_variables_that_are_secret(name):
    assert is_secret_variable(name)


@pytest.mark.parametrize(
    "name",
    words("""TOKENIZERS_PARALLELISM KEYBOARD MONKEY_BUSINESS PATH PWD OLDPWD EOS_TOKEN PAD_TOKEN
    MAX_NEW_TOKENS CONFIG_KEY HF_TOKEN_PATH SSH_KEY_FILE SSH_AUTH_SOCK GIT_ASKPASS TOKEN_BUDGET
    GOOGLE_APPLICATION_CREDENTIALS PARTITION_KEY"""),
)
def test_variables_that_are_not(name):
    assert not is_secret_variable(name)


@pytest.mark.parametrize(
    "key",
    words("""hf_token model.hf_token api_key access_key aws_access_key_id secret password passwd
    token auth_token refreshToken clientSecret apiKey private_key use_auth_token env.X_TOKEN
    db.credentials.user wandb-api-key --token"""),
)
def test_keys_that_are_secret(key):
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    words("""tokenizer tokenizer.path max_new_tokens eos_token pad_token bos_token config_key key
    tokens loss_per_token secrets image_pull_secrets secrets_file secret_name_ref stop_token
    prompt_key image_token seed model.optim.lr password_file api_key_env keys"""),
)
def test_keys_of_language_models_and_names_are_not(key):
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    "text",
    [
        f"postgres://me:{VALUE}@db/x",
        f"redis://:{VALUE}@h:6379/0",
        f"postgres://me:({VALUE}@db/x",
        f"api_key=*{VALUE}",
        f"api_key=[{VALUE}",
        "https://pa55:w0rd@host/a b",
        f"https://host/f?a=1&X-Amz-Signature={VALUE}&b=2",
        f"https://h/c?sv=2&sig={VALUE}",
        f"https://h/c?token={VALUE}",
        "https://0123456789abcdef0123@github.com/a/b",
        "hf_AbCdEfGh1234567890IjKl",
        "ghp_AbCdEfGh1234567890IjKl",
        "github_pat_11ABCDEFG0123456789_ab",
        "nvapi-AbCdEfGh1234567890IjKl",
        "sk-proj-AbCdEfGh1234567890IjKl",
        "AKIAIOSFODNN7EXAMPLE",
        "Authorization: Bearer abcdefgh12345678ijkl",
        "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK",
        f"export X_TOKEN={VALUE}",
        f"export X_TOKEN='{VALUE}'",
        f"huggingface-cli login --token {VALUE}",
        f"model.api_key={VALUE}",
        "${oc.env:HF_TOKEN,c4n4ry}",
        f"curl -H 'X-Api-Key: {VALUE}' h",
        f"curl -s -u me:{VALUE} h",
        "wandb login --relogin 1234567890c4n4ry1234567890",
        f"https://h/c?Expires=1&Signature=x&Key-Pair-Id={VALUE}",
    ],
)
def test_forms_are_found_and_masked(text):
    shown = redact(text)
    assert MASK in shown
    for part in (VALUE, "w0rd", "1234567890", "0123456789", "c4n4ry", "IOSFODNN", "zdWIi"):
        assert part not in shown
    assert redact(shown) == shown
    with pytest.raises(UsageError) as caught:
        reject_secrets(f"first\n{text}\n", "job.sh")
    assert "job.sh: line 2: holds" in str(caught.value)
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8000/x@y",
        "http://localhost:8000",
        "ssh://git@github.com/a/b",
        "abfs://container@account.dfs.core.windows.net/x",
        "export X_TOKEN=$(cat /run/x)",
        'export X_TOKEN="$HF_TOKEN"',
        "export X_TOKEN=$HF_TOKEN; export A_TOKEN=$B_TOKEN&&true; hf_token={token}",
        "https://u:$PASSWORD@h/x",
        "eos_token=</s> pad_token=<pad> key=value config_key=a.b tokenizer=x max_new_tokens=64",
        'secrets = ["HF_TOKEN"]',
        "export HF_TOKEN=..., or take it out",
        "api_key=null token=None password=EMPTY",
        "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "hf_checkpoint_of_the_model hf_transformers sk-learn task-0123456789012345678901",
        "run sft-chat-0123456789ab: mem 12:34:56@3",
        "secrets='/home/me/.secrets'",
        'curl -u "me:$PASSWORD" -H "X-Api-Key: $KEY" h; wandb login $WANDB_API_KEY_OF_MINE_1',
        "--hf-token: holds the value of something; api_key: is not a known key",
        'case "$line" in HF_TOKEN=*|WANDB_API_KEY=*) export "${line?}" ;; esac',
    ],
)
def test_what_is_no_secret_is_shown_as_it_is(text):
    assert redact(text) == text
    reject_secrets(text, "text")


@pytest.mark.parametrize(
    "value",
    [VALUE, 'a"b\\c d/é', "two\nlong lines of one secret\nand more", "  padded-value  "],
)
def test_values_of_the_environment_are_found_in_every_spelling(monkeypatch, value):
    monkeypatch.setenv("MY_TOKEN", value)
    for text in (value, json.dumps({"a": [value]}), repr(value), json.dumps(value, indent=2)):
        shown = redact(f"x {text} y")
        assert MASK in shown
        assert value.strip() not in shown
        assert "one secret" not in shown
    masked = redact(json.dumps({"a": value, "b": 1}))
    assert json.loads(masked)["b"] == 1


def test_short_values_and_plain_variables_are_left_alone(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "short")
    monkeypatch.setenv("WANDB_API_KEY", "disabled")
    assert redact("W&B is disabled") == "W&B is disabled"
    monkeypatch.setenv("MY_PLACE", "a-long-name-of-a-place")
    assert redact("short a-long-name-of-a-place") == "short a-long-name-of-a-place"


def test_a_password_in_a_url_of_the_environment_is_known_by_itself(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"postgres://me:{VALUE}@db/x")
    assert secret_values()[VALUE] == "DATABASE_URL"
    assert VALUE not in redact(f"psql: wrong password {VALUE}")


def test_a_password_that_is_quoted_in_its_url_is_known_as_it_is_too(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://me:c4n4ry%2Fx%40y@db/x")
    assert "c4n4ry" not in redact("wrong: c4n4ry/x@y or c4n4ry%2Fx%40y")


def test_a_variable_that_a_profile_names_is_a_secret(monkeypatch):
    monkeypatch.setenv("ANNOUNCED_PLACE", VALUE)
    assert VALUE in redact(VALUE)
    announce_secrets(["ANNOUNCED_PLACE"])
    assert redact(VALUE) == MASK


def test_a_stream_finds_a_secret_in_pieces(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", VALUE)
    monkeypatch.setenv("OTHER_TOKEN", "round-round-round-")
    for text in (
        f"a {VALUE} b\n",
        "it goes round-round-round-\n",
        "x https://u:passw0rd@h/y z\n",
        "my api_key=abc12345 end\n",
    ):
        whole = io.StringIO()
        stream = RedactedStream(whole)
        for letter in text:
            stream.write(letter)
            stream.flush()
        stream.release()
        assert whole.getvalue() == redact(text)
        assert MASK in whole.getvalue()


def test_a_line_that_ended_is_written():
    whole = io.StringIO()
    stream = RedactedStream(whole)
    stream.write("4/4  total=10")
    stream.write("\n")
    assert whole.getvalue() == "4/4  total=10\n"


def test_on_a_terminal_nothing_harmless_is_held_back():
    whole = io.StringIO()
    whole.isatty = lambda: True  # a bar that is drawn over and over, without a line's end
    stream = RedactedStream(whole)
    stream.write("[###---] 3/6  loss=0.5")
    assert whole.getvalue() == "[###---] 3/6  loss=0.5"
    assert getattr(stream, "raw", None) is None


def test_bytes_are_masked_as_text_is(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", VALUE)
    whole = io.StringIO()
    stream = RedactedStream(whole)
    line = f"é {VALUE} ☂\n".encode()
    assert stream.buffer.write(memoryview(line)) == len(line)
    for number in line:
        stream.buffer.write(bytes([number]))
    print(f"text {VALUE}", file=stream)
    stream.buffer.write(b"\xff\xfe \xe2\x98")
    stream.release()
    masked = f"é {MASK} ☂\n"
    assert whole.getvalue() == f"{masked}{masked}text {MASK}\n\\xff\\xfe \\xe2\\x98"


def test_a_wrapper_around_the_bytes_may_be_made_and_dropped():
    whole = io.StringIO()
    stream = RedactedStream(whole)
    for _ in range(2):
        wrapper = io.TextIOWrapper(stream.buffer, encoding="utf-8", line_buffering=True)
        wrapper.write("é\n")
        del wrapper
    stream.release()
    assert whole.getvalue() == "é\né\n"


def test_leaves_of_a_tree_are_judged_by_key_pair_and_content(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", VALUE)
    tree = {
        "model": {"hf_token": "abc", "eos_token": "</s>", "note": f"see {VALUE}"},
        "envs": [{"name": "X_TOKEN", "value": "abc"}, {"name": "HOME", "value": "/root"}],
        "pull": {"secret_name_ref": "HF_TOKEN"},
        "urls": ["s3://a/b", "s3://key:abc@b/c"],
        "password": 12345678,
        "use_auth_token": True,
        "api_key": "${other}",
    }
    kept, problems = remove_secrets(tree, where=lambda key: "file")
    assert {problem.key for problem in problems} == {
        "model.hf_token",
        "model.note",
        "envs[0].value",
        "urls[1]",
        "password",
    }
    assert kept == {
        "model": {"eos_token": "</s>"},
        "envs": [{"name": "X_TOKEN"}, {"name": "HOME", "value": "/root"}],
        "pull": {"secret_name_ref": "HF_TOKEN"},
        "urls": ["s3://a/b"],
        "use_auth_token": True,
        "api_key": "${other}",
    }
    assert all("abc" not in str(problem) and VALUE not in str(problem) for problem in problems)


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        (["steps", "run", "x", f"model.hf_token={VALUE}"], "override: model.hf_token"),
        (["steps", "run", "x", f"+a.password={VALUE}"], "override: a.password"),
        (["steps", "run", "x", "-i", f"data=https://u:{VALUE}@h/x"], "-i: data"),
        (["steps", "run", "x", f"--input=data=https://h/x?sig={VALUE}"], "--input"),
        (["steps", "run", "x", "--", "--token", VALUE], "argument 2 after --"),
        (["steps", "run", "x", "--", f"--api-key={VALUE}"], "argument 1 after --"),
        (["steps", "run", "x", "--hf-token", VALUE], "--hf-token"),
        (["artifacts", "adopt", f"s3://a:{VALUE}@b/c"], "argument"),
        (["runs", "show", "ghp_AbCdEfGh1234567890IjKl"], "argument"),
    ],
)
def test_a_command_line_is_refused_with_the_place_and_the_way_out(typed, place):
    (problem,) = find_argument_secrets(typed)
    text = str(problem)
    assert text.startswith(f"{place}: holds ")
    assert "secrets = [" in text
    assert VALUE not in text
    assert "ghp_" not in text


def test_ordinary_words_and_a_store_with_a_password(monkeypatch):
    line = "steps run x eos_token=</s> model.key=a -i data=./x.jsonl -- --tokenizer t --key v"
    assert not [*find_argument_secrets(line.split())]
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", f"s3://a:{VALUE}@b/c")
    (problem,) = find_argument_secrets([])
    assert problem.where == "$NEMOTRON_STYLE_HOME"


@pytest.mark.parametrize(
    "line",
    [
        "{name: x, hf_token: c4n4ry}",
        "${oc.env:MY_TOKEN}",
        "${oc.env:MY_TOKEN,c4n4ry}",
        "${oc.env:MY_URL}",
        "${oc.env:${oc.env:WHICH}}",
        "postgres://me:c4n4ry-pw@db/x",
        "a c4n4ry-Zq81/xy+w b",
    ],
)
def test_no_config_and_no_override_takes_a_secret(toy, monkeypatch, line):
    monkeypatch.setenv("MY_TOKEN", VALUE)
    monkeypatch.setenv("MY_URL", f"postgres://me:{VALUE}@db/x")
    monkeypatch.setenv("WHICH", "MY_TOKEN")
    manifest = load_manifest(toy.folder / "step.toml")
    with pytest.raises(ConfigError) as typed:
        resolve_config(manifest, overrides=[f"+model.extra.place={line}"])
    text = "model:\n  restore_from_path: ???\n  optim: {lr: 1e-4}\n  extra:\n"
    toy.write_step("leaky.yaml", f"{text}    place: {line}\n")
    with pytest.raises(ConfigError) as written:
        resolve_config(manifest, name="leaky")
    assert "leaky.yaml:5: model.extra.place" in str(written.value)
    for error in (typed, written):
        assert "c4n4ry" not in str(error.value)
        assert "secrets = [" in str(error.value)


def test_an_override_that_cannot_be_read_is_not_repeated(toy):
    manifest = load_manifest(toy.folder / "step.toml")
    for text in ("a={hf_token: c4n4ry", "a b=c4n4ry", "~model.extra=c4n4ry", "+a='c4n4ry"):
        with pytest.raises(ConfigError) as caught:
            resolve_config(manifest, overrides=[text])
        assert "c4n4ry" not in str(caught.value)
