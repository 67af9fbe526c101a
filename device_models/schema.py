"""The typed device model: frozen dataclasses, one per part, validated by pydantic when a file is loaded.

Every field is an SI float, an integer or a word; the annotation names unit and bounds. pydantic is only imported
when a file is validated, never by ``import device_models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from device_models.fields import STRICT, Factor, Levels, Quantity, Whole
from device_models.linear_array import LinearArray
from device_models.price_schema import Adc, Cost, Digital
from device_models.provenance import Provenance


@dataclass(frozen=True)
class Operation:
    """Conditions the device runs at: temperature [K]."""

    __pydantic_config__: ClassVar = STRICT
    temperature: Annotated[float, Quantity("K", above=0.0, most=1000.0)] = 300.15


@dataclass(frozen=True)
class Input:
    """Pulse-width converter of the queries.

    Attributes:
        levels: Pulse widths from 0 to the full pulse; None is continuous.
        signed: Whether one read takes queries of both signs, as digital arrays do; else they are read twice, by sign.
        inl: [LSB] rms integral non-linearity over the codes of one row's converter, static per die.
        jitter: [s] rms deviation of one pulse's width, drawn at each read; also of the pulses between the products.
    """

    __pydantic_config__: ClassVar = STRICT
    levels: Levels | None
    signed: bool = False
    inl: Annotated[float, Factor(0.0, 4.0)] = 0.0
    jitter: Annotated[float, Quantity("s", least=0.0, most=1e-6)] = 0.0


@dataclass(frozen=True)
class Storage:
    """Voltages that keys and values are stored as: ``levels`` from ``v_min`` to ``v_max`` [V]; None is continuous."""

    __pydantic_config__: ClassVar = STRICT
    levels: Levels | None
    v_min: Annotated[float, Quantity("V", least=-5.0, most=5.0)]
    v_max: Annotated[float, Quantity("V", least=-5.0, most=5.0)]
    v_zero: Annotated[float, Quantity("V", least=-5.0, most=5.0)]


@dataclass(frozen=True)
class Write:
    """How a value becomes the charge of a cell.

    Attributes:
        capacitance: [F] storage capacitance; sets kT/C noise and capacitor mismatch. None leaves both out.
        ktc: Whether each write leaves the noise charge of the switch, ``sqrt(kT/C)``.
        capacitor_mismatch: [F^0.5] area law of the relative capacitor error, ``sigma = value / sqrt(C)``; static.
        dac_inl: [LSB] rms integral non-linearity over the levels of one write DAC, static per die.
        error_sigma: [V] random error of each write.
        pedestal_mean: [V] charge injected by the write switch, as a shift of the stored voltage.
        pedestal_gain: [1] part of it that grows with the stored voltage, counted from the zero level.
        pedestal_sigma: [V] its spread from cell to cell, static per die.
    """

    __pydantic_config__: ClassVar = STRICT
    capacitance: Annotated[float, Quantity("F", above=0.0, most=1e-9)] | None = None
    ktc: bool = False
    capacitor_mismatch: Annotated[float, Quantity("F**0.5", least=0.0, most=1e-6)] = 0.0
    dac_inl: Annotated[float, Factor(0.0, 4.0)] = 0.0
    error_sigma: Annotated[float, Quantity("V", least=0.0, most=1.0)] = 0.0
    pedestal_mean: Annotated[float, Quantity("V", least=-1.0, most=1.0)] = 0.0
    pedestal_gain: Annotated[float, Factor(-1.0, 1.0)] = 0.0
    pedestal_sigma: Annotated[float, Quantity("V", least=0.0, most=1.0)] = 0.0


@dataclass(frozen=True)
class Retention:
    """How the stored voltage relaxes with age, towards ``v_inf`` [V]; laws in ``device_models.retention``.

    Attributes:
        kind: The law.
        tau: [s] time constant at the reference temperature, median over cells; exponential and stretched.
        beta: [1] exponent of the stretched law.
        v_inf: [V] level that a cell relaxes to.
        v_scale: [V] voltage over which the leakage falls e-fold; log_self_limited.
        t0: [s] time in which a cell at ``v_top`` starts to leak; log_self_limited, median over cells.
        v_top: [V] voltage that ``t0`` belongs to; log_self_limited.
        rate: [V/s] leakage current over capacitance; constant_current, median over cells.
        tau_sigma_ln: [1] spread of ln(time constant) over the cells of a die.
        activation_energy: [J] of the leakage (Arrhenius); files write ``"0.5 eV"``.
        reference_temperature: [K] temperature that the time constants belong to.
    """

    __pydantic_config__: ClassVar = STRICT
    kind: Literal["none", "exponential", "stretched", "log_self_limited", "constant_current"]
    tau: Annotated[float, Quantity("s", above=0.0, most=1e9)] | None = None
    beta: Annotated[float, Factor(0.05, 1.0)] | None = None
    v_inf: Annotated[float, Quantity("V", least=-5.0, most=5.0)] | None = None
    v_scale: Annotated[float, Quantity("V", above=0.0, most=5.0)] | None = None
    t0: Annotated[float, Quantity("s", above=0.0, most=1e9)] | None = None
    v_top: Annotated[float, Quantity("V", least=-5.0, most=5.0)] | None = None
    rate: Annotated[float, Quantity("V/s", above=0.0, most=1e12)] | None = None
    tau_sigma_ln: Annotated[float, Factor(0.0, 3.0)] = 0.0
    activation_energy: Annotated[float, Quantity("J", least=0.0, most=1e-18)] = 0.0
    reference_temperature: Annotated[float, Quantity("K", above=0.0, most=1000.0)] = 300.15


@dataclass(frozen=True)
class Drift:
    """Slow shift of the read transistors' threshold under bias, the same for all cells of a die.

    ``dVth = amplitude (1 - exp(-(stress_time / tau(T))^beta))``; subtracted from the gate voltage.

    Attributes:
        amplitude: [V] final shift; 0 switches it off.
        tau: [s] time constant at the reference temperature.
        beta: [1] exponent.
        activation_energy: [J] Arrhenius.
        reference_temperature: [K] of ``tau``.
        stress_time: [s] how long the die has been under bias.
    """

    __pydantic_config__: ClassVar = STRICT
    amplitude: Annotated[float, Quantity("V", least=-1.0, most=1.0)] = 0.0
    tau: Annotated[float, Quantity("s", above=0.0, most=1e12)] | None = None
    beta: Annotated[float, Factor(0.05, 1.0)] = 1.0
    activation_energy: Annotated[float, Quantity("J", least=0.0, most=1e-18)] = 0.0
    reference_temperature: Annotated[float, Quantity("K", above=0.0, most=1000.0)] = 300.15
    stress_time: Annotated[float, Quantity("s", least=0.0, most=1e12)] = 0.0


@dataclass(frozen=True)
class Refresh:
    """Reading a cell, rounding it to its levels again and writing it back.

    Attributes:
        kind: ``periodic`` every ``interval``; ``on_droop`` when the median cell's extreme level has lost ``droop``.
        interval: [s] between two refreshes of a slot.
        droop: [LSB] of the storage levels.
    """

    __pydantic_config__: ClassVar = STRICT
    kind: Literal["none", "periodic", "on_droop"] = "none"
    interval: Annotated[float, Quantity("s", above=0.0, most=1e9)] | None = None
    droop: Annotated[float, Factor(0.01, 0.5)] | None = None


@dataclass(frozen=True)
class Variability:
    """Static deviations of the cells and column circuits of a die.

    Attributes:
        gain_sigma: [1] relative error of a cell's current.
        offset_sigma: [V] error of a cell's gate voltage.
        phi_offset_sigma: [1] offset of a column's charge-to-pulse stage, in full pulses.
    """

    __pydantic_config__: ClassVar = STRICT
    gain_sigma: Annotated[float, Factor(0.0, 2.0)] = 0.0
    offset_sigma: Annotated[float, Quantity("V", least=0.0, most=1.0)] = 0.0
    phi_offset_sigma: Annotated[float, Factor(0.0, 1.0)] = 0.0


@dataclass(frozen=True)
class Noise:
    """Noise drawn anew at each read.

    Attributes:
        white: [1] of one cell with a full pulse, relative to its full-scale charge; variance grows with the pulse.
        flicker: [1] the same for slow noise, which is constant during one pulse: deviation grows with the pulse.
        comparator: [1] of a column's charge-to-pulse stage, in full pulses.
    """

    __pydantic_config__: ClassVar = STRICT
    white: Annotated[float, Factor(0.0, 1.0)] = 0.0
    flicker: Annotated[float, Factor(0.0, 1.0)] = 0.0
    comparator: Annotated[float, Factor(0.0, 1.0)] = 0.0


@dataclass(frozen=True)
class Wire:
    """Voltage drop along a bit line, to first order: each cell draws the same mean current.

    Attributes:
        resistance: [Ohm] of the line per cell; 0 switches it off.
        cell_current: [A] mean current of one cell.
        supply: [V] voltage across a cell; the current falls in proportion to what the line takes of it.
    """

    __pydantic_config__: ClassVar = STRICT
    resistance: Annotated[float, Quantity("ohm", least=0.0, most=1e6)] = 0.0
    cell_current: Annotated[float, Quantity("A", least=0.0, most=1e-3)] = 0.0
    supply: Annotated[float, Quantity("V", above=0.0, most=5.0)] = 0.9


@dataclass(frozen=True)
class Cell:
    """Current of a cell while its input pulse is high, against its gate voltage.

    Attributes:
        law: ``linear`` has one coefficient, ``cubic`` four.
        coefficients: k0..k3 [A, A/V, A/V^2, A/V^3] of the polynomial in ``V - v_zero``; linear: k1 alone.
        backward: ``exact`` differentiates the law; ``linear`` is the published surrogate of slope ``surrogate_slope``.
        surrogate_slope: [A/V] slope of the surrogate; only with ``backward: linear``.
    """

    __pydantic_config__: ClassVar = STRICT
    law: Literal["linear", "cubic"]
    coefficients: tuple[float, ...]
    backward: Literal["exact", "linear"] = "exact"
    surrogate_slope: Annotated[float, Quantity("A/V", above=0.0, most=1.0)] | None = None


@dataclass(frozen=True)
class Saturation:
    """Currents (times full pulse) at which the charge-to-pulse stages saturate [A]."""

    __pydantic_config__: ClassVar = STRICT
    qk: Annotated[float, Quantity("A", above=0.0, most=1.0)]
    av: Annotated[float, Quantity("A", above=0.0, most=1.0)]


@dataclass(frozen=True)
class Readout:
    """Converter of the second product.

    Attributes:
        bits: Resolution with sign; None only with ``codes: ideal``.
        codes: ``counter``: a counter of ``bits - 1`` bits with a sign, ``2^bits - 1`` codes on [-1, 1];
            ``published_33``: ``2^bits + 1`` codes on multiples of ``2/(2^bits - 1)``, as the published code rounds;
            ``ideal``: clipped, not rounded.
        circuit: Kind of converter; decides the shape of its static errors and its conversion time.
        gain_sigma: [1] relative gain error of a column, static per die.
        offset_sigma: [LSB] offset of a column, static per die.
        inl: [LSB] rms integral non-linearity over the codes, static per die.
        dnl: [LSB] rms error of single code widths, static per die.
        noise: [LSB] input noise, drawn at each read.
        range: How the full scale is chosen: ``fixed`` is the saturation; ``calibrated`` and ``learned`` multiply it
            by a factor per layer and head that is stored with the model.
    """

    __pydantic_config__: ClassVar = STRICT
    bits: Annotated[int, Whole(1, 12)] | None
    codes: Literal["counter", "published_33", "ideal"]
    circuit: Literal["counter", "ramp", "sar", "flash"] = "counter"
    gain_sigma: Annotated[float, Factor(0.0, 1.0)] = 0.0
    offset_sigma: Annotated[float, Factor(0.0, 16.0)] = 0.0
    inl: Annotated[float, Factor(0.0, 16.0)] = 0.0
    dnl: Annotated[float, Factor(0.0, 16.0)] = 0.0
    noise: Annotated[float, Factor(0.0, 16.0)] = 0.0
    range: Literal["fixed", "calibrated", "learned"] = "fixed"


@dataclass(frozen=True)
class ReadoutQk:
    """Converter between the two products, for devices that digitise scores.

    Attributes:
        bits: Resolution; None passes the pulse on as it is. Unsigned ``2^bits`` codes on [0, 1] with
            ``hard_sigmoid``, ``2^bits - 1`` signed codes on [-1, 1] with ``softmax``.
        pulse_bits: Grid of ``2^bits - 1`` steps for pulses times the decay of the cells that they read; an aid to
            comparisons: on the design every sum is then exact, and outputs are equal bit by bit on every machine.
            None is continuous.
    """

    __pydantic_config__: ClassVar = STRICT
    bits: Annotated[int, Whole(1, 16)] | None = None
    pulse_bits: Annotated[int, Whole(1, 16)] | None = None


@dataclass(frozen=True)
class Activation:
    """What stands between the products.

    Attributes:
        kind: ``hard_sigmoid``: analog, clip(S / saturation, 0, 1); ``softmax``: scores are digitised, normalised in
            digital over the window, and sent to the second array as pulses.
        levels: Pulse widths of the digital weights; None is continuous; only with ``softmax``.
    """

    __pydantic_config__: ClassVar = STRICT
    kind: Literal["hard_sigmoid", "softmax"] = "hard_sigmoid"
    levels: Levels | None = None


@dataclass(frozen=True)
class Tile:
    """Size of one sub-tile, and how tokens map to sub-tiles.

    Attributes:
        rows: Embedding dimensions of a sub-tile.
        slots: Tokens of a sub-tile.
        assignment: ``ring``: token t lies in slot ``t mod window`` (the hardware); ``absolute``: sub-tiles are cut
            by the absolute token index (the published code).
    """

    __pydantic_config__: ClassVar = STRICT
    rows: Annotated[int, Whole(1, 4096)]
    slots: Annotated[int, Whole(1, 4096)]
    assignment: Literal["ring", "absolute"] = "ring"


@dataclass(frozen=True)
class Window:
    """Number of tokens that one head's arrays hold."""

    __pydantic_config__: ClassVar = STRICT
    tokens: Annotated[int, Whole(1, 1 << 20)]


@dataclass(frozen=True)
class Parity:
    """Rounding of the published code that differs from the physics; all off by default."""

    __pydantic_config__: ClassVar = STRICT
    bfloat16_decay: bool = False


@dataclass(frozen=True)
class DeviceModel:
    """One device: what its parts do, what they cost, and where each number comes from.

    Attributes:
        name: Name of the file without suffix.
        title: One line for reports.
        provenance: Source of each number, by dotted key path such as ``"retention.tau"``.
        file_sha256: Digest of the file's bytes.
    """

    __pydantic_config__: ClassVar = STRICT
    name: str
    title: str
    input: Input
    storage: Storage
    retention: Retention
    cell: Cell
    saturation: Saturation
    readout: Readout
    tile: Tile
    window: Window
    linear: LinearArray
    cost: Cost
    digital: Digital
    adc: Adc
    operation: Operation = field(default_factory=Operation)
    write: Write = field(default_factory=Write)
    drift: Drift = field(default_factory=Drift)
    refresh: Refresh = field(default_factory=Refresh)
    variability: Variability = field(default_factory=Variability)
    noise: Noise = field(default_factory=Noise)
    wire: Wire = field(default_factory=Wire)
    readout_qk: ReadoutQk = field(default_factory=ReadoutQk)
    activation: Activation = field(default_factory=Activation)
    parity: Parity = field(default_factory=Parity)
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    file_sha256: str = ""

    @property
    def subtiles(self) -> int:
        """Sub-tiles of one head along the tokens; the last may have slots that the window never uses."""
        return -(-self.window.tokens // self.tile.slots)

    @property
    def reads_per_score(self) -> int:
        """Times that the first array is read for one score: twice where a softmax needs signs that pulses lack."""
        return 2 if self.activation.kind == "softmax" and not self.input.signed else 1

    @property
    def decays(self) -> bool:
        """Whether stored values change with age."""
        return self.retention.kind != "none"


COEFFICIENT_UNITS = ("A", "A/V", "A/V**2", "A/V**3")
