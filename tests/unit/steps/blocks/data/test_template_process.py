"""Chat templates run within limits, and none of them holds up or ends another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from nemotron_style.steps.blocks.data import template_process
from nemotron_style.steps.blocks.data.template_process import TemplateFault, TemplateRenderer

ECHO = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}"
WORDS = {"eos_token": "<end>"}
ASK = [{"role": "user", "content": "é {{ x }} \udc80"}]
# What the message asks for is what the template does.
OBEY = """
{%- macro again(n) %}{{ again(n + 1) }}{% endmacro -%}
{%- set word = messages[0].content -%}
{%- if word == 'loop' %}
{%- for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}
{%- elif word == 'power' %}{{ (9 ** ((word | length) ** 11)) % 7 }}
{%- elif word == 'memory' %}{{ ('a' * 10 ** 10)[0] }}
{%- elif word == 'double' %}{% set n = namespace(t='a' * 1000) %}
{%- for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}
{%- elif word == 'output' %}{{ 'a' * 5000000 }}
{%- elif word == 'recursion' %}{{ again(0) }}
{%- elif word == 'sort' %}{{ ((range(90000) | list) * 900) | sort | length }}
{%- elif word == 'undefined' %}{{ nothing }}
{%- elif word == 'refuse' %}{{ raise_exception('no ' ~ word) }}
{%- endif -%}
{{ word }}
"""


@pytest.fixture(scope="module")
def obeying() -> TemplateRenderer:
    return TemplateRenderer(OBEY, WORDS)


def say(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": word}]


@pytest.fixture(autouse=True)
def reaped() -> Iterator[None]:
    """Every process that ended was waited for."""
    before = set(psutil.Process().children())
    yield
    mine = set(psutil.Process().children()) - before
    assert not [child for child in mine if child.status() == psutil.STATUS_ZOMBIE]


def test_a_template_is_told_the_same_day_for_ever() -> None:
    renderer = TemplateRenderer("{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}", {})
    assert renderer.render(say("hi")) == "26 Jul 2024 hi"
    own = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}mine{% endif %}"
    assert TemplateRenderer(own, {}).render(say("hi")) == "mine"


def test_a_message_lacks_things_in_silence_and_nothing_else_does() -> None:
    assert TemplateRenderer("a{{ messages[0]['metadata'] }}b", {}).render(say("hi")) == "ab"
    for source in ("{{ {'user': 1}['tool'] }}", "{{ nothing }}", "{{ messages[0].content.name }}"):
        with pytest.raises(TemplateFault, match=r"undefined|no attribute"):
            TemplateRenderer(source, {}).render(say("hi"))


def test_a_template_renders_as_ever() -> None:
    renderer = TemplateRenderer(ECHO, WORDS)
    renderer.check()
    assert [renderer.render(ASK) for _ in range(3)] == ["user: é {{ x }} \udc80\n<end>"] * 3
    assert len(renderer._idle) == 1


@pytest.mark.parametrize("source", ["{% if %}", "{{ " + "(" * 50_000, "{% unknown %}"])
def test_what_is_no_template_is_refused(source: str) -> None:
    with pytest.raises(TemplateFault):
        TemplateRenderer(source, WORDS).check()


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("loop", "more than 1 s of processor time"),
        ("power", "more than 1 s of processor time"),
        ("memory", "memory"),
        ("double", "time|memory"),
        ("output", "more than 4000000 characters"),
        ("recursion", "calls itself too deep"),
        ("sort", "time|memory"),
        ("undefined", "nothing"),
        ("refuse", "no refuse"),
    ],
)
def test_a_limit_ends_one_rendering_alone(obeying: TemplateRenderer, word: str, what: str) -> None:
    with pytest.raises(TemplateFault, match=what):
        obeying.render(say(word))
    assert obeying.render(say("hello")) == "hello"


def test_an_endless_loop_holds_up_nobody(obeying: TemplateRenderer) -> None:
    obeying.render(say("hello"))
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(obeying.render, say("loop"))
        assert [obeying.render(say(f"word {n}")) for n in range(10)][9] == "word 9"
        assert not endless.done()
        with pytest.raises(TemplateFault, match="processor time"):
            endless.result()


def test_there_are_never_more_processes_than_slots(obeying: TemplateRenderer) -> None:
    words = [f"word {n}" for n in range(50)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(obeying.render, map(say, words))) == words
    assert 1 <= len(obeying._idle) <= template_process.MAX_PROCESSES


def test_a_process_that_somebody_ended_is_replaced(obeying: TemplateRenderer) -> None:
    obeying.render(say("hello"))
    for process in obeying._idle:
        os.kill(process.pid, signal.SIGTERM)  # as a job's end sends it to all; ignored
    assert obeying.render(say("hello")) == "hello"
    for process in obeying._idle:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert obeying.render(say("hello")) == "hello"


def test_a_machine_that_allows_less_memory_is_enough() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))\n"
        "from nemotron_style.steps.blocks.data.template_process import TemplateRenderer\n"
        "print(TemplateRenderer('{{ messages[0].content }}', {}).render([{'content': 'hello'}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "hello\n", done.stderr


def test_the_process_ends_with_its_renderer() -> None:
    renderer = TemplateRenderer(ECHO, WORDS)
    renderer.render(ASK)
    pids = [process.pid for process in renderer._idle]
    assert pids
    del renderer
    assert not any(map(psutil.pid_exists, pids))
