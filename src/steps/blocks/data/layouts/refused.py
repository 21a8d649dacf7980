"""Layouts that are known and not read: what a row leaves open, and what to do instead."""

from __future__ import annotations

from nemotron_style.steps.blocks.data.layouts.conversations import has
from nemotron_style.steps.blocks.data.layouts.layout import Refused

_TURNS = "write the turns as messages"

REFUSED = (
    Refused(
        "UltraFeedback with several completions",
        lambda row: isinstance(row.get("completions"), list),
        "several models answer, and which answer is meant is not said",
        "take the binarised set (chosen and rejected), or write a row of each completion",
        '{"instruction": "...", "completions": [{"model": "...", "response": "..."}]}',
    ),
    Refused(
        "PKU-SafeRLHF",
        has("response_0", "response_1"),
        "it says which answer is better and which is safer, and they may differ",
        "write chosen and rejected by the one that you mean",
        '{"prompt": "...", "response_0": "...", "response_1": "...", "better_response_id": 0}',
    ),
    Refused(
        "Chatbot Arena",
        lambda row: (
            has("conversation_a", "conversation_b")(row) or has("response_a", "response_b")(row)
        ),
        "ties and battles of several turns have no chosen answer",
        "write chosen and rejected of the battles that have a winner",
        '{"conversation_a": [...], "conversation_b": [...], "winner": "model_a"}',
    ),
    Refused(
        "KTO",
        has("prompt", "completion", "label"),
        "label says whether the answer is wanted; as an answer to learn it would be learned anyway",
        "keep the rows with a true label and remove the column, to train on them",
        '{"prompt": "...", "completion": "...", "label": true}',
        always=True,
    ),
    Refused(
        "Stanford Human Preferences",
        has("human_ref_A", "human_ref_B"),
        "which answer is better follows from votes and their times",
        "write chosen and rejected",
        '{"history": "...", "human_ref_A": "...", "human_ref_B": "...", "labels": 1}',
    ),
    Refused(
        "steps with labels",
        lambda row: isinstance(row.get("completions"), list) or has("completions", "labels")(row),
        "each step is rated, and a row here rates an answer",
        "write an answer with its rating",
        '{"prompt": "...", "completions": ["step", "step"], "labels": [true, false]}',
    ),
    Refused(
        "multiple choice",
        lambda row: row.get("choices") is not None or row.get("options") is not None,
        "nothing says how the choices are put to the model",
        "write the question with its choices, and the answer, as messages",
        '{"question": "...", "choices": ["...", "..."], "answer": 2}',
    ),
    Refused(
        "a passage with answers",
        has("context", "question", "answers"),
        "nothing says how passage and question are put to the model",
        _TURNS,
        '{"context": "...", "question": "...", "answers": {"text": ["..."]}}',
    ),
    Refused(
        "conversation as one list of texts",
        lambda row: isinstance(row.get("data"), list) or isinstance(row.get("dialog"), list),
        "nothing says who speaks",
        _TURNS,
        '{"id": "0", "data": ["...", "..."]}',
    ),
    Refused(
        "a tree of messages",
        has("message_id", "parent_id"),
        "a row is one message, and its conversation is spread over rows",
        "write each path through the tree as messages",
        '{"message_id": "...", "parent_id": "...", "text": "...", "role": "prompter"}',
    ),
    Refused(
        "conversation as pairs",
        lambda row: isinstance(row.get("conversation"), list),
        "its turns have other names in every data set",
        _TURNS,
        '{"conversation": [{"human": "...", "assistant": "..."}]}',
    ),
    Refused(
        "token ids",
        has("input_ids"),
        "ids belong to one tokenizer, and nothing says to which",
        "give the texts",
        '{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}',
    ),
    Refused(
        "plain text",
        has("text"),
        "nothing says who speaks",
        _TURNS,
        '{"text": "..."}',
    ),
)
