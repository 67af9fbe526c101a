"""Why accuracy falls along a key, in the numbers of the sweep itself: decay of stored values, step of the readout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device_models.converters import readout_step
from device_models.schema import Readout
from fllm.report.answer import device_entries
from fllm.report.formatting import NOTHING, engineering, percent, share
from fllm.report.sweep.curves import Curve, Line, curves, held_on, rises, shown_line
from fllm.report.sweep.facts import Bounds, Sweep
from fllm.report.sweep.points import Key, Point

_DECAY = ("retention.tau", "token_period")
_READOUT_CODES = ("counter", "published_33")


@dataclass(frozen=True)
class Fall:
    """Where accuracy begins to fall along a line, seen from the end at which it is better.

    Attributes:
        best: Place of the point at that end.
        kept: Last point that cannot be told apart from it; None where even the neighbour can.
        fallen: First point whose accuracy is lower with 95 % confidence; None where none is.
        interval: 95 % interval of the accuracy lost there [1].
    """

    best: int
    kept: int
    fallen: int | None
    interval: Bounds


def physics(sweep: Sweep) -> list[str]:
    """Explain the curves in a paragraph each, for the keys whose physics the numbers of the sweep can tell."""
    paragraphs = []
    for curve in curves(sweep):
        line = shown_line(curve)
        if not curve.key.numeric or len(line.places) < 2:
            continue
        if curve.key.name in _DECAY or curve.key.name.startswith("retention."):
            paragraphs.append(_decay(sweep, curve, line))
        elif curve.key.name == "readout.bits":
            paragraphs.append(_readout(sweep, curve, line))
    if not sweep.gridlike and any(key.name in _DECAY or key.name.startswith("retention.") for key in sweep.keys):
        paragraphs.append(_decay_of_cloud(sweep))
    return [paragraph for paragraph in paragraphs if paragraph]


def find_fall(sweep: Sweep, places: Sequence[int]) -> Fall:
    """Find where accuracy begins to fall.

    Args:
        sweep: The sweep.
        places: Points in the order in which accuracy improves, two or more.
    """
    best = kept = places[-1]
    for place in reversed(places[:-1]):
        bounds = sweep.difference_interval(best, place)
        if bounds and bounds[0] > 0.0:
            return Fall(best, kept, place, bounds)
        kept = place
    return Fall(best, kept, None, None)


def _decay(sweep: Sweep, curve: Curve, line: Line) -> str:
    """Explain accuracy by how much of a stored value is left when the last token of a prompt reads it."""
    places = _improving(sweep, curve, line)
    worse, better = sweep.points[places[0]], sweep.points[places[-1]]
    if worse.mean("signal_left") is None or better.mean("signal_left") is None:
        return ""
    key = curve.key
    ends = (
        f"at {key.name} = {key.text(worse.values[key.name])} a median cell keeps {_left(worse)} of its stored "
        f"excursion at that age, and accuracy is {_accuracy(worse)}; at {key.text(better.values[key.name])} it keeps "
        f"{_left(better)}, and accuracy is {_accuracy(better)}."
    )
    sentences = (
        _ages(sweep, places),
        _sentence(curve, line, ends),
        _fall_sentence(sweep, key, places, decay=True),
        _window_sentence(sweep, key, places),
    )
    return " ".join(filter(None, sentences))


def _ages(sweep: Sweep, places: Sequence[int]) -> str:
    """Say how old the first token of a prompt is when the last one is read."""
    ends = [sweep.points[place] for place in (places[0], places[-1])]
    known = [(age, period) for age, period in map(_age_and_period, ends) if age is not None and period]
    if len(known) < len(ends):
        return ""
    tokens = dict.fromkeys(f"{round(age / period):,}" for age, period in known)
    ages, periods = zip(*known, strict=True)
    return (
        f"When the last token of a median test prompt is read, the oldest stored values are {' to '.join(tokens)} "
        f"tokens old: {_to(ages)}, with a token every {_to(periods)}."
    )


def _age_and_period(point: Point) -> tuple[float | None, float | None]:
    return point.mean("oldest_age_s"), point.mean("token_period_s")


def _to(times: Sequence[float | None]) -> str:
    """Write a pair of times, or one where they are equal."""
    return " to ".join(dict.fromkeys(str(engineering(time, "s")) for time in times))


def _sentence(curve: Curve, line: Line, text: str) -> str:
    """Start a sentence with what is held on a line."""
    held = ", ".join(f"{key.name} at {key.text(value)}" for key, value in held_on(curve, line))
    return f"With {held}: {text}" if held else f"{text[0].upper()}{text[1:]}"


def _accuracy(point: Point) -> str:
    return percent(point.accuracy) + ("" if point.ideal is None else f" (ideal {percent(point.ideal)})")


def _left(point: Point, column: str = "signal_left") -> str:
    """Write a share of a stored excursion; a small one is "< 0.1 %"."""
    left = point.mean(column)
    return NOTHING if left is None else share(left, 1.0)


def _fall_sentence(sweep: Sweep, key: Key, places: Sequence[int], *, decay: bool) -> str:
    """Say between which values accuracy begins to fall, or that it does not."""
    if sweep.difference_interval(places[-1], places[0]) is None:
        return ""
    fall = find_fall(sweep, places)
    best = key.text(sweep.points[fall.best].values[key.name])
    if fall.fallen is None or fall.interval is None:
        return f"No fall of accuracy is resolved within this sweep: no value can be told apart from {best}."

    def named(place: int) -> tuple[str, str]:
        point = sweep.points[place]
        return key.text(point.values[key.name]), f", where {_left(point)} is left," if decay else ""

    fallen, left = named(fall.fallen)
    lost = sweep.accuracies([fall.best])[0] - sweep.accuracies([fall.fallen])[0]
    low, high = fall.interval
    told = (
        f"at {fallen}{left} it is {100 * lost:.1f} points below that at {best} (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f})"
    )
    if fall.kept == fall.best:
        return f"Accuracy falls from the first step on: {told}."
    kept, still = named(fall.kept)
    return (
        f"Accuracy begins to fall between {kept} and {fallen}: at {kept}{still} it cannot be told apart from that at "
        f"{best}; {told}."
    )


def _window_sentence(sweep: Sweep, key: Key, places: Sequence[int]) -> str:
    """Say what a full window would leave of its oldest token."""
    ends = [sweep.points[place] for place in (places[0], places[-1])]
    if any(point.mean("window_signal_left") is None for point in ends):
        return ""
    tokens = (device_entries(sweep.result).get("window.tokens") or {}).get("value")
    varied = any(other.name == "window.tokens" for other in sweep.keys)
    window = f"a full window of {tokens} tokens" if tokens and not varied else "a full window"
    kept = [f"{_left(point, 'window_signal_left')} at {key.text(point.values[key.name])}" for point in ends]
    return f"In {window} the oldest token would keep {kept[0]} and {kept[1]}: longer prompts lose more than these."


def _decay_of_cloud(sweep: Sweep) -> str:
    """Compare the points whose stored values decay most and least, where no key can be followed alone."""
    places = [place for place in sweep.known if sweep.points[place].mean("signal_left") is not None]
    if len(places) < 2:
        return ""
    ranked = sorted(places, key=lambda place: (sweep.points[place].mean("signal_left"), place))
    shown = [
        f"{_left(sweep.points[place])} ({sweep.settings_text(place)}; accuracy {percent(sweep.points[place].accuracy)})"
        for place in (ranked[0], ranked[-1])
    ]
    return (
        f"{_ages(sweep, ranked)} At that age a median cell keeps from {shown[0]} to {shown[1]} of its stored "
        "excursion. Other keys vary from point to point as well, so that this sweep alone does not tell how much of "
        "the difference is due to decay."
    ).strip()


def _readout(sweep: Sweep, curve: Curve, line: Line) -> str:
    """Explain accuracy by the step of the readout."""
    places = _improving(sweep, curve, line)
    codes = _codes(sweep, curve, line)
    if codes not in _READOUT_CODES:
        return ""
    shown = [
        f"{percent(_step(sweep, place, codes))} at {curve.key.text(sweep.points[place].values['readout.bits'])} bits "
        f"(accuracy {percent(sweep.points[place].accuracy)})"
        for place in (places[0], places[-1])
    ]
    text = (
        f"one step of the readout ({codes} code) is {shown[0]} and {shown[1]} of its full range, from negative to "
        "positive saturation; what differs by less than a step is rounded away at each conversion."
    )
    return f"{_sentence(curve, line, text)} {_fall_sentence(sweep, curve.key, places, decay=False)}".strip()


def _step(sweep: Sweep, place: int, codes: str) -> float | None:
    """Step of the readout relative to its full range, which is twice the saturation [1]."""
    bits = int(float(sweep.points[place].values["readout.bits"]))
    if bits < 2:
        return None
    step = readout_step(Readout(bits=bits, codes="counter" if codes == "counter" else "published_33"))
    return None if step is None else step / 2.0


def _codes(sweep: Sweep, curve: Curve, line: Line) -> str:
    held = {key.name: value for key, value in held_on(curve, line)}
    entry = device_entries(sweep.result).get("readout.codes") or {}
    return str(held.get("readout.codes", entry.get("value")))


def _improving(sweep: Sweep, curve: Curve, line: Line) -> list[int]:
    return list(line.places) if rises(sweep, curve) else list(line.places)[::-1]
