"""Every form of a secret: one that is masked, and one that only looks like it and is shown."""

from __future__ import annotations

import io
import time

import pytest

from nemotron_style.runtime.secrets.detect import find_secrets
from nemotron_style.runtime.secrets.forms import FORMS, SHORTEST_TOKEN
from nemotron_style.runtime.secrets.names import holds_secret
from nemotron_style.runtime.secrets.redact import MASK, RedactedStream, redact
from nemotron_style.runtime.secrets.reject import remove_secrets

PW = "c4n4ry-Zq81"
LETTERS = "c4n4ryAbCdEfGh1234567890IjKlMnOpQrStUvWx"
HEX = "c4" + "0123456789abcdef" * 4
# What is masked -> what is not. Tokens are written in two parts, so that no scanner takes this
# file for one that leaks.
TOKENS = {
    "hf_" + LETTERS: "hf_transformers_of_the_model",
    "api_org_" + "c" + "AnArY" * 8: "api_org_name",
    "ghp_" + LETTERS: "ghp_short",
    "gho_" + LETTERS: "gho_x",
    "ghu_" + LETTERS: "ghu_x",
    "ghs_" + LETTERS: "weighs_" + LETTERS.lower(),
    "ghr_" + LETTERS: "ghr_x",
    "github_pat_" + LETTERS: "github_pat_x",
    "glpat-" + LETTERS: "glpat-x",
    "glptt-" + LETTERS: "glptt-x",
    "gldt-" + LETTERS: "gldt-x",
    "glrt-" + LETTERS: "glrt-x",
    "glcbt-" + LETTERS: "glcbt-x",
    "gloas-" + LETTERS: "gloas-x",
    "nvapi-" + LETTERS: "nvapi-x",
    "sk-" + "ant-api03-" + LETTERS: "task-" + LETTERS,
    "sk_live_" + LETTERS: "sk_live_x",
    "sk_test_" + LETTERS: "task_test_" + LETTERS,
    "rk_live_" + LETTERS: "rk_live_x",
    "rk_test_" + LETTERS: "rk_test_x",
    "gsk_" + LETTERS: "gsk_x",
    "xai-" + LETTERS: "xai-grok-4",
    "pplx-" + LETTERS: "pplx-70b-online",
    "r8_" + LETTERS: "layer8_" + LETTERS.lower(),
    "fw_" + LETTERS: "fw_bw_steps",
    "whsec_" + LETTERS: "whsec_x",
    "lsv2_pt_" + LETTERS: "lsv2_pt_x",
    "lsv2_sk_" + LETTERS: "lsv2_sk_x",
    "AIza" + LETTERS: "AIza-short",
    "ya29." + LETTERS: "ya29.x",
    "GOCSPX-" + LETTERS: "GOCSPX-x",
    "AKIA" + "C4N4RYC4N4RYC4N4": "AKIA1234",
    "ASIA" + "C4N4RYC4N4RYC4N4": "ASIA-PACIFIC",
    "ABIA" + "C4N4RYC4N4RYC4N4": "ABIA",
    "ACCA" + "C4N4RYC4N4RYC4N4": "ACCA",
    "xoxb-" + LETTERS: "xoxo-hugs-and-kisses",
    "xapp-" + "1-" + LETTERS: "xapp-name",
    "wandb_v" + "1_" + LETTERS: "wandb_version_of_the_client",
    "npm_" + LETTERS: "npm_config_registry",
    "pypi-" + LETTERS: "pypi-server",
    "rubygems_" + HEX: "rubygems_mirror",
    "dckr_pat_" + LETTERS: "dckr_pat_x",
    "dckr_oat_" + LETTERS: "dckr_oat_x",
    "eyJ" + "c4n4ryAbCd.eyJAbCdEfGh.AbCdEfGhIj": "eyJust.two.words",
    "SG." + LETTERS + "." + LETTERS: "MSG.of.the.day",
    "hvs." + LETTERS: "hvs.x",
    "hvb." + LETTERS: "hvb.x",
    "hvr." + LETTERS: "hvr.x",
    "dapi" + HEX[:34]: "dapi-mode",
    "dop_v1_" + HEX: "dop_v1_x",
    "doo_v1_" + HEX: "doo_v1_x",
    "dor_v1_" + HEX: "dor_v1_x",
    "glsa_" + LETTERS: "glsa_x",
    "glc_" + LETTERS: "glc_x",
    "ATATT3" + LETTERS: "ATATT3",
    "ATBB" + LETTERS: "ATBB-x",
    "tskey-" + "auth-" + LETTERS: "tskey-x",
    "AGE-SECRET-KEY-1" + LETTERS.upper() * 2: "AGE-SECRET-KEY-1X",
    "PMAK-" + LETTERS: "PMAK-x",
    "NRAK-" + LETTERS: "NRAK-x",
    "lin_api_" + LETTERS: "lin_api_url",
    "sntrys_" + LETTERS: "sntrys_x",
    "ntn_" + LETTERS: "ntn_x",
    "shpat_" + HEX: "shpat_x",
    "shpss_" + HEX: "shpss_x",
    "shpca_" + HEX: "shpca_x",
    "pul-" + HEX: "pul-x",
}
LINES = {
    f"mysql -u root -p{PW} db": "mysql -u root -p db; mysqldump -P 3306 -p$MYSQL_PW db",
    f"mariadb-dump --user=me -p'{PW}' db": "ls mysql-data; mkdir -p c4n4ry",
    f"mysqladmin -p{PW} status": "mysql --protocol=tcp -h host",
    f"sshpass -p {PW} ssh host": "sshpass -f file ssh h",
    f"sshpass -p'{PW}' ssh -p 22 host": 'sshpass -p "$SSH_PW" ssh host',
    f"docker login -u me -p {PW} nvcr.io": "docker login -u me --password-stdin nvcr.io",
    f"podman login -p={PW} h": "docker run -p 8080:80 image",
    f"helm registry login h -p {PW}": "docker login -p $NGC_KEY nvcr.io",
    f"redis-cli -h host -a {PW} ping": "redis-cli -h host ping; ls -a c4n4ry",
    f"ldapsearch -x -D cn=me -w {PW} -b dc=x": "ldapsearch -x -W -b dc=x",
    f"curl -s -u me:{PW} h": 'curl -u "me:$PW" h',
    f"curl --user=me:{PW} h": "curl -u me h",
    f"smbclient //h/share -U me%{PW}": "smbclient //h/share -U me",
    f"openssl rsa -in k -passin pass:{PW}": "openssl rsa -in k -passin pass:$PW; pass: 3 of 4",
    f"wandb login --relogin {LETTERS}": "wandb login --relogin",
    f"echo '{PW}' | docker login -u me --password-stdin": "echo $PW | x --password-stdin",
    f"echo {PW} | sudo -S apt-get update": "echo c4n4ry | sudo tee /etc/motd",
    f"aws configure set aws_secret_access_key {PW}": "aws configure set region c4n4ry-1",
    f"Authorization: Bearer {LETTERS}": "Bearer of bad news; basic understanding of-the-problem",
    f"X-Api-Key: {PW}": "X-Api-Key: $KEY; x-axis: c4n4ry-steps",
    f"PRIVATE-TOKEN: {PW}": "Authorization: [secret]",
    f"machine h login me password {PW}": "log in; login name and password are asked for",
    f"default\n  login me\n  password {PW}\n": "login me password $PW",
    f"db.host:5432:*:me:{PW}": "train.py:12:error:me:c4n4ry",
    f"Server=h,1433;User ID=u;Password={PW};Encrypt=True": "Server=h;User ID=u;Encrypt=True",
    f"Host=h;Username=u;Pwd={PW}": "PWD=/home/c4n4ry OLDPWD=/home",
    f"AccountName=n;AccountKey={LETTERS}/+==;Suffix=x": "AccountName=c4n4ry;Suffix=x",
    f"Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey={PW}": "SharedAccessKeyName=c4n4ry",
    f"SharedAccessSignature sr=h&sig={LETTERS}%3D&se=1": "orig=c4n4ry&sig=1",
    f"BlobEndpoint=https://h/;SharedAccessSignature=sv=1&sig={LETTERS}": "sv=1&st=c4n4ry",
    "client c4n8Q~" + LETTERS[:33]: "abc8Q~short",
    "bot 12345678" + ":AA" + LETTERS[:32]: "12345678:AAAA",
    "https://hooks.slack.com/services/" + LETTERS: "https://hooks.slack.com/docs",
    "https://discord.com/api/webhooks/1/" + LETTERS: "https://discord.com/api/webhooks/",
    "https://x.webhook.office.com/webhookb2/" + LETTERS: "https://x.webhook.office.com/",
    f"<password>{PW}</password>": "<password>$PW</password>",
    f'<add key="ClearTextPassword" value="{PW}" />': '<add key="name" value="c4n4ry" />',
    f"-----BEGIN RSA PRIVATE KEY-----\n{LETTERS}\n-----END RSA PRIVATE KEY-----": (
        "-----BEGIN PUBLIC KEY-----\nc4n4ry\n-----END PUBLIC KEY-----"
    ),
    f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{LETTERS}\n": "-----BEGIN CERTIFICATE-----\nc4n4ry",
    f"postgres://me:{PW}@db/x": "postgres://me@db/x",
    f"https://{LETTERS}@github.com/a/b": "https://github.com/c4n4ry@v1",
    f"kubectl create secret x --from-literal=password={PW}": "--from-literal=color=c4n4ry",
    f"java -Djavax.net.ssl.keyStorePassword={PW}": "java -Dname=c4n4ry",
    f"//registry.npmjs.org/:_authToken={PW}": "//registry.npmjs.org/:email=c4n4ry",
    f'{{"hf_token": "{PW}"}}': '{"eos_token": "c4n4ry", "token": "$HF_TOKEN"}',
    f"{{'password': '{PW} with spaces'}}": "{'tokens': 'c4n4ry', 'key': 'c4n4ry'}",
    f'{{\\"api_key\\": \\"{PW}\\"}}': '{\\"key\\": \\"c4n4ry\\"}',
    f"Password=$PW;ApiKey={PW}": "Password=$PW;Color=c4n4ry",
    f"dbpassword={PW}": "nopasswordless=c4n4ry",
}


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize(("secret", "harmless"), {**TOKENS, **LINES}.items())
def test_a_form_is_masked_and_its_look_alike_is_not(secret: str, harmless: str) -> None:
    for text in (
        secret,
        f"first line\nx='y' {secret}\nlast line",
        f"İ {secret}",
        f"{secret} {secret}",
    ):
        assert "c4n4ry" not in redact(text).lower()
        assert MASK in redact(text)
    for text in (harmless, f"first line\nx='y' {harmless}\nlast line"):
        assert redact(text) == text


@pytest.mark.parametrize("secret", [*TOKENS, *LINES])
def test_no_config_and_no_line_of_a_setup_stores_it(secret: str) -> None:
    values = {"note": f"a {secret}", "setup": [f"true && {secret}"], "plain": "c4n4ry"}
    kept, problems = remove_secrets(values, where=str)
    assert kept == {"setup": [], "plain": "c4n4ry"}
    assert not any("c4n4ry" in str(problem) for problem in problems)


def test_every_form_of_the_table_has_an_example() -> None:
    for form in FORMS:
        assert any(form.pattern.search(text) for text in (*TOKENS, *LINES)), form
        assert not any(word != word.lower() for word in form.words)
    for text in TOKENS:
        assert len(text) >= SHORTEST_TOKEN
        assert [each for each in find_secrets(text) if each.start == 0], text


# Of a .netrc in several lines, the line of the password alone says nothing.
@pytest.mark.parametrize("text", [text for text in (*TOKENS, *LINES) if "default\n" not in text])
def test_a_stream_masks_it_line_by_line_and_letter_by_letter(text: str) -> None:
    lines = f"before\n{text}\nafter\n"
    for pieces in (lines.splitlines(keepends=True), lines):
        whole = io.StringIO()
        stream = RedactedStream(whole)
        for piece in pieces:
            stream.write(piece)
        stream.release()
        assert "c4n4ry" not in whole.getvalue().lower()
        assert whole.getvalue().startswith("before\n")


@pytest.mark.parametrize(
    "text",
    [
        "eval_pass=0.81",
        "pass=1",
        "test_pass=12",
        "first_pass=done",
        "forward_pass=bf16",
        "num_pass=100",
        "by_pass=x",
        "use_auth=true",
        "require_auth=oauth2",
        "no_auth=1",
        "file_pat=*.py",
        "glob_pat=a",
        "max_tokens=512",
        "pad_token=<pad>",
        "eos_token=</s>",
        "n_keys=3",
        "key=a.b",
        "keys=3",
        "num_auth_tokens=12",
        "api_keys=2",
        "token=5",
        "token=0.5",
        "auth_token=false",
        "db_password=3.5",
        "access_token=1e-4",
        "x_key=nan",
        "hub_tokens=50%",
        "tokens=1e9",
        "secret_rate=0.25",
        "password_entropy=12.5",
        "monkey=banana",
        "passing=yes",
        "author=me",
        "pattern=a.*",
        "tokens_per_second=1234.5",
        "bypass=true",
        "keyword=x",
        "passage=y",
    ],
)
def test_numbers_truth_values_and_metrics_are_no_secrets(text: str) -> None:
    assert redact(text) == text
    assert redact(f"step 3  {text}, loss=0.5") == f"step 3  {text}, loss=0.5"


@pytest.mark.parametrize(
    "text",
    [
        "db_pass=hunter2",
        "DB_PASS=hunter22",
        "db_pass=1234",
        "password=12345678",
        "token=123456789",
        "npm_auth=abc",
        "gh_pat=abc",
        "mysql_pwd=abc",
        "session_cookie=abc",
        "api_key=12345678",
        "secret=abc",
    ],
)
def test_passwords_of_digits_and_logins_are(text: str) -> None:
    assert MASK in redact(text)


def test_a_config_may_have_metrics_of_such_names() -> None:
    config = {"eval_pass": 0.81, "test_pass": 12, "max_auth": "on", "forward_pass": "bf16"}
    config |= {"first_auth": True, "token": 7, "api_keys": 3}
    assert remove_secrets(config, where=str) == (config, [])
    assert holds_secret("db_pass", "hunter2")
    assert remove_secrets({"db_pass": 1234}, where=str)[0] == {}


def test_redaction_takes_linear_time() -> None:
    for unit in (
        "token=",
        "://a:",
        "a=b&",
        "key: ",
        "-p",
        "mysql -p",
        "[" * 9,
        "password ",
        "eyJ.",
    ):
        begun = time.process_time()
        redact(unit * (200_000 // len(unit)))
        assert time.process_time() - begun < 2, unit


def test_the_name_of_a_variable_under_itself_is_no_value() -> None:
    config = {"env_vars": {"HF_TOKEN": "HF_TOKEN"}}
    assert remove_secrets(config, where=str) == (config, [])
    assert list(find_secrets('HF_TOKEN: HF_TOKEN\n{"HF_TOKEN": "HF_TOKEN",')) == []
    for table in ({"HF_TOKEN": "GH_PAT_x7Hq2"}, {"password": "password1"}):
        assert remove_secrets(table, where=str)[0] == {}
