"""Decay law, its constants and their spread over cells from points (time, voltage)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from device_models.consistency import taken_along
from device_models.errors import InputError, nearest
from device_models.fitting.curves import Curves, arrange, conditions
from device_models.fitting.decay import SHAPES, Decay, fit_decay
from device_models.fitting.points import Points
from device_models.fitting.result import Candidate, FitResult, Leaf, Parameter, check_bounds, evidence, file_name
from device_models.fitting.spread import population
from device_models.fitting.statistics import (
    ROUNDING,
    Misfit,
    aicc,
    check_consistent,
    misfit,
    quantile,
    repeated,
    runs_note,
    simplest,
)
from device_models.quantities import format_quantity
from device_models.schema import DeviceModel

_CONSTANT = {
    "exponential": ("tau", "s"),
    "stretched": ("tau", "s"),
    "log_self_limited": ("t0", "s"),
    "constant_current": ("rate", "V/s"),
}
"""The constant of each law that differs from cell to cell, with its unit."""

_LINEAR = ("exponential", "stretched")
"""Laws whose whole curve depends on ``v_inf``; the others only stop there."""

_KINK = 16.0
"""AICc by which a stop at ``v_inf`` must improve on none: a kink anywhere in the noise improves by a few units."""

_SUPPORTED = 7.0
"""AICc up to which a law takes the place of a better one that the points leave undetermined."""

_SPREAD_CELLS = 8
"""Cells from which on a spread is estimated; of fewer, its interval spans more than a factor of 3."""


@dataclass(frozen=True, eq=False)
class _Trial:
    """One law fitted.

    Attributes:
        decay: Its numbers.
        aicc: [1] criterion.
        rms: [V] residual per degree of freedom.
        problem: Why it cannot be used, None where it can.
        foreign: Whether its best numbers are none that the law may have: no gap in the data, but another law.
    """

    decay: Decay
    aicc: float
    rms: float
    problem: str | None
    foreign: bool


def fit_retention(
    points: Points,
    base: DeviceModel,
    *,
    law: str | None,
    v_inf: float | None,
    temperature: float | None,
    accept_misfit: bool,
) -> FitResult:
    """Fit the decay laws of ``device_models.retention`` and take the simplest that the points support.

    Args:
        points: ``time`` [s], ``voltage`` [V], perhaps ``written`` [V] and cells.
        base: Supplies reference temperature, activation energy, and ``v_inf`` for laws that do not determine it.
        law: Law to fit; None compares all by AICc.
        v_inf: [V] See :func:`device_models.fitting.fit`.
        temperature: [K] See :func:`device_models.fitting.fit`.
        accept_misfit: See :func:`device_models.fitting.fit`.

    Raises:
        InputError: If the points are too few, contradict each other or the law, or leave a parameter undetermined.

    Source: edri2016 (log-normal retention over cells). Approximation: noise of one variance; the shape of the law is
        the same for all cells.
    """
    if law is not None and law not in SHAPES:
        raise InputError("unknown law", where=points.file, received=law, remedy=nearest(law, SHAPES))
    curves = arrange(points, base, v_inf, temperature)
    trials = {
        name: _try(name, curves, fixed=v_inf is not None)
        for name in ([law] if law is not None else list(SHAPES))
        if _suffices(name, curves, free=v_inf is None and name in _LINEAR, asked=law is not None, where=points.file)
    }
    if not trials:
        _suffices("constant_current", curves, free=False, asked=True, where=points.file)
    chosen, selection = _choose(trials, asked=law is not None, where=points.file)
    decay = trials[chosen].decay
    groups = conditions(curves)
    check_consistent(groups, curves.voltage, decay.residuals, points.lines, points.file)
    dof = len(points) - decay.numbers
    found = misfit(
        decay.rss, dof, repeated(groups, curves.voltage), law=chosen, unit="V", where=points.file, accept=accept_misfit
    )
    parameters = _parameters(decay, curves, found)
    problem = _undetermined(decay, curves, parameters)
    if problem is not None:
        raise _refusal(chosen, problem, points.file)
    for parameter in parameters:
        if parameter.key is not None:
            check_bounds(parameter.key, parameter, points.file)
    rms = math.sqrt(decay.rss / dof)
    return FitResult(
        kind="retention",
        file=file_name(points.file),
        law=chosen,
        selection=selection,
        parameters=parameters,
        leaves=_leaves(chosen, parameters, curves, selection, evidence(chosen, len(points), rms, "V"), base, v_inf),
        obsolete=taken_along("retention.kind", chosen),
        points=len(points),
        residuals=decay.residuals,
        residual_rms=rms,
        unit="V",
        comparison=_comparison(trials),
        notes=_notes(chosen, trials, curves, found, parameters, fixed=v_inf is not None),
    )


# ---- laws


def _needed(law: str, curves: Curves, *, free: bool) -> int:
    """Return how many points a law needs: one criterion of AICc and one degree of freedom beyond its numbers."""
    return len(SHAPES[law]) + free + curves.cells * (1 if curves.written is not None else 2) + 3


def _suffices(law: str, curves: Curves, *, free: bool, asked: bool, where: str) -> bool:
    """Say whether the points suffice for a law; a law that was asked for must."""
    needed, times = _needed(law, curves, free=free), len(SHAPES[law]) + free + (curves.written is None) + 1
    enough = len(curves.time) >= needed and len(np.unique(curves.time)) >= times
    if asked and not enough:
        raise InputError(
            f"too few points for the {law} law", where=where,
            expected=f"at least {needed} points at {times} times, of {curves.cells} cell(s)",
            received=f"{len(curves.time)} points at {len(np.unique(curves.time))} times",
            remedy="measure more points" + (" or give v_inf" if free else ""),
        )  # fmt: skip
    return enough


def _try(law: str, curves: Curves, *, fixed: bool) -> _Trial:
    """Fit one law; ``v_inf`` is fitted where the whole curve depends on it, or where holding it is worse."""
    if fixed or law in _LINEAR:
        return _trial(fit_decay(law, curves, free=not fixed), curves)
    held = _trial(fit_decay(law, curves, free=False), curves)
    if len(curves.time) < _needed(law, curves, free=True):
        return held
    free = _trial(fit_decay(law, curves, free=True), curves)
    return free if free.aicc < held.aicc - _KINK else held


def _trial(decay: Decay, curves: Curves) -> _Trial:
    points, dof = len(curves.time), len(curves.time) - decay.numbers
    own = Misfit(max(decay.rss / dof, (ROUNDING * curves.span) ** 2), dof)
    beta = decay.shape[0] if decay.law == "stretched" else 1.0
    problem = _undetermined(decay, curves, _parameters(decay, curves, own))
    if beta > 1.0:
        problem = f"beta = {beta:.4g} is above 1: the decay is no stretched one"
    elif problem is None and not decay.converged:
        problem = "the search does not converge"
    return _Trial(
        decay=decay,
        aicc=aicc(decay.rss, points, decay.numbers, ROUNDING * curves.span),
        rms=math.sqrt(decay.rss / dof),
        problem=problem,
        foreign=beta > 1.0,
    )


def _parameters(decay: Decay, curves: Curves, found: Misfit) -> tuple[Parameter, ...]:
    """Return the law's constants with intervals; positive ones are intervals of their logarithm."""
    t, result = quantile(found.dof), []
    name, unit = _CONSTANT[decay.law]
    common = np.einsum("ci,ij,cj->c", decay.coupling, decay.shape_covariance, decay.coupling)
    if curves.cells == 1:
        half = t * math.sqrt(found.variance * (decay.own[0] + common[0]))
        mean = float(decay.theta[0])
    else:
        cells = population(decay.theta, found.variance * decay.own)
        shared = cells.weights @ decay.coupling
        ours, theirs = cells.mean_variance, found.variance * float(shared @ decay.shape_covariance @ shared)
        freedom = (ours + theirs) ** 2 / (ours**2 / (curves.cells - 1) + theirs**2 / found.dof)  # Satterthwaite
        mean, half = cells.mean, quantile(freedom) * math.sqrt(ours + theirs)
    sign = -1.0 if decay.law == "constant_current" else 1.0
    result.append(_logarithmic(name, sign * mean, half, unit))
    errors = t * np.sqrt(found.variance * np.diag(decay.shape_covariance))
    for i, shape in enumerate(SHAPES[decay.law]):
        result.append(
            _logarithmic(shape, math.log(decay.shape[i]), float(errors[i]), "V" if shape == "v_scale" else "")
        )
    if decay.free:
        value, error = float(decay.shape[-1]), float(errors[-1])
        result.append(Parameter("v_inf", value, value - error, value + error, "V", "retention.v_inf"))
    if curves.cells >= _SPREAD_CELLS:
        result.append(Parameter("tau_sigma_ln", cells.sigma, cells.low, cells.high, "", "retention.tau_sigma_ln"))
    return tuple(result)


def _logarithmic(name: str, log: float, half: float, unit: str) -> Parameter:
    reach = min(half, 300.0)  # exp() of more overflows, and means the same
    value = math.exp(log)
    return Parameter(name, value, value * math.exp(-reach), value * math.exp(reach), unit, f"retention.{name}")


def _undetermined(decay: Decay, curves: Curves, parameters: tuple[Parameter, ...]) -> str | None:
    """Say which parameter the points leave open, and why; None if they leave none."""
    for p in parameters:
        if p.name == "tau_sigma_ln":
            continue
        size = curves.span if p.name == "v_inf" else p.value  # a level may well be 0 V: it is compared with the decay
        if not p.high - p.low > size:
            continue
        than = f"the {format_quantity(size, 'V')} that the voltages cover" if p.name == "v_inf" else p.text(digits=3)
        return (
            f"{p.name} is not determined: its 95 % interval from {p.text(p.low, 3)} to {p.text(p.high, 3)} is wider"
            f" than {than} ({_why(decay, curves, parameters[0])})"
        )
    return None


def _why(decay: Decay, curves: Curves, constant: Parameter) -> str:
    """Say what the points lack to determine a law."""
    if curves.cells > 1 and curves.cells < _SPREAD_CELLS and (found := float(np.ptp(decay.theta))) > 0.02:
        apart = f"{constant.name} differ by a factor of {math.exp(found):.3g}"
        return f"{curves.cells} cells whose {apart}: measure more cells"
    times = curves.time[curves.time > 0]
    if constant.unit == "s" and times.max() < constant.value:
        return f"the data end at {times.max() / constant.value:.2g} {constant.name}"
    if constant.unit == "s" and curves.first.min() > constant.value:
        return f"the data start at {curves.first.min() / constant.value:.3g} {constant.name}"
    rms = math.sqrt(decay.rss / (len(curves.time) - decay.numbers))
    return f"{len(curves.time)} points with a residual of {format_quantity(rms, 'V')}"


def _choose(trials: Mapping[str, _Trial], *, asked: bool, where: str) -> tuple[str, str]:
    """Return the law and the sentence that says how it was chosen."""
    names = list(trials)
    if asked:
        if trials[names[0]].problem is not None:
            raise _refusal(names[0], str(trials[names[0]].problem), where)
        return names[0], f"the {names[0]} law was asked for"
    fitting = [n for n in names if not trials[n].foreign]
    best = min(fitting, key=lambda n: trials[n].aicc)
    # an undetermined law that is barely better is on its way to become a simpler one
    usable = [n for n in fitting if trials[n].problem is None and trials[n].aicc <= trials[best].aicc + _SUPPORTED]
    if not usable:
        raise _refusal(best, str(trials[best].problem), where)
    chosen = usable[simplest([trials[n].aicc for n in usable], [trials[n].decay.numbers for n in usable])]
    others = sorted(trials[n].aicc for n in names if n != chosen)
    lead = f"; the next law lies {others[0] - trials[chosen].aicc:+.1f} units from it" if others else ""
    return chosen, f"the simplest law within 2 units of the smallest AICc of {len(names)} laws{lead}"


def _refusal(law: str, problem: str, where: str) -> InputError:
    remedy = "measure longer or more points, give v_inf, or ask for another law"
    return InputError(f"the {law} law does not fit: {problem}", where=where, remedy=remedy)


# ---- result


def _leaves(
    law: str,
    parameters: tuple[Parameter, ...],
    curves: Curves,
    selection: str,
    note: str,
    base: DeviceModel,
    given: float | None,
) -> dict[str, Leaf]:
    leaves = {"retention.kind": Leaf(law, "measured", selection)}
    at = "" if curves.temperature == curves.reference_temperature else f"; measured at {curves.temperature:g} K"
    for p in parameters:
        if p.key is not None:
            leaves[p.key] = Leaf(p.written(p.value), "measured", note + at, (p.written(p.low), p.written(p.high)))
    if law == "log_self_limited":
        leaves["retention.v_top"] = Leaf(
            f"{curves.v_top:.6g} V", "derived", "level that t0 belongs to: the written voltage farthest from v_inf"
        )
    if "retention.v_inf" not in leaves and (given is not None or base.retention.v_inf is None):
        held = "given for the fit" if given is not None else "the zero level; the law only stops there"
        leaves["retention.v_inf"] = Leaf(f"{curves.v_inf:.6g} V", "assumed", f"held fixed in the fit: {held}")
    return leaves


def _comparison(trials: Mapping[str, _Trial]) -> tuple[Candidate, ...]:
    ordered = sorted(trials.items(), key=lambda item: item[1].aicc)
    return tuple(Candidate(name, t.decay.numbers, t.rms, t.aicc, t.problem) for name, t in ordered)


def _notes(
    chosen: str,
    trials: Mapping[str, _Trial],
    curves: Curves,
    found: Misfit,
    parameters: tuple[Parameter, ...],
    *,
    fixed: bool,
) -> tuple[str, ...]:
    decay, constant, last = trials[chosen].decay, parameters[0], float(curves.time.max())
    notes = [found.note]
    if found.note is None:
        notes.append(runs_note(curves.time, decay.residuals, "time", ROUNDING * curves.span))
    reach = f" ({last / constant.value:.4g} {constant.name})" if constant.unit == "s" else ""
    notes.append(f"measured up to {format_quantity(last, 's')}{reach}: what is older is extrapolated")
    own = trials[chosen].aicc
    near = [f"{n} ({t.aicc - own:+.1f})" for n, t in trials.items() if n != chosen and t.aicc <= own + _SUPPORTED]
    if near:
        notes.append(f"the points hardly tell the {chosen} law from: {', '.join(near)} units of AICc")
    for name, t in trials.items():
        if t.problem is not None and not t.foreign and t.aicc < trials[chosen].aicc:
            notes.append(f"the {name} law has the smaller AICc but {t.problem}")
    if not decay.free and not fixed:
        notes.append(f"v_inf is held at {curves.v_inf:g} V: the {chosen} law only stops there")
    if curves.written is None:
        notes.append("no written voltage: that of each cell at its smallest time is fitted along with the law")
    if 1 < curves.cells < _SPREAD_CELLS:
        notes.append(f"{curves.cells} cells: their spread is not estimated, that takes {_SPREAD_CELLS}")
    if curves.cells < _SPREAD_CELLS:
        notes.append("tau_sigma_ln stays that of the base")
    slow = int((found.variance * decay.own > 1.0).sum())
    if curves.cells > 1 and slow:
        notes.append(f"{slow} of {curves.cells} cells hardly decayed: their time constants carry little weight")
    return tuple(note for note in notes if note is not None)
