"""What a federation is measured against: the same adapter, trained on all cases pooled, or on each client's alone.

Both train on the same device as the federation, in the same rounds of a new optimiser each and with the same learning
rates. Each client alone takes the steps that it takes in the federation; the pooled one takes more, as it alone has to
read all cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from torch import Tensor

from fllm.config import RunConfig
from fllm.evaluation import Scores, bootstrap_interval, over_dies, scores_facts
from fllm.federation.task import Hospital
from fllm.model.adapters import get_adapter, set_adapter
from fllm.outcome import Evaluation, evaluate_everywhere
from fllm.preparation import Prepared, make_hospital, training_die

NAMES = {"centralised": "LoRA, centralised", "local": "LoRA, each client alone"}
"""Kind of baseline -> its name in reports."""


def key_of(kind: str) -> str:
    """Return the key of a baseline in ``result.json``."""
    return f"lora_{kind}"


def lora_baseline(kind: str, prepared: Prepared, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """Train and score one of the baselines.

    Args:
        kind: ``centralised`` or ``local``.
        prepared: The run. Its model has the adapter that it had before when this returns.
        on_stage: Is told what goes on.

    Returns:
        Name, accuracy and macro-F1 on the emulated hardware, means over its dies, and on the ideal device, with
        intervals; for ``local`` means over the clients' models as well, each scored on all test cases.
    """
    former = get_adapter(prepared.model)
    learners = [_pooled(prepared)] if kind == "centralised" else prepared.hospitals
    found = []
    for number, learner in enumerate(learners, start=1):
        name = NAMES[kind] + (f", {number} of {len(learners)}" if len(learners) > 1 else "")
        adapter = _trained(learner, prepared, lambda text, name=name: on_stage(f"{name}: {text}"))  # type: ignore[misc]
        on_stage(f"{name}: evaluating")
        found.append(_scored(adapter, prepared))
    set_adapter(prepared.model, former)
    return {"name": NAMES[kind], "kind": "lora"} | _facts(kind, found, prepared)


def _pooled(prepared: Prepared) -> Hospital:
    """Return one client that holds all training cases, on a chip of its own."""
    config, hospitals = prepared.config, prepared.hospitals
    training = replace(hospitals[0].training, steps=pooled_steps(config))
    prompts = prepared.encoded.of(prepared.cases.split.train)
    chips = lru_cache(1)(partial(training_die, config, prepared.device))
    return make_hospital(len(hospitals), prompts, prepared.bench, prepared.device, training, chips)


def pooled_steps(config: RunConfig) -> int:
    """Return the optimiser steps per round of the adapter that is trained on all cases."""
    return config.centralised_steps or 2 * config.local_steps


def _trained(learner: Hospital, prepared: Prepared, on_stage: Callable[[str], None]) -> Mapping[str, Tensor]:
    adapter: Mapping[str, Tensor] = prepared.first_adapter
    rounds = prepared.config.num_rounds
    for number in range(1, rounds + 1):
        on_stage(f"training, {number} of {rounds}")
        adapter = learner.train(adapter, number).adapter
    return adapter


def _scored(adapter: Mapping[str, Tensor], prepared: Prepared) -> Evaluation:
    set_adapter(prepared.model, adapter)
    return evaluate_everywhere(prepared)


def _facts(kind: str, found: list[Evaluation], prepared: Prepared) -> dict[str, Any]:
    config = prepared.config
    classes, seed = prepared.cases.corpus.task.classes, config.seed
    dies = [_summed_up(own.dies, classes, seed) for own in found]
    steps = config.local_steps if kind == "local" else pooled_steps(config)
    facts = _summed_up([score for own in found for score in own.dies], classes, seed) | {
        "ideal": _summed_up([own.ideal for own in found], classes, seed),
        "steps": config.num_rounds * steps,
    }
    if kind == "local":
        accuracies = [one["accuracy"] for one in dies]
        facts |= {
            "clients": [
                {"client": index, "accuracy": one["accuracy"], "macro_f1": one["macro_f1"]}
                for index, one in enumerate(dies)
            ],
            "min": min(accuracies),
            "max": max(accuracies),
        }
    return facts


def _summed_up(scores: list[Scores], classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Return means over models and dies, with intervals over the test cases."""
    if scores[0].truth is not None:
        return scores_facts(scores[0].truth, np.stack([one.chosen for one in scores]), classes, seed=seed)
    mean = over_dies(scores)
    interval = list(bootstrap_interval(mean.correct, seed=seed))
    return {
        "accuracy": mean.accuracy,
        "macro_f1": None,
        "perplexity": mean.perplexity,
        "interval_95": {"accuracy": interval},
    }
