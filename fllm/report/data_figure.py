"""Figure of who holds what: the mix of classes of every client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from fllm.report.data_tables import client_name, clients_of
from fllm.report.drawing import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    Drawn,
    beside,
    ink_on,
    name_rows,
    nothing,
    percent_tick,
    rows_figure,
    shorten_middle,
)
from fllm.report.formatting import count, shown_count
from fllm.report.task import case_noun, classes_of

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, "#7A86C9", "#8C6D1F")
_OTHERS, _HIDDEN = "#B9BDB8", CARD
_ROOM = 0.085  # [1] share of a bar from which its count fits into it
_MOST_ROWS = 40


def draw_label_mix(result: Mapping[str, Any]) -> Drawn:
    """Draw the share of every class among the training cases of each client, as one bar stacked to the whole."""
    noun, classes, clients = case_noun(result), classes_of(result), clients_of(result)[:_MOST_ROWS]
    figure, axes = rows_figure(1.5 + 0.34 * max(3, len(clients)) + 0.1 * min(len(classes), 9))
    caption = f"Classes of the training {noun}s of each client, as shares; numbers inside are {noun}s."
    if len(clients_of(result)) > _MOST_ROWS:
        caption += f" The first {_MOST_ROWS} of {len(clients_of(result))} clients are shown."
    if not classes or not any(_counts(client) for client in clients):
        return nothing(figure, axes, caption)
    shown, others = _parted(classes, clients)
    hidden = False
    for row, client in enumerate(clients):
        hidden |= _bar(axes, row, client, shown, others)
        beside(axes, row, shown_count(client.get("num_train"), result["data"].get("smallest_cell")), 40)
    name_rows(axes, [shorten_middle(client_name(client), 24) for client in clients])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(percent_tick)
    axes.set_xlabel(f"Share of the client's training {noun}s [%]")
    axes.set_title(f"{noun.capitalize()}s", loc="right", fontsize=SMALL)
    handles = _handles(shown, others, hidden=hidden)
    columns = 3 if max(len(str(handle.get_label())) for handle in handles) <= 16 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=SMALL)
    if hidden:
        caption += " Hatched: classes whose counts are hidden."
    words = "; ".join(f"{client_name(client)}, most often {_commonest(client)}" for client in clients[:16])
    return Drawn(figure, caption, f"Stacked bars of classes per client: {words}.")


def _parted(classes: Sequence[str], clients: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the classes with a colour of their own, in order, and the rarer ones that share one."""
    if len(classes) <= len(_COLORS):
        return list(classes), []
    total = {name: sum(_counts(client).get(name) or 0 for client in clients) for name in classes}
    common = set(sorted(classes, key=lambda name: -total[name])[: len(_COLORS) - 1])
    return [name for name in classes if name in common], [name for name in classes if name not in common]


def _bar(axes: Axes, row: int, client: Mapping[str, Any], shown: Sequence[str], others: Sequence[str]) -> bool:
    """Draw one client's bar; return whether some of its counts are hidden."""
    counts, total = _counts(client), client.get("num_train")
    if not total:
        if total is None:
            _hatched(axes, row, 0.0, 1.0)
        return total is None
    pieces = [(counts.get(name) or 0, color) for name, color in zip(shown, _COLORS, strict=False)]
    pieces.append((sum(counts.get(name) or 0 for name in others), _OTHERS))
    left = 0.0
    for cases, color in pieces:
        _piece(axes, row, left, cases, total, color)
        left += cases / total
    rest = total - sum(cases for cases, _ in pieces)
    if rest > 0:
        _hatched(axes, row, left, rest / total)
    return rest > 0


def _hatched(axes: Axes, row: int, left: float, width: float) -> None:
    axes.barh(row, width, left=left, height=0.7, color=_HIDDEN, edgecolor=GREY, hatch="////", linewidth=0.5)


def _piece(axes: Axes, row: int, left: float, cases: float, total: float, color: str) -> None:
    if cases <= 0:
        return
    width = cases / total
    axes.barh(row, width, left=left, height=0.7, color=color, edgecolor=CARD, linewidth=0.8)
    if width >= _ROOM:
        place = (left + width / 2, row)
        axes.annotate(count(cases), place, ha="center", va="center", fontsize=8.5, color=ink_on(color))


def _handles(shown: Sequence[str], others: Sequence[str], *, hidden: bool) -> list[Patch]:
    handles = [Patch(color=color, label=shorten_middle(name, 20)) for name, color in zip(shown, _COLORS, strict=False)]
    if others:
        handles.append(Patch(color=_OTHERS, label=f"{len(others)} other classes"))
    if hidden:
        handles.append(Patch(facecolor=_HIDDEN, edgecolor=GREY, hatch="////", label="hidden"))
    return handles


def _counts(client: Mapping[str, Any]) -> Mapping[str, int | None]:
    return client.get("label_counts") or {}


def _commonest(client: Mapping[str, Any]) -> str:
    known = {name: cases for name, cases in _counts(client).items() if cases}
    return max(sorted(known), key=lambda name: known[name] or 0) if known else "not told"
