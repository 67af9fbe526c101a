"""What a fit found: parameters with intervals, the comparison of laws, and the leaves of a device file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

from numpy.typing import NDArray

from device_models.errors import InputError
from device_models.quantities import format_quantity

DIGITS = 6
"""Significant digits of a fitted number in a file; the coefficients of a polynomial compensate each other."""


@dataclass(frozen=True)
class Parameter:
    """One fitted number with its 95 % interval.

    Attributes:
        name: Symbol of the law, for example ``"tau"``.
        value: In ``unit``.
        low: Lower end of the interval.
        high: Upper end.
        unit: SI unit; empty for a number without unit.
        key: Device key that it is written to; None for one that is only reported.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    key: str | None

    def text(self, value: float | None = None, digits: int = DIGITS) -> str:
        """Write a value (default: the fitted one) with its unit for a person."""
        shown = self.value if value is None else value
        return format_quantity(shown, self.unit, digits) if self.unit else f"{shown:.{digits}g}"

    def written(self, value: float) -> object:
        """Return a value as a device file holds it: a quantity string, or a number where there is no unit."""
        return self.text(value) if self.unit else float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True)
class Candidate:
    """One law of the comparison.

    Attributes:
        law: Its name.
        parameters: Number of fitted numbers, without the noise.
        residual_rms: In the unit of the measured quantity, per degree of freedom.
        aicc: [1] Akaike's criterion with small-sample correction; only differences mean something.
        problem: Why this law cannot be used, None where it can.
    """

    law: str
    parameters: int
    residual_rms: float
    aicc: float
    problem: str | None = None


@dataclass(frozen=True)
class Leaf:
    """One value for a device file.

    Attributes:
        value: As written there.
        kind: ``measured``, or ``derived`` and ``assumed`` for what the law needs beside the points.
        note: What a reader must know.
        range: Ends of the 95 % interval as written, where there is one.
    """

    value: object
    kind: str
    note: str
    range: tuple[object, object] | None = None


@dataclass(frozen=True, eq=False)
class FitResult:
    """Outcome of one fit.

    Attributes:
        kind: ``cell``, ``retention`` or ``converter``.
        file: Name of the CSV file, without folders.
        law: The chosen law.
        selection: One sentence: how it was chosen.
        parameters: Fitted numbers.
        leaves: What replaces leaves of the base device, by dotted key.
        obsolete: Keys of the base that mean nothing under this law.
        points: Number of points.
        residuals: Measured minus fitted, in the order of the file [unit].
        residual_rms: Per degree of freedom [unit].
        unit: Unit of the residuals.
        comparison: Every law that was tried, best first.
        notes: What the user should know.
    """

    kind: str
    file: str
    law: str
    selection: str
    parameters: tuple[Parameter, ...]
    leaves: Mapping[str, Leaf]
    obsolete: tuple[str, ...]
    points: int
    residuals: NDArray
    residual_rms: float
    unit: str
    comparison: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def values(self) -> dict[str, Any]:
        """Return the fitted values as overrides of a device: ``{"retention.tau": "5.01 ms", ...}``."""
        return {key: leaf.value for key, leaf in self.leaves.items()}


def evidence(law: str, points: int, rms: float, unit: str) -> str:
    """Say in one line what a fitted leaf rests on."""
    return f"{law} law, {points} points, residual {format_quantity(rms, unit)} rms; range is the 95 % interval"


def file_name(path: str) -> str:
    """Return the last part of a path: where the numbers stand, without the user's folders, on one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in PurePath(path).name).split())


def check_bounds(key: str, parameter: Parameter, where: str) -> None:
    """Check a fitted number against what device files accept.

    Raises:
        InputError: If it is out of the range of its key.
    """
    section, name = key.split(".")
    try:
        _bounds(section, name).parse(parameter.written(parameter.value))
    except ValueError as error:
        raise InputError(
            f"{parameter.name} cannot stand in a device file", where=where,
            expected=str(error).removeprefix("expected "),
            received=parameter.text(), remedy="check the units in the header",
        ) from None  # fmt: skip


@cache
def _bounds(section: str, name: str) -> Any:
    """Return the annotation (Quantity or Factor) of a field of the device model."""
    from typing import get_args, get_type_hints

    from device_models.schema import DeviceModel

    hint = get_type_hints(get_type_hints(DeviceModel)[section], include_extras=True)[name]
    while not hasattr(hint, "__metadata__"):  # Annotated[...] | None
        hint = get_args(hint)[0]
    return hint.__metadata__[0]
