"""What the numbers of the first screen mean: hardware against the ideal device, and the model against its baselines.

A difference is called clear only where an interval says so; of two numbers on the same test cases the paired difference
is told, where the result has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fllm.report.answer import Answer, answer
from fllm.report.formatting import between, interval, p_value, percent, points, points_between, score, significant
from fllm.report.standing import Bounds, Estimate, Standing, baseline, hardware_standing, pair
from fllm.report.task import accuracy_name, case_noun
from fllm.results import value_at

_QUESTIONS = {
    "lora_local": "Is federation better than going alone?",
    "lora_centralised": "What does federation cost?",
}
_LEVEL = 0.05  # [1] of a test, as in the intervals
_AGAINST = ("tfidf_logreg", "majority", "bigram", "unigram")


def findings(result: Mapping[str, Any]) -> list[str]:
    """Compare hardware with the ideal device, then the model on hardware with its baselines, one sentence each."""
    found = answer(result)
    sentences = [_against_ideal(found, result)] if found.accuracy_ideal is not None else []
    own = hardware_standing(result)
    for key, asked in _QUESTIONS.items():
        other = baseline(result, key)
        if other is not None:
            sentences.append(_other_training(asked, own, other, result))
    for key in _AGAINST:
        other = baseline(result, key)
        if other is not None:
            sentences.append(_against(own, other))
    return [sentence for sentence in sentences if sentence]


def _against_ideal(found: Answer, result: Mapping[str, Any]) -> str:
    """Compare hardware with the ideal device."""
    if found.accuracy_hardware is None or found.accuracy_ideal is None:
        return ""
    difference = 100 * (found.accuracy_hardware - found.accuracy_ideal)
    change = "the same accuracy as" if abs(difference) < 0.05 else f"{abs(difference):.1f} points {_side(difference)}"
    sentence = f"Emulated hardware: {change} the ideal device"
    if paired := _paired(result):
        return f"{sentence}; {paired}"
    if not found.interval_ideal or not found.interval_hardware:
        return f"{sentence}."
    apart = _apart(pair(found.interval_ideal), pair(found.interval_hardware))
    overlap = "do not overlap" if apart else "overlap, so they alone establish no difference"
    return f"{sentence}; their 95 % intervals {overlap}."


def _paired(result: Mapping[str, Any]) -> str:
    """Tell the paired difference with its interval, and McNemar's test on the first die."""
    difference = value_at(result, "final", "evaluation", "difference") or {}
    value, bounds = value_at(difference, "accuracy", "value"), pair(value_at(difference, "accuracy", "interval_95"))
    if value is None or bounds is None:
        return ""
    noun = case_noun(result)
    words = f"paired, {noun} by {noun}: {points(value)} points (95 % interval {points_between(bounds)})"
    tests = [row for row in difference.get("mcnemar") or [] if row.get("p_value") is not None]
    if tests:
        p = p_value(tests[0]["p_value"])
        words += f", exact McNemar p {p if p.startswith('<') else f'= {p}'} on die {tests[0].get('die', 0)}"
    if bounds[0] <= 0 <= bounds[1]:
        return f"{words}; zero lies inside, so no difference is established."
    if tests and min(test["p_value"] for test in tests) >= _LEVEL:
        return f"{words}; zero lies outside the interval, yet the exact test establishes no difference on any die."
    return f"{words}; zero lies outside the interval."


def _other_training(asked: str, own: Standing, other: Standing, result: Mapping[str, Any]) -> str:
    """Compare with the same adapter trained otherwise: macro-F1 counts rare classes as much as common ones."""
    both = (own["macro_f1"], other["macro_f1"])
    metric = "accuracy" if None in (both[0].value, both[1].value) else "macro_f1"
    mine, its = own[metric], other[metric]
    if mine.value is None or its.value is None:
        return ""
    name = "Macro-F1" if metric == "macro_f1" else accuracy_name(result)
    show = score if metric == "macro_f1" else percent
    ends = other.ranges.get(metric)
    among = ""
    if ends and other.num_clients > 1:
        shown = between(ends) if metric == "macro_f1" else interval(ends)
        among = f", mean of {other.num_clients} clients, {shown}"
    return (
        f"{asked} {name} on hardware {show(mine.value)} against {show(its.value)} ({other.name}{among}): "
        f"{_verdict(mine, its, fraction=metric != 'macro_f1')}"
    )


def _against(own: Standing, other: Standing) -> str:
    """Place the model on hardware against a baseline, by perplexity where it has one, or by accuracy."""
    metric = "accuracy" if other["perplexity"].value is None else "perplexity"
    mine, its = own[metric], other[metric]
    if mine.value is None or its.value is None:
        return ""
    shown = percent(its.value) if metric == "accuracy" else f"perplexity {significant(its.value)}"
    if mine.bounds is None:
        if metric == "accuracy":
            return ""
        return f"Against {_in_sentence(other.name)} ({shown}): {_side(mine.value - its.value)}; lower is better."
    better = "" if metric == "accuracy" else " Lower is better."
    verdict = _verdict(mine, its, fraction=metric == "accuracy")
    return f"Against {_in_sentence(other.name)} ({shown}): {verdict}{better}"


def _verdict(own: Estimate, other: Estimate, *, fraction: bool) -> str:
    """Say what the intervals allow to say; a number without an interval is taken as exact."""
    if own.bounds is None or own.value is None or other.value is None:
        return "there is no interval to tell how sure that is."
    shown = interval(own.bounds) if fraction else between(own.bounds)
    bounds = other.bounds or (other.value, other.value)
    if _apart(own.bounds, bounds):
        side, way = ("above", "higher") if own.bounds[0] > bounds[1] else ("below", "lower")
        if other.bounds is None:
            return f"clearly {side}; the whole interval on hardware ({shown}) lies {way}."
        return f"clearly {side}; the 95 % intervals do not overlap."
    if other.bounds is None:
        return f"not told apart; it lies inside the interval on hardware ({shown})."
    side = _side(own.value - other.value)
    return f"{side}, but not told apart; the 95 % intervals overlap."


def _apart(one: Bounds, two: Bounds) -> bool:
    return one is not None and two is not None and (one[1] < two[0] or two[1] < one[0])


def _side(difference: float) -> str:
    """Word for the sign of a difference."""
    return "below" if difference < 0 else "above"


def _in_sentence(name: str) -> str:
    """Write a baseline's name inside a sentence."""
    return f"the {name[0].lower()}{name[1:]}" if name.partition(" ")[0][1:].islower() else name
