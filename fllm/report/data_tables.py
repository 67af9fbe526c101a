"""Tables of the data: who holds which classes, and what was cut from the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fllm.report.data_facts import truncated_fields
from fllm.report.formatting import NOTHING, count, share, shown_count
from fllm.report.tables import Group, Row, Table
from fllm.report.task import case_noun, classes_of
from fllm.results import value_at


def clients_table(result: Mapping[str, Any]) -> Table:
    """Clients with their cases by class, those for training and those of the test, then the sums of both."""
    data, classes = result["data"], classes_of(result)
    smallest = data.get("smallest_cell")
    columns = ("Client", f"{case_noun(result).capitalize()}s", *classes)
    blank = ("",) * (len(columns) - 1)
    groups = []
    for title, number, counts in (("Training", "num_train", "label_counts"), ("Test", "num_test", "test_label_counts")):
        rows = [_row(client_name(client), client, (number, counts), classes, smallest) for client in clients_of(result)]
        if any(number in client for client in clients_of(result)):
            groups.append(Group(rows, (f"{title} {case_noun(result)}s by client", *blank)))
    noun = case_noun(result)
    sums = [
        _row(f"All {noun}s", data, ("num_cases", "label_counts"), classes, smallest),
        _row(f"Test {noun}s", data, ("num_test", "test_label_counts"), classes, smallest),
    ]
    if data.get("num_validation"):
        sums.insert(1, (f"Validation {noun}s", count(data["num_validation"]), *(NOTHING for _ in classes)))
    groups.append(Group(sums, ("Whole data set", *blank)))
    numeric = frozenset(range(1, len(columns)))
    caption = f"{noun.capitalize()}s and their labels" if classes else f"{noun.capitalize()}s"
    return Table(caption, columns, groups, numeric, sortable=True)


def truncation_table(result: Mapping[str, Any]) -> Table | None:
    """What each field had and what it lost to the token budget; None where the result does not tell."""
    budgets = value_at(result["data"], "truncation", "field_tokens") or {}
    rows: list[Row] = []
    for name, found in truncated_fields(result):
        tokens, lost = found.get("tokens"), found.get("tokens_lost")
        kept = None if tokens is None or lost is None else tokens - lost
        rows.append((
            name or "text",
            count(found.get("examples")),
            count(budgets.get(name)),
            count(found.get("cut")),
            count(tokens),
            count(kept),
            count(lost),
            NOTHING if kept is None or not tokens else share(lost, tokens) if lost else "0\N{NO-BREAK SPACE}%",
        ))  # fmt: skip
    if not rows:
        return None
    columns = ("Field", "Prompts with it", "Own budget [tokens]", "Prompts cut", "Tokens", "Kept", "Lost", "Share lost")
    return Table("What the token budget cut", columns, [Group(rows)], frozenset(range(1, len(columns))))


def clients_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Clients of a result, in their order."""
    return list(result["data"].get("clients") or [])


def client_name(client: Mapping[str, Any]) -> str:
    """Name of a client, or its number."""
    return str(client.get("name") or f"client {client.get('client')}")


def _row(
    name: str, found: Mapping[str, Any], keys: tuple[str, str], classes: Sequence[str], smallest: int | None
) -> Row:
    """Write the sum and the counts of one row; a class that is not listed counts as 0, one without a number is hidden.

    Args:
        name: First cell.
        found: What holds the numbers.
        keys: Where it has the sum, and where the counts.
        classes: Columns.
        smallest: Smallest count of real cases that is shown; None shows all.
    """
    counts = found.get(keys[1])
    cells = [NOTHING if counts is None else shown_count(counts.get(label, 0), smallest) for label in classes]
    return name, shown_count(found.get(keys[0]), smallest) if keys[0] in found else NOTHING, *cells
