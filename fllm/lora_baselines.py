"""What a federation is measured against: the same adapter, trained on all cases pooled, or on each client's alone.

Both train on the same device as the federation, in the same rounds of a new optimiser each and with the same learning
rates. Each client alone takes the steps that it takes in the federation; the pooled one takes more, as it alone has to
read all cases. A third kind is the federation itself with all clients on one chip (:mod:`fllm.one_chip`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from torch import Tensor

from fllm.chip_table import local_facts, one_chip_facts, others_of, score_on_chips
from fllm.config import RunConfig
from fllm.evaluation import Scores, bootstrap_interval, over_dies, scores_facts
from fllm.evaluation.chips import ChipScores
from fllm.federation.task import Hospital
from fllm.model.adapters import get_adapter, set_adapter
from fllm.one_chip import CLIENT, train_on_one_chip
from fllm.outcome import Evaluation, evaluate_everywhere
from fllm.preparation import Prepared, make_hospital, training_die

NAMES = {
    "centralised": "LoRA, centralised",
    "local": "LoRA, each client alone",
    "one_chip": "LoRA, federated on one chip",
}
"""Kind of baseline -> its name in reports."""


def key_of(kind: str) -> str:
    """Return the key of a baseline in ``result.json``."""
    return f"lora_{kind}"


def lora_baseline(
    kind: str, prepared: Prepared, on_stage: Callable[[str], None], chips: ChipScores | None = None
) -> dict[str, Any]:
    """Train and score one of the baselines.

    Args:
        kind: ``centralised``, ``local`` or ``one_chip``.
        prepared: The run. Its model has the adapter that it had before when this returns.
        on_stage: Is told what goes on.
        chips: The federation's model chip by chip, to compare with; None compares no chips.

    Returns:
        Name, accuracy and macro-F1 on the emulated hardware, means over its dies, and on the ideal device, with
        intervals; for ``local`` means over the clients' models as well, each scored on all test cases. ``chips``
        where chips are compared.
    """
    former = get_adapter(prepared.model)
    learners = _learners(kind, prepared)
    found, on_chips = [], []
    for number, learn in enumerate(learners, start=1):
        name = NAMES[kind] + (f", {number} of {len(learners)}" if len(learners) > 1 else "")
        tell = partial(_tell, on_stage, name)
        adapter = learn(tell)
        tell("evaluating")
        found.append(_scored(adapter, prepared))
        if chips is not None and kind != "centralised":
            clients = None if kind == "one_chip" else [number - 1, *others_of(number - 1, prepared)]
            unseen = len(chips.unseen) if kind == "one_chip" else 0
            on_chips.append(score_on_chips(prepared, found[-1], tell, clients=clients, unseen=unseen))
    set_adapter(prepared.model, former)
    facts = {"name": NAMES[kind], "kind": "lora"} | _facts(kind, found, prepared)
    if chips is not None and chips.own and kind == "one_chip":
        facts["chips"] = one_chip_facts(chips, on_chips[0], prepared, CLIENT)
    if chips is not None and chips.own and kind == "local":
        facts["chips"] = local_facts(chips, on_chips, prepared)
    return facts


def _tell(on_stage: Callable[[str], None], name: str, text: str) -> None:
    on_stage(f"{name}: {text}")


def _learners(kind: str, prepared: Prepared) -> list[Callable[[Callable[[str], None]], Mapping[str, Tensor]]]:
    """Return what trains each adapter of a baseline."""
    if kind == "one_chip":
        return [partial(train_on_one_chip, prepared)]
    hospitals = [_pooled(prepared)] if kind == "centralised" else prepared.hospitals
    return [partial(_trained, hospital, prepared) for hospital in hospitals]


def _pooled(prepared: Prepared) -> Hospital:
    """Return one client that holds all training cases, on a chip of its own; it trains without privacy."""
    config, hospitals = prepared.config, prepared.hospitals
    training = replace(hospitals[0].training, steps=pooled_steps(config))
    prompts = prepared.encoded.of(prepared.cases.split.train)
    chips = lru_cache(1)(partial(training_die, config, prepared.device))
    return make_hospital(len(hospitals), prompts, prepared.bench, prepared.device, training, chips, private=False)


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
    steps = {
        "centralised": pooled_steps(config), "local": config.local_steps,
        "one_chip": config.local_steps * config.asked,
    }[kind]  # fmt: skip
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
