"""Measured points to a device file: cell current, retention and converter transfer of a user's own chip.

``write_device(fit(read_points("droop.csv"), load_device("gaincell_28nm")), "gaincell_28nm", "mine.yaml")``

=================  ==============================================  =====================================
columns            fits                                            writes
=================  ==============================================  =====================================
voltage, current   linear or cubic polynomial in ``V - v_zero``    ``cell.law``, ``cell.coefficients``
time, voltage      one of four decay laws, spread over cells       ``retention.*``
input, code        gain, offset, INL, DNL, bits, noise             ``readout.bits|inl|dnl|noise``
=================  ==============================================  =====================================

Every interval is meant to hold the true value in 95 % of repetitions of the measurement.
"""

from __future__ import annotations

from device_models.errors import InputError
from device_models.fitting.points import Points, read_points
from device_models.fitting.result import Candidate, FitResult, Leaf, Parameter
from device_models.fitting.writing import write_device
from device_models.schema import DeviceModel

__all__ = ["Candidate", "FitResult", "Leaf", "Parameter", "Points", "fit", "read_points", "write_device"]


def fit(
    points: Points,
    base: DeviceModel,
    *,
    law: str | None = None,
    v_inf: float | None = None,
    temperature: float | None = None,
    input_range: tuple[float, float] | None = None,
    accept_misfit: bool = False,
) -> FitResult:
    """Fit measured points to the law of their kind.

    Args:
        points: From :func:`read_points`.
        base: Device that the points belong to; supplies ``v_zero``, the stored range, the kind of converter.
        law: Law to fit instead of choosing one; cell and retention.
        v_inf: [V] level that cells relax to, if it is known; retention. None fits it.
        temperature: [K] at which retention was measured; None is the reference temperature of the base.
        input_range: Inputs of the lowest and the highest code, in the SI unit of the column; converter. None is
            -1 to 1 for a column without unit and plus or minus ``saturation.av`` for one in amperes.
        accept_misfit: Fit although the law misses by far more than the noise; intervals are widened.

    Raises:
        InputError: If the points do not determine the law, contradict each other or the law, or an option does not
            belong to their kind.
    """
    given = {
        "law": law,
        "v_inf": v_inf,
        "temperature": temperature,
        "input_range": input_range,
        "accept_misfit": accept_misfit or None,
    }
    known = {
        "cell": {"law", "accept_misfit"},
        "retention": {"law", "v_inf", "temperature", "accept_misfit"},
        "converter": {"input_range"},
    }[points.kind]
    for name, value in given.items():
        if value is not None and name not in known:
            raise InputError(
                f"{name} means nothing for points of a {points.kind}", where=points.file, remedy=f"leave {name} out"
            )
    # imported here because reading a file needs none of them
    from device_models.fitting.cell import fit_cell
    from device_models.fitting.converter import fit_converter
    from device_models.fitting.retention import fit_retention

    if points.kind == "cell":
        return fit_cell(points, base, law=law, accept_misfit=accept_misfit)
    if points.kind == "retention":
        return fit_retention(points, base, law=law, v_inf=v_inf, temperature=temperature, accept_misfit=accept_misfit)
    return fit_converter(points, base, input_range=input_range)
