"""Who may import whom, and what must not be imported at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"
HEAVY = (
    "torch",
    "transformers",
    "megatron",
    "vllm",
    "ray",
    "leptonai",
    "submitit",
    "numpy",
    "scipy",
    "httpx",
    "tenacity",
    "starlette",
    "uvicorn",
    "prometheus_client",
)
# What `steps list` can do without, and would pay for.
# The last would be read to find plug-ins of pydantic.
SLOW = (*HEAVY, "omegaconf", "yaml", "fsspec", "jinja2", "rich", "importlib.metadata")

RUNNER = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from nemotron_style.runtime.cli import main
codes = [main(command.split()) for command in sys.argv[2:]]
sys.exit(max(codes))
"""


def run_without(names: tuple[str, ...], *commands: str) -> subprocess.CompletedProcess[str]:
    """Commands one after the other, in a process in which these packages cannot be imported."""
    command = [sys.executable, "-c", RUNNER, ",".join(names), *commands]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_listing_needs_nothing_slow(toy):
    done = run_without(SLOW, "steps list --json")
    assert done.returncode == 0, done.stderr
    assert "toy/train" in done.stdout


def test_every_step_can_be_shown_without_the_training_stack(toy):
    from nemotron_style.runtime.catalog.catalog import load_catalog

    done = run_without(HEAVY, *(f"steps show {step}" for step in load_catalog().steps))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["profiles list", "steps --help", "--help"])
def test_other_commands_need_no_training_stack(toy, command):
    done = run_without(HEAVY, command)
    assert done.returncode == 0, done.stderr


def test_a_training_process_loads_neither_compiler_nor_trackers():
    """Each is most of a second of every start on a CPU, and would be used by nothing."""
    ask = "import sys, nemotron_style.steps.rl.rlhf.recipe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "megatron.core" in loaded
    assert not loaded & {"torch._dynamo", "sympy", "transformers", "wandb", "mlflow", "boto3"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _top_level(tree) if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs on import: not the bodies of functions, not what only a type checker sees."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def test_the_job_of_nemo_rl_needs_only_the_core_dependencies():
    names = (*HEAVY, "matplotlib", "rich", "typer", "tokenizers", "jinja2", "safetensors")
    lines = (
        f"import sys; sys.modules.update(dict.fromkeys({names}))",
        "import nemotron_style.runtime.worker.main",
        "import nemotron_style.steps.rl.rlhf.nemo_rl.job.recipe",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_runtime_and_configs_import_nothing_heavy_at_module_level():
    for name, path in modules():
        if name.startswith("runtime") or is_planned(name):
            roots = {each.split(".")[0] for each in imports(path, top_only=True)}
            assert not roots & set(HEAVY), name


def test_configs_import_nothing_heavy_through_others():
    names = [f"nemotron_style.{name}" for name, _ in modules() if is_planned(name)]
    lines = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))",
        *map("import {}".format, names),
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def is_planned(name: str) -> bool:
    """Whether a module runs when a step is planned."""
    return name.endswith((".config", ".preflight", ".compiler")) or ".preflight." in name


def test_a_step_imports_blocks_and_five_modules_of_the_runtime_only():
    allowed = tuple(
        f"nemotron_style.runtime.{name}"
        for name in ("config.model", "errors", "step", "store.record", "text_file")
    )
    for name, path in modules():
        parts = name.split(".")
        if parts[0] != "steps" or len(parts) < 3 or parts[1] == "blocks":
            continue
        own = "nemotron_style." + ".".join(parts[:3])
        for each in imports(path):
            if each.startswith("nemotron_style.") and not each.startswith("nemotron_style.steps"):
                assert each.startswith(allowed), f"{name} imports {each}"
            elif each.startswith("nemotron_style.steps"):
                assert each.startswith((own, "nemotron_style.steps.blocks")), f"{name}: {each}"
