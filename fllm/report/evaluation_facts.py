"""What the final evaluation says in words: how to read its numbers, calibration, clients, answers that were written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from fllm.report.answer import is_trained
from fllm.report.formatting import count, interval, p_value, percent, plural, significant
from fllm.report.tables import link_doi
from fllm.report.task import DEVICES, DIAGNOSIS, accuracy_name, case_noun, kind_of, own_adapters_line
from fllm.results import value_at

FEW_CASES = 30
"""Test cases of a class below which its recall is marked as uncertain: one case moves it by more than 3 points."""

_SOURCES = {
    "ece": "C. Guo et al., On calibration of modern neural networks, ICML 2017 (doi:10.48550/arXiv.1706.04599)",
    "brier": "G. W. Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78 "
    "(1950) 1",
    "mcnemar": "Q. McNemar, Psychometrika 12 (1947) 153 (doi:10.1007/BF02295996)",
    "bootstrap": "B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993 "
    "(doi:10.1007/978-1-4899-4541-9)",
    "rules": "P. Hager et al., Nature Medicine 30 (2024) 2613 (doi:10.1038/s41591-024-03097-1)",
}
"""Where the statistics of the section come from."""


def evaluation_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the evaluation of the last model; empty where the result has none."""
    return value_at(result, "final", "evaluation") or {}


def has_classes(result: Mapping[str, Any]) -> bool:
    """Whether the evaluation is one of classes."""
    return bool(value_at(evaluation_of(result), "ideal", "recall"))


def introduction(result: Mapping[str, Any]) -> str:
    """Say what the numbers of the section are and where their statistics come from."""
    noun = case_noun(result)
    model = "last model" if is_trained(result) else "given adapter"
    words = (
        f"The {model} on the {noun}s held out for the test. Hardware numbers are means over the simulated dies. "
        f"Intervals are 95 % intervals by the bootstrap over test {noun}s (Efron and Tibshirani 1993)"
    )
    if not has_classes(result):
        return f"{words}."
    return (
        f"{words}; that of the ECE allows for what chance adds to it. ECE, the expected calibration error, is the mean "
        "gap between confidence and accuracy over 15 bins (Guo et al. 2017); the Brier score is the squared error of "
        "all class probabilities (Brier 1950); NLL is the negative log-likelihood of the true class."
    )


def source_lines(result: Mapping[str, Any]) -> list[Markup]:
    """Cite the sources of the statistics that the section shows."""
    evaluation = evaluation_of(result)
    used = {
        "bootstrap": bool(evaluation),
        "ece": has_classes(result),
        "brier": has_classes(result),
        "mcnemar": bool(mcnemar_line(result)),
        "rules": bool(generation_line(result)) and kind_of(result) == DIAGNOSIS,
    }
    return [link_doi(_SOURCES[key]) for key, shown in used.items() if shown]


def evaluation_lines(result: Mapping[str, Any]) -> list[str]:
    """Say how the likelihoods were calibrated, what chance alone makes of the ECE, and how the clients differ."""
    evaluation = evaluation_of(result)
    lines = [_calibration_line(evaluation), _chance_line(evaluation)] if has_classes(result) else []
    lines += [own_adapters_line(result), _clients_line(result)]
    return [line for line in lines if line]


def mcnemar_line(result: Mapping[str, Any]) -> str:
    """Say what McNemar's test compares; empty where the result has none."""
    tests = value_at(evaluation_of(result), "difference", "mcnemar") or []
    if not tests:
        return ""
    noun = case_noun(result)
    line = (
        f"McNemar's test (1947, exact) looks only at {noun}s that one device answers rightly and the other wrongly: if "
        "the devices were equally good, each side would be as likely."
    )
    known = [row["p_value"] for row in tests if row.get("p_value") is not None]
    if len(known) > 1:
        line += (
            f" p < 0.05 on {sum(p < 0.05 for p in known)} of {len(known)} dies; smallest p: {p_value(min(known))}. "
            "Each p is that of one die, not corrected for their number."
        )
    return line


def generation_line(result: Mapping[str, Any]) -> str:
    """Say how written answers are scored and how many could not be read; empty where none were written."""
    generation = evaluation_of(result).get("generation") or {}
    if not generation:
        return ""
    rules = (
        "by the rules published with MIMIC-IV-Ext-CDM (Hager et al. 2024), asked of all classes"
        if kind_of(result) == DIAGNOSIS
        else "by the name of the class that it holds"
    )
    line = (
        f"The model also wrote its answers, on the ideal device and on the first die, and each was scored {rules}. An "
        "answer that names no class is unparsable and counts as wrong; one that names several is ambiguous."
    )
    if kind_of(result) == DIAGNOSIS:
        line += " Accuracy is by the gracious rules, which take a few descriptions more than the strict ones."
    shares = [
        f"{percent(value_at(generation, key, 'unparsable'))} on the {name}"
        for key, name in DEVICES.items()
        if value_at(generation, key, "unparsable") is not None
    ]
    return f"{line} Unparsable: {', '.join(shares)}." if shares else line


def small_classes(result: Mapping[str, Any]) -> list[str]:
    """Name the classes with so few test cases that their recall is uncertain."""
    recall = value_at(evaluation_of(result), "ideal", "recall") or {}
    return [name for name, found in recall.items() if (found.get("cases") or 0) < FEW_CASES]


def _calibration_line(evaluation: Mapping[str, Any]) -> str:
    calibration = evaluation.get("calibration") or {}
    kind = calibration.get("kind")
    if kind == "none":
        return "The likelihoods of the classes are used as they are, without calibration."
    if kind == "content_free":
        return (
            "Calibrated by content-free input: the likelihood that each class has without any text is taken off before "
            "the most likely one is chosen."
        )
    if kind != "temperature":
        return ""
    temperature = calibration.get("temperature") or {}
    found = [
        f"{significant(temperature[key])} on the {name}"
        for key, name in DEVICES.items()
        if temperature.get(key) is not None
    ]
    shown = f": {', '.join(found)}" if found else ""
    return f"Calibrated by one temperature, fitted on the validation cases{shown}. It changes no choice."


def _chance_line(evaluation: Mapping[str, Any]) -> str:
    """Say what ECE a perfectly calibrated model would have on so few cases."""
    found = [
        f"{significant(value_at(evaluation, key, 'ece', 'by_chance'))} on the {name}"
        for key, name in DEVICES.items()
        if value_at(evaluation, key, "ece", "by_chance") is not None
    ]
    if not found:
        return ""
    chance = "A finite test set gives even a perfectly calibrated model some ECE by chance"
    return f"{chance}: on average {' and '.join(found)}."


def _clients_line(result: Mapping[str, Any]) -> str:
    """Name the client for which the hardware does worst, and how far the clients lie apart."""
    found = value_at(evaluation_of(result), "hardware") or {}
    worst = found.get("worst_client") or {}
    known = [client for client in found.get("clients") or [] if client.get("accuracy") is not None]
    if worst.get("accuracy") is None or len(known) < 2:
        return ""
    cases = next((c.get("cases") for c in known if c.get("client") == worst.get("client")), None)
    own = f" on its {plural(cases, f'test {case_noun(result)}')}" if cases else ""
    ends = [min(c["accuracy"] for c in known), max(c["accuracy"] for c in known)]
    name = worst.get("name") or f"client {worst.get('client')}"
    return (
        f"Worst client on hardware: {name} with {percent(worst['accuracy'])}{own}; the clients range from "
        f"{interval(ends)} of {accuracy_name(result).lower()}, a spread of {100 * (ends[1] - ends[0]):.1f} points over "
        f"{count(len(known))} clients. Small test sets spread by chance alone."
    )
