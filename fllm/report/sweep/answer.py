"""What the first screen of a sweep says: the question, the answer, and what it means."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fllm.report.answer import BASELINES, device_title
from fllm.report.formatting import engineering, interval, percent, plural
from fllm.report.sweep.curves import Curve, curves, held_on, neighbours, rises, violations
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.front import Choice, changes_energy
from fllm.report.sweep.method import price_lines
from fllm.report.sweep.required import LineRequired, Required, main_required
from fllm.report.sweep.tables import missing_text, points_bounds, points_of
from fllm.results import value_at

_Lines = Sequence[tuple[Curve, list[LineRequired]]]


def title(sweep: Sweep) -> str:
    """Name the keys, the model and the device."""
    model = str((sweep.result.get("model") or {}).get("name") or "Model")
    return f"{_listed([key.name for key in sweep.keys]) or 'Sweep'}: {model} on {device_title(sweep.result)}"


def question(sweep: Sweep) -> str:
    """Ask the sweep's question in one sentence."""
    keys = _listed([key.name for key in sweep.keys]) or "the device"
    how = (
        "one trained adapter, evaluated on each device without being trained again"
        if sweep.result.get("mode") == "evaluate" else "an adapter trained anew on each device"
    )  # fmt: skip
    return f"How much accuracy does a device with other {keys} leave to {how}, and what does a token cost on it?"


def status_note(sweep: Sweep) -> str | None:
    """Say how far an unfinished sweep has come; None for a completed one."""
    status = sweep.result.get("status")
    if status == "completed":
        return None
    seeds, dies = len(sweep.result.get("seeds") or [0]), int(sweep.result.get("dies") or 1)
    whole = [point for point in sweep.points if len(point.rows) + dies * len(point.failures) >= seeds * dies]
    state = "was interrupted" if status == "interrupted" else "is still running"
    shown = "Numbers below are those of the rows so far." if sweep.known else "There is nothing to compare yet."
    return f"This sweep {state}: {len(whole)} of {plural(len(sweep.points), 'point')} are finished. {shown}"


def findings(sweep: Sweep, choice: Choice, required: _Lines) -> list[str]:
    """Say what the sweep shows, one sentence each."""
    lines = [_base_sentence(sweep), *(_required_sentence(*found) for found in required)]
    lines += [_best_sentence(sweep, choice), _energy_sentence(sweep, choice), *price_lines(sweep), *_monotony(sweep)]
    lines += [_against(sweep, key, name) for key, name in BASELINES.items()]
    return [line for line in lines if line]


def required_card(required: _Lines) -> tuple[str, str, list[str]] | None:
    """Required value for a drop of one point, as (title, value, lines); None without any."""
    if not required:
        return None
    curve, lines = required[0]
    found = main_required(curve, lines)
    ideal, end = found.ideal[1], found.end[1]
    bound = "at least" if ideal.rising else "at most"
    lose = "to lose at most 1 point against"
    said = [f"{lose} the ideal device{_bounds(ideal)}"]
    shown, other = ideal, f"{lose} {_end_text(curve, found)}: {_whole(end)}{_bounds(end)}"
    if ideal.at == math.inf:  # other effects cost more: what this key alone costs says more
        shown, said = end, [f"{lose} {_end_text(curve, found)}{_bounds(end)}"]
        other = f"{lose} the ideal device: not reached" + ("" if ideal.never > 0.995 else _bounds(ideal))
    if missing := missing_text(curve, found):
        other += missing
    said += [other, *(f"{key.name} held at {key.text(value)}" for key, value in held_on(curve, found.line))]
    return f"Required {curve.key.name}, {bound}", _whole(shown), said


def _base_sentence(sweep: Sweep) -> str:
    if sweep.base is None:
        return ""
    point = sweep.points[sweep.base]
    name = f"{sweep.base_noun[0].upper()}{sweep.base_noun[1:]}"
    if point.accuracy is None or point.drop is None:
        return f"{name} {'failed' if point.failures else 'has not been evaluated yet'}."
    bounds = sweep.drop_interval(sweep.base)
    shown = bounds if bounds is None or point.drop >= 0 else (-bounds[1], -bounds[0])  # signed as the number is
    told = f" (95 % interval {points_bounds(shown)})" if shown else ""
    verdict = "" if bounds is None or bounds[0] > 0 or bounds[1] < 0 else "; the two cannot be told apart"
    return (
        f"{name} reaches {percent(point.accuracy)}, {points_of(abs(point.drop))} points "
        f"{'below' if point.drop >= 0 else 'above'} the ideal device{told}{verdict}."
    )


def _required_sentence(curve: Curve, lines: list[LineRequired]) -> str:
    """Answer what a key must be for a drop of one point."""
    found = main_required(curve, lines)
    ideal, end = found.ideal[1], found.end[1]
    held = ", ".join(f"{key.name} held at {key.text(value)}" for key, value in held_on(curve, found.line))
    bound = "at least" if ideal.rising else "at most"
    held = (f", with {held}" if held else "") + missing_text(curve, found)
    name, ending = curve.key.name, "1 point of the ideal device"
    if ideal.at == math.inf:
        more = "more" if end.rising else "less"
        own = "any" if end.at == -math.inf else f"{_whole(end)} or {more}{_bounds(end)}"
        own += f" keeps within 1 point of {_end_text(curve, found)}"
        return f"No swept {name} keeps accuracy within {ending}{held}; {own}."
    if ideal.at == -math.inf:
        return f"Any swept {name} keeps accuracy within {ending}{held}{_bounds(ideal)}."
    shown = f"{_whole(ideal)}, interpolated between swept values{_bounds(ideal)}"
    return f"To keep accuracy within {ending}{held}, {name} must be {bound} {shown}."


def _whole(found: Required) -> str:
    """Write a required value, with the next whole number where it lies between two."""
    shown = found.text(found.at)
    return f"{shown}, so {found.whole_text}" if found.whole_text and found.whole_text != shown else shown


def _bounds(found: Required) -> str:
    return f" (95 % interval {found.interval_text})" if found.has_interval else ""


def _end_text(curve: Curve, found: LineRequired) -> str:
    """Name the better end of a line."""
    return f"{curve.key.name} = {curve.key.text(found.better_end)}"


def _best_sentence(sweep: Sweep, choice: Choice) -> str:
    if choice.best is None or len(sweep.designs) < 2:
        return ""
    share = (
        f"; it is the best, or equal to it, in {percent(choice.best_share, 0)} of the draws"
        if choice.best_share is not None
        else ""
    )
    point = sweep.points[choice.best]
    return f"Most accurate: {sweep.settings_text(choice.best)}, {percent(point.accuracy)}{share}."


def _energy_sentence(sweep: Sweep, choice: Choice) -> str:
    energies = [energy for place in sweep.designs if (energy := sweep.points[place].energy) is not None]
    if not energies:
        return ""
    if not changes_energy(sweep):
        return f"No varied key changes the energy per token by 1 % or more: {engineering(energies[0], 'J')}."
    text = f"Energy per token runs from {engineering(min(energies), 'J')} to {engineering(max(energies), 'J')}"
    if choice.cheapest is None or choice.cheapest == choice.best:
        return f"{text}; no cheaper point comes within 1 point of the most accurate one."
    point = sweep.points[choice.cheapest]
    named = f"{sweep.settings_text(choice.cheapest)}, {percent(point.accuracy)} at {engineering(point.energy, 'J')}"
    return f"{text}; the cheapest point within 1 point of the most accurate one is {named}."


def _monotony(sweep: Sweep) -> list[str]:
    """Say for each ordered key whether accuracy is monotone within its intervals."""
    lines = []
    for curve in curves(sweep):
        pairs = neighbours(curve)
        if not curve.key.numeric or not pairs or sweep.difference_interval(*pairs[0]) is None:
            continue
        found = violations(sweep, curve)
        way = "rises" if rises(sweep, curve) else "falls"
        if not found:
            lines.append(
                f"Along {curve.key.name} accuracy {way} or stays: no neighbouring points contradict it "
                f"({plural(len(pairs), 'pair')}, 95 % intervals of their differences)."
            )
            continue
        listed = "; ".join(
            f"{sweep.settings_text(one.before)} to {sweep.settings_text(one.after)}: {points_of(one.difference)} "
            f"points ({points_bounds(one.interval)})"
            for one in found[:5]
        )
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        lines.append(
            f"Along {curve.key.name} accuracy mostly {way}, but {len(found)} of {len(pairs)} neighbouring pairs go the "
            f"other way: {listed}{more}. Of equal pairs about 1 in 40 is listed by chance."
        )
    return lines


def _against(sweep: Sweep, key: str, name: str) -> str:
    """Place a baseline against the interval of the base device."""
    accuracy = value_at(sweep.result, "baselines", key, "accuracy")
    if accuracy is None or sweep.base is None:
        return ""
    bounds = sweep.accuracy_interval(sweep.base)
    if bounds is None:
        return ""
    shown = interval(list(bounds))
    if bounds[0] > accuracy:
        verdict = f"above; its whole interval ({shown}) lies higher"
    elif bounds[1] < accuracy:
        verdict = f"below; its whole interval ({shown}) lies lower"
    else:
        verdict = f"not told apart; the baseline lies inside its interval ({shown})"
    named = f"the {name[0].lower()}{name[1:]}" if name[1].islower() else name
    return f"{sweep.base_noun[0].upper()}{sweep.base_noun[1:]} against {named} ({percent(accuracy)}): {verdict}."


def _listed(names: Sequence[str]) -> str:
    """Write names as a list: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
