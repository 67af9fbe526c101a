"""The example's result turned into one of another task: language modelling, and a classification into many classes."""

import copy
from typing import Any

Result = dict[str, Any]

CLASSES = [f"c{i}" if i % 3 == 0 else f"disorders of a rather long name, type {i}" for i in range(30)]
ABSENT = CLASSES[4]
"""A class without a test text."""


def language(result: Result) -> Result:
    """Return a result of language modelling: next-token accuracy and perplexity, no classes."""
    made = copy.deepcopy(result)
    made["task"] = {"kind": "language", "classes": [], "cue": ""}
    made["baselines"] = {
        "unigram": {"name": "frequencies of tokens", "kind": "constant", "accuracy": 0.05, "perplexity": 950.0},
        "bigram": {"name": "frequencies of token pairs", "kind": "counts", "accuracy": 0.2, "perplexity": 68.0},
        "lora_centralised": {
            "name": "LoRA, centralised", "kind": "lora", "accuracy": 0.36, "macro_f1": None, "perplexity": 17.5,
            "ideal": {"accuracy": 0.362, "macro_f1": None, "perplexity": 17.4}, "steps": 60,
        },
    }  # fmt: skip
    evaluation = made["final"]["evaluation"]
    for device, accuracy, perplexity in (("ideal", 0.352, 18.2), ("hardware", 0.348, 18.6)):
        clients = [client | {"macro_f1": None} for client in evaluation[device]["clients"]]
        evaluation[device] = {
            "accuracy": {"value": accuracy, "interval_95": [accuracy - 0.01, accuracy + 0.01]},
            "perplexity": {"value": perplexity, "interval_95": [perplexity - 0.5, perplexity + 0.5]},
            "bits_per_byte": {"value": perplexity / 18, "interval_95": None},
            "macro_f1": None,
            "clients": clients,
            "worst_client": evaluation[device]["worst_client"],
            "client_spread": 0.1,
        }
        made["final"][f"accuracy_{device}"] = accuracy
    difference = {"accuracy": {"value": -0.004, "interval_95": [-0.006, -0.002]}, "macro_f1": None, "mcnemar": []}
    evaluation |= {"difference": difference, "generation": None, "calibration": {"kind": "none", "temperature": None}}
    for row in made["rounds"]:
        row["ideal"]["macro_f1"] = None
        row["hardware"]["macro_f1"] = {"mean": None, "std": None, "dies": 2}
    for counted in (made["data"], *made["data"]["clients"]):
        counted |= {"label_counts": {}, "test_label_counts": {}}
    made["data"] |= {"fields": [], "truncation": None}
    return made


def many_classes(result: Result) -> Result:
    """Return a result of 30 classes, some with long names, one absent from the test, dealt to 16 clients."""
    made = copy.deepcopy(result)
    made["task"] = {"kind": "classification", "classes": CLASSES, "cue": "class:"}
    cases = {name: 0 if name == ABSENT else 10 + index for index, name in enumerate(CLASSES)}
    for device in ("ideal", "hardware"):
        found = made["final"]["evaluation"][device]
        found["recall"] = {
            name: {"value": 0.5 if number else None, "interval_95": [0.4, 0.6] if number else None, "cases": number}
            for name, number in cases.items()
        }
        found["confusion"] = [
            [number / 2 if column in (row, (row + 1) % 30) else 0.0 for column in range(30)]
            for row, number in enumerate(cases.values())
        ]
        found["clients"] = [
            {"client": i, "name": f"site {i}", "cases": None, "accuracy": None, "interval_95": None, "macro_f1": None}
            for i in range(16)
        ]
        found["worst_client"] = None
    made["final"]["evaluation"]["generation"] = None
    own = {name: 1 + number for name, number in cases.items()}
    made["data"]["clients"] = [
        {"client": i, "name": f"a site with a rather long name, number {i}", "num_train": sum(own.values()),
         "num_test": 30, "label_counts": own, "test_label_counts": cases}
        for i in range(16)
    ]  # fmt: skip
    made["data"] |= {"label_counts": own, "test_label_counts": cases}
    return made


def without_numbers(result: Result) -> Result:
    """Return a result whose evaluation and baselines know no number."""
    made = copy.deepcopy(result)
    for part in ("ideal", "hardware", "difference", "generation"):
        _forget(made["final"]["evaluation"][part])
    _forget(made["baselines"])
    for key in ("truncation", "split", "partition", "cues", "warnings"):
        made["data"][key] = None
    return made


def _forget(found: dict[str, Any]) -> None:
    for key, value in found.items():
        if isinstance(value, dict):
            _forget(value)
        elif key not in ("name", "kind"):
            found[key] = None
