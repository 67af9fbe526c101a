"""Polynomial of the cell current from points (voltage, current)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, fdtrc

from device_models.errors import InputError
from device_models.fitting.points import Points
from device_models.fitting.result import Candidate, FitResult, Leaf, Parameter, evidence, file_name
from device_models.fitting.statistics import (
    ROUNDING,
    Misfit,
    Noise,
    aicc,
    check_consistent,
    misfit,
    probability,
    quantile,
    repeated,
    runs_note,
    span,
)
from device_models.quantities import format_quantity
from device_models.schema import COEFFICIENT_UNITS, DeviceModel, Storage

_POWERS = {"linear": (1,), "cubic": (0, 1, 2, 3)}
_SIGNIFICANCE = 0.01
"""Probability at which a law of more coefficients is taken for better by chance."""


@dataclass(frozen=True, eq=False)
class _Polynomial:
    """Weighted least squares of one polynomial in w.

    Attributes:
        law: Name.
        coefficients: [A/V^n] by power.
        unscaled: Covariance of the coefficients for points of unit (weighted) variance.
        residuals: [A] measured minus fitted.
        rss: Sum of squared weighted residuals.
    """

    law: str
    coefficients: NDArray
    unscaled: NDArray
    residuals: NDArray
    rss: float


def fit_cell(points: Points, base: DeviceModel, *, law: str | None, accept_misfit: bool) -> FitResult:
    """Fit ``I = f(V - v_zero)`` by weighted least squares and choose between the linear and the cubic law.

    Args:
        points: ``voltage`` [V], ``current`` [A], perhaps ``current_std`` [A].
        base: Supplies ``storage.v_zero`` and the stored range.
        law: ``linear`` or ``cubic``; None chooses by an F-test (chi-squared with stated standard deviations).
        accept_misfit: See :func:`device_models.fitting.fit`.

    Raises:
        InputError: If the points are too few, do not determine the law over the stored range, or contradict it.

    Source: Draper and Smith, Applied Regression Analysis (1998), sections 1 and 6 (extra sum of squares).
    """
    v, current, std = points.columns["voltage"], points.columns["current"], points.columns.get("current_std")
    weights = np.ones_like(v) if std is None else 1.0 / std
    laws = _allowed(points, law)
    fits = {name: _least_squares(name, v - base.storage.v_zero, current, weights) for name in laws}
    floor = ROUNDING * span(current * weights)
    chosen, selection = _choose(fits, len(points), law, floor, stated=std is not None)
    best = fits[chosen]
    unit = "A" if std is None else ""
    check_consistent(v.tolist(), current * weights, best.residuals * weights, points.lines, points.file, unit)
    noise = Noise(1.0, np.inf, 0.0) if std is not None else repeated(v.tolist(), current)
    dof = len(points) - len(_POWERS[chosen])
    found = misfit(best.rss, dof, noise, law=chosen, unit=unit, where=points.file, accept=accept_misfit)
    _check_determined(best, found, base.storage, v, points.file)
    rms = float(np.sqrt(np.sum(best.residuals**2) / dof))
    parameters = tuple(_parameters(best, found))
    notes = [
        found.note,
        None if found.note else runs_note(v, best.residuals, "the voltage", ROUNDING * span(current)),
        _extrapolation(v, base.storage),
    ]
    if law is None and len(laws) == 1:
        notes.append(f"the cubic law was not tried: it needs {_needed('cubic')}")
    note = evidence(chosen, len(points), rms, "A")
    return FitResult(
        kind="cell",
        file=file_name(points.file),
        law=chosen,
        selection=selection,
        parameters=parameters,
        leaves={
            "cell.law": Leaf(chosen, "measured", selection),
            "cell.coefficients": Leaf(
                [p.written(p.value) for p in parameters], "measured", note,
                ([p.written(p.low) for p in parameters], [p.written(p.high) for p in parameters]),
            ),
        },
        obsolete=(),
        points=len(points),
        residuals=best.residuals,
        residual_rms=rms,
        unit="A",
        comparison=tuple(
            sorted((_candidate(f, len(points), floor) for f in fits.values()), key=lambda c: c.aicc)
        ),
        notes=tuple(note for note in notes if note is not None),
    )  # fmt: skip


def _needed(law: str) -> str:
    count = len(_POWERS[law])
    return f"at least {count + 3} points at {count + 1} different voltages"


def _allowed(points: Points, law: str | None) -> list[str]:
    """Return the laws that the points suffice for."""
    if law is not None and law not in _POWERS:
        raise InputError("unknown law", where=points.file, expected=" or ".join(_POWERS), received=law)
    voltages = len(np.unique(points.columns["voltage"]))
    if voltages == 1:
        raise InputError(
            "all points lie at one voltage", where=points.file, expected=f"{_needed('linear')} for the linear law",
            received=format_quantity(float(points.columns["voltage"][0]), "V"),
        )  # fmt: skip
    if span(points.columns["current"]) == 0.0:
        raise InputError(
            "all currents are equal: they do not depend on the voltage", where=points.file,
            expected="currents that change with the voltage", remedy="check which column holds the current",
        )  # fmt: skip
    wanted = [law] if law is not None else list(_POWERS)
    laws = [n for n in wanted if len(points) >= len(_POWERS[n]) + 3 and voltages > len(_POWERS[n])]
    if not laws:
        raise InputError(
            f"too few points for the {wanted[0]} law", where=points.file, expected=_needed(wanted[0]),
            received=f"{len(points)} points at {voltages} voltages", remedy="measure more points",
        )  # fmt: skip
    return laws


def _least_squares(law: str, w: NDArray, current: NDArray, weights: NDArray) -> _Polynomial:
    powers = np.array(_POWERS[law])
    scale = float(np.abs(w).max()) ** powers  # columns of order one: microamperes and cubed volts are far apart
    design = w[:, None] ** powers / scale
    solution = np.linalg.lstsq(design * weights[:, None], current * weights, rcond=None)[0]
    inverse = np.linalg.pinv(design * weights[:, None])
    residuals = current - design @ solution
    return _Polynomial(
        law=law,
        coefficients=solution / scale,
        unscaled=(inverse @ inverse.T) / np.outer(scale, scale),
        residuals=residuals,
        rss=float(((weights * residuals) ** 2).sum()),
    )


def _choose(
    fits: dict[str, _Polynomial], points: int, law: str | None, floor: float, *, stated: bool
) -> tuple[str, str]:
    """Return the law and the sentence that says how it was chosen."""
    if len(fits) == 1:
        only = next(iter(fits))
        return only, f"the {only} law was asked for" if law else f"the {only} law is the only one tried"
    small, large = fits["linear"].rss, fits["cubic"].rss
    extra, dof = len(_POWERS["cubic"]) - len(_POWERS["linear"]), points - len(_POWERS["cubic"])
    gain = max(small - large, 0.0) / extra
    if stated:
        test, p = f"chi-squared = {gain * extra:.3g} for {extra}", float(chdtrc(extra, gain * extra))
    else:
        f = gain / max(large / dof, floor**2)
        test, p = f"F = {f:.3g} for {extra} and {dof}", float(fdtrc(extra, dof, f))
    if small <= points * floor**2:  # both are exact
        p = 1.0
    chosen = "cubic" if p < _SIGNIFICANCE else "linear"
    reason = "improves on the linear law" if chosen == "cubic" else "is no significant improvement on the linear law"
    return chosen, f"the cubic law {reason}: {test} degrees of freedom, {probability(p)}"


def _check_determined(fit: _Polynomial, found: Misfit, storage: Storage, v: NDArray, where: str) -> None:
    """Refuse a law whose 95 % band over the stored range is wider than its current: it says nothing there."""
    w = np.linspace(storage.v_min, storage.v_max, 33) - storage.v_zero
    design = w[:, None] ** np.array(_POWERS[fit.law])
    band = quantile(found.dof) * np.sqrt(found.variance * np.einsum("ij,jk,ik->i", design, fit.unscaled, design))
    full_scale = float(np.abs(design @ fit.coefficients).max())
    if band.max() <= 0.5 * full_scale:
        return
    powers = _POWERS[fit.law]
    reach = np.abs(w).max() ** np.array(powers)
    worst = powers[int(np.argmax(np.sqrt(np.diag(fit.unscaled)) * reach))]
    covered = min(1.0, span(v) / (storage.v_max - storage.v_min))
    raise InputError(
        f"k{worst} of the {fit.law} law is not determined: the 95 % band of the current reaches"
        f" +-{format_quantity(float(band.max()), 'A')} where the law has {format_quantity(full_scale, 'A')}",
        where=where, expected=f"a band narrower than the current from {storage.v_min:g} to {storage.v_max:g} V",
        remedy=f"the points cover {covered:.0%} of that range: measure more of it, more points, or less noise",
    )  # fmt: skip


def _parameters(fit: _Polynomial, found: Misfit) -> list[Parameter]:
    half = quantile(found.dof) * np.sqrt(found.variance * np.diag(fit.unscaled))
    return [
        Parameter(f"k{n}", float(k), float(k - h), float(k + h), COEFFICIENT_UNITS[n], "cell.coefficients")
        for n, k, h in zip(_POWERS[fit.law], fit.coefficients, half, strict=True)
    ]


def _candidate(fit: _Polynomial, points: int, floor: float) -> Candidate:
    count = len(_POWERS[fit.law])
    rms = float(np.sqrt(np.sum(fit.residuals**2) / (points - count)))
    return Candidate(fit.law, count, rms, aicc(fit.rss, points, count, floor))


def _extrapolation(v: NDArray, storage: Storage) -> str | None:
    low, high = float(v.min()), float(v.max())
    slack = 1e-6 * (storage.v_max - storage.v_min)
    if low <= storage.v_min + slack and high >= storage.v_max - slack:
        return None
    return (
        f"extrapolated: measured from {low:g} to {high:g} V, but the device stores {storage.v_min:g} to"
        f" {storage.v_max:g} V"
    )
