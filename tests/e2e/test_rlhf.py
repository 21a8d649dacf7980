"""rl/rlhf against a scripted judge: what is asked, learnt, refused, and taken up again."""

from __future__ import annotations

import itertools
import json

import pytest

import rlhf_world as world_of
from card import card, fail_where_devices_mix
from nemotron_style.runtime.errors import InputError, Interrupted, StepFailed
from nemotron_style.runtime.step.context import Stop
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import weights_digest
from nemotron_style.steps.blocks.judge.client import JudgeUnavailable
from nonfinite import SAMPLING_SPOTS, fail_at_every_spot

COMPARE = "env.nemo_gym.genrm_compare.resources_servers.genrm_compare"
QUICK = f"{COMPARE}.genrm_parse_retry_sleep_s=0.001"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_of.make_world(tmp_path_factory.mktemp("rlhf"))


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    """A run that nobody disturbs, and the requests that it made."""
    run_dir = tmp_path_factory.mktemp("plain")
    with world_of.Judge().serve() as judge:
        ctx = world.train_in(run_dir, f'judge.url="{judge.url}"')
    return ctx, judge


def digest(ctx):
    return weights_digest(ctx.output("model").path)


def steps_of(ctx):
    return [line for line in ctx.metrics.history() if "reward" in line]


def train(world, run_dir, judge, *overrides, **changes):
    if "validation" in changes:  # is None: nothing is held out
        overrides = (*overrides, "grpo.val_at_end=false")
    return world.train_in(run_dir, f'judge.url="{judge.url}"', QUICK, *overrides, **changes)


def test_the_run_leaves_what_it_found(world, plain):
    ctx, _ = plain
    facts = ctx.output("model").facts
    assert facts["weights_digest"] == digest(ctx) != world.model.facts["weights_digest"]
    assert facts["parent_weights_digest"] == world.model.facts["weights_digest"]
    assert facts["judge"] == "judge"
    assert ctx.figures["judge_parse_failure_rate"] == ctx.figures["judge_failed_share"] == 0
    assert (ctx.run_dir / "plots" / "rlhf.png").is_file()
    table = (ctx.run_dir / "samples" / "samples.md").read_text()
    assert "| prompt | before | after 3 steps |" in table
    assert [line["step"] for line in steps_of(ctx)] == [1, 2, 3]
    first, *later = steps_of(ctx)
    assert first["gate/token_mult_prob_error"] == pytest.approx(1, abs=1e-5)
    assert first["gate/kl_to_start"] == first["hacking/kl_to_start"] == 0
    assert first["gate/swap_agreement"] == 1
    assert all(line["hacking/kl_to_start"] > 0 for line in later)
    for name in ("loss", "probs_ratio", "approx_entropy", "truncation_rate", "grad_norm"):
        assert all(name in line for line in steps_of(ctx))


def test_every_answer_is_compared_with_both_neighbours(plain):
    ctx, judge = plain
    # 3 probes of a circle of 4 in both orders, 3 steps of a circle, 2 looks at 6 pairs
    assert len(judge.bodies) == 3 * 4 * 2 + 3 * 3 * 4 + 2 * 6 * 2
    for body in judge.bodies:
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["user", "response_1", "response_2"]
        assert body["model"] == "judge"
    rows = [
        json.loads(line)
        for line in (ctx.run_dir / "samples" / "step-00000001.jsonl").read_text().splitlines()
    ]
    assert len([row for row in rows if "whole_group" not in row]) == 8
    for row in rows:
        own = [
            first if row["sample"] == place else second
            for place, other, first, second, _ in row["verdicts"]
        ]
        assert len(own) == 2
        assert row["reward"] == pytest.approx(sum(own) / 2, abs=2.5)


def test_the_policy_learns_what_the_judge_likes(world, tmp_path):
    """A judge that likes one letter; twelve steps make it common."""

    def likes_e(body):
        told = {message["role"]: message["content"] for message in body["messages"]}
        first, second = (min(4, told[f"response_{n}"].count("e")) + 1 for n in (1, 2))
        return {"score_1": first, "score_2": second, "ranking": 3.5}

    with world_of.Judge(likes_e).serve() as judge:
        overrides = ("grpo.max_num_steps=12", "policy.megatron_cfg.optimizer.lr=0.01")
        ctx = train(world, tmp_path, judge, *overrides, "checkpointing.save_period=0")
    rewards = [line["reward"] for line in steps_of(ctx)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.5
    assert ctx.figures["judge_win_rate"] > 0.6


def test_twenty_faults_never_become_a_score(world, plain, tmp_path):
    """Every other request fails in another way; the run ends with the very same weights."""
    calls = itertools.cycle(world_of.FAULTS)

    def fault(number, _body):
        return next(calls) if number % 2 else None

    with world_of.Judge(fault=fault).serve() as judge:
        more = (f"{COMPARE}.genrm_parse_retries=60", "judge.timeout=1.0", "judge.at_once=4")
        ctx = train(world, tmp_path, judge, *more)
    assert len(world_of.FAULTS) >= 20
    assert digest(ctx) == digest(plain[0])
    failed = {name for line in steps_of(ctx) for name in line if "failed_" in name}
    assert len(failed) > 5
    for line, calm in zip(steps_of(ctx), steps_of(plain[0]), strict=True):
        assert line["total_reward/mean"] == calm["total_reward/mean"]
        assert line["judge/masked_groups"] == 0


def test_a_group_with_a_failure_is_masked_and_not_scored(world, tmp_path):
    """One prompt's comparisons never succeed: its samples teach nothing, the others do."""
    bad = "describe small red"

    def fault(_number, body):
        asked = body["messages"][0]["content"]
        return world_of.FAULTS[15] if asked == bad else None

    with world_of.Judge(fault=fault).serve() as judge:
        more = ("grpo.num_prompts_per_step=12", "policy.train_global_batch_size=48")
        ctx = train(world, tmp_path, judge, *more, "judge.failure_budget=0.5", validation=None)
    for line in steps_of(ctx):
        assert line["judge/masked_groups"] == 1
        assert line["num_mask_sample_filtered"] == 4
        assert line["num_valid_samples"] == 44
        assert line["judge/parse_failure_rate"] > 0
    failed = sum(line["judge/given_up"] for line in steps_of(ctx))
    assert ctx.figures["judge_failed_share"] == pytest.approx(failed / (12 * 4 * 3))
    assert 0 < ctx.figures["judge_parse_failure_rate"] < 0.5


def test_steps_without_a_verdict_tell_no_reward(world, tmp_path, capsys):
    with world_of.Judge(fault=lambda _number, _body: world_of.FAULTS[15]).serve() as judge:
        more = ("judge.failure_budget=1.0", f"{COMPARE}.genrm_parse_retries=0")
        ctx = train(world, tmp_path, judge, *more, "grpo.max_num_steps=2", validation=None)
    lines = ctx.metrics.history()
    assert [line["judge/masked_groups"] for line in lines] == [3, 3]
    assert not any("reward" in line for line in lines)
    assert "reward=" not in capsys.readouterr().out
    assert ctx.figures["judge_parse_failure_rate"] == ctx.figures["judge_failed_share"] == 1


def test_too_many_failures_end_the_run_and_it_goes_on_later(world, plain, tmp_path):
    """The judge breaks for good in the second step; repaired, the weights are the same."""
    judge = world_of.Judge()
    broken = {"after": 3 * 4 * 2 + 12 + 5}
    judge.fault = lambda number, _body: world_of.FAULTS[2] if number >= broken["after"] else None
    with judge.serve():
        with pytest.raises(JudgeUnavailable, match="judgements failed"):
            train(world, tmp_path, judge)
        saved = list((tmp_path / "checkpoints").iterdir())
        assert saved
        asked = len(judge.bodies)
        broken["after"] = 10**9
        ctx = train(world, tmp_path, judge, attempt=2)
    assert digest(ctx) == digest(plain[0])
    assert [line["step"] for line in steps_of(ctx)] == [1, 2, 3]
    assert len(judge.bodies) - asked < len(plain[1].bodies)


def test_a_stopped_run_goes_on_bit_by_bit(world, plain, tmp_path):
    stop = Stop()
    judge = world_of.Judge()

    def ask_to_stop(number, _body):
        stop.requested = number >= 3 * 4 * 2 + 12 + 6  # in the middle of the second step
        return

    judge.fault = ask_to_stop
    with judge.serve():
        with pytest.raises(Interrupted):
            train(world, tmp_path, judge, stop=stop)
        judge.fault = lambda _number, _body: None
        ctx = train(world, tmp_path, judge, attempt=2)
    assert digest(ctx) == digest(plain[0])
    calm = [(line["step"], line["loss"]) for line in steps_of(plain[0])]
    assert [(line["step"], line["loss"]) for line in steps_of(ctx)] == calm


def test_another_judge_half_way_is_refused(world, tmp_path):
    stop, judge = Stop(), world_of.Judge()

    def ask_to_stop(number, _body):
        stop.requested = number >= 40
        return

    judge.fault = ask_to_stop
    with judge.serve():
        with pytest.raises(Interrupted):
            train(world, tmp_path, judge, stop=stop)
        judge.name = "another"
        name = 'env.nemo_gym.genrm_model_name="another"'
        with pytest.raises(InputError, match="another judge"):
            train(world, tmp_path, judge, name, attempt=2)


def test_several_updates_and_all_options_of_the_loss_run(world, tmp_path):
    overrides = (
        "loss_fn.force_on_policy_ratio=false",
        "loss_fn.use_importance_sampling_correction=true",
        'loss_fn.truncated_importance_sampling_type="tis"',
        "loss_fn.truncated_importance_sampling_ratio=5.0",
        "policy.train_global_batch_size=6",
        "grpo.seq_logprob_error_threshold=2.0",
        "grpo.reward_scaling.enabled=true",
        "grpo.reward_scaling.source_min=1.0",
        "grpo.reward_scaling.source_max=5.0",
        "grpo.max_num_steps=2",
    )
    with world_of.Judge().serve() as judge:
        ctx = train(world, tmp_path, judge, *overrides, validation=None)
    for line in steps_of(ctx):
        assert line["total_reward/max"] <= 1
        assert line["max_seq_mult_prob_error"] == pytest.approx(1, abs=1e-4)


def test_a_judge_without_an_opinion_ends_the_run(world, tmp_path):
    nothing = pytest.raises(StepFailed, match="no difference in any group")
    with world_of.Judge(world_of.even).serve() as judge, nothing:
        train(world, tmp_path, judge, "grpo.max_num_steps=9", validation=None)
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["hacking/zero_std_groups"] for line in told] == [1, 1]
    assert all(line["hacking/sign_flat"] == 1 for line in told)


def test_the_manifest_s_advice_is_given_once(world, tmp_path, capsys):
    with world_of.Judge(world_of.even).serve() as judge, pytest.raises(StepFailed):
        train(world, tmp_path, judge, "grpo.max_num_steps=9", validation=None)
    said = capsys.readouterr().out
    assert said.count("Most groups have no difference in reward") == 1
    assert said.count("Reward model saturates") == 1


def test_a_judge_that_looks_at_the_place_is_refused_before_training(world, tmp_path):
    def first(_body):
        return {"score_1": 5, "score_2": 1, "ranking": 1}

    with world_of.Judge(first).serve() as judge, pytest.raises(StepFailed, match="at the place"):
        train(world, tmp_path, judge)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_judge_that_cannot_be_read_is_refused_before_training(world, tmp_path):
    unreadable = pytest.raises(JudgeUnavailable, match="no JSON object")
    with world_of.Judge(fault=lambda _n, _b: world_of.FAULTS[15]).serve() as judge, unreadable:
        train(world, tmp_path, judge)


def test_a_judge_that_is_not_there_is_waited_for_within_bounds(world, tmp_path):
    url = 'judge.url="http://127.0.0.1:9"'
    with pytest.raises(JudgeUnavailable, match="not ready within"):
        world.train_in(tmp_path, url, "judge.ready_seconds=0.5")


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"agent_ref": {}}, "no layout of prompts has these columns; got agent_ref"),
        ({"responses_create_params": {"input": []}}, "there is no input"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "turns must alternate"),
        ({"messages": [{"role": "user", "content": "describe " * 60}]}, "leaves no room"),
        (
            {"responses_create_params": {"input": "x", "tools": [{"name": "find"}]}},
            "offered no tools",
        ),
    ],
)
def test_bad_rows_are_named(world, tmp_path, row, word):
    data = world.data("bad", [world_of.ask("describe red blue"), row])
    with pytest.raises(InputError, match=word) as caught:
        world.train_in(tmp_path, 'judge.url="http://127.0.0.1:9"', prompts=data)
    assert "rows.jsonl:2" in str(caught.value)


def test_bad_rows_are_left_out_where_that_is_asked_for(world, tmp_path, capsys):
    asked = [world_of.ask(f"describe {word} blue") for word in world_of.WORDS]
    data = world.data("some-bad", [*asked, {"messages": []}])
    skip = ('judge.url="http://127.0.0.1:9"', "judge.ready_seconds=0.1", 'data.on_bad_row="skip"')
    with pytest.raises(JudgeUnavailable):  # the prompts are read before
        world.train_in(tmp_path, *skip, "data.max_bad_rows=1", prompts=data)
    assert "prompts: bad, and left out: 1 of 9 rows" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"data\.max_bad_rows: more rows are bad"):
        world.train_in(tmp_path, *skip, prompts=data)


def test_training_prompts_are_no_validation(world, tmp_path, capsys):
    url = 'judge.url="http://127.0.0.1:9"'
    with pytest.raises(InputError, match="train_used_as_validation_unintentionally"):
        world.train_in(tmp_path, url, validation=world.prompts)
    rows = [world_of.ask(f"describe {a} {b}") for a, b in (("red", "blue"), ("red", "small"))]
    elsewhere = world.data("elsewhere", rows)  # the same prompts in another file and order
    with pytest.raises(InputError, match="2 of 2 are in the other file too"):
        world.train_in(tmp_path, url, validation=elsewhere)
    some = world.data("some", [*rows, world_of.ask("describe warm warm warm")])
    with pytest.raises(JudgeUnavailable):  # some of them may be: how many is said
        world.train_in(tmp_path, url, "judge.ready_seconds=0.1", validation=some)
    assert "2 of 3 held-out prompts are trained on too" in capsys.readouterr().out


def test_the_policy_does_not_judge_itself(world, tmp_path):
    inputs = {"judge.model": world.model}
    with pytest.raises(InputError, match="reward_model_policy_confused"):
        world.train_in(tmp_path, **inputs)


def judge_artifact(world, **facts):
    staged = world.store.stage("judge")
    (staged / "config.json").write_text(json.dumps(facts))
    return world.store.commit(staged, name="judge", kind="checkpoint_hf", facts=facts)


def test_a_judge_needs_a_card_that_is_good_enough(world, tmp_path):
    none = judge_artifact(world, weights_digest="sha256:1")
    poor = judge_artifact(world, weights_digest="sha256:2", judge_card={"accuracy": 0.55})
    floor = "judge.min_accuracy=0.6"
    for artifact, word in ((none, "no judge_card"), (poor, "0.550")):
        with pytest.raises(InputError, match=word):
            world.train_in(tmp_path, floor, **{"judge.model": artifact})
    with pytest.raises(InputError, match="has no card"):
        world.train_in(tmp_path, floor, 'judge.url="http://127.0.0.1:9"')


def test_the_card_says_how_the_judge_is_asked(world, tmp_path):
    card = {"accuracy": 0.9, "form": "instruct"}
    good = judge_artifact(world, weights_digest="sha256:3", judge_card=card)

    def score(body):
        [message] = body["messages"]
        assert "Answer only with JSON" in message["content"]
        place = message["content"].find("<response_1")
        first, second = (sum(map(ord, part)) % 41 for part in split(message["content"][place:]))
        return {"score_1": 1 + first / 10, "score_2": 1 + second / 10, "ranking": 3}

    def split(text):
        one, _, rest = text.partition("</response_1")
        return one.partition(">\n")[2], rest.partition("<response_2")[2].partition(">\n")[
            2
        ].partition("\n</response_2")[0] + "\n"

    with world_of.Judge(score).serve() as judge:
        ctx = train(
            world,
            tmp_path,
            judge,
            "grpo.max_num_steps=1",
            "judge.min_accuracy=0.6",
            validation=None,
            **{"judge.model": good},
        )
    assert ctx.output("model").facts["judge_card"] == card
    assert ctx.output("model").facts["judge"] == "sha256:3"


def test_more_processes_than_there_are_is_refused(world, tmp_path):
    with pytest.raises(InputError, match="another number of processes"):
        world.train_in(tmp_path, 'judge.url="http://127.0.0.1:9"', "processes=2")


def test_nothing_that_is_not_finite_is_kept_and_the_run_goes_on(world, plain, tmp_path):
    ctx, _ = plain
    with world_of.Judge().serve() as judge:
        fail_at_every_spot(
            lambda: train(world, tmp_path, judge),
            tmp_path,
            last=3,
            spots=SAMPLING_SPOTS,
        )
        assert digest(train(world, tmp_path, judge)) == digest(ctx)


def test_it_trains_on_a_card_as_on_the_cpu(world, plain, tmp_path):
    with world_of.Judge().serve() as judge, card():
        ctx = train(world, tmp_path, judge)
    for ours, theirs in zip(steps_of(ctx), steps_of(plain[0]), strict=True):
        shared = {name for name in theirs if not name.startswith("timing")}
        for name in shared:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name


def test_a_mix_of_devices_ends_the_run(world, tmp_path):
    with world_of.Judge().serve() as judge:
        fail_where_devices_mix(lambda: train(world, tmp_path, judge))
