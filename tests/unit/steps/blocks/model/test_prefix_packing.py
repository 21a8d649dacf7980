"""What rows look like, and which state predicts which token."""

import pytest
import torch

from nemotron_style.steps.blocks.model.prefix_packing import (
    Group,
    Row,
    pack,
    pack_rows,
    pack_sequence,
)

GROUPS = [Group([10, 11, 12], [[20, 21], [22]]), Group([13], [[23], [24, 25]])]


def predicted(packed):
    """(input token, label) of every scored position, in the order of the mask."""
    tokens_SB = packed.tokens_BS.t().flatten()
    labels = packed.labels_BNR[packed.mask_BNR]
    return list(zip(tokens_SB[packed.predictors_T].tolist(), labels.tolist(), strict=True))


def test_a_prompt_stands_once_before_its_padded_responses():
    packed = pack(GROUPS)
    assert packed.tokens_BS.tolist() == [
        [10, 11, 12, 20, 21, 22, 0],
        [13, 0, 0, 23, 0, 24, 25],
    ]
    assert packed.count == 2
    assert packed.label_tokens == 6


def test_every_response_starts_at_the_position_after_its_own_prompt():
    assert pack(GROUPS).positions_BS.tolist() == [[0, 1, 2, 3, 4, 3, 4], [0, 1, 2, 1, 2, 1, 2]]


def test_the_last_prompt_token_predicts_the_first_of_each_response():
    assert predicted(pack(GROUPS)) == [(12, 20), (20, 21), (12, 22), (13, 23), (13, 24), (24, 25)]


def test_labels_and_mask_are_padded_alike():
    packed = pack(GROUPS)
    assert packed.labels_BNR.tolist() == [[[20, 21], [22, 0]], [[23, 0], [24, 25]]]
    assert packed.mask_BNR.tolist() == [
        [[True, True], [True, False]],
        [[True, False], [True, True]],
    ]


def test_equal_prompts_need_no_mask_for_padding():
    assert pack(GROUPS).layout.prompt_lengths_P is not None
    assert pack([GROUPS[0], GROUPS[0]]).layout.prompt_lengths_P is None


def test_responses_see_the_real_prompt_and_themselves_only():
    mask = pack(GROUPS).layout.response_mask()
    assert mask.shape == (4, 1, 2, 5)
    assert mask[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    assert mask[2, 0].int().tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]


def test_single_responses_become_causal_rows_without_the_last_token():
    packed = pack([Group([10, 11], [[20, 21, 22]]), Group([12], [[23]])])
    assert packed.layout.count == 0
    assert packed.tokens_BS.tolist() == [[10, 11, 20, 21], [12, 23, 0, 0]]
    assert predicted(packed) == [(11, 20), (20, 21), (21, 22), (12, 23)]


def test_rows_score_the_marked_tokens():
    packed = pack_rows(
        [
            Row([1, 2, 3, 4, 5], [False, True, False, True, True]),
            Row([6, 7], [False, True]),
        ]
    )
    assert packed.labels_BNR.tolist() == [[[2, 4, 5]], [[7, 0, 0]]]
    assert predicted(packed) == [(1, 2), (3, 4), (4, 5), (6, 7)]


def test_an_empty_response_is_a_row_without_labels():
    packed = pack([Group([1, 2], [[], [3]])])
    assert packed.mask_BNR.tolist() == [[[False], [True]]]
    assert predicted(packed) == [(2, 3)]


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [Group([1], [])],
        [Group([], [[1], [2]])],
        [Group([1], [[2]]), Group([1], [[2], [3]])],
    ],
    ids=["no group", "no response", "empty prompt", "differing counts"],
)
def test_batches_that_cannot_be_laid_out_are_refused(groups):
    with pytest.raises(ValueError, match=r"groups need|prompt needs"):
        pack(groups)


def test_the_first_token_of_a_row_cannot_be_scored():
    with pytest.raises(ValueError, match="first token"):
        pack_rows([Row([1, 2], [True, True])])


def test_moving_a_batch_moves_its_prompt_lengths_too():
    moved = pack(GROUPS).to(torch.device("meta"))
    assert moved.tokens_BS.is_meta
    assert moved.layout.prompt_lengths_P.is_meta


def test_a_packed_sequence_has_no_padding_and_positions_that_restart():
    rows = [Row([1, 2, 3, 4], [False, True, False, True]), Row([5, 6, 7], [False, False, True])]
    packed = pack_sequence(rows)
    assert packed.tokens_BS.tolist() == [[1, 2, 3, 5, 6]]
    assert packed.positions_BS.tolist() == [[0, 1, 2, 0, 1]]
    assert packed.layout.lengths == (3, 2)
    assert packed.labels_BNR.tolist() == pack_rows(rows).labels_BNR.tolist() == [[[2, 4]], [[7, 0]]]
    assert predicted(packed) == [(1, 2), (3, 4), (6, 7)]


@pytest.mark.parametrize(("tokens", "read"), [(1, 1), (15, 14), (16, 16), (17, 16), (32, 32)])
def test_the_last_token_of_a_row_is_read_where_it_makes_a_multiple_of_16(tokens, read):
    row = Row(list(range(tokens)), [False] + [True] * (tokens - 1))
    padded, packed = pack_rows([row]), pack_sequence([row])
    assert padded.tokens_BS.tolist() == packed.tokens_BS.tolist() == [list(range(read))]
    assert predicted(padded) == predicted(packed) == [(i, i + 1) for i in range(tokens - 1)]
