"""A chat template in a process of its own, where it can neither hold up nor end anything else.

A template is a program. Jinja's sandbox bounds what it reaches, not how long it runs, how much
memory it takes, or how deep it calls itself, and a thread that computes cannot be ended. So it
runs in a process with limits, which is started anew when it exceeded one.

This module is both ends: ``python -m`` it is the process, which reads and writes lines of JSON.
It imports no more than Jinja, so that it starts in a moment.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 1.0
DAY = date(2024, 7, 26)
"""The day that a template is told: that which Llama's own templates fall back on."""
MAX_CHARACTERS = 4_000_000  # of a prompt: about a million tokens
MAX_MEMORY = 1 << 30
MAX_PROCESSES = 4
"""Renderings side by side; more wait for one of these to end."""

# A job's signals are for the step: this process ends when its input does.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class TemplateFault(ValueError):
    """The template cannot be compiled, or cannot render; the message says why."""


class TemplateRenderer:
    """Renders one template; any number of threads may ask at once.

    ``words`` are texts that the template knows by name.
    """

    def __init__(self, source: str, words: Mapping[str, str]) -> None:
        first = {"source": source, "words": dict(words), "seconds": CPU_SECONDS}
        self._first_line = json.dumps(first) + "\n"
        self._slots = threading.BoundedSemaphore(MAX_PROCESSES)
        self._idle: list[subprocess.Popen[str]] = []
        self._end = weakref.finalize(self, _end_all, self._idle)

    def check(self) -> None:
        """Raise TemplateFault for what is no template."""
        with self._slots:
            self._idle.append(self._take())

    def render(self, messages: Sequence[Mapping[str, str]], *, prompt: bool = True) -> str:
        """The text of messages, with ``prompt`` up to where the answer begins.

        Raises TemplateFault for messages that the template refuses, and for a template that
        exceeds a limit.
        """
        return self.render_marked(messages, prompt=prompt)[0]

    def render_marked(
        self, messages: Sequence[Mapping[str, str]], *, prompt: bool = True
    ) -> tuple[str, list[tuple[int, int]]]:
        """As :meth:`render`, and where the blocks ``{% generation %}`` stand in the text."""
        given = {"messages": [dict(message) for message in messages], "prompt": prompt}
        line = json.dumps(given) + "\n"
        with self._slots:
            process = self._take()
            answer = _ask(process, line)
            self._idle.append(process)
        if "error" in answer:
            raise TemplateFault(answer["error"])
        return str(answer["text"]), [(start, end) for start, end in answer["marks"]]

    def _take(self) -> subprocess.Popen[str]:
        """A process that waits, or a new one."""
        while self._idle:
            waiting = self._idle.pop()
            if waiting.poll() is None:
                return waiting
            _end_all([waiting])
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )
        answer = _ask(process, self._first_line)
        if "error" in answer:
            _end_all([process])
            raise TemplateFault(answer["error"])
        return process


def _ask(process: subprocess.Popen[str], line: str) -> dict[str, Any]:
    """The process's answer. Raises TemplateFault when it ended instead."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(line)
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        answer = ""
    if answer.endswith("\n"):
        return dict(json.loads(answer))
    _end_all([process])
    if process.returncode == -signal.SIGPROF:
        raise TemplateFault(f"it takes more than {CPU_SECONDS:g} s of processor time")
    raise TemplateFault("it takes more memory than there is for it, or calls itself too deep")


def _end_all(processes: list[subprocess.Popen[str]]) -> None:
    while processes:
        process = processes.pop()
        process.kill()
        process.communicate()


# -- the process


def main() -> None:
    """Compile the template of the first line, then render the messages of each line."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(MAX_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    template: jinja2.Template | None = None
    seconds = CPU_SECONDS
    for line in sys.stdin:
        given = json.loads(line)
        seconds = given.get("seconds", seconds)
        # Its signal ends this process, also within a single operation that takes forever.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if template is None:
                template, answer = _compile(given["source"], given["words"]), {}
            else:
                text, marks = _render_marked(template, given["messages"], prompt=given["prompt"])
                answer = {"text": text, "marks": marks}
        except Exception as error:  # a template can raise anything
            answer = {"error": _say(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class _Message(dict[str, str]):
    """A message; what it does not have (``metadata``, say) is written as nothing."""


class _Unwritable(jinja2.Undefined):
    """What is not there may be asked about, and not written: a role without a name, say."""

    def __str__(self) -> str:
        if isinstance(self._undefined_obj, _Message):
            return ""
        self._fail_with_undefined_error()


class _FixedDate(_Unwritable):
    """``strftime_now`` for templates that cannot do without it: always the same day.

    Asked about it is not defined, so that a template with a date of its own takes that.
    """

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # Jinja looks at what it calls

    def __call__(self, form: str) -> str:  # type: ignore[override]
        return DAY.strftime(form)


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant wrote, for loss masks."""

    tags: ClassVar[set[str]] = {"generation"}

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.written, self.marks = 0, list[tuple[int, int]]()

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # called with its body, as in transformers: what is set within it is not seen behind it
        call = self.call_method("mark", [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        """The text of a block; where it will stand is kept."""
        text = caller()
        self.marks.append((self.written, self.written + len(text)))
        return text


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter ``tojson`` as transformers has it: Jinja's own escapes what HTML would read."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _compile(source: str, words: Mapping[str, str]) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Unwritable,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.filters["tojson"] = _to_json
    # What transformers passes where nobody gives tools or documents; a template asks for them.
    absent = {"tools": None, "documents": None, "strftime_now": _FixedDate(name="strftime_now")}
    environment.globals |= {"raise_exception": _raise, **absent, **words}
    return environment.from_string(source)


def _render(template: jinja2.Template, messages: list[dict[str, str]]) -> str:
    return _render_marked(template, messages, prompt=True)[0]


def _render_marked(
    template: jinja2.Template, messages: list[dict[str, str]], *, prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    tracker = template.environment.extensions[_Generation.identifier]
    assert isinstance(tracker, _Generation)
    tracker.written, tracker.marks = 0, []
    pieces = []
    # Piece by piece: a block is rendered when all before it has been written.
    given = list(map(_Message, messages))
    for piece in template.generate(messages=given, add_generation_prompt=prompt):
        pieces.append(piece)
        tracker.written += len(piece)
        if tracker.written > MAX_CHARACTERS:
            raise jinja2.TemplateError(f"it writes more than {MAX_CHARACTERS} characters")
    return "".join(pieces), tracker.marks


def _raise(message: object) -> NoReturn:
    """What templates call to refuse messages."""
    raise jinja2.TemplateError(str(message)[:1000])


def _say(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {MAX_MEMORY >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it calls itself too deep"
    return str(error)[:2000]


if __name__ == "__main__":
    main()
