"""Who holds what: the numbers of each client, and how far their mixes of classes lie apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fllm.data.corpus import Example
from fllm.data.partition import Client, PartitionRule
from fllm.data.small_cells import hide_small_cells, hide_small_totals


def label_counts(
    examples: Sequence[Example], classes: Sequence[str], *, smallest_cell: int = 0
) -> dict[str, int | None]:
    """Count the examples of each class.

    Args:
        examples: The examples.
        classes: Names of the classes.
        smallest_cell: The smallest count that may be shown; smaller ones are None, and what would tell them.
    """
    shown = hide_small_totals(_counts(examples, len(classes)), smallest_cell)
    return dict(zip(classes, shown, strict=True))


def _counts(examples: Sequence[Example], num_classes: int) -> list[int]:
    found = Counter(example.label for example in examples)
    return [found[label] for label in range(num_classes)]


def js_divergence(tables: Sequence[Sequence[int]]) -> float:
    r"""Return the mean Jensen-Shannon divergence of clients' label mixes from the pooled one [bit].

    .. math:: \frac{1}{K} \sum_k H\big(\tfrac{1}{2}(p_k + p)\big) - \tfrac{1}{2} H(p_k) - \tfrac{1}{2} H(p)

    Args:
        tables: Counts of each class, one row for each client that has any.

    Source: Lin, IEEE Trans. Inf. Theory 37, 145 (1991), equation 4.1 with equal weights.
    """
    counts = np.array(tables, dtype=float)
    mixes = counts / counts.sum(axis=1, keepdims=True)
    pooled = counts.sum(axis=0) / counts.sum()
    found = _entropy((mixes + pooled) / 2) - _entropy(mixes) / 2 - _entropy(pooled) / 2
    return max(0.0, float(found.mean()))


def _entropy(mix: np.ndarray) -> np.ndarray:
    """Entropy over the last axis [bit]."""
    return -np.sum(mix * np.log2(np.where(mix > 0, mix, 1.0)), axis=-1)


def partition_facts(
    clients: Sequence[Client], classes: Sequence[str], rule: PartitionRule, *, smallest_cell: int = 0
) -> dict[str, Any]:
    """Describe who holds what, as JSON, without text or keys.

    Args:
        clients: All clients.
        classes: Names of the classes; none for language modelling.
        rule: How the clients came about.
        smallest_cell: The smallest number of patients that may be shown. Smaller ones are None, and so are those that
            would tell them (:mod:`fllm.data.small_cells`); then the divergence has two digits.
    """
    train = [_counts(client.train, len(classes)) for client in clients]
    test = [_counts(client.test, len(classes)) for client in clients]
    divergence = js_divergence(train) if classes else None
    shown = zip(
        clients,
        hide_small_totals([len(client.train) for client in clients], smallest_cell),
        hide_small_totals([len(client.test) for client in clients], smallest_cell),
        hide_small_cells(train, smallest_cell),
        hide_small_cells(test, smallest_cell),
        strict=True,
    )
    return {
        "name": rule.name,
        "rule": _sentence(rule, clients),
        "alpha": rule.alpha if rule.name == "dirichlet" else None,
        "js_divergence": round(divergence, 2) if divergence is not None and smallest_cell > 1 else divergence,
        "clients": [
            {
                "client": index,
                "name": client.name,
                "num_train": num_train,
                "num_test": num_test,
                "label_counts": dict(zip(classes, own, strict=True)),
                "test_label_counts": dict(zip(classes, tested, strict=True)),
            }
            for index, (client, num_train, num_test, own, tested) in enumerate(shown)
        ],
    }


def _sentence(rule: PartitionRule, clients: Sequence[Client]) -> str:
    grouped = all(example.group is not None for client in clients for example in (*client.train, *client.test))
    if rule.name == "hospital" and not grouped:
        return "equal random sites, as the data name no groups"
    return {
        "hospital": "by group (hospital, folder or client column); the two smallest are merged while there are too "
        "many, the largest is cut at random while there are too few",
        "iid": "equal random sites with equal shares of each class",
        "dirichlet": f"sites of equal size, each with classes drawn from a mix q ~ Dir({rule.alpha:g} p) about the "
        "pooled one p",
        "age": "by age; the smallest band is merged with its smaller neighbour while there are too many, the largest "
        "is cut at random while there are too few",
    }[rule.name]
