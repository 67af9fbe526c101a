"""What chips cost and what training on many of them gives: accuracies of the same cases on several chips, paired.

Redraws are of test cases alone, and alike for all chips, so that differences are paired case by case. How much one chip
differs from another is told beside them, as a standard deviation over chips.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fllm.data.small_cells import hide_small_totals
from fllm.evaluation.intervals import over_redraws, percentile_interval, share_interval
from fllm.evaluation.metrics import Array, mean_over_cases
from fllm.evaluation.scores import Scores


@dataclass(frozen=True, eq=False)
class ChipScores:
    """One model on several chips, on the same cases everywhere.

    Attributes:
        ideal: On the ideal device.
        own: On the chips of clients, by client.
        unseen: On chips that no client has.
    """

    ideal: Scores
    own: Mapping[int, Scores] = field(default_factory=dict)
    unseen: Sequence[Scores] = ()

    def on(self, clients: Sequence[int]) -> list[Scores]:
        """Return the scores on the chips of some clients."""
        return [self.own[client] for client in clients]


def chip_facts(found: ChipScores, client_of: Sequence[int], *, seed: int, smallest_cell: int = 0) -> dict[str, Any]:
    """Describe one model chip by chip.

    Args:
        found: Its scores.
        client_of: (cases,) client that each test case belongs to.
        seed: Key of the redraws.
        smallest_cell: Clients with fewer test cases than this are not spoken of.

    Returns:
        ``ideal``, ``clients``, ``own`` (mean over clients' chips), ``home`` (each case on the chip of its own client),
        ``unseen`` and ``own_minus_unseen``. A cost is the accuracy on the ideal device less that on the chip.
    """
    means = _means({"ideal": [found.ideal], "own": list(found.own.values()), "unseen": list(found.unseen)}, seed)
    owners = np.asarray(client_of)
    facts: dict[str, Any] = {"ideal": _share(means["ideal"], owners)}
    facts["unseen"] = _over_chips(means, "unseen", found.unseen, owners)
    if facts["unseen"] is not None:
        each = _means({"ideal": [found.ideal]} | {str(n): [one] for n, one in enumerate(found.unseen)}, seed)
        facts["unseen"]["chips"] = [_on_chip(each, str(n), owners) for n in range(len(found.unseen))]
    facts["own"] = _over_chips(means, "own", list(found.own.values()), owners)
    facts["clients"] = _clients(found, owners, seed, smallest_cell)
    facts["home"] = facts["own_minus_unseen"] = None
    if found.own:
        home = _means({"ideal": [found.ideal], "home": [_at_home(found, owners)]}, seed)
        cost = _difference(home["ideal"] - home["home"])
        facts["home"] = {"accuracy": _share(home["home"], owners), "cost": cost}
        facts["own_minus_unseen"] = _difference(means["own"] - means["unseen"])
    return facts


def gain_facts(federated: Sequence[Scores], others: Sequence[Scores], *, seed: int) -> dict[str, Any] | None:
    """Compare the federated model with one or more others on chips; None where there are no chips.

    Args:
        federated: The federated model on these chips.
        others: Others on them.
        seed: Key of the redraws.

    Returns:
        ``accuracy`` of the others and of the ``federated`` model, means over the chips, and the ``gain`` by the latter.
    """
    if not federated or not others:
        return None
    means = _means({"federated": federated, "others": others}, seed)
    cases = np.zeros(len(federated[0].correct))
    return {
        "accuracy": _share(means["others"], cases),
        "federated": _share(means["federated"], cases),
        "gain": _difference(means["federated"] - means["others"]),
    }


def difference_facts(first: Sequence[Scores], second: Sequence[Scores], *, seed: int) -> dict[str, Any] | None:
    """Return how much better the first scores are than the second in the mean; None where either is missing."""
    if not first or not second:
        return None
    means = _means({"first": first, "second": second}, seed)
    return _difference(means["first"] - means["second"])


def _clients(found: ChipScores, owners: NDArray[np.int64], seed: int, smallest_cell: int) -> list[dict[str, Any]]:
    chips = sorted(found.own)
    groups = {"ideal": [found.ideal]} | {str(client): [found.own[client]] for client in chips}
    means = _means(groups, seed)
    shown = hide_small_totals([int((owners == client).sum()) for client in chips], smallest_cell)
    rows: list[dict[str, Any]] = []
    for client, cases in zip(chips, shown, strict=True):
        mine = owners == client
        own = _means({"own": [found.own[client]]}, seed, mine)["own"] if cases else None
        rows.append(
            {"client": client}
            | _on_chip(means, str(client), owners)
            | {
                "cases": cases,
                "own_cases": None if own is None else _share(own, owners[mine]),
            }
        )
    return rows


def _over_chips(
    means: Mapping[str, Array], name: str, chips: Sequence[Scores], owners: NDArray[np.int64]
) -> dict[str, Any] | None:
    """Describe the mean over chips and how they spread; None without chips."""
    if not chips:
        return None
    accuracies = [one.accuracy for one in chips]
    return {
        **_on_chip(means, name, owners),
        "std": statistics.stdev(accuracies) if len(chips) > 1 else None,
        "min": min(accuracies),
        "max": max(accuracies),
    }


def _on_chip(means: Mapping[str, Array], name: str, owners: NDArray[np.int64]) -> dict[str, Any]:
    """Return an accuracy and what it lacks of that on the ideal device."""
    return {"accuracy": _share(means[name], owners), "cost": _difference(means["ideal"] - means[name])}


def _at_home(found: ChipScores, owners: NDArray[np.int64]) -> Scores:
    """Return scores of which each case's own client's chip decides."""
    correct = np.asarray(found.ideal.correct, dtype=float)
    for client, scores in found.own.items():
        correct[owners == client] = np.asarray(scores.correct)[owners == client]
    return Scores(float("nan"), None, float("nan"), tuple(correct.tolist()), losses=found.ideal.losses)


def _means(
    groups: Mapping[str, Sequence[Scores]], seed: int, mine: NDArray[np.bool_] | None = None
) -> dict[str, Array]:
    """Return the mean accuracy of each group of scores on the test set and its redraws, (1 + draws,).

    Accuracy is linear in the cases, so the mean over chips is that of each case's mean.
    """
    first = next(iter(groups.values()))[0]
    sizes = first.losses[:, 1] if first.log_likelihoods is None and first.losses is not None else None
    chosen = np.ones(len(first.correct), dtype=bool) if mine is None else mine
    shares = {name: np.mean([one.correct for one in each], axis=0) for name, each in groups.items() if len(each)}

    def measure(weights: Array) -> dict[str, Array]:
        size = None if sizes is None else sizes[chosen]
        return {name: mean_over_cases(share[chosen], weights[:, chosen], size) for name, share in shares.items()}

    return over_redraws(measure, len(first.correct), seed=seed)


def _share(values: Array, cases: NDArray[Any]) -> dict[str, Any]:
    interval = share_interval(values, len(cases))
    return {"value": float(values[0]), "interval_95": None if interval is None else list(interval)}


def _difference(values: Array) -> dict[str, Any]:
    interval = percentile_interval(values)
    return {"value": float(values[0]), "interval_95": None if interval is None else list(interval)}
