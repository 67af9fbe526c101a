"""What a report says of privacy: whom it protects, what was spent, and what it leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fllm.report.formatting import significant
from fllm.report.tables import Group, Row, Table

_PROTECTED = {
    "client": (
        "Whole clients: the server cuts each client's update to a norm of {clipping_norm:g} and adds Gaussian noise of"
        " {noise_multiplier:g} times that to their sum. Whoever sees the adapter of every round can hardly tell whether"
        " a client took part; the server itself sees the updates."
    ),
    "record": (
        "Single cases: each client cuts the gradient of each case to a norm of {clipping_norm:g} and adds Gaussian"
        " noise of {noise_multiplier:g} times that to their sum in every step. Whoever sees a client's updates, the"
        " server too, can hardly tell whether one case was among its cases."
    ),
}
_OPEN = (
    "Not protected: losses, counts of events, norms of updates, scores, numbers of clients and cases, and baselines,"
    " which are all computed without noise."
)
_MASKED = (
    "Secure aggregation: of updates, losses and numbers of cases the server was sent the clients' sums alone, under"
    " masks that {of} clients together could take off. Counts of events were sent in clear, and the sums are not noisy."
)
_SEEDED = (
    "The noise of this run follows from its seed. It shows what privacy costs; whoever knows the seed can take it off."
)


def privacy_lines(result: Mapping[str, Any]) -> list[str]:
    """Return sentences on who is protected from whom; none without privacy."""
    settings = result["config"].get("privacy") or {"kind": "none"}
    secure = result["config"].get("secure") or {"aggregation": False}
    of = "two thirds of the" if secure.get("threshold") is None else secure["threshold"]
    lines = [_MASKED.format(of=of)] if secure["aggregation"] else []
    if settings["kind"] == "none":
        return lines
    lines += [_PROTECTED[settings["kind"]].format(**settings), _OPEN]
    if not settings["secret_noise"]:
        lines.append(_SEEDED)
    if ended := (result.get("privacy") or {}).get("ended"):
        lines.append(f"{ended[:1].upper()}{ended[1:]}.")
    return lines


def privacy_table(result: Mapping[str, Any]) -> Table | None:
    """Return epsilon of the rounds up to each, with its delta; None without privacy."""
    rows: list[Row] = [
        (str(row["round"]), significant(row["privacy"]["epsilon"]), significant(row["privacy"]["delta"]))
        for row in result["rounds"] if row.get("privacy")
    ]  # fmt: skip
    if not rows:
        return None
    of_cases = " the largest over the clients," if result["config"]["privacy"]["kind"] == "record" else ""
    caption = f"Privacy spent up to each round:{of_cases} for one more or less, by Rényi accounting"
    return Table(caption, ("Up to round", "Epsilon", "Delta"), [Group(rows)], frozenset({1, 2}))
