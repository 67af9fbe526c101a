"""Least squares of one decay law over the curves of many cells.

Shared by all cells: ``v_inf``, ``beta`` or ``v_scale``. Per cell: the logarithm of its time constant (tau, t0, 1/rate)
and, where the written voltage is not known, the voltage at its first point. The law itself is
:func:`device_models.retention.stored_voltage`, so a fit and the emulator cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.sparse import csr_array

from device_models.fitting.curves import Curves
from device_models.retention import arrhenius, stored_voltage
from device_models.schema import Retention

SHAPES = {"exponential": (), "stretched": ("beta",), "log_self_limited": ("v_scale",), "constant_current": ()}
"""Shared numbers of each law beside ``v_inf``, fitted as logarithms."""

_GRID = {"beta": np.array([0.25, 0.45, 0.7, 1.0]), "v_scale": np.geomspace(0.02, 2.0, 5)}
"""Starting values: beta [1], v_scale in units of the span of the data."""

_STARTS = {"exponential": 1, "stretched": 1, "log_self_limited": 3, "constant_current": 3}
"""Best points of the grid that are refined: the stop at ``v_inf`` is a kink, and kinks make local minima."""

_GRID_CELLS = 16
"""Cells that the shared numbers start from; each cell's own number starts from its own points."""

_GRID_THETAS = 48
"""Time constants tried for each cell, over 20 e-folds more than the times span."""

_CHUNK = 100_000
"""Voltages computed at once."""

_STEP = 1e-5
"""Of the central differences: in logarithms, or in units of the span."""

_DENSE = 1_000_000
"""Entries of the Jacobian above which it is stored sparse."""

_EVALUATIONS = 80
"""A fit that determines its numbers takes 5 to 30; one whose valley has no end takes any number."""


@dataclass(frozen=True, eq=False)
class Decay:
    """One law fitted to curves.

    Attributes:
        law: Name.
        free: Whether ``v_inf`` was fitted.
        shape: Fitted shared numbers, ``v_inf`` [V] last.
        theta: ln(time constant / 1 s) of each cell.
        shape_covariance: Of ``shape`` per variance of a point [1/V^2]; beta and v_scale as logarithms.
        own: [1/V^2] variance of each theta from its own points, per variance of a point.
        coupling: d theta / d shape of each cell, (cells, shared numbers).
        residuals: [V] measured minus fitted.
        numbers: How many were fitted.
        converged: Whether the search ended at a minimum.
    """

    law: str
    free: bool
    shape: NDArray
    theta: NDArray
    shape_covariance: NDArray
    own: NDArray
    coupling: NDArray
    residuals: NDArray
    numbers: int
    converged: bool

    @property
    def rss(self) -> float:
        """Return the sum of squared residuals [V^2]."""
        return float(self.residuals @ self.residuals)


def retention_law(law: str, curves: Curves, shape: NDArray, *, free: bool) -> Retention:
    """Return a law whose time constant is 1 s, 1 V/s for a rate, and whose spread is one e-fold per deviate."""
    names = SHAPES[law]
    constants: dict[str, Any] = {name: float(value) for name, value in zip(names, shape, strict=False)}
    if law in ("exponential", "stretched"):
        constants |= {"tau": 1.0}
    elif law == "log_self_limited":
        constants |= {"t0": 1.0, "v_top": curves.v_top}
    else:
        constants |= {"rate": 1.0}
    return Retention(
        kind=law,  # type: ignore[arg-type]  # one of SHAPES
        v_inf=float(shape[-1]) if free else curves.v_inf,
        tau_sigma_ln=1.0,
        activation_energy=curves.activation_energy,
        reference_temperature=curves.reference_temperature,
        **constants,
    )


def decayed(law: str, curves: Curves, shape: NDArray, theta: NDArray, level: NDArray, *, free: bool) -> NDArray:
    """Return the voltage of each point [V] under a law.

    Where the written voltage is unknown, ``level`` holds it at the first time t1 of each cell. The laws whose rate
    depends on the voltage alone restart there, with age t - t1; the stretched one is continued back to its write::

        V(0) = v_inf + (V(t1) - v_inf) exp((t1 / tau)^beta)

    Args:
        law: Key of ``SHAPES``.
        curves: Points.
        shape: Shared numbers.
        theta: ln(time constant / 1 s), (..., cells).
        level: [V] at the first time, (cells,); not read where the written voltage is known.
        free: Whether the last number of ``shape`` is ``v_inf``.
    """
    retention = retention_law(law, curves, shape, free=free)
    z = theta[..., curves.cell]
    if curves.written is not None:
        start, age = curves.written, curves.time
    elif law == "stretched":
        assert retention.v_inf is not None and retention.beta is not None
        speed = arrhenius(curves.temperature, curves.activation_energy, curves.reference_temperature)
        exponent = np.minimum((curves.first * speed * np.exp(-theta)) ** retention.beta, 50.0)
        start = retention.v_inf + (level[curves.cell] - retention.v_inf) * np.exp(exponent)[..., curves.cell]
        age = curves.time
    else:
        start, age = level[curves.cell], curves.time - curves.first[curves.cell]
    return stored_voltage(start, age, retention, temperature=curves.temperature, z=z)


def fit_decay(law: str, curves: Curves, *, free: bool) -> Decay:
    """Fit one law by least squares, from the best points of a grid of starting values.

    Args:
        law: Key of ``SHAPES``.
        curves: Points.
        free: Fit ``v_inf`` too.
    """
    problem = _Problem(law, curves, free)
    found = None
    for start in problem.starts():
        trial = least_squares(
            problem.residuals, start, problem.jacobian, bounds=problem.bounds(), method="trf",
            ftol=1e-11, xtol=1e-11, gtol=1e-13, max_nfev=_EVALUATIONS,
        )  # fmt: skip
        if found is None or trial.cost < found.cost:
            found = trial
    assert found is not None
    return problem.outcome(found.x, converged=found.status > 0)


class _Problem:
    """One law on given curves as functions of one vector: ln(shape), v_inf/span, theta, level/span."""

    def __init__(self, law: str, curves: Curves, free: bool) -> None:
        self.law, self.curves, self.free = law, curves, free
        self.names = SHAPES[law]
        self.shared = len(self.names) + free
        self.per_cell = 1 if curves.written is not None else 2
        self.size = self.shared + self.per_cell * curves.cells

    def parts(self, x: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Return shape, theta and level of a vector."""
        shape = np.array(x[: self.shared], dtype=np.float64)
        shape[: len(self.names)] = np.exp(shape[: len(self.names)])
        shape[len(self.names) :] *= self.curves.span
        theta, level = x[self.shared : self.shared + self.curves.cells], x[self.shared + self.curves.cells :]
        return shape, theta, level * self.curves.span

    def voltage(self, x: NDArray) -> NDArray:
        """Return the fitted voltage of each point [V]."""
        shape, theta, level = self.parts(x)
        return decayed(self.law, self.curves, shape, theta, level, free=self.free)

    def residuals(self, x: NDArray) -> NDArray:
        """Return fitted minus measured in units of the span."""
        return (self.voltage(x) - self.curves.voltage) / self.curves.span

    def blocks(self, x: NDArray) -> tuple[NDArray, NDArray]:
        """Return derivatives of the residuals to the shared numbers and to those of each point's own cell."""
        cells = self.curves.cells

        def difference(columns: slice) -> NDArray:
            step = np.zeros(self.size)
            step[columns] = _STEP
            return (self.residuals(x + step) - self.residuals(x - step)) / (2 * _STEP)

        shared = [difference(slice(i, i + 1)) for i in range(self.shared)]
        starts = [self.shared + i * cells for i in range(self.per_cell)]
        own = [difference(slice(start, start + cells)) for start in starts]  # a point knows one cell only
        rows = len(self.curves.time)
        return np.array(shared).reshape(self.shared, rows).T, np.array(own).T

    def jacobian(self, x: NDArray) -> Any:
        """Return the derivative of the residuals, sparse if it is large."""
        shared, own = self.blocks(x)
        rows, cells, curves = np.arange(len(shared)), self.curves.cells, self.curves
        places = [self.shared + i * cells + curves.cell for i in range(self.per_cell)]
        if len(rows) * self.size <= _DENSE:
            dense = np.zeros((len(rows), self.size))
            dense[:, : self.shared] = shared
            for place, values in zip(places, own.T, strict=True):
                dense[rows, place] = values
            return dense
        columns = np.concatenate([np.repeat(np.arange(self.shared), len(rows)), *places])
        values = np.concatenate([shared.T.ravel(), own.T.ravel()])
        return csr_array((values, (np.resize(rows, len(columns)), columns)), shape=(len(rows), self.size))

    def bounds(self) -> tuple[NDArray, NDArray]:
        """Return limits that keep the search where the laws can be computed."""
        low, high = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        theta = slice(self.shared, self.shared + self.curves.cells)
        low[theta], high[theta] = self._theta_limits()
        for i, name in enumerate(self.names):
            unit = self.curves.span if name == "v_scale" else 1.0
            low[i], high[i] = np.log(unit * 0.005), np.log(unit * (100.0 if name == "v_scale" else 3.0))
        if self.free:
            middle = float(self.curves.voltage.mean()) / self.curves.span
            low[self.shared - 1], high[self.shared - 1] = middle - 50.0, middle + 50.0
        if self.per_cell == 2:  # exp(level / v_scale) of the log law must not overflow
            unit = self.curves.span
            low[theta.stop :], high[theta.stop :] = self.curves.level / unit - 1.0, self.curves.level / unit + 1.0
        return low, high

    def _theta_limits(self) -> tuple[float, float]:
        times = self.curves.time[self.curves.time > 0]
        unit = max(1.0, 1.0 / self.curves.span) if self.law == "constant_current" else 1.0
        return float(np.log(times.min())) - 25.0, float(np.log(times.max() * unit)) + 25.0

    def starts(self) -> list[NDArray]:
        """Return the best starting vectors of a grid over the shared numbers, each cell at its best theta."""
        curves = self.curves
        shapes: list[tuple[float, ...]] = [()]
        for name in self.names:
            unit = curves.span if name == "v_scale" else 1.0
            shapes = [(*s, float(value) * unit) for s in shapes for value in _GRID[name]]
        if self.free:
            low, high = float(curves.voltage.min()), float(curves.voltage.max())
            levels = [curves.v_inf, *np.linspace(low - curves.span, high + curves.span, 10)]
            shapes = [(*s, float(level)) for s in shapes for level in levels]
        few = curves.head(_GRID_CELLS)
        shapes.sort(key=lambda shape: float(self._cell_costs(few, np.array(shape))[0].sum()))
        return [
            self._vector(np.array(s), self._cell_costs(curves, np.array(s))[1]) for s in shapes[: _STARTS[self.law]]
        ]

    def _cell_costs(self, curves: Curves, shape: NDArray) -> tuple[NDArray, NDArray]:
        """Return each cell's smallest sum of squares over a grid of thetas, and where it is."""
        low, high = self._theta_limits()
        thetas, costs = np.linspace(low + 15.0, high - 15.0, _GRID_THETAS), []
        parts = max(1, _GRID_THETAS * len(curves.time) // _CHUNK)
        for some in np.array_split(thetas, parts):  # all at once where they are few, without filling the memory
            trial = np.repeat(some[:, None], curves.cells, axis=1)
            missed = decayed(self.law, curves, shape, trial, curves.level, free=self.free) - curves.voltage
            place = curves.cell + curves.cells * np.arange(len(some))[:, None]
            costs.append(np.bincount(place.ravel(), (missed**2).ravel(), minlength=trial.size).reshape(trial.shape))
        cost = np.concatenate(costs)
        return cost.min(0), thetas[cost.argmin(0)]

    def _vector(self, shape: NDArray, theta: NDArray) -> NDArray:
        x = shape.copy()
        x[: len(self.names)] = np.log(x[: len(self.names)])
        x[len(self.names) :] /= self.curves.span
        level = self.curves.level / self.curves.span if self.per_cell == 2 else np.zeros(0)
        low, high = self.bounds()
        return np.clip(np.concatenate([x, theta, level]), low + 1e-9, high - 1e-9)

    def outcome(self, x: NDArray, *, converged: bool) -> Decay:
        """Return the fit with its covariances, by elimination of the cells' own numbers (Schur complement)."""
        curves, q = self.curves, self.per_cell
        shared, own = self.blocks(x)
        shared, own = shared * curves.span, own * curves.span  # [V] again
        if self.free:
            shared[:, -1] /= curves.span

        def summed(a: NDArray, b: NDArray) -> NDArray:
            return np.bincount(curves.cell, a * b, minlength=curves.cells)

        a = np.array([[summed(own[:, i], own[:, j]) for j in range(q)] for i in range(q)]).transpose(2, 0, 1)
        b = np.array([[summed(own[:, i], shared[:, j]) for j in range(self.shared)] for i in range(q)])
        b = b.reshape(q, self.shared, curves.cells).transpose(2, 0, 1)
        inverse = _inverse(a)
        coupling = -np.einsum("cij,cjk->cik", inverse, b)
        schur = shared.T @ shared + np.einsum("cji,cjk->ik", b, coupling)
        shape, theta, _ = self.parts(x)
        return Decay(
            law=self.law,
            free=self.free,
            shape=shape,
            theta=theta,
            shape_covariance=_inverse(schur),
            own=inverse[:, 0, 0],
            coupling=coupling[:, 0, :],
            residuals=curves.voltage - self.voltage(x),
            numbers=self.size,
            converged=converged,
        )


def _inverse(matrix: NDArray) -> NDArray:
    """Invert symmetric matrices; directions that the points say nothing about get an enormous variance, not none."""
    if not matrix.size:
        return matrix
    values, vectors = np.linalg.eigh(matrix)
    least = 1e-12 * np.maximum(values.max(-1, keepdims=True), 1e-12)
    return np.einsum("...ij,...j,...kj->...ik", vectors, 1.0 / np.maximum(values, least), vectors)
