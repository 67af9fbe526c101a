"""Measured decay of one cell or many, arranged for a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from device_models.errors import InputError
from device_models.fitting.points import Points
from device_models.quantities import format_quantity
from device_models.schema import DeviceModel


@dataclass(frozen=True, eq=False)
class Curves:
    """Measured decay, in the order of the file.

    Attributes:
        time: [s] since the write.
        voltage: [V] measured.
        written: [V] at time 0 of each point; None where it is not known.
        cell: Index of each point's cell.
        first: [s] smallest time of each cell.
        level: [V] mean voltage of each cell at that time.
        v_inf: [V] level that the cells relax to, where it is not fitted.
        v_top: [V] reference level of ``t0``.
        temperature: [K] of the measurement.
        activation_energy: [J] that refers it to the reference temperature.
        reference_temperature: [K].
    """

    time: NDArray
    voltage: NDArray
    written: NDArray | None
    cell: NDArray
    first: NDArray
    level: NDArray
    v_inf: float
    v_top: float
    temperature: float
    activation_energy: float
    reference_temperature: float

    @property
    def cells(self) -> int:
        """Return the number of cells."""
        return len(self.first)

    @property
    def span(self) -> float:
        """Return the range of all voltages [V]."""
        known = self.voltage if self.written is None else np.concatenate([self.voltage, self.written])
        return float(known.max() - known.min())

    def head(self, cells: int) -> Curves:
        """Return the curves of the first cells alone."""
        mine = self.cell < cells
        return replace(
            self,
            time=self.time[mine],
            voltage=self.voltage[mine],
            written=None if self.written is None else self.written[mine],
            cell=self.cell[mine],
            first=self.first[:cells],
            level=self.level[:cells],
        )


def arrange(points: Points, base: DeviceModel, v_inf: float | None, temperature: float | None) -> Curves:
    """Arrange points by cell and check that each cell says something.

    Args:
        points: ``time`` [s], ``voltage`` [V], perhaps ``written`` [V] and cells.
        base: Supplies reference temperature, activation energy, and the level to hold ``v_inf`` at.
        v_inf: [V] level that cells relax to; None takes that of the base.
        temperature: [K] of the measurement; None takes the reference temperature.

    Raises:
        InputError: If a cell was measured at one time only, nothing decays, or the temperature cannot be referred.
    """
    time, voltage, written = points.columns["time"], points.columns["voltage"], points.columns.get("written")
    retention, where = base.retention, points.file
    for name, option in (("v_inf", v_inf), ("temperature", temperature)):
        if option is not None and not (math.isfinite(option) and (name == "v_inf" or option > 0)):
            raise InputError(f"{name} is out of range", where=where, expected="a finite value", received=option)
    if temperature not in (None, retention.reference_temperature) and retention.activation_energy == 0.0:
        raise InputError(
            "the temperature of the points cannot be referred to that of the device", where=where,
            expected="retention.activation_energy in the base", received=f"{temperature:g} K",
            remedy=f"give the base one, or measure at {retention.reference_temperature:g} K",
        )  # fmt: skip
    names = list(dict.fromkeys(points.cells)) or [""]
    number = {name: i for i, name in enumerate(names)}
    cell = np.array([number[name] for name in points.cells] or [0] * len(points))
    first, level = np.full(len(names), np.inf), np.zeros(len(names))
    np.minimum.at(first, cell, time)
    for i, name in enumerate(names):
        mine = cell == i
        times = np.unique(time[mine])
        if (written is None and len(times) < 2) or times[-1] == 0:
            raise InputError(
                f"cell {name!r} was measured at one time only" if points.cells else "all points lie at one time",
                where=where, expected="a voltage at two times or more, or its written voltage and a later one",
                received=format_quantity(float(times[-1]), "s"),
            )  # fmt: skip
        level[i] = voltage[mine & (time == first[i])].mean()
    known = base.storage.v_zero if retention.v_inf is None else retention.v_inf
    held = known if v_inf is None else v_inf
    starts = level if written is None else written
    curves = Curves(
        time=time,
        voltage=voltage,
        written=written,
        cell=cell,
        first=first,
        level=level,
        v_inf=held,
        v_top=float(f"{starts[np.abs(starts - held).argmax()]:.6g}"),
        temperature=retention.reference_temperature if temperature is None else temperature,
        activation_energy=retention.activation_energy,
        reference_temperature=retention.reference_temperature,
    )
    if curves.span == 0.0:
        raise InputError(
            "all points lie at one voltage: nothing decays", where=where, expected="voltages that change with time",
            received=format_quantity(float(voltage[0]), "V"),
            remedy="measure longer, or take retention.kind: none",
        )  # fmt: skip
    return curves


def conditions(curves: Curves) -> list[object]:
    """Return what tells the conditions of the points apart: cell, written voltage, time."""
    written = np.zeros_like(curves.time) if curves.written is None else curves.written
    return list(zip(curves.cell.tolist(), written.tolist(), curves.time.tolist(), strict=True))
