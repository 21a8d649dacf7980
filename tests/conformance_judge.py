"""How the cases of ``golden/genrm.json`` are put to the project's judge.

NeMo-Gym speaks OpenAI's Responses API to its judge server, which turns that into a chat completion;
the project sends the chat completion. A scripted endpoint stands for both, and what the client sent
is told in Gym's words again. Where Gym turns a failure into its defaults and the project does not,
the defaults are put in here (:func:`run_compare`) and nowhere in the project.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_style.steps.blocks.data import responses_api
from nemotron_style.steps.blocks.http.client import PERMANENT_STATUSES, Fault
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.judge import aggregation as judge_aggregation
from nemotron_style.steps.blocks.judge.aggregation import Aggregation, Answer
from nemotron_style.steps.blocks.judge.client import JudgeClient, JudgeFailure
from nemotron_style.steps.blocks.judge.group_judge import AnswerGroup, name_question
from nemotron_style.steps.blocks.judge.pairing import ComparisonPlan, Pair, choose_pairs
from nemotron_style.steps.blocks.judge.prompt import Question, ask_messages, shown
from nemotron_style.steps.blocks.judge.verdict import EVEN, KEYS, Verdict, iter_objects

Case = Mapping[str, Any]
Outcome = dict[str, Any]
AGGREGATION = (
    "aggregator_method",
    "reasoning_bonus",
    "answer_bonus",
    "top_percentile",
    "group_reasoning_length_penalty_coeff",
    "group_answer_length_penalty_coeff",
    "group_style_penalty_coeff",
    "default_score",
)


def read_gym_verdict(
    text: str, *, default_score: float = 3.0, default_ranking: float = EVEN
) -> Verdict | None:
    """The verdict that NeMo-Gym 0.7.0 reads, None where it falls back on its defaults.

    A missing value is a default, nothing is out of range, and the first object that can be read
    counts, whatever stood before it.
    """
    defaults = dict(zip(KEYS, (default_score, default_score, default_ranking), strict=True))
    for found in iter_objects(text):
        try:
            numbers = [float(found.get(key, defaults[key])) for key in KEYS]
        except (TypeError, ValueError, OverflowError):
            continue
        if all(map(math.isfinite, numbers)):
            return Verdict(*numbers)
    return None


def run_pairs(case: Case) -> Outcome:
    inputs = case["inputs"]
    found = choose_pairs(inputs["num_responses"], strategy=inputs["strategy"])
    return {"pairs": [[pair.first, pair.second] for pair in found]}


def run_parse(case: Case) -> Outcome:
    defaults = case["config"]
    found = read_gym_verdict(case["inputs"]["output"], **defaults)
    score, ranking = defaults["default_score"], defaults["default_ranking"]
    told = found or Verdict(score, score, ranking)
    return {**told.numbers, "parsed": found is not None}


def run_aggregate(case: Case) -> Outcome:
    inputs = case["inputs"]
    answers = [gym_answer(response) for response in inputs["response_objs"]]
    pairs = [Pair(*metadata) for metadata in inputs["comparison_metadata"]]
    verdicts = [Verdict(*result) for result in inputs["comparison_results"]]
    done = judge_aggregation.aggregate(answers, pairs, verdicts, aggregation(case["config"]))
    return {
        "rewards": done.rewards,
        "base_scores": done.base_scores,
        "bonuses": done.bonuses,
        "metrics": judge_aggregation.verdict_metrics(verdicts),
    }


def aggregation(config: Case) -> Aggregation:
    return Aggregation(**{name: config[name] for name in AGGREGATION if name in config})


def read_output(response: Mapping[str, Any]) -> tuple[str, str]:
    """Reasoning and final answer of a response: all summaries, and all ``output_text`` parts."""
    reasoning, answer = [], []
    items = response.get("output")
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, Mapping):
            continue
        if item.get("type") == "reasoning":
            reasoning += [part.get("text") or "" for part in item.get("summary") or ()]
        elif item.get("type") == "message" and isinstance(item.get("content"), list):
            answer += [
                part.get("text") or ""
                for part in item["content"]
                if part.get("type") == "output_text"
            ]
    return "".join(reasoning), "".join(answer)


def prompt_digest(given: Any, principle: str | None) -> str:
    """How NeMo-Gym names a prompt: SHA-256 of its ``input`` and its principle."""
    named = json.dumps({"input": given, "principle": principle}, sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


def gym_answer(response: Case) -> Answer:
    reasoning, text = read_output(response)
    return Answer(text, reasoning)


def run_extract(case: Case) -> Outcome:
    reasoning, text = read_output(case["inputs"]["response_obj"])
    return {"reasoning": reasoning, "text": text, "judge_text": shown(text)}


def run_style(case: Case) -> Outcome:
    text = case["inputs"]["text"]
    return {
        "counts": judge_aggregation.count_style(text),
        "density": judge_aggregation.style_density(text),
    }


def run_history(case: Case) -> Outcome:
    return {"history": responses_api.read_history(case["inputs"]["input"])}


def run_prompt_key(case: Case) -> Outcome:
    inputs = case["inputs"]
    return {"sha256": prompt_digest(inputs["input"], inputs["principle"])}


def run_messages(case: Case) -> Outcome:
    inputs, role = case["inputs"], case["config"]["supports_principle_role"]
    if not inputs["metadata"]:  # nothing to compare: the judge server passes it on
        return {"messages": inputs["messages"], "metadata_forwarded": False}
    question = Question(tuple(inputs["messages"]), **inputs["metadata"])
    return {
        "messages": ask_messages(question, form="genrm", principle_role=role),
        "metadata_forwarded": False,
    }


@dataclass
class Script:
    """An endpoint that answers each pair with its own replies, the last one again and again."""

    replies: Mapping[str, list[Any]]
    bodies: list[Case] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)

    async def request(self, method: str, path: str, body: Case, *, timeout: float) -> Outcome:
        shown = {message["role"]: message["content"] for message in body["messages"]}
        pair = f"{shown['response_1']}|{shown['response_2']}"
        self.bodies.append(body)
        number = self.asked[pair] = self.asked.get(pair, 0) + 1
        replies = self.replies[pair]
        reply = replies[min(number, len(replies)) - 1]
        if isinstance(reply, int):
            raise Fault(f"http_{reply}", "as scripted", permanent=reply in PERMANENT_STATUSES)
        if isinstance(reply, str):
            return completion(reply, "stop")
        text = read_output(reply)[1]
        return completion(text, "stop" if reply.get("status") == "completed" else "length")

    async def aclose(self) -> None:
        pass


def completion(text: str, reason: str) -> Outcome:
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


def run_compare(case: Case) -> Outcome:
    config, inputs = case["config"], case["inputs"]
    script, sleeps = Script(inputs["judge_script"]), []
    plan = ComparisonPlan(
        comparison_strategy=config["comparison_strategy"],
        num_judges_per_comparison=config["num_judges_per_comparison"],
        use_principle=config["use_principle"],
        default_principle=config["default_principle"],
    )
    patience = RetryPolicy(tries=config["genrm_parse_retries"] + 1)
    answers = [Answer(text) for text in inputs["responses"]]
    contest = AnswerGroup(
        "prompt", tuple(inputs["conversation_history"]), answers, inputs["principle"]
    )
    pairs = plan.pairs(len(answers))
    questions = [
        name_question(contest, pair, step=0, principle=plan.principle(contest.principle))
        for pair in pairs
    ]
    with JudgeClient(
        "http://127.0.0.1:1", retry_policy=patience, at_once=1, form="genrm", sleep=sleeps.append
    ) as client:
        client._http = script  # type: ignore[assignment]
        found = client.judge(questions, most_failures=len(questions))
    told = {
        "num_requests": len(script.bodies),
        "num_retry_sleeps": len(sleeps),
        "first_request": gym_request(script.bodies[0]),
    }
    verdicts = [gym_verdict(one, config) for one in found]
    if None in verdicts:
        return {"error": "JudgeError", **told}
    done = judge_aggregation.aggregate(answers, pairs, verdicts, aggregation(config))
    return {
        **told,
        "rewards": done.rewards,
        "metrics": judge_aggregation.verdict_metrics(verdicts),
        "comparison_results": [list(one.numbers.values()) for one in verdicts],
        "comparison_metadata": [list(vars(pair).values()) for pair in pairs],
    }


def gym_verdict(found: Verdict | JudgeFailure, config: Case) -> Verdict | None:
    """What Gym makes of a failure: its defaults where the judge did answer, else an error."""
    if isinstance(found, Verdict):
        return found
    score, ranking = config["default_score"], config["default_ranking"]
    return Verdict(score, score, ranking) if found.kinds[-1:] == ("unparseable",) else None


def gym_request(body: Case) -> Outcome:
    """The chat completion that was sent, as the request that Gym sends to its judge server."""
    special = ("response_1", "response_2", "principle")
    messages = body["messages"]
    return {
        "server": "genrm_model",
        "url": "/v1/responses",
        "input": [message for message in messages if message["role"] not in special],
        "metadata": {m["role"]: m["content"] for m in messages if m["role"] in special},
        "temperature": body["temperature"],
        "top_p": body["top_p"],
        "max_output_tokens": body["max_tokens"],
    }


CHECKS: dict[str, Callable[[Case], Outcome]] = {
    "pairs": run_pairs,
    "parse": run_parse,
    "aggregate": run_aggregate,
    "extract": run_extract,
    "style": run_style,
    "conversation_history": run_history,
    "prompt_key": run_prompt_key,
    "judge_messages": run_messages,
    "compare": run_compare,
}
