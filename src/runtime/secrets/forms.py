"""How secrets are written, in one table: by the form of their value, or by what stands before it.

The forms are those that scanners of repositories know (gitleaks, detect-secrets), and those of
tools on a command line. Each entry names words, one of which is in every text that holds such a
secret: a text without them is not searched further, which makes the search fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Form:
    """One way to write a secret.

    ``words`` are in lower case. The group ``secret`` of ``pattern`` is the secret, or all that it
    matches; ``name``, where there is such a group, has to be the name of a secret. A ``token``
    has at least SHORTEST_TOKEN letters, digits, dots, dashes and underscores in a row.
    """

    what: str
    words: tuple[str, ...]
    expression: str
    token: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Compiled when a text has one of the words, which hardly any has."""
        return re.compile(self.expression)


SHORTEST_TOKEN = 16
# A value that begins so and goes on so, at least: no letter or digit stands before it.
_TOKENS = (
    ("a Hugging Face token", ("hf_",), r"(?=[a-z]*[0-9A-Z])[A-Za-z0-9]{16,}"),
    ("a Hugging Face token", ("api_org_",), r"[A-Za-z]{30,}"),
    ("a GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"[A-Za-z0-9]{16,}"),
    ("a GitHub token", ("github_pat_",), r"\w{20,}"),
    ("a GitLab token", ("glpat-", "glptt-", "gldt-", "glrt-", "glcbt-", "gloas-"), r"[\w-]{16,}"),
    ("an NVIDIA API key", ("nvapi-",), r"[\w-]{16,}"),
    ("an API key", ("sk-",), r"(?=[\w-]*\d)[\w-]{20,}"),
    ("a Stripe key", ("sk_live_", "sk_test_", "rk_live_", "rk_test_"), r"[A-Za-z0-9]{16,}"),
    ("an API key", ("gsk_", "xai-", "pplx-", "r8_", "fw_", "whsec_"), r"[A-Za-z0-9+/=]{24,}"),
    ("a LangSmith key", ("lsv2_pt_", "lsv2_sk_"), r"\w{32,}"),
    ("a Google API key", ("AIza",), r"[\w-]{30,}"),
    ("a Google access token", ("ya29.",), r"[\w.-]{20,}"),
    ("a Google client secret", ("GOCSPX-",), r"[\w-]{20,}"),
    ("an AWS key", ("AKIA", "ASIA", "ABIA", "ACCA"), r"[A-Z0-9]{16}\b"),
    ("a Slack token", ("xox",), r"[abeprs]-[\w-]{11,}"),
    ("a Slack token", ("xapp-",), r"\d-[\w-]{20,}"),
    ("a W&B key", ("wandb_v",), r"\d_\w{16,}"),
    ("a package index token", ("npm_",), r"[A-Za-z0-9]{30,}"),
    ("a package index token", ("pypi-",), r"[\w-]{30,}"),
    ("a package index token", ("rubygems_",), r"[a-f0-9]{40,}"),
    ("a Docker token", ("dckr_pat_", "dckr_oat_"), r"[\w-]{16,}"),
    ("a JSON web token", ("eyJ",), r"[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    ("a SendGrid key", ("SG.",), r"[\w-]{16,}\.[\w-]{16,}"),
    ("a Vault token", ("hvs.", "hvb.", "hvr."), r"[\w-]{20,}"),
    ("a Databricks token", ("dapi",), r"[a-f0-9]{32}"),
    ("a DigitalOcean token", ("dop_v1_", "doo_v1_", "dor_v1_"), r"[a-f0-9]{32,}"),
    ("a Grafana token", ("glsa_", "glc_"), r"[A-Za-z0-9+/_=]{32,}"),
    ("an Atlassian token", ("ATATT3", "ATBB"), r"[\w=-]{24,}"),
    ("a Tailscale key", ("tskey-",), r"[a-z]+-[\w-]{16,}"),
    ("an age key", ("AGE-SECRET-KEY-1",), r"[A-Z0-9]{50,}"),
    ("an API key", ("PMAK-", "NRAK-", "lin_api_", "sntrys_", "ntn_"), r"[\w=+/-]{24,}"),
    ("an API key", ("shpat_", "shpss_", "shpca_", "pul-"), r"[a-f0-9]{32,}"),
)
_VALUE = r"(?P<secret>[^\s\"'\\;&|$<>()-][^\s\"'\\;&|<>()]*)"
"""What follows an option of a command: no variable, and no other option."""
_OPTIONS = r"[^\n;&|]{0,512}?\s"
"""The words between a command and one of its options."""
# Commands that take a secret in an option with a short name.
_COMMANDS = (
    (
        "a password for mysql",
        ("mysql", "mariadb"),
        rf"\b(?:mysql|mariadb)[\w-]*{_OPTIONS}-p[\"']?{_VALUE}",
    ),
    ("a password for ssh", ("sshpass",), rf"\bsshpass{_OPTIONS}-p[ \t]*[\"']?{_VALUE}"),
    (
        "a password for a registry",
        (" login",),
        r"\b(?:docker|podman|nerdctl|buildah|skopeo|oras|crane|registry|az|apptainer|singularity)"
        rf"\s+login\b{_OPTIONS}-p[ \t]*[\"']?{_VALUE}",
    ),
    ("a password for Redis", ("redis-cli",), rf"\bredis-cli{_OPTIONS}-a[ \t]*[\"']?{_VALUE}"),
    ("a password for LDAP", ("ldap",), rf"\bldap\w+{_OPTIONS}-w[ \t]*[\"']?{_VALUE}"),
    (
        "a password for curl",
        ("curl", "wget"),
        rf"\b(?:curl|wget){_OPTIONS}(?:-u|--user|--proxy-user)[ \t=]*[\"']?[^\s:\"']+:{_VALUE}",
    ),
    ("a password for SMB", ("smbclient",), rf"\bsmbclient{_OPTIONS}-U[ \t]*[^\s%]+%{_VALUE}"),
    ("a pass phrase", ("pass:",), rf"-pass(?:in|out)?[ \t]+pass:{_VALUE}"),
    ("a W&B key", ("wandb",), r"\bwandb\s+login\s+(?:-\S+\s+){0,8}(?P<secret>(?![$\[])[\w-]{20,})"),
    (
        "a password for standard input",
        ("password-stdin", "sudo -s"),
        rf"\becho\s+(?:-n\s+)?[\"']?{_VALUE}[\"']?\s*\|[^\n|]{{0,256}}(?:--password-stdin|sudo\s+-S)",
    ),
    (
        "a value for aws",
        ("configure set",),
        rf"\bconfigure\s+set\s+(?P<name>[\w.-]+)\s+[\"']?{_VALUE}",
    ),
)
_CONTEXTS = (
    (
        "an authorization header",
        ("bearer", "basic"),
        r"(?i:\b(?:bearer|basic)\s+)(?=\S*\d)[\w.~+/=-]{16,}",
    ),
    (
        "a secret header",
        ("authorization", "private-token", "x-"),
        r"(?i:\b(?:authorization|private-token|x-[\w-]*(?:token|key|secret)):\s*)"
        r"(?i:token\s+)?(?P<secret>(?![$\[])[^\s\"'\\]{8,})",
    ),
    # .netrc in one line or several, and .pgpass
    (
        "a password of a .netrc",
        ("login",),
        r"\blogin\s+(?!password)[^\s\"']+\s+(?:account\s+\S+\s+)?password\s+(?P<secret>[^\s\"'$<]\S*)",
    ),
    (
        "a password of a .pgpass",
        (":5432:", ":*:"),
        r"(?<!\S)[\w.*-]{1,256}:(?:5432|\*):[^\s:]{1,64}:[^\s:]{1,64}:(?P<secret>[^\s:$]{4,})",
    ),
    (
        "a key of a connection string",
        ("pwd", "accountkey", "sharedaccesskey"),
        # PWD alone is the working directory.
        r"(?:(?<![\w-])(?:[pP]wd|(?i:accountkey|sharedaccesskey))|(?<=;)PWD)[ ]?=[ ]?"
        r"(?P<secret>[^\s;\"'\\$][^\s;\"'\\]{3,})",
    ),
    ("a shared access signature", ("sig=",), r"(?i:[?&;]sig=)(?P<secret>[\w%+/=-]{20,})"),
    ("an Azure client secret", ("q~",), r"(?<![\w~.-])[\w~.]{3}\dQ~[\w~.-]{31,34}(?![\w~.-])"),
    ("a Telegram token", (":aa",), r":AA(?<=\d{8}:AA)[\w-]{32,33}(?![\w-])"),
    (
        "a webhook",
        ("hooks.slack.com", "/api/webhooks/", "webhook.office.com"),
        r"(?:hooks\.slack\.com/(?:services|workflows)/[\w/]{20,}|discord(?:app)?\.com/api/webhooks/"
        r"\d+/[\w-]{20,}|webhook\.office\.com/webhookb2/[\w@/-]{36,})",
    ),
    (
        "a password in XML",
        ("<password>", "value="),
        r"(?i:<password>|\bkey=[\"'](?:cleartext)?password[\"']\s+value=[\"'])"
        r"(?P<secret>[^\s<\"'$][^<\"']{3,})",
    ),
    (
        "a private key",
        ("-----begin",),
        r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[^\"']{0,8192}?-----END[A-Z ]*-----|[^\"']{0,8192})",
    ),
)
_URLS = (
    (
        "a password inside a URL",
        ("://",),
        r"://[^\s/:@\"'<>\\]{0,256}:(?!\d+(?:[/?#\"'\s\\]|$))(?P<secret>[^\s\"'<>]{1,512})@",
    ),
    (
        "a token inside a URL",
        ("://",),
        r"://(?:(?<=http://)|(?<=https://))(?P<secret>[^\s/:@\"'<>\\]{16,512})@",
    ),
)


def _list_forms() -> Iterator[Form]:
    for what, prefixes, rest in _TOKENS:
        for prefix in prefixes:
            # The prefix comes first, because a search for it is forty times as fast.
            start = re.escape(prefix)
            expression = rf"{start}(?<![A-Za-z0-9]{start}){rest}"
            yield Form(what, (prefix.lower(),), expression, token=True)
    for what, words, text in (*_COMMANDS, *_CONTEXTS, *_URLS):
        yield Form(what, words, text)


FORMS = tuple(_list_forms())
