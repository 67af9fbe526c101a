"""Which client holds which examples: by hospital, at random, by a skewed draw of labels, or by age.

Training examples decide who the clients are; a client's test examples are those of the same group, age or mix. What
validates stays with nobody. Every example of the training and the test set goes to exactly one client.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from device_models.errors import InputError
from fllm.data.corpus import Example
from fllm.data.draws import keyed_generator
from fllm.data.splits import Split, shuffled, sorted_by_key

PartitionName = Literal["hospital", "iid", "dirichlet", "age"]

AGE_BANDS: tuple[int, ...] = (18, 30, 45, 65, 80)
"""Lowest ages of the bands 18-29, 30-44, 45-64, 65-79 and 80+ [years]."""

UNKNOWN_AGE = "age unknown"


@dataclass(frozen=True)
class PartitionRule:
    """How examples are dealt to clients.

    Attributes:
        name: ``hospital`` (by group), ``iid``, ``dirichlet`` (over the labels) or ``age`` (in bands).
        alpha: Concentration of ``dirichlet`` [1]: 0.1 is extreme, 100 nearly none.
        least: Fewest training examples of a client under ``dirichlet``.
    """

    name: PartitionName = "hospital"
    alpha: float = 1.0
    least: int = 10


@dataclass(frozen=True)
class Client:
    """One client: its name, and the examples that it holds, sorted by key."""

    name: str
    train: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)


@dataclass(frozen=True)
class _Group:
    """Examples that stay together as long as there are enough clients."""

    name: str
    train: list[Example] = field(repr=False)
    test: list[Example] = field(repr=False)


def partition(split: Split, rule: PartitionRule, *, num_clients: int, seed: int) -> list[Client]:
    """Deal the training and test examples of a split to clients.

    ``hospital``: one client per group; the two smallest groups are merged (``"a+b"``) while there are too many, the
    group with the largest pieces is cut once more at random (``"a a"``, ``"a b"``) while there are too few. Test
    examples of a group that nobody trains on go to the smallest client. Without groups the examples go to equal random
    ``"site 1"``, ``"site 2"``, ...

    ``iid``: equal random sites with equal shares of each class.

    ``dirichlet``: sites of equal size, each with a mix of classes q ~ Dir(alpha p), where p is the mix of all. So that
    every example goes somewhere, the table of sites by classes is scaled to the true sums of both. Test examples of a
    class are shared out as its training examples are.

    ``age``: as hospitals, with the bands of ages as groups; a band is merged with its smaller neighbour. Unknown ages
    are a group of their own, which is merged last.

    Source: q ~ Dir(alpha p) of Hsu, Qi and Brown 2019 (arXiv 1909.06335) and FedNLP (Lin et al. 2022).

    Raises:
        InputError: If there are fewer training examples than clients, or no clients; if ``dirichlet`` has no classes,
            an alpha that is no positive number, or too few examples; or if no age is known.
    """
    count = len(split.train)
    if not 1 <= num_clients <= count:
        raise InputError("number of clients", expected=f"1 to the number of cases, {count}", received=num_clients)
    if rule.name == "dirichlet":
        return _dirichlet(split, rule, num_clients, seed)
    if rule.name == "iid":
        return _sites(split, num_clients, seed, by_class=True)
    if rule.name == "age":
        return _cut(_age_groups(split, num_clients), num_clients, seed)
    if any(example.group is None for example in (*split.train, *split.test)):
        return _sites(split, num_clients, seed, by_class=False)
    groups = [_Group(name, *parts) for name, parts in _grouped(split, lambda example: str(example.group)).items()]
    return _cut(_merged(groups, num_clients), num_clients, seed)


def _grouped(split: Split, name_of: Callable[[Example], str]) -> dict[str, tuple[list[Example], list[Example]]]:
    """Return training and test examples by name; those that only test go with the smallest group that trains."""
    groups: dict[str, tuple[list[Example], list[Example]]] = defaultdict(lambda: ([], []))
    for example in split.train:
        groups[name_of(example)][0].append(example)
    smallest = min(groups, key=lambda name: (len(groups[name][0]), name))
    for example in split.test:
        name = name_of(example)
        groups[name if name in groups else smallest][1].append(example)
    return dict(sorted(groups.items()))


def _merged(groups: list[_Group], num_clients: int) -> list[_Group]:
    while len(groups) > num_clients:
        small, other, *rest = sorted(groups, key=lambda group: (len(group.train), group.name))
        name = "+".join(sorted([*small.name.split("+"), *other.name.split("+")]))
        groups = [*rest, _Group(name, small.train + other.train, small.test + other.test)]
    return sorted(groups, key=lambda group: group.name)


def _cut(groups: list[_Group], num_clients: int, seed: int) -> list[Client]:
    count = [1] * len(groups)
    while sum(count) < num_clients:
        largest = max(range(len(groups)), key=lambda i: (len(groups[i].train) / count[i], -i))
        count[largest] += 1
    clients = []
    for group, pieces in zip(groups, count, strict=True):
        train = _dealt(shuffled(group.train, seed, "cut", group.name), pieces)
        test = _dealt(shuffled(group.test, seed, "cut test", group.name), pieces)
        suffixes = [""] if pieces == 1 else [f" {_letters(i)}" for i in range(pieces)]
        clients += [Client(group.name + suffix, *parts) for suffix, *parts in zip(suffixes, train, test, strict=True)]
    return clients


def _letters(index: int) -> str:
    """Count a, b, ..., z, aa, ab, ..."""
    text = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        text = chr(ord("a") + letter) + text
    return text


def _dealt(examples: Sequence[Example], count: int) -> list[tuple[Example, ...]]:
    """Deal examples out in turn, so that sizes differ by one at most."""
    return [sorted_by_key(examples[i::count]) for i in range(count)]


def _sites(split: Split, num_clients: int, seed: int, *, by_class: bool) -> list[Client]:
    """Deal examples to equal sites; ``by_class`` deals one class after the other."""
    parts = []
    for examples, word in ((split.train, "sites"), (split.test, "sites test")):
        mixed = shuffled(examples, seed, word)
        if by_class:
            mixed.sort(key=lambda example: -1 if example.label is None else example.label)
        parts.append(_dealt(mixed, num_clients))
    return [_site(i, train, test) for i, (train, test) in enumerate(zip(*parts, strict=True))]


def _site(index: int, train: Iterable[Example], test: Iterable[Example]) -> Client:
    return Client(f"site {index + 1}", sorted_by_key(train), sorted_by_key(test))


def _dirichlet(split: Split, rule: PartitionRule, num_clients: int, seed: int) -> list[Client]:
    _check_dirichlet(split, rule, num_clients)
    pools, tested = _by_label(split.train, seed, "dirichlet"), _by_label(split.test, seed, "dirichlet test")
    shares = _whole_shares([len(pool) for pool in pools.values()], rule.alpha, num_clients, seed)
    train: list[list[Example]] = [[] for _ in range(num_clients)]
    test: list[list[Example]] = [[] for _ in range(num_clients)]
    for column, (label, pool) in enumerate(pools.items()):
        ends = np.cumsum(shares[:, column])
        _share_out(pool, ends, train)
        # The nearest whole numbers to the same cumulative shares
        own = tested.pop(label, [])
        _share_out(own, np.floor(ends / len(pool) * len(own) + 0.5).astype(int), test)
    for left in tested.values():  # classes that nobody trains on
        _share_out(left, np.arange(1, num_clients + 1) * len(left) // num_clients, test)
    return [_site(i, *parts) for i, parts in enumerate(zip(train, test, strict=True))]


def _check_dirichlet(split: Split, rule: PartitionRule, num_clients: int) -> None:
    if any(example.label is None for example in (*split.train, *split.test)):
        remedy = "choose iid, or hospital"
        raise InputError("texts without classes", where="partition dirichlet", expected="labels", remedy=remedy)
    if not (math.isfinite(rule.alpha) and rule.alpha > 0.0):
        raise InputError("alpha", where="partition dirichlet", expected="a number above 0", received=rule.alpha)
    each = len(split.train) // num_clients
    if each < rule.least:
        raise InputError(
            "too few training examples for each client",
            where="partition dirichlet",
            expected=f"{rule.least} or more",
            received=each,
            remedy="ask for fewer clients, or bring more data",
        )


def _by_label(examples: Sequence[Example], seed: int, word: str) -> dict[int, list[Example]]:
    labels = sorted({example.label for example in examples if example.label is not None})
    return {label: shuffled((e for e in examples if e.label == label), seed, word, label) for label in labels}


def _whole_shares(available: Sequence[int], alpha: float, num_clients: int, seed: int) -> np.ndarray:
    """Return how many of each class every client gets: rows of equal sums, to one, and columns of ``available``.

    There are no more clients than examples.
    """
    total = sum(available)
    prior = np.array(available) / total
    rows = np.array([total // num_clients + (i < total % num_clients) for i in range(num_clients)])
    mixes = np.array([_log_dirichlet(alpha * prior, keyed_generator(seed, "mix", i)) for i in range(num_clients)])
    return _rounded(_proportional(mixes, rows, np.array(available)), rows, np.array(available))


def _log_dirichlet(concentration: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the logarithm of a Dirichlet variate, up to a constant; no share is lost to underflow.

    Source: a gamma variate of shape a is one of shape a + 1 times u^(1/a) (Marsaglia and Tsang 2000, section 6).
    """
    gammas = rng.standard_gamma(concentration + 1.0)
    return np.log(gammas) + np.log(1.0 - rng.random(len(concentration))) / concentration


def _proportional(log_table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Scale rows and columns of a table until they have the sums asked for; ratios of ratios stay as they are.

    Approximation: 10,000 steps at most, after which the sums of columns may be off; rounding puts them right.

    Source: iterative proportional fitting (Deming and Stephan 1940).
    """
    for _ in range(10_000):
        log_table = log_table + np.log(columns) - np.logaddexp.reduce(log_table, axis=0)
        correction = np.log(rows) - np.logaddexp.reduce(log_table, axis=1)
        log_table = log_table + correction[:, None]
        if np.abs(correction).max() < 1e-6:
            break
    return np.exp(log_table)


def _rounded(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Round a table to whole numbers with exactly these sums of rows and columns."""
    whole = np.floor(table).astype(int)
    for column in np.flatnonzero(whole.sum(axis=0) > columns):
        while whole[:, column].sum() > columns[column]:
            whole[np.argmax(whole[:, column]), column] -= 1
    while (open_rows := rows - whole.sum(axis=1)).any():
        open_columns = columns - whole.sum(axis=0)
        missing = np.where(np.outer(open_rows > 0, open_columns > 0), table - whole, -np.inf)
        whole[np.unravel_index(np.argmax(missing), missing.shape)] += 1
    return whole


def _share_out(examples: Sequence[Example], ends: np.ndarray, held: Sequence[list[Example]]) -> None:
    """Append consecutive pieces of the examples, which end at ``ends``, to what clients hold."""
    first = 0
    for own, end in zip(held, ends.tolist(), strict=True):
        own.extend(examples[first:end])
        first = end


def _band_name(first: int, last: int) -> str:
    """Name the ages from band ``first`` to band ``last``; band -1 lies below the lowest one."""
    lowest = AGE_BANDS[first] if first >= 0 else None
    highest = AGE_BANDS[last + 1] - 1 if last + 1 < len(AGE_BANDS) else None
    if lowest is None:
        return "all ages" if highest is None else f"under {highest + 1}"
    return f"{lowest}+" if highest is None else f"{lowest}-{highest}"


def _band_of(example: Example) -> str:
    if example.age is None:
        return UNKNOWN_AGE
    band = bisect_right(AGE_BANDS, example.age) - 1
    return _band_name(band, band)


def _age_groups(split: Split, num_clients: int) -> list[_Group]:
    """Return the bands of ages that anybody trains on, youngest first, merged to the number of clients."""
    found = _grouped(split, _band_of)
    unknown = found.pop(UNKNOWN_AGE, None)
    bands = [(i, i, *found[_band_name(i, i)]) for i in range(-1, len(AGE_BANDS)) if _band_name(i, i) in found]
    if not bands:
        remedy = "choose another rule"
        raise InputError("no age is known", where="partition age", expected="the age in the history", remedy=remedy)
    while len(bands) > max(1, num_clients - (unknown is not None)):
        at = min(range(len(bands)), key=lambda i: len(bands[i][2]))
        beside = min((i for i in (at - 1, at + 1) if 0 <= i < len(bands)), key=lambda i: len(bands[i][2]))
        younger, older = bands[min(at, beside)], bands[max(at, beside)]
        merged = (younger[0], older[1], younger[2] + older[2], younger[3] + older[3])
        bands[min(at, beside) : max(at, beside) + 1] = [merged]
    groups = [_Group(_band_name(first, last), train, test) for first, last, train, test in bands]
    if unknown is not None and num_clients > 1:
        groups.append(_Group(UNKNOWN_AGE, *unknown))
    elif unknown is not None:
        groups = [_Group(f"{groups[0].name}, {UNKNOWN_AGE}", groups[0].train + unknown[0], groups[0].test + unknown[1])]
    return groups
