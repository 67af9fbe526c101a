"""Energy, area and time of analog-to-digital converters, by two published models.

They differ by a factor of 1.7 to 2.2 at 4 to 8 bits, and peers by twelve: which one prices a device is its choice.
"""

from __future__ import annotations

import math

from device_models.price_schema import Adc, AdcModel


def survey_energy(bits: float, rate: float, node: float) -> float:
    """Return the energy of one conversion [J] by the regression over published converters.

    ::

        SNDR  = 6.0206 b + 1.7609                      [dB]
        FOM_f = 213.7807 - 2.871903 ln f               limited by speed
        FOM_b = 128.3068 + 3.2205115 ceil(b)           limited by resolution
        E     = 0.5 * 10^((SNDR - min(FOM_f, FOM_b)) / 10) * exp(26.04962 + 1.880037 ln L - 2.829126 ln b - 1.470202) pJ

    Args:
        bits: Effective number of bits b; below 4 there are no data.
        rate: [1/s] f, conversions of one converter per second.
        node: [m] L, in nm in the formula.

    Raises:
        ValueError: If there are fewer than 4 bits, or rate or node are not positive.

    Source: andrulis2024. An optimistic design: the 80th percentile of efficiency.
    """
    _check(bits, rate, node)
    sndr = 6.0206 * bits + 1.7609
    merit = min(213.7807 - 2.871903 * math.log(rate), 128.3068 + 3.2205115 * math.ceil(bits))
    fitted = math.exp(26.04962 + 1.880037 * math.log(node * 1e9) - 2.829126 * math.log(bits) - 1.470202)
    return 0.5 * 10.0 ** ((sndr - merit) / 10.0) * fitted * 1e-12


def survey_area(bits: float, rate: float, node: float) -> float:
    """Return the area of one converter [m^2].

    ``ln A = 1.346192 + 0.9932795 ln L + 0.1807154 ln f + 0.2991243 ln E``, A in um^2, E in pJ.

    Raises:
        ValueError: As :func:`survey_energy`.

    Source: andrulis2024; the 10th percentile of area.
    """
    energy_pj = survey_energy(bits, rate, node) * 1e12
    log_um2 = 1.346192 + 0.9932795 * math.log(node * 1e9) + 0.1807154 * math.log(rate)
    return math.exp(log_um2 + 0.2991243 * math.log(energy_pj)) * 1e-12


def sar_energy(bits: float, supply: float) -> float:
    """Return the energy of one conversion [J] of a column SAR in 28 nm: ``(100 fF b + 0.001 fF 4^b) Vdd^2``.

    Source: zigzagimc2023, imc_array.py, checked there against three chips.
    """
    return (100e-15 * bits + 0.001e-15 * 4.0**bits) * supply**2


def sar_area(bits: float) -> float:
    """Return the area of one column SAR in 28 nm [m^2]: ``10^(1.206 - 0.0369 b) 2^b`` um^2.

    Source: zigzagimc2023.
    """
    return 10.0 ** (1.206 - 0.0369 * bits) * 2.0**bits * 1e-12


def sar_time(bits: float, rows: int) -> float:
    """Return the time of one conversion [s] on a column of ``rows`` cells: ``b (0.00653 rows + 0.640)`` ns.

    Source: zigzagimc2023.
    """
    return bits * (0.00653 * rows + 0.640) * 1e-9


def conversion_energy(model: AdcModel, bits: float, adc: Adc) -> float:
    """Return the energy of one conversion [J] of a modelled converter; 0 where a counter's is contained elsewhere.

    Raises:
        ValueError: With the model ``fixed``, whose price stands in the file; as :func:`survey_energy`.
    """
    if model == "counter":
        return 0.0
    if model == "survey":
        return survey_energy(bits, adc.rate, adc.node)
    if model == "sar":
        return sar_energy(bits, adc.supply)
    raise ValueError("a fixed price is not modelled: it stands in the device file")


def conversion_area(model: AdcModel, bits: float, adc: Adc) -> float:
    """Return the area of one modelled converter [m^2]; 0 for ``counter`` and ``fixed``, contained elsewhere."""
    if model == "survey":
        return survey_area(bits, adc.rate, adc.node)
    return sar_area(bits) if model == "sar" else 0.0


def _check(bits: float, rate: float, node: float) -> None:
    if bits < 4:
        raise ValueError(f"the survey regression starts at 4 bits, received {bits:g}: take the model sar or fixed")
    if not rate > 0 or not node > 0:
        raise ValueError(f"rate and node must be positive, received {rate:g} 1/s and {node:g} m")
