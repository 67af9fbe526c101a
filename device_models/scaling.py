"""Energy of a CMOS gate between technology nodes.

Source: stillmaker2017, energy polynomials of table 4 as coded in accelergy-library-plug-in.
"""

from __future__ import annotations

from collections.abc import Mapping

_ENERGY: Mapping[int, tuple[float, float, float]] = {
    65: (3.755, -4.398, 1.975),
    45: (1.103, -0.362, 0.2767),
    32: (0.9559, -0.7823, 0.471),
    20: (0.373, -0.1582, 0.04104),
    16: (0.2958, -0.1241, 0.03024),
    14: (0.2363, -0.09675, 0.02239),
    10: (0.2068, -0.09311, 0.02375),
    7: (0.1776, -0.09097, 0.02447),
}
"""Coefficients a, b, c of ``E = a V^2 + b V + c`` [arbitrary unit] by node [nm]."""


def gate_energy(node_m: float, supply_v: float) -> float:
    """Return the energy of a gate [arbitrary unit]: ``a V^2 + b V + c``, linear in the node between two fits.

    Args:
        node_m: [m] from 7 nm to 65 nm.
        supply_v: [V] from 0.5 V to 1.2 V.

    Raises:
        ValueError: If node or supply lie outside of the fits.

    Source: stillmaker2017. Approximation: between 32 nm (planar) and 20 nm it crosses a change of transistor, which
    leaves 28 nm uncertain by about 25 %.
    """
    node_nm = node_m * 1e9
    if not min(_ENERGY) <= node_nm * (1 + 1e-9) or not node_nm * (1 - 1e-9) <= max(_ENERGY):
        raise ValueError(f"no fit for a node of {node_nm:g} nm: expected 7 to 65 nm")
    if not 0.5 <= supply_v <= 1.2:
        raise ValueError(f"no fit for a supply of {supply_v:g} V: expected 0.5 to 1.2 V")

    def fitted(node: int) -> float:
        a, b, c = _ENERGY[node]
        return a * supply_v**2 + b * supply_v + c

    below = max(node for node in _ENERGY if node <= node_nm * (1 + 1e-9))
    above = min(node for node in _ENERGY if node >= node_nm * (1 - 1e-9))
    if below == above:
        return fitted(below)
    share = (node_nm - below) / (above - below)
    return (1 - share) * fitted(below) + share * fitted(above)


def energy_factor(from_node_m: float, from_supply_v: float, to_node_m: float, to_supply_v: float) -> float:
    """Return the factor [1] from an energy at one node and supply to that at another.

    45 nm to 28 nm at 0.9 V is 0.507.

    Raises:
        ValueError: If a node or supply lies outside of the fits.

    Source: stillmaker2017.
    """
    return gate_energy(to_node_m, to_supply_v) / gate_energy(from_node_m, from_supply_v)
