"""Fifty-one layouts as people have them, one tiny row each, and what must become of it.

A row that is read has the turns of its conversation (the speaker is the user first, then the
assistant, and so on); the last one of training rows is the answer.  ``refused`` is a pattern of
the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Q, A, Q2, A2, SYSTEM = "Name a river.", "The Rhine.", "Another?", "The Nile.", "Be brief."


class Case(NamedTuple):
    """A row, what it is read for, and what it must become."""

    row: dict[str, Any]
    turns: Sequence[str] = ()
    system: str | None = None
    layout: str = ""
    use: str = "training"
    label: str | None = None
    type: str | None = None
    ratings: dict[str, float] | None = None
    rejected: str | None = None
    trained: tuple[bool, ...] | None = None
    refused: str = ""


def turn(role: str, text: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def spoken(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"from": name, "value": text, **more}


U, S, U2, S2 = turn("user", Q), turn("assistant", A), turn("user", Q2), turn("assistant", A2)
EXTRA = f"<extra_id_0>System\n\n<extra_id_1>User\n{Q}\n<extra_id_1>Assistant\n"
ATTRIBUTES = {"helpfulness": 4, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
LABEL = "helpfulness:4,verbosity:2"
HH = f"\n\nHuman: {Q}\n\nAssistant: {A}\n\nHuman: {Q2}\n\nAssistant: "

CASES = {
    # conversations as lists of turns
    "openai": Case({"messages": [U, S]}, [Q, A], layout="messages"),
    "openai with system": Case(
        {"messages": [turn("system", SYSTEM), U, S]}, [Q, A], SYSTEM, layout="messages"
    ),
    "openai with developer": Case(
        {"messages": [turn("developer", SYSTEM), U, S]}, [Q, A], SYSTEM, layout="messages"
    ),
    "openai, several answers": Case(
        {"messages": [U, S, U2, S2]}, [Q, A, Q2, A2], layout="messages"
    ),
    "openai with weights": Case(
        {"messages": [U, turn("assistant", A, weight=0), U2, turn("assistant", A2, weight=1)]},
        [Q, A, Q2, A2],
        layout="messages",
        trained=(False, True),
    ),
    "openai with more columns": Case(
        {"messages": [U, S], "id": "7", "source": "x", "score": 0.5}, [Q, A], layout="messages"
    ),
    "openai, parts of text": Case(
        {"messages": [turn("user", [{"type": "text", "text": Q}]), S]}, [Q, A], layout="messages"
    ),
    "openai, keys that are null": Case(
        {"messages": [U, turn("assistant", A, tool_calls=None, name="x")], "tools": None},
        [Q, A],
        layout="messages",
    ),
    "openai with a system column": Case(
        {"system": SYSTEM, "messages": [U, S]}, [Q, A], SYSTEM, layout="messages"
    ),
    "UltraChat": Case(
        {"prompt": Q, "prompt_id": "ab", "messages": [U, S]}, [Q, A], layout="messages"
    ),
    "labelled, our own": Case(
        {"messages": [U, S], "label": LABEL, "type": "VALUE_TO_TEXT"},
        [Q, A],
        layout="messages",
        label=LABEL,
        type="VALUE_TO_TEXT",
    ),
    "openai with tools": Case(
        {"messages": [U, S], "tools": [{"name": "f"}]}, refused="offers tools"
    ),
    "openai with a tool's turn": Case(
        {"messages": [U, turn("assistant", "f()"), turn("tool", "1"), S]}, refused="turns of tools"
    ),
    "openai with a picture": Case(
        {"messages": [turn("user", [{"type": "image_url", "image_url": {"url": "x"}}]), S]},
        refused="a part is not a text",
    ),
    "ShareGPT": Case(
        {"conversations": [spoken("human", Q), spoken("gpt", A)]}, [Q, A], layout="sharegpt"
    ),
    "ShareGPT with system": Case(
        {
            "id": "1",
            "conversations": [spoken("system", SYSTEM), spoken("human", Q), spoken("gpt", A)],
        },
        [Q, A],
        SYSTEM,
        layout="sharegpt",
    ),
    "ShareGPT with a system column": Case(
        {"system": SYSTEM, "conversations": [spoken("human", Q), spoken("gpt", A)]},
        [Q, A],
        SYSTEM,
        layout="sharegpt",
    ),
    "ShareGPT under OpenAI's names": Case({"conversations": [U, S]}, [Q, A], layout="sharegpt"),
    "ShareGPT that begins with gpt": Case(
        {"conversations": [spoken("gpt", A), spoken("human", Q), spoken("gpt", A)]},
        refused="turns must alternate",
    ),
    "ShareGPT with tools": Case(
        {"conversations": [spoken("human", Q), spoken("function_call", "f"), spoken("gpt", A)]},
        refused="turns of tools",
    ),
    "NeMo": Case(
        {
            "system": SYSTEM,
            "mask": "User",
            "type": "VALUE_TO_TEXT",
            "conversations": [spoken("User", Q, label=None), spoken("Assistant", A, label=LABEL)],
        },
        [Q, A],
        SYSTEM,
        layout="nemo",
        label=LABEL,
        type="VALUE_TO_TEXT",
    ),
    "NeMo, to name the label": Case(
        {
            "system": "",
            "mask": "User",
            "type": "TEXT_TO_VALUE",
            "conversations": [spoken("User", Q), spoken("Assistant", A, label=LABEL)],
        },
        [Q, A],
        layout="nemo",
        label=LABEL,
        type="TEXT_TO_VALUE",
    ),
    "NeMo without labels": Case(
        {"system": "", "mask": "Human", "conversations": [spoken("Human", Q), spoken("Robot", A)]},
        [Q, A],
        layout="nemo",
    ),
    # a question and its answer
    "Alpaca": Case(
        {"instruction": "Translate.", "input": Q, "output": A, "text": "Below is ..."},
        [f"Translate.\n\n{Q}", A],
        layout="alpaca",
    ),
    "Alpaca without input": Case(
        {"instruction": Q, "input": "", "output": A}, [Q, A], layout="alpaca"
    ),
    "Alpaca of LLaMA-Factory": Case(
        {"instruction": Q2, "input": "", "output": A2, "system": SYSTEM, "history": [[Q, A]]},
        [Q, A, Q2, A2],
        SYSTEM,
        layout="alpaca",
    ),
    "Dolly": Case(
        {"instruction": "Answer.", "context": Q, "response": A, "category": "qa"},
        [f"Answer.\n\n{Q}", A],
        layout="dolly",
    ),
    "prompt and completion": Case(
        {"prompt": Q, "completion": A}, [Q, A], layout="prompt_completion"
    ),
    "prompt and completion as messages": Case(
        {"prompt": [turn("system", SYSTEM), U], "completion": [S]},
        [Q, A],
        SYSTEM,
        layout="prompt_completion",
    ),
    "OpenOrca": Case(
        {"id": "t0", "system_prompt": SYSTEM, "question": Q, "response": A},
        [Q, A],
        SYSTEM,
        layout="question_response",
    ),
    "GSM8K": Case({"question": Q, "answer": A}, [Q, A], layout="question_answer"),
    "MetaMath": Case(
        {"type": "GSM_AnsAug", "query": Q, "original_question": "?", "response": A},
        [Q, A],
        layout="query_response",
    ),
    "problem and solution": Case(
        {"problem": Q, "solution": A, "level": 1}, [Q, A], layout="problem_solution"
    ),
    "input and output": Case({"input": Q, "output": A}, [Q, A], layout="input_output"),
    "HelpSteer, to train on": Case(
        {"prompt": Q, "response": A, **ATTRIBUTES}, [Q, A], layout="prompt_response"
    ),
    "HelpSteer2, to train on": Case(
        {
            "prompt": f"{Q}\n<extra_id_1>Assistant\n{A}\n<extra_id_1>User\n{Q2}",
            "response": A2,
            **ATTRIBUTES,
        },
        [Q, A, Q2, A2],
        layout="prompt_response",
    ),
    "rendered with a template": Case(
        {"prompt": f"<|im_start|>user\n{Q}<|im_end|>\n", "completion": A},
        refused="template was already applied",
    ),
    "NuminaMath": Case(
        {"problem": Q, "solution": A, "messages": [U, S]},
        refused="several layouts: messages and problem_solution",
    ),
    "KTO": Case(
        {"prompt": Q, "completion": A, "label": False}, refused="whether the answer is wanted"
    ),
    "plain text": Case({"text": f"### Human: {Q} ### Assistant: {A}"}, refused="who speaks"),
    # what answers are worth
    "HelpSteer2": Case(
        {
            "prompt": f"{Q}\n<extra_id_1>Assistant\n{A}\n<extra_id_1>User\n{Q2}",
            "response": A2,
            **ATTRIBUTES,
        },
        [Q, A, Q2, A2],
        use="ratings",
        layout="helpsteer",
        ratings=ATTRIBUTES,
    ),
    "NeMo with labels": Case(
        {
            "system": "",
            "mask": "User",
            "type": "TEXT_TO_VALUE",
            "conversations": [spoken("User", Q), spoken("Assistant", A, label=LABEL)],
        },
        [Q, A],
        use="ratings",
        layout="nemo_labels",
        ratings={"helpfulness": 4, "verbosity": 2},
    ),
    "NeMo-Aligner's regression": Case(
        {"text": f"{EXTRA}{A}\n<extra_id_2>", "label": [-100] * 4 + [4, 3, 4, 1, 2]},
        [Q, A],
        use="ratings",
        layout="nemo_regression",
        ratings=ATTRIBUTES,
    ),
    "UltraFeedback, binarised": Case(
        {
            "prompt": Q,
            "prompt_id": "a",
            "chosen": [U, S],
            "rejected": [U, S2],
            "messages": [U, S],
            "score_chosen": 8.0,
            "score_rejected": 5.0,
        },
        [Q, A],
        use="ratings",
        layout="pairs",
        rejected=A2,
    ),
    "Anthropic": Case(
        {"chosen": HH + A, "rejected": HH + A2},
        [Q, A, Q2, A],
        use="ratings",
        layout="pairs",
        rejected=A2,
    ),
    "Orca DPO": Case(
        {"system": SYSTEM, "question": Q, "chosen": A, "rejected": A2},
        [Q, A],
        SYSTEM,
        use="ratings",
        layout="pairs",
        rejected=A2,
    ),
    "TRL's explicit pairs": Case(
        {"prompt": [U], "chosen": [S], "rejected": [S2]},
        [Q, A],
        use="ratings",
        layout="pairs",
        rejected=A2,
    ),
    "HelpSteer3": Case(
        {
            "domain": "general",
            "context": [U],
            "response1": A2,
            "response2": A,
            "overall_preference": 2,
        },
        [Q, A],
        use="ratings",
        layout="helpsteer3",
        rejected=A2,
    ),
    "NeMo-RL's preferences": Case(
        {
            "context": [U],
            "completions": [{"rank": 1, "completion": [S2]}, {"rank": 0, "completion": [S]}],
        },
        [Q, A],
        use="ratings",
        layout="nemo_rl_pairs",
        rejected=A2,
    ),
    "UltraFeedback with completions": Case(
        {"instruction": Q, "completions": [{"model": "m", "response": A}]},
        use="ratings",
        refused="several models answer",
    ),
    # prompts
    "NeMo-Aligner's prompts": Case({"text": EXTRA}, [Q], use="prompts", layout="nemo_text"),
    "NeMo-Gym": Case(
        {"responses_create_params": {"input": [U], "instructions": SYSTEM}, "agent_ref": {}},
        [Q],
        SYSTEM,
        use="prompts",
        layout="nemo_gym",
    ),
    "IFBench": Case(
        {"key": "0", "prompt": Q, "instruction_id_list": [], "kwargs": []},
        [Q],
        use="prompts",
        layout="prompt",
    ),
    "SteerLM 2.0 groups": Case(
        {
            "system": SYSTEM,
            "prompt_turns": [spoken("User", Q)],
            "label": LABEL,
            "responses": [{"from": "Assistant", "value": A}],
        },
        [Q],
        SYSTEM,
        use="prompts",
        layout="steerlm2",
    ),
    "MT-Bench": Case(
        {"question_id": 81, "category": "writing", "turns": [Q, Q2]},
        [Q],
        use="prompts",
        layout="mt_bench",
    ),
}


class Bad(NamedTuple):
    """A row of a layout that cannot be read, for a use, and what is said of it."""

    row: dict[str, Any]
    said: str
    use: str = "training"


BAD = {
    "messages": Bad({"messages": [U, turn("assistant", "")]}, r"messages\[1\].content: is empty"),
    "sharegpt": Bad(
        {"conversations": [spoken("human", Q), spoken("bot", A)]},
        r"conversations\[1\].from: unknown role; got \"bot\"",
    ),
    "nemo": Bad(
        {"mask": "User", "conversations": [spoken("User", Q), spoken("Assistant", A, label="a:1")]},
        "label and type stand together",
    ),
    "alpaca": Bad({"instruction": Q, "input": "", "output": ""}, "output: must be a text that is"),
    "prompt_completion": Bad({"prompt": Q, "completion": 7}, "completion: must be a text"),
    "question_answer": Bad(
        {"question": Q, "answer": A, "context": "Rivers."}, "context: this column may belong"
    ),
    "helpsteer": Bad(
        {"prompt": Q, "response": A, "helpfulness": "4"}, "must be a finite number", "ratings"
    ),
    "pairs": Bad(
        {"chosen": HH + A, "rejected": HH + A}, "chosen and rejected are the same", "ratings"
    ),
    "nemo_regression": Bad(
        {"text": EXTRA + A, "label": [4, 3]}, "nothing says what each number rates", "ratings"
    ),
    "nemo_gym": Bad(
        {"responses_create_params": {"input": [U], "tools": [{"name": "f"}]}},
        "offered no tools",
        "prompts",
    ),
    "nemo_text": Bad({"text": f"User: {Q}"}, "nothing says who speaks", "prompts"),
}
"""A bad row of eleven layouts."""
