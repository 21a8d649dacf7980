"""What lines of NeMo-RL's output tell: steps, signs of progress, judgements that failed."""

from __future__ import annotations

from nemotron_style.steps.rl.rlhf.nemo_rl.job.log_reader import LogReader


def read(*lines: str, done: int = 0) -> LogReader:
    log = LogReader(done=done)
    for line in lines:
        log.feed(line)
    return log


def test_finished_steps_are_counted_over_epochs_and_attempts() -> None:
    log = read(
        f"{'=' * 25} Epoch 2/9 {'=' * 25}",
        f"{'=' * 25} Step 1/3 {'=' * 25}",  # of this epoch
        "📊 Training Results:",
        "  • Loss: 0.5000",
        "  • Avg Reward: 3.2500",
        "  • Generation KL Error: nan?",
        done=3,
    )
    assert log.done == 4
    assert log.figures == {"loss": 0.5, "reward": 3.25}
    assert log.phase == "📊 Training Results:"


def test_only_what_the_driver_says_is_progress() -> None:
    log = read(
        "(VllmAsyncGenerationWorker pid=12, ip=10.0.0.2) ▶ Engine 000: Running: 0 reqs",
        "(pid=13) 📊 something",
        "WARNING: something",
        "  • generation: 2.00s",
    )
    assert log.marks == 0
    log.feed("▶ Generating responses for batch of size 128...")
    log.feed("Saving checkpoint for step 10...")
    assert (log.marks, log.phase) == (2, "Saving checkpoint for step 10...")


def test_failed_judgements_belong_to_the_step_under_way() -> None:
    failed = "(NemoGym pid=9) [GenRM] Parse failed for pair (0, 1) after 4 attempts; falling back"
    log = read(
        failed,
        f"{failed} [repeated 6x across cluster] (Ray deduplicates logs by default.)",
        "(NemoGym pid=9) [GenRM] Error in comparison for pair (1, 2): timeout",
        "📊 Training Results:",
        "(NemoGym pid=9) [GenRM] Cohort compare failed: no judge",
    )
    assert log.failures(1) == {"given_up_unparseable": 7, "given_up_error": 1}
    assert log.failures(2) == {"failed_cohorts": 1}
    assert log.failures(3) == {}


def test_an_end_for_lack_of_time_is_seen() -> None:
    assert not read("Max number of steps has been reached, stopping training early").timed_out
    assert read("Timeout has been reached, stopping training early").timed_out
