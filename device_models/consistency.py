"""What the keys of a device need of each other: a constant is missing, or one is there and would do nothing.

A number that acts nowhere misleads whoever reads the file, so it is refused like a missing one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter

from device_models.errors import InputError
from device_models.price_schema import ADC_PRICES
from device_models.quantities import parse_quantity
from device_models.retention import refresh_interval
from device_models.schema import DeviceModel

LAWS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "exponential": ("tau", "v_inf"),
    "stretched": ("tau", "beta", "v_inf"),
    "log_self_limited": ("v_scale", "t0", "v_top", "v_inf"),
    "constant_current": ("rate", "v_inf"),
}
"""Constants of ``retention`` that each law takes."""

_CONSTANTS = ("tau", "beta", "v_inf", "v_scale", "t0", "v_top", "rate")
_SPREAD = ("tau_sigma_ln", "activation_energy")
_REFRESHES: Mapping[str, tuple[str, ...]] = {"none": (), "periodic": ("interval",), "on_droop": ("droop",)}
_READOUT_ERRORS = ("gain_sigma", "offset_sigma", "inl", "dnl", "noise")
_SWITCHED_OFF: Mapping[tuple[str, object], tuple[str, ...]] = {
    ("input.levels", None): ("input.inl",),
    ("storage.levels", None): ("write.dac_inl",),
    ("write.capacitance", None): ("write.ktc", "write.capacitor_mismatch"),
    ("readout.codes", "ideal"): tuple(f"readout.{name}" for name in _READOUT_ERRORS),
    ("activation.kind", "hard_sigmoid"): ("activation.levels", "input.signed"),
    ("linear.adc_range", "ideal"): ("linear.noise",),
    **{(key, model): (price,) for key, price in ADC_PRICES.items() for model in ("counter", "survey", "sar")},
}


def taken_along(key: str, value: object) -> tuple[str, ...]:
    """Return the keys that mean nothing once ``key`` is ``value``.

    An override is one wish: ``retention.kind=none`` takes the time constant of the file out as well.
    """
    if key == "retention.kind" and isinstance(value, str) and value in LAWS:
        gone = [name for name in _CONSTANTS if name not in LAWS[value]]
        gone += [*_SPREAD, "reference_temperature"] if value == "none" else []
        return tuple(f"retention.{name}" for name in gone)
    if key == "refresh.kind" and isinstance(value, str) and value in _REFRESHES:
        return tuple(f"refresh.{name}" for name in ("interval", "droop") if name not in _REFRESHES[value])
    if key == "wire.resistance" and _is_zero(value, "ohm"):
        return ("wire.cell_current", "wire.supply")
    return _SWITCHED_OFF.get((key, value), ()) if value is None or isinstance(value, str) else ()


def _is_zero(value: object, unit: str) -> bool:
    try:
        return parse_quantity(value, unit) == 0.0
    except ValueError:
        return False  # validation names the mistake


def check_together(device: DeviceModel, where: str) -> None:
    """Check what single keys cannot know of each other.

    Args:
        device: Device whose single values are valid.
        where: File, for messages.

    Raises:
        InputError: On the first contradiction, missing constant or constant without effect.
    """
    for rules in (
        _storage,
        _retention,
        _drift,
        _refresh,
        _write,
        _cell,
        _wire,
        _readout,
        _activation,
        _pulse_grid,
        _adc,
        _linear,
        _parity,
    ):
        for error in rules(device, where):
            raise error


def _storage(device: DeviceModel, where: str) -> Iterator[InputError]:
    storage = device.storage
    if not storage.v_min < storage.v_max or not storage.v_min <= storage.v_zero <= storage.v_max:
        yield InputError(
            "voltages out of order", where=f"{where}: storage", expected="v_min <= v_zero <= v_max, v_min < v_max"
        )


def _retention(device: DeviceModel, where: str) -> Iterator[InputError]:
    retention, place = device.retention, f"{where}: retention"
    law = LAWS[retention.kind]
    for name in law:
        if getattr(retention, name) is None:
            yield InputError(
                f"{name} is missing", where=place, expected=f"{' and '.join(law)} for kind {retention.kind}"
            )
    for name in _CONSTANTS:
        if name not in law and getattr(retention, name) is not None:
            yield InputError(
                f"{name} would do nothing", where=place, expected=f"no {name} with kind {retention.kind}",
                remedy="set another retention.kind or drop it",
            )  # fmt: skip
    for name in _SPREAD:
        if not device.decays and getattr(retention, name):
            yield InputError(
                f"{name} would do nothing", where=place, expected=f"no {name} with kind none",
                remedy="set another retention.kind or drop it",
            )  # fmt: skip


def _drift(device: DeviceModel, where: str) -> Iterator[InputError]:
    if device.drift.amplitude and device.drift.tau is None:
        yield InputError("tau is missing", where=f"{where}: drift", expected="a time constant beside the amplitude")


def _refresh(device: DeviceModel, where: str) -> Iterator[InputError]:
    refresh, place = device.refresh, f"{where}: refresh"
    needed = _REFRESHES[refresh.kind]
    for name in ("interval", "droop"):
        if (name in needed) != (getattr(refresh, name) is not None):
            what = "is missing" if name in needed else "would do nothing"
            yield InputError(
                f"{name} {what}", where=place, expected="interval with kind periodic, droop with kind on_droop",
                received=refresh.kind,
            )  # fmt: skip
    if refresh.kind != "none" and not device.decays:
        yield InputError(
            "there is nothing to refresh", where=place, expected="kind none where retention.kind is none",
            received=refresh.kind,
        )  # fmt: skip
    if refresh.kind != "none" and device.storage.levels is None:
        yield InputError(
            "continuous values cannot be restored", where=place, expected="storage.levels to round to",
            received=refresh.kind,
        )  # fmt: skip
    elif refresh.kind == "on_droop" and refresh.droop is not None:
        try:
            refresh_interval(device)
        except ValueError as error:
            yield InputError(str(error), where=f"{place}.droop", received=refresh.droop)


def _write(device: DeviceModel, where: str) -> Iterator[InputError]:
    write = device.write
    if write.capacitance is None and (write.ktc or write.capacitor_mismatch):
        yield InputError(
            "capacitance is missing", where=f"{where}: write", expected="one beside ktc or capacitor_mismatch"
        )
    if write.dac_inl and device.storage.levels is None:
        yield InputError("dac_inl would do nothing", where=f"{where}: write", expected="storage.levels with it")
    if device.input.inl and device.input.levels is None:
        yield InputError("inl would do nothing", where=f"{where}: input", expected="input.levels with it")
    if device.input.jitter and not (device.cost.time_qk and device.cost.time_av):
        yield InputError(
            "jitter of a pulse without length", where=f"{where}: input", expected="cost.time_qk and cost.time_av > 0"
        )


def _cell(device: DeviceModel, where: str) -> Iterator[InputError]:
    cell = device.cell
    if len(cell.coefficients) != (1 if cell.law == "linear" else 4):
        yield InputError(
            "coefficients do not fit the law", where=f"{where}: cell", expected="one for linear, four for cubic",
            received=f"{cell.law} with {len(cell.coefficients)}",
        )  # fmt: skip
    if (cell.backward == "linear") != (cell.surrogate_slope is not None):
        yield InputError(
            "surrogate_slope belongs to backward: linear", where=f"{where}: cell", expected="both or neither"
        )


def _wire(device: DeviceModel, where: str) -> Iterator[InputError]:
    from device_models.variability import wire_drop  # NumPy, which reading a device's name does not need

    wire, place = device.wire, f"{where}: wire"
    if bool(wire.resistance) != bool(wire.cell_current):
        yield InputError(
            "resistance and cell_current belong together", where=place, expected="both or neither",
            received=f"{wire.resistance:g} ohm, {wire.cell_current:g} A",
        )  # fmt: skip
    cells = max(device.tile.rows, device.tile.slots)
    lost = float(wire_drop(cells - 1, cells, wire))
    if lost >= 1.0:
        yield InputError(
            f"a line of {cells} cells loses {lost:.0%} of the supply", where=place, expected="less than all of it",
            remedy="cut the tile, the resistance or the cell current",
        )  # fmt: skip


def _readout(device: DeviceModel, where: str) -> Iterator[InputError]:
    readout, place = device.readout, f"{where}: readout"
    if (readout.bits is None) != (readout.codes == "ideal"):
        yield InputError(
            "bits and codes disagree", where=place, expected="bits: null exactly with codes: ideal",
            received=f"bits {readout.bits}, codes {readout.codes}",
        )  # fmt: skip
    if readout.bits == 1 and readout.codes == "counter":
        yield InputError(
            "a signed counter needs a magnitude bit", where=f"{place}.bits", expected="2 to 12", received=1
        )
    for name in _READOUT_ERRORS:
        if readout.codes == "ideal" and getattr(readout, name):
            yield InputError(f"{name} would do nothing", where=place, expected="codes other than ideal with it")


def _activation(device: DeviceModel, where: str) -> Iterator[InputError]:
    activation, bits = device.activation, device.readout_qk.bits
    if activation.kind == "softmax" and (bits is None or bits < 2):
        yield InputError(
            "softmax needs signed digital scores", where=f"{where}: activation",
            expected="readout_qk.bits from 2 to 16", received=bits,
        )  # fmt: skip
    if device.input.signed and activation.kind != "softmax":
        yield InputError(
            "signed would do nothing", where=f"{where}: input", expected="no signed inputs with kind hard_sigmoid"
        )
    if activation.levels is not None and activation.kind != "softmax":
        yield InputError(
            "levels would do nothing", where=f"{where}: activation", expected="no levels with kind hard_sigmoid"
        )


def _pulse_grid(device: DeviceModel, where: str) -> Iterator[InputError]:
    """One factor has to fade a pulse's cells, and on the design all sums have to be exact in float32."""
    bits, place, levels = device.readout_qk.pulse_bits, f"{where}: readout_qk.pulse_bits", device.storage.levels
    if bits is None:
        return
    if levels is None or device.input.levels is None:
        yield InputError(
            "nothing is exact beside continuous queries or cells", where=place,
            expected="input.levels and storage.levels", received=f"{device.input.levels}, {levels}",
            remedy="set both or drop pulse_bits",
        )  # fmt: skip
    retention, variability = device.retention, device.variability
    law = retention.kind in ("none", "exponential", "stretched") and not retention.tau_sigma_ln
    law = law and retention.v_inf in (None, device.storage.v_zero)
    own = variability.offset_sigma or device.drift.amplitude or device.refresh.kind != "none"
    linear = device.cell.law == "linear" and device.cell.backward == "exact" and not device.parity.bfloat16_decay
    if not law or own or not linear or device.activation.kind == "softmax":
        yield InputError(
            "no one factor fades all cells that a pulse reads", where=place,
            expected="linear cells with their exact derivative, one decay towards v_zero, hard_sigmoid; neither cell "
            "offset, drift nor refresh",
            remedy="drop pulse_bits or those effects",
        )  # fmt: skip
    largest = device.tile.slots * (2**bits - 1) * ((levels or 2) - 1)
    if largest >= 2**24:
        yield InputError(
            "sums of a sub-tile are not exact", where=place, expected="slots (2^bits - 1) (levels - 1) below 2^24",
            received=largest, remedy="fewer pulse_bits, storage levels or slots",
        )  # fmt: skip


def _linear(device: DeviceModel, where: str) -> Iterator[InputError]:
    """Sums are rounded where the converter has a range, and then it needs codes on both sides of zero."""
    linear = device.linear
    if linear.adc_range == "ideal" and linear.noise:
        yield InputError(
            "noise would do nothing", where=f"{where}: linear", expected="no noise with adc_range ideal",
            remedy="set another linear.adc_range or drop it",
        )  # fmt: skip
    if linear.adc_range != "ideal" and (linear.adc_bits is None or linear.adc_bits < 2):
        yield InputError(
            "sums are rounded to signed codes", where=f"{where}: linear.adc_range", expected="adc_bits of 2 or more",
            received=linear.adc_bits, remedy="set linear.adc_bits, or linear.adc_range=ideal",
        )  # fmt: skip


def _adc(device: DeviceModel, where: str) -> Iterator[InputError]:
    """A conversion has a price of its own exactly where its model is ``fixed``."""
    linear, cost = device.linear, device.cost
    for key, price_key in ADC_PRICES.items():
        model, price = attrgetter(key)(device), attrgetter(price_key)(device)
        if (model == "fixed") != (price is not None):
            yield InputError(
                f"{price_key} {'is missing' if price is None else 'would do nothing'}", where=f"{where}: {key}",
                expected="a price exactly with the model fixed", received=model,
            )  # fmt: skip
    if linear.adc != "fixed" and linear.adc_area:
        yield InputError("adc_area would do nothing", where=f"{where}: linear", expected="no adc_area beside a model")
    if linear.adc == "counter":
        yield InputError(
            "linear arrays have no charge-to-pulse stage", where=f"{where}: linear.adc",
            expected="fixed, survey or sar", received="counter",
        )  # fmt: skip
    for key, model, bits, needed in (
        ("linear.adc", linear.adc, linear.adc_bits, True),
        ("cost.phi_adc", cost.phi_adc, device.readout_qk.bits, False),
        ("cost.av_adc", cost.av_adc, device.readout.bits, True),
    ):
        least = 4 if model == "survey" else 1
        if model in ("survey", "sar") and ((bits is None and needed) or (bits is not None and bits < least)):
            yield InputError(
                f"the model {model} needs a resolution", where=f"{where}: {key}", expected=f"{least} bits or more",
                received=bits,
            )  # fmt: skip


def _parity(device: DeviceModel, where: str) -> Iterator[InputError]:
    retention = device.retention
    plain = retention.kind == "exponential" and retention.v_inf == device.storage.v_zero
    if device.parity.bfloat16_decay and (not plain or retention.tau_sigma_ln):
        yield InputError(
            "bfloat16_decay has no meaning", where=f"{where}: parity",
            expected="exponential decay towards v_zero without spread",
        )  # fmt: skip
    chip = device.variability.gain_sigma or device.variability.offset_sigma or device.drift.amplitude
    if device.parity.bfloat16_decay and (chip or device.wire.resistance or device.refresh.kind != "none"):
        yield InputError(
            "the published rounding knows no chip and no refresh", where=f"{where}: parity.bfloat16_decay",
            expected="neither cell mismatch, drift, wire nor refresh beside it",
        )  # fmt: skip
