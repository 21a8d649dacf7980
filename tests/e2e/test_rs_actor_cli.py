"""rs/actor from the command line: a reward model beside it or in another shell, and kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from held_port import hold_port
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.data.toy_truth import load_truth
from waiting import until

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "nemotron_style.runtime", "steps", "run"]
INPUTS = [
    *(
        "-i",
        "model=model",
        "-i",
        "prompts=prompts",
        "-i",
        "validation=prompts",
        "-i",
        "truth=truth",
    ),
]
SMALL = [
    *("trainer.rs.max_steps=5", "trainer.rs.val_check_interval=5", "trainer.rs.save_interval=1"),
    *(
        "model.rs.num_rollout_samples=12",
        "model.rs.num_val_samples=24",
        "model.global_batch_size=12",
    ),
    "model.rs.length_params.max_length=24",
]
SEEDS_OWN = ["model.rs.num_rollouts_per_prompt=4", "model.rs.top_n_rollouts=1"]
HASTY = ["remote_rm.waiting.tries=2", "remote_rm.waiting.first_pause=0.01"]


@pytest.fixture(scope="module")
def store(small_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small toy's artifacts, and a reward model of it."""
    root = tmp_path_factory.mktemp("cli")
    truth, draw, rows = load_truth(small_toy.truth.path), random.Random(1), []
    for _ in range(512):
        noun = draw.choice(list(truth.nouns))
        prompt = truth.prompt(noun, draw.choice(truth.contexts))
        said = truth.response(noun, draw.sample(truth.adjectives, draw.randint(1, 4)))
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
        rows.append({"messages": messages, "attributes": truth.score(prompt, said)})
    (root / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(root / "store")
    store.adopt(str(root / "rated.jsonl"), kind="rated_jsonl", name="rated")
    for name, given in (("model", small_toy.model), ("prompts", small_toy.prompts)):
        store.adopt(str(given.path), kind=given.kind, name=name)
    store.adopt(str(small_toy.truth.path), kind="attribute_truth", name="truth")
    finish(
        root / "store",
        *("reward/regression", "--name", "judge", "-i", "model=model", "-i", "data=rated"),
        *("-i", "validation=rated", "trainer.rm.max_epochs=4"),
    )
    return root / "store"


def start(
    store: Path, step: str, *words: str, python: Path | str = sys.executable
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, *COMMAND[1:], step, "-c", "tiny", "--json", *words],
        env=os.environ | {"NEMOTRON_STYLE_HOME": str(store), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(
    store: Path, step: str, *words: str, python: Path | str = sys.executable
) -> dict[str, Any]:
    process = start(store, step, *words, python=python)
    output, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-4000:]
    return json.loads(output)["runs"][-1]


def model_of(store: Path, run: dict[str, Any]) -> Any:
    """What a run has produced."""
    made = [one for one in Store(store).artifacts() if one.record.producer]
    [found] = [one for one in made if one.record.producer.run_id == run["run_id"]]
    return found


def folder_of(store: Path, run: dict[str, Any]) -> Path:
    return store / "runs" / run["run_id"]


def pid_of(run: Path) -> int:
    """The process of a run's newest attempt."""
    owners = sorted(run.glob("attempts/*/owner.json"), key=lambda path: int(path.parent.name))
    return int(json.loads(owners[-1].read_text())["pid"])


@pytest.fixture(scope="module")
def beside(store: Path) -> dict[str, Any]:
    """A run with its reward model beside it."""
    return finish(store, "rs/actor", *INPUTS, "-i", "reward.model=judge", *SMALL, *SEEDS_OWN)


def test_the_reward_model_is_started_and_stopped(store: Path, beside: dict[str, Any]) -> None:
    run = folder_of(store, beside)
    [service] = run.glob("services/reward")
    assert not alive(pid_of(service))
    assert not (service / "endpoint.json").exists()
    assert json.loads((run / "outputs.json").read_text())["figures"]["steps"] == 5
    assert len(list((run / "samples").glob("step-*"))) == 5
    assert "| before | after 5 steps |" in (run / "samples" / "samples.md").read_text()
    assert (run / "plots" / "rs.png").is_file()


def test_the_model_says_who_judged_it(store: Path, beside: dict[str, Any]) -> None:
    record = model_of(store, beside).record
    [judge] = [one for one in Store(store).artifacts() if one.kind == "reward_model"]
    assert record.facts["reward_model_digest"] == judge.digest
    assert judge.digest in {edge.digest for edge in record.inputs}
    assert record.metrics["reward_after"] > record.metrics["reward_before"]


@pytest.fixture
def server(store: Path) -> Iterator[Any]:
    """Starts and kills reward/serve at one port, as in a shell of its own."""
    held, started = hold_port(), []
    port = held.getsockname()[1]

    def serve() -> subprocess.Popen[str]:
        words = ("-i", "model=judge", f"port={port}")
        started.append(start(store, "reward/serve", *words))
        until(lambda: any(store.glob("runs/reward-serve-*/endpoint.json")))
        return started[-1]

    serve.port = port  # type: ignore[attr-defined]
    yield serve
    for process in started:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    held.close()


def test_a_server_of_another_shell_may_be_killed(
    store: Path, beside: dict[str, Any], server: Any
) -> None:
    """The weights are those of a run with a server of its own that nobody touched."""
    words = [*INPUTS[2:], *SMALL, *SEEDS_OWN, *HASTY, "remote_rm.host=localhost"]
    words += [f"remote_rm.port={server.port}", "pretrained_checkpoint.restore_from_path=model"]
    server()
    first = start(store, "rs/actor", *words)
    [run] = until(lambda: set(store.glob("runs/rs-actor-*")) - {folder_of(store, beside)})
    until(lambda: any(run.glob("checkpoints/step-*")))
    [service] = store.glob("runs/reward-serve-*")
    os.kill(pid_of(service), signal.SIGKILL)
    _, told = first.communicate(timeout=300)
    assert first.returncode == 1
    assert "gave no usable answer" in told
    assert "the same command resumes the run" in told
    (service / "endpoint.json").unlink(missing_ok=True)
    server()
    again = finish(store, "rs/actor", *words)
    assert (again["run_id"], again["decision"]) == (run.name, "resume")
    facts = model_of(store, again).record.facts
    assert facts["weights_digest"] == model_of(store, beside).record.facts["weights_digest"]


def test_a_killed_trainer_goes_on_to_the_same_bits(store: Path, beside: dict[str, Any]) -> None:
    # More than there are tokens: another run by its name, and the same by what it does.
    words = [*INPUTS, "-i", "reward.model=judge", *SMALL, *SEEDS_OWN]
    words.append("model.rs.sampling_params.top_k=100000")
    known = set(store.glob("runs/rs-actor-*"))
    for step in (1, 3):
        process = start(store, "rs/actor", *words)
        [run] = until(lambda: set(store.glob("runs/rs-actor-*")) - known)
        kill_after(step, run, process)
    again = finish(store, "rs/actor", *words)
    assert again["run_id"] == run.name
    assert len(list(run.glob("attempts/*/owner.json"))) == 3
    facts = model_of(store, again).record.facts
    assert facts["weights_digest"] == model_of(store, beside).record.facts["weights_digest"]


def kill_after(step: int, run: Path, process: subprocess.Popen[str]) -> None:
    """Kill the worker, and then the command line, once ``step`` is saved; the service ends too."""
    wanted = f"step-{step:08d}"
    until(lambda: any(path.name >= wanted for path in run.glob("checkpoints/step-*")))
    service = pid_of(run / "services" / "reward")
    os.kill(pid_of(run), signal.SIGKILL)
    process.kill()
    process.communicate()
    until(lambda: not alive(service))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_on_an_empty_store_the_whole_chain_is_planned(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "rs/actor", "-c", "tiny", "--dry-run"],
        env=os.environ | {"NEMOTRON_STYLE_HOME": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        check=True,
    )
    chain = ("data/toy", "sft/chat", "reward/regression", "rs/actor")
    assert all(f"run     {step} (tiny)" in done.stdout for step in chain)
    assert "service   reward: reward/serve (tiny), beside the step" in done.stdout
    assert not (tmp_path / "store").exists()


def test_vllm_draws_for_the_same_step(
    vllm_python: Path, store: Path, beside: dict[str, Any]
) -> None:
    """Its log-probs are the trainer's, and what it draws is learnt from."""
    words = [*INPUTS, "-i", "reward.model=judge", *SMALL, *SEEDS_OWN, "generation=vllm"]
    run = finish(store, "rs/actor", *words, python=vllm_python)
    metrics = model_of(store, run).record.metrics
    assert 1 < metrics["token_mult_prob_error"] < 1.001  # float32 on both sides
    assert metrics["reward_after"] > metrics["reward_before"]
    facts = [model_of(store, one).record.facts for one in (run, beside)]
    assert facts[0]["weights_digest"] != facts[1]["weights_digest"]  # other samples, same seed
