"""Gain, offset, non-linearity and noise of a readout converter from points (input, code).

The transition to code k is the input below which as many points lie as have codes below k: sorted codes over sorted
inputs. Without noise that is the midpoint between the last input below and the first above; noise leaves it unbiased.
A line through the transitions gives gain and offset::

    k - 1/2 = offset + slope T_k + INL_k        DNL_k = slope (T_{k+1} - T_k) - 1        [LSB]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, nnls
from scipy.special import ndtr

from device_models.converters import code_errors, highest_code, readout_step
from device_models.errors import InputError
from device_models.fitting.points import Points
from device_models.fitting.result import FitResult, Leaf, Parameter, check_bounds, file_name
from device_models.fitting.statistics import quantile
from device_models.schema import DeviceModel, Readout

_POINTS_PER_CODE = 4
"""Below, the spacing of the inputs hides more non-linearity than a usable converter has (0.07 LSB rms each)."""

_TRANSITIONS = 3
"""A line takes two."""

_FALL = 1.5
"""[LSB] by which single reads may fall along rising inputs: one flip at a transition is noise, two codes are not."""

_CERTAIN_READS = 10
"""Reads of one input from which on all of them flipping to the next code is no noise (one in a million)."""

_BITS = range(2, 13)
"""Resolutions that a readout may have."""

_GAIN = 0.25
"""Gain error beyond which the range of the inputs must have been mistaken."""


@dataclass(frozen=True, eq=False)
class _Transfer:
    """Transitions of one converter.

    Attributes:
        at: [1] input of each transition in units of the full scale, ascending.
        code: Code that begins there.
        spread: [1] standard error of each, from the spacing of the inputs and the noise.
        noise: [1] rms input noise.
        inverted: Pairs of reads in the wrong order at each transition.
    """

    at: NDArray
    code: NDArray
    spread: NDArray
    noise: float
    inverted: NDArray


def fit_converter(points: Points, base: DeviceModel, *, input_range: tuple[float, float] | None) -> FitResult:
    """Fit a transfer curve: gain, offset, rms INL and DNL, noise, and the bits that its slope implies.

    Args:
        points: ``input`` [1, V or A] and ``code`` of single reads.
        base: Supplies the saturation, the kind of codes and the circuit.
        input_range: See :func:`device_models.fitting.fit`.

    Raises:
        InputError: If the points are too few or too coarse, the codes fall, or no number of bits fits the slope.

    Source: IEEE Std 1241-2010 (transition levels, terminal to best-fit INL and DNL). Approximation: one column; the
        spread of gain and offset over columns needs many and stays as in the base.
    """
    where = points.file
    low, high = _range(points, base, input_range)
    x = (2.0 * points.columns["input"] - low - high) / (high - low)
    codes = points.columns["code"].astype(int)
    order = np.lexsort((codes, x))
    x, codes, lines = x[order], codes[order], points.lines[order]
    if codes.max() - codes.min() > 1 << _BITS[-1]:
        raise InputError(
            "too many codes", where=where, expected=f"a converter of at most {_BITS[-1]} bits",
            received=int(codes.max() - codes.min() + 1), remedy="check which column holds the codes",
        )  # fmt: skip
    if codes.max() > codes.min():
        _check_monotonic(x, codes, lines, where)
    transfer = _transitions(x, codes)
    if len(transfer.at) < _TRANSITIONS:
        raise InputError(
            "too few codes", where=where, expected=f"a sweep over at least {_TRANSITIONS} transitions to the next code",
            received=len(transfer.at), remedy="sweep a wider range of inputs",
        )  # fmt: skip
    inside = len(np.unique(x[(x >= transfer.at[0]) & (x <= transfer.at[-1])]))
    needed = _POINTS_PER_CODE * (len(transfer.at) - 1)
    if inside < needed:
        raise InputError(
            f"too few points for {len(transfer.at) + 1} codes", where=where, received=inside,
            expected=f"at least {_POINTS_PER_CODE} inputs per code, {needed} between the first and the last transition",
        )  # fmt: skip
    return _result(points, base.readout, transfer, x, codes, order)


def _range(points: Points, base: DeviceModel, given: tuple[float, float] | None) -> tuple[float, float]:
    """Return the inputs of the lowest and the highest code."""
    if given is not None:
        low, high = given
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError("the input range is empty", where=points.file, expected="low < high", received=given)
        return low, high
    if points.input_unit == "V":
        raise InputError(
            "the full scale of the inputs is not known", where=points.file, expected="an input range in V",
            remedy="say which inputs belong to the lowest and the highest code",
        )  # fmt: skip
    full = base.saturation.av if points.input_unit == "A" else 1.0
    return -full, full


def _check_monotonic(x: NDArray, codes: NDArray, lines: NDArray, where: str) -> None:
    """Refuse codes that fall while the input rises, beyond what the noise explains.

    The noise is seen in repeated reads of one input, or in neighbours within a quarter of a code; where there are
    neither, only a fall by two codes is certain.
    """
    index = np.unique(x, return_inverse=True)[1]
    together = len(x) // (4 * int(codes.max() - codes.min()))
    single = index.max() + 1 == len(x)
    if single and together > 1:
        index = np.arange(len(x)) // together
    reads = np.bincount(index)
    mean = np.bincount(index, codes) / reads
    # one more flip, of a quarter of a squared code, than was seen: ten equal reads may still hide one
    variance = (np.bincount(index, (codes - mean[index]) ** 2) + 0.25) / (reads + 1)
    highest = np.maximum.accumulate(mean)
    before = np.maximum.accumulate(np.where(mean >= highest, np.arange(len(mean)), 0))
    allowed = np.full(len(mean), _FALL)
    if reads.max() > 1:
        allowed = 0.5 / reads + 6.0 * np.sqrt(variance / reads + variance[before] / reads[before])
        few = np.minimum(reads, reads[before]) < _CERTAIN_READS
        allowed = np.where(few | single, np.maximum(allowed, 1.0), allowed)
    fall = highest - mean
    worst = int(np.argmax(fall - allowed))
    if fall[worst] > allowed[worst]:
        raise InputError(
            "the codes fall while the input rises", received=f"a fall by {fall[worst]:.3g} codes",
            where=f"{where}, lines {lines[index == before[worst]][0]} and {lines[index == worst][0]}",
            expected=f"falls of at most {allowed[worst]:.2g} codes, the noise",
            remedy="if this is noise, read each input several times",
        )  # fmt: skip


def _transitions(x: NDArray, codes: NDArray) -> _Transfer:
    """Find each transition, its standard error, and the noise.

    With inputs d apart, r reads of each and Gaussian noise s, the estimate of a transition has the variance
    ``d^2 / 12 + s d / (r sqrt(pi))``.
    """
    inputs, index, reads = np.unique(x, return_inverse=True, return_counts=True)
    edges = np.concatenate([inputs[:1], (inputs[1:] + inputs[:-1]) / 2, inputs[-1:]])
    below = np.concatenate([[0], np.cumsum(reads)])
    code = np.arange(codes.min() + 1, codes.max() + 1)
    at = np.interp(np.searchsorted(np.sort(codes), code), below, edges)
    cell = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(inputs) - 1)
    low, high = np.clip(cell - 1, 0, None), np.clip(cell + 1, None, len(inputs) - 1)
    spacing = (inputs[high] - inputs[low]) / np.maximum(high - low, 1)
    inverted = np.zeros(len(code))
    for i, k in enumerate(code):
        above = np.bincount(index, codes >= k)
        inverted[i] = np.sum(np.cumsum(above) * (reads - above))
    noise = _noise(inverted, spacing, float(reads.mean()))
    # the sweep cuts half of the noise off at a transition near its end, which would move it
    whole = (at - inputs[0] >= 3 * noise) & (inputs[-1] - at >= 3 * noise)
    noise = _noise(inverted[whole], spacing[whole], float(reads.mean()))
    variance = spacing**2 / 12 + noise * spacing / reads.mean() / math.sqrt(math.pi)
    return _Transfer(at[whole], code[whole], np.sqrt(variance[whole]), noise, inverted[whole])


def _noise(inverted: NDArray, spacing: NDArray, reads: float) -> float:
    """Return the rms noise from the pairs of reads whose order at a transition is inverted.

    Two reads m spacings d apart are inverted if the difference D of their noise, of variance 2 s^2, exceeds m d::

        E[pairs] = r^2 sum_{m >= 1} E[(D/d - m)_+] + r (r - 1) E[(D/d)_+]      per transition

    Unlike the number of reads on the wrong side of a transition it does not depend on where the transition is put.

    Args:
        inverted: Pairs at each transition, reads of the same input included.
        spacing: [1] d at each.
        reads: Mean number r of reads of one input.
    """
    if not inverted.size or not inverted.any():
        return 0.0

    def expected(y: float) -> float:
        sigma = math.sqrt(2.0) * y
        m = np.arange(0, math.ceil(8 * sigma) + 1)
        excess = sigma * np.exp(-0.5 * (m / sigma) ** 2) / math.sqrt(2 * math.pi) - m * ndtr(-m / sigma)
        return float(reads**2 * excess[1:].sum() + reads * (reads - 1) * excess[0])

    target, highest = float(inverted.mean()), 1.0
    while expected(highest) < target:
        highest *= 2.0
    return float(brentq(lambda y: expected(y) - target, 1e-6, highest) * spacing.mean())


def _bits(readout: Readout, slope: float, where: str) -> tuple[Readout, float]:
    """Return the readout closest to a slope [codes per full scale], and its gain error [1]."""
    kind = "counter" if readout.codes == "ideal" else readout.codes
    choices = [replace(readout, bits=bits, codes=kind) for bits in _BITS]
    gains = [slope * float(readout_step(choice) or 1.0) - 1.0 for choice in choices]
    best = int(np.argmin([abs(math.log1p(gain)) for gain in gains]))
    if abs(gains[best]) > _GAIN:
        near = 1.0 / float(readout_step(choices[best]) or 1.0)
        raise InputError(
            f"no number of bits has {slope:.4g} codes per full scale", where=where,
            expected=f"{near:.4g} ({choices[best].bits} bits) within {_GAIN:.0%}",
            remedy="check the range of the inputs",
        )  # fmt: skip
    return choices[best], gains[best]


def _result(
    points: Points, readout: Readout, transfer: _Transfer, x: NDArray, codes: NDArray, order: NDArray
) -> FitResult:
    """Fit the line through the transitions and turn its misses into INL and DNL."""
    design = np.column_stack([np.ones_like(transfer.at), transfer.at])
    line = np.linalg.lstsq(design, transfer.code - 0.5, rcond=None)[0]
    offset, slope = float(line[0]), float(line[1])
    converter, gain = _bits(readout, slope, points.file)
    if codes.min() >= 0 and x.min() < 0.0:  # counted from the lowest code
        offset -= highest_code(converter)
    error = slope * transfer.spread  # [LSB]
    inverse = np.linalg.pinv(design)
    t = quantile(math.inf)
    half = t * np.sqrt(((inverse * error) ** 2).sum(1))
    inl = _rms("INL", design @ line - (transfer.code - 0.5), float((error**2).mean()))
    dnl = _rms("DNL", slope * np.diff(transfer.at) - 1.0, 2.0 * float((error**2).mean()))
    parameters = [
        Parameter("bits", float(converter.bits or 0), float(converter.bits or 0), float(converter.bits or 0), "", None),
        Parameter("gain", gain, gain - half[1] / slope * (1 + gain), gain + half[1] / slope * (1 + gain), "", None),
        Parameter("offset [LSB]", offset, offset - float(half[0]), offset + float(half[0]), "", None),
        inl,
        dnl,
    ]
    if transfer.noise:
        noise, seen = slope * transfer.noise, transfer.inverted
        few = quantile(len(seen) - 1) * float(seen.std(ddof=1)) / math.sqrt(len(seen)) / (2 * float(seen.mean()))
        parameters.append(
            Parameter("noise [LSB]", noise, noise * max(0.0, 1 - few), noise * (1 + few), "", "readout.noise")
        )
    residuals = np.empty(len(x))
    residuals[order] = codes - np.clip(np.round(line[0] + slope * x), codes.min(), codes.max())
    for p in parameters:
        if p.key is not None:
            check_bounds(p.key, p, points.file)
    return FitResult(
        kind="converter",
        file=file_name(points.file),
        law=converter.codes,
        selection=f"{converter.bits} bits have the number of codes per full scale closest to the measured {slope:.4g}",
        parameters=tuple(parameters),
        leaves=_leaves(points, readout, converter, parameters),
        obsolete=(),
        points=len(points),
        residuals=residuals,
        residual_rms=float(np.sqrt((residuals**2).mean())),
        unit="LSB",
        comparison=(),
        notes=tuple(_notes(transfer, converter, parameters, x, slope)),
    )


def _rms(name: str, misses: NDArray, variance: float) -> Parameter:
    """Return the rms of misses [LSB] without the part that their known errors add, with its interval."""
    square = max(float((misses**2).mean()) - variance, 0.0)
    # the part taken off is itself no better known: regular inputs beat with the codes
    half = variance + quantile(math.inf) * math.sqrt((4 * square * variance + 2 * variance**2) / len(misses))
    low, high = math.sqrt(max(square - half, 0.0)), math.sqrt(square + half)
    return Parameter(f"{name} rms [LSB]", math.sqrt(square), low, high, "", None)


def _leaves(points: Points, base: Readout, converter: Readout, parameters: list[Parameter]) -> dict[str, Leaf]:
    inl, dnl = (next(p for p in parameters if p.name.startswith(name)) for name in ("INL", "DNL"))
    seen = f"one column, {len(points)} points: INL {inl.value:.3g} LSB rms, DNL {dnl.value:.3g} LSB rms"
    note = f"{seen}; strength that gives a {converter.circuit} converter this INL and DNL; range is the 95 % interval"
    leaves = {"readout.bits": Leaf(converter.bits, "measured", seen)}
    if base.codes != converter.codes:
        leaves["readout.codes"] = Leaf(converter.codes, "measured", seen)
    best = strengths(inl.value, dnl.value, converter)
    ends = [strengths(i, d, converter) for i, d in ((inl.low, dnl.value), (inl.high, dnl.value))]
    ends += [strengths(i, d, converter) for i, d in ((inl.value, dnl.low), (inl.value, dnl.high))]
    for place, name in enumerate(("inl", "dnl")):
        reach = [_short(pair[place]) for pair in (best, *ends)]
        leaves[f"readout.{name}"] = Leaf(reach[0], "measured", note, (min(reach), max(reach)))
    for p in parameters:
        if p.key is not None:
            leaves[p.key] = Leaf(p.written(p.value), "measured", seen, (p.written(p.low), p.written(p.high)))
    return leaves


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _notes(transfer: _Transfer, converter: Readout, parameters: list[Parameter], x: NDArray, slope: float) -> list[str]:
    found = {p.name.split()[0]: p for p in parameters}
    notes = ["gain and offset are those of one column: their spread over columns stays that of the base"]
    if transfer.at[0] > x.min() and len(transfer.code) + 1 < 2 * highest_code(converter) + 1:
        notes.append(f"the points cover {len(transfer.code) + 1} of {2 * highest_code(converter) + 1} codes")
    missing = int(np.sum(slope * np.diff(transfer.at) < 0.01))
    if missing:
        notes.append(f"{missing} codes are missing or narrower than 0.01 LSB")
    for name in ("INL", "DNL"):
        if found[name].low == 0.0:
            resolved = slope * float(transfer.spread.mean())
            notes.append(f"the {name} is not told from 0: the transitions are known to {resolved:.2g} LSB")
    power = found["INL"].value ** 2 + (found["noise"].value ** 2 if "noise" in found else 0.0)
    effective = float(converter.bits or 0) - 0.5 * math.log2(1.0 + 12.0 * power)
    notes.append(f"INL and noise leave {effective:.2f} effective bits")
    return notes


def strengths(inl: float, dnl: float, readout: Readout) -> tuple[float, float]:
    """Return ``readout.inl`` and ``readout.dnl`` whose columns have, on average, the given rms INL and DNL [LSB].

    Both enter both: a walk from code to code has steps, and steps add up. Solved for the powers, none negative.

    Args:
        inl: [LSB] rms deviation from the best line.
        dnl: [LSB] rms error of the code widths.
        readout: Circuit and bits.
    """
    solved = nnls(_powers(readout), np.array([inl**2, dnl**2]))[0]
    return math.sqrt(solved[0]), math.sqrt(solved[1])


@cache
def _powers(readout: Readout) -> NDArray:
    """Return mean squared INL (first row) and DNL of unit ``inl`` and ``dnl``, less the best line."""
    codes = 2 * highest_code(readout) + 1
    unit, none = np.eye(codes), np.zeros(codes)
    line = np.linalg.qr(np.vander(np.linspace(-1.0, 1.0, codes), 2))[0]
    powers = []
    for shape in (
        code_errors(unit, none, replace(readout, inl=1.0, dnl=0.0)),
        code_errors(none, unit, replace(readout, inl=0.0, dnl=1.0)),
    ):
        flat = shape - (shape @ line) @ line.T
        powers.append([float((flat**2).sum(0).mean()), float((np.diff(flat) ** 2).sum(0).mean())])
    return np.array(powers).T
