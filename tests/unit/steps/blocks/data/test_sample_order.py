"""The order of samples: every sample once an epoch, and the step is the whole state."""

from __future__ import annotations

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.sample_order import SampleOrder, permutation


def test_an_epoch_holds_every_sample_once() -> None:
    order = SampleOrder(12, 7, 4)
    seen = [index for step in range(3) for index in order.batch(step)]
    assert sorted(seen) == list(range(12))


def test_epochs_are_shuffled_differently() -> None:
    assert permutation(50, 7, 0) != permutation(50, 7, 1) != permutation(50, 8, 1)


def test_the_permutation_is_fixed_forever() -> None:
    assert permutation(8, 1234, 0) == permutation.__wrapped__(8, 1234, 0)
    assert sorted(permutation(8, 1234, 0)) == list(range(8))


def test_samples_that_are_not_shuffled_keep_their_order_in_every_epoch() -> None:
    order = SampleOrder(10, 7, 4, shuffle=False)
    assert [order.batch(step) for step in range(3)] == [(0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 2, 3)]
    stream = SampleOrder(5, 7, 4, sample=True, shuffle=False)
    assert stream.batch(1) == (4, 0, 1, 2)


def test_the_rest_of_an_epoch_is_dropped() -> None:
    order = SampleOrder(10, 7, 4)
    assert order.steps_per_epoch == 2
    assert order.batch(2) == permutation(10, 7, 1)[:4]


def test_a_stream_drops_nothing() -> None:
    order = SampleOrder(10, 7, 4, sample=True)
    seen = [index for step in range(5) for index in order.batch(step)]
    assert sorted(seen) == sorted([*range(10), *range(10)])


def test_a_resumed_run_reads_what_it_would_have_read() -> None:
    whole = [SampleOrder(30, 3, 7, sample=True).batch(step) for step in range(9)]
    assert [SampleOrder(30, 3, 7, sample=True).batch(step) for step in range(4, 9)] == whole[4:]


@pytest.mark.parametrize(
    ("limits", "steps"), [((5, 10), 5), ((-1, 2), 6), ((100, 2), 6), ((4, None), 4)]
)
def test_the_smaller_limit_ends_the_run(limits: tuple[int, int | None], steps: int) -> None:
    assert SampleOrder(12, 7, 4).steps(max_steps=limits[0], max_epochs=limits[1]) == steps


def test_repeated_samples_go_beyond_the_epochs() -> None:
    assert SampleOrder(12, 7, 4, sample=True).steps(max_steps=100, max_epochs=1) == 100


def test_no_end_is_refused() -> None:
    with pytest.raises(InputError, match="no end"):
        SampleOrder(12, 7, 4).steps(max_steps=-1, max_epochs=None)


def test_too_few_samples_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"3 samples.*4.*sample=true"):
        SampleOrder(3, 7, 4)
