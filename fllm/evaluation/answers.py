"""What a result says about written answers: how many name the right class, and how many name none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fllm.evaluation import metrics
from fllm.evaluation.facts import recall_facts, scores_facts
from fllm.evaluation.intervals import over_redraws
from fllm.evaluation.rules import Reading, read_class, read_diagnosis


def generation_facts(
    texts: Sequence[str], truth: ArrayLike, classes: Sequence[str], *, seed: int, kind: str, smallest_cell: int = 0
) -> dict[str, Any]:
    """Score written answers; the result holds numbers alone.

    Args:
        texts: What the model wrote about each case.
        truth: (cases,) true classes.
        classes: Names of the classes.
        seed: Key of the redraws of the test cases.
        kind: ``diagnosis`` for the published rules, anything else for the names of the classes.
        smallest_cell: Classes of fewer cases than this have no recall.

    Returns:
        Accuracy, macro-F1 and recalls with intervals, by the gracious rules; the accuracy by the strict ones; share and
        number of answers that name no class, which count as wrong; number of those that name more than one.
    """
    readings = _read(texts, classes, kind, gracious=True)
    chosen = _indices(readings, classes)
    strict = _indices(_read(texts, classes, kind, gracious=False), classes)
    nothing, truth = int((chosen < 0).sum()), np.asarray(truth)
    recalls = over_redraws(
        lambda weights: {"recall": metrics.recalls(truth, chosen, len(classes), weights)}, len(texts), seed=seed
    )["recall"]  # fmt: skip
    return scores_facts(truth, chosen, classes, seed=seed) | {
        "accuracy_strict": float(metrics.accuracy(truth, strict, np.ones((1, len(texts))))[0]),
        "unparsable": nothing / len(texts),
        "unparsable_count": nothing,
        "ambiguous_count": sum(reading.ambiguous for reading in readings),
        "recall": recall_facts(recalls, truth, classes, smallest_cell=smallest_cell),
    }


def _read(texts: Sequence[str], classes: Sequence[str], kind: str, *, gracious: bool) -> list[Reading]:
    if kind == "diagnosis":
        return [read_diagnosis(text, gracious=gracious) for text in texts]
    return [read_class(text, classes) for text in texts]


def _indices(readings: Sequence[Reading], classes: Sequence[str]) -> np.ndarray:
    """Return the class of each reading, -1 where it has none."""
    return np.array([-1 if reading.label is None else list(classes).index(reading.label) for reading in readings])
