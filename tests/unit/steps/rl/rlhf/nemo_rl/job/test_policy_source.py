"""What the slot of the policy may hold, and what is refused before NeMo-RL would trip over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.rl.rlhf.nemo_rl.job.policy_source import find_policy
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import JobVariable

Make = Callable[..., Artifact]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(*files: str, tracker: str | None = None, below: str = "") -> Artifact:
        store = Store(tmp_path / "store")
        staged = store.stage("start")
        for file in files:
            (staged / file).parent.mkdir(parents=True, exist_ok=True)
            (staged / file).write_text("x")
        if tracker is not None:
            (staged / below / "latest_checkpointed_iteration.txt").write_text(tracker)
        return store.commit(staged, name="start", kind="checkpoint_megatron")

    return make


def test_without_an_input_nothing_is_set() -> None:
    assert find_policy(None, None).variables == {}


def test_a_hugging_face_folder_is_the_policy(make: Make) -> None:
    model = make("config.json", "model.safetensors")
    source = find_policy(model, None)
    assert source.variables == {JobVariable.POLICY_MODEL: str(model.path)}
    assert (source.hf_folder, source.digest) == (model.path, model.digest)


@pytest.mark.parametrize(
    ("file", "name"), [("run_config.yaml", "megatron_bridge"), ("metadata.json", "megatron_lm")]
)
def test_a_megatron_checkpoint_is_named_by_the_iteration_of_its_tracker(
    make: Make, file: str, name: str
) -> None:
    model = make("iter_0000007/x", f"iter_0000005/{file}", tracker="5")
    source = find_policy(model, name)
    assert source.variables == {
        JobVariable.PRETRAINED: str(model.path / "iter_0000005"),
        JobVariable.PRETRAINED_FORMAT: name,
    }
    assert find_policy(model, f"${{oc.env:{JobVariable.PRETRAINED_FORMAT}}}") == source


def test_a_checkpoint_of_this_step_brings_its_hugging_face_twin(make: Make) -> None:
    model = make(
        "weights/iter_0000000/run_config.yaml",
        "weights/iter_0000000/metadata.json",
        "hf/config.json",
        tracker="0",
        below="weights",
    )
    source = find_policy(model, "megatron_bridge")
    assert source.variables[JobVariable.PRETRAINED] == str(model.path / "weights/iter_0000000")
    assert source.variables[JobVariable.POLICY_MODEL] == str(model.path / "hf")


@pytest.mark.parametrize(
    ("files", "tracker", "wanted", "what"),
    [
        (("model_config.json", "weights/metadata.json"), None, None, "own Megatron layout"),
        (("iter_0000005/run_config.yaml",), "6", "megatron_bridge", "is no checkpoint that"),
        (("iter_0000005/model.pt",), "5", "megatron_lm", "is no checkpoint that NeMo-RL loads"),
        (("config.json", "notes.txt"), None, None, "is no checkpoint that NeMo-RL loads"),
        (("iter_0000005/metadata.json",), "5", "megatron_bridge", "has another format"),
        (("iter_0000005/run_config.yaml",), "5", None, "compiled for a Hugging Face folder"),
    ],
)
def test_a_checkpoint_that_nemo_rl_would_not_load_is_refused_with_one_message(
    make: Make, files: tuple[str, ...], tracker: str | None, wanted: str | None, what: str
) -> None:
    with pytest.raises(InputError) as error:
        find_policy(make(*files, tracker=tracker), wanted)
    (problem,) = error.value.problems
    assert problem.where == "start:v1"
    assert what in str(problem)
