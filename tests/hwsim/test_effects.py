"""The table of effects: complete, exactly neutral at zero strength, felt alone, and announced where one cannot act."""

from __future__ import annotations

import warnings
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from device_models import DeviceModel, load_device
from device_models.loading import key_units
from hwsim import BitLinear, Die, emulate, gain_cell_attention
from hwsim.effects import EFFECTS, idle_effects, is_configured, only, without
from hwsim.linear import OnArrays, TokenPlaces
from hwsim.randomness import keyed
from tests.hwsim.comparison import every_effect, inputs
from tests.hwsim.models import plain_model

SIZE = {"window.tokens": 12, "tile.slots": 8, "saturation.qk": "3 uA", "saturation.av": "25 uA"}
PERIOD = 1e-4
CODES = ("readout gain", "readout offset", "readout INL", "readout DNL", "readout noise")
NEEDS: dict[str, tuple[str, ...]] = {
    "refresh": ("retention", "storage levels"),
    "input INL": ("input levels",),
    "DAC INL": ("storage levels",),
    "retention spread": ("retention",),
    **dict.fromkeys(CODES, ("readout levels",)),
    "linear converter noise": ("linear converter",),
}
"""Effects that only change what another one does."""
REFRESH_TOO = dict(EFFECTS["refresh"].neutral)


every = pytest.mark.parametrize("effect", EFFECTS)


def full(**overrides: object) -> DeviceModel:
    return every_effect(**{**SIZE, **overrides})


def outputs(device: DeviceModel, *, die: bool = True, noise: bool = True) -> Tensor:
    """Return what both parts of a device compute: attention, and a ternary layer."""
    tensors = inputs(1, 2, 1, 30, 8)
    chip, key = Die(2, device) if die else None, 7 if noise else None
    attended = gain_cell_attention(*tensors, device, token_period_s=PERIOD, die=chip, read_key=key)
    return torch.cat([attended.flatten(), ternary_layer(device, die=die, noise=noise).flatten()])


def ternary_layer(device: DeviceModel, *, die: bool, noise: bool) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    layer = BitLinear(40, 16, offline=True)
    layer.weight.data = torch.randint(-1, 2, (16, 40), generator=rng).float()
    places = TokenPlaces(keyed(torch.tensor([[7]]), torch.arange(30)[None]) if noise else None)
    layer.put_on(OnArrays(device.linear, "layer", 2 if die else None, places))
    return 0.02 * layer(torch.randn(1, 30, 40, generator=rng)).double()


# ---- completeness

OPTIONS = {
    "write.capacitance": "sets the size of kT/C noise and capacitor mismatch",
    "drift.tau": "of the threshold drift", "drift.beta": "of the threshold drift",
    "drift.activation_energy": "of the threshold drift", "drift.reference_temperature": "of the threshold drift",
    "drift.stress_time": "of the threshold drift",
    "refresh.interval": "of refresh", "refresh.droop": "of refresh",
    "wire.supply": "what the wire drop is a part of",
    "input.levels": "an effect of its own", "input.signed": "how a read is done, not an error",
    "readout.bits": "an effect of its own", "readout.codes": "with the bits",
    "readout.circuit": "shapes the errors of the readout", "readout.range": "a scale, not an error",
    **{f"linear.{name}": "geometry or price" for name in (
        "rows", "columns", "input_cycles", "cell_mac", "row_drive", "shift_add", "system_multiplier", "cycle_time",
        "slot_time", "adc", "adc_bits", "adc_conversion", "leakage", "cell_area", "adc_area",
    )},
}  # fmt: skip
"""Keys of the sections below that are no strength."""


def test_every_strength_of_the_schema_belongs_to_exactly_one_effect() -> None:
    device = load_device("gaincell_28nm")
    sections = ("write", "drift", "refresh", "variability", "noise", "wire", "readout", "input", "linear")
    keys = {f"{section}.{f.name}" for section in sections for f in fields(getattr(device, section))}
    keys.add("retention.tau_sigma_ln")
    owned = [key for effect in EFFECTS.values() for key in effect.neutral]
    assert len(owned) == len(set(owned)), "a key in two effects"
    strengths = keys - set(OPTIONS)
    design = {"storage.levels", "readout_qk.bits", "retention.kind"}
    assert strengths == set(owned) - set(OPTIONS) - design
    assert set(owned) <= set(key_units())
    assert set(OPTIONS) <= keys, "an option that the schema lost"


@every
def test_strength_of_zero_is_valid_and_not_configured(effect: str) -> None:
    assert is_configured(full(), effect)
    assert not is_configured(by_file(effect), effect)
    assert not is_configured(without(full(), effect), effect)


def by_file(effect: str) -> DeviceModel:
    """Switch an effect off as a device file does; without decay or levels a file may not refresh either."""
    units = key_units()
    neutral = EFFECTS[effect].neutral | (REFRESH_TOO if effect in ("retention", "storage levels") else {})
    return full(**{
        key: f"0 {units[key]}" if isinstance(value, float) and units[key] else value for key, value in neutral.items()
    })  # fmt: skip


# ---- zero strength


@every
def test_zero_strength_is_exactly_neutral(effect: str) -> None:
    """The device written with a strength of zero, and the device whose effect was left out, bit for bit."""
    gone = (effect, "refresh") if effect in ("retention", "storage levels") else (effect,)
    assert torch.equal(outputs(by_file(effect)), outputs(without(full(), *gone)))


def test_without_any_effect_chip_and_key_change_nothing() -> None:
    bare = only(full())
    assert torch.equal(outputs(bare), outputs(bare, die=False, noise=False))
    analog = {"cell.law": "linear", "cell.coefficients": ["19.3 uA/V"]}
    plain, ideal = only(full(**analog)), load_device("ideal", SIZE)
    assert torch.equal(outputs(plain), outputs(ideal))


def test_without_some_is_only_the_others() -> None:
    some = ("gain mismatch", "readout noise", "refresh")
    others = tuple(name for name in EFFECTS if name not in some)
    assert without(full(), *some) == only(full(), *others)
    assert torch.equal(outputs(without(full(), *some)), outputs(only(full(), *others)))


# ---- each alone


@every
def test_effect_changes_the_output_alone(effect: str) -> None:
    companions = NEEDS.get(effect, ())
    alone, bare = keep(effect, *companions), keep(*companions)
    changed = (outputs(alone) - outputs(bare)).abs()
    assert (changed > 1e-4).double().mean() > 0.02, f"{effect} reaches {changed.max():.2g}"


@every
def test_effect_acts_when_it_is_drawn_and_not_else(effect: str) -> None:
    """Static errors need a chip, random ones a key, the design neither."""
    companions = NEEDS.get(effect, ())
    alone, bare = keep(effect, *companions), keep(*companions)
    drawn = EFFECTS[effect].drawn
    chip_only, key_only = (outputs(alone, die=die, noise=not die) for die in (True, False))
    assert torch.equal(chip_only, outputs(bare, noise=False)) == (drawn in ("write", "read"))
    assert torch.equal(key_only, outputs(bare, die=False)) == (drawn == "die")


def keep(*effects: str) -> DeviceModel:
    """Return the device with these effects alone."""
    return only(full(), *effects)


@every
def test_needs_are_those_of_the_table(effect: str) -> None:
    assert set(EFFECTS[effect].needs) == set(NEEDS.get(effect, ()))


@every
def test_only_keeps_what_it_is_asked_for(effect: str) -> None:
    assert is_configured(only(full(), effect), effect)


@every
def test_a_device_on_droop_can_do_without_anything(effect: str) -> None:
    device = without(full(**{"refresh.kind": "on_droop", "refresh.droop": 0.5}), effect)
    assert torch.isfinite(outputs(device)).all()


# ---- effects that cannot act


def put(device: DeviceModel, **options: object) -> list[str]:
    """Return the warnings of putting a model on a device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        emulate(plain_model("llama"), device, **{"token_period": PERIOD, **options})  # type: ignore[arg-type]
    return [str(warning.message) for warning in caught]


def test_no_warning_where_everything_acts() -> None:
    assert put(full()) == []
    assert put(load_device("ideal"), die_seed=None, noise_seed=None, token_period=None) == []


def test_a_part_that_is_left_digital_is_no_idle_effect() -> None:
    device = load_device("gaincell_28nm")
    (message,) = put(device, attention=False, die_seed=None)
    assert message == "gaincell_28nm: no effect of weight gain mismatch: no die was given"
    (message,) = put(device, linears=False, die_seed=None)
    assert "gain mismatch" in message and "weight gain" not in message


@pytest.mark.parametrize(
    ("options", "said", "drawn"),
    [
        ({"die_seed": None}, "no die was given", {"die"}),
        ({"noise_seed": None}, "no noise key was given", {"write", "read"}),
    ],
)
def test_missing_chip_or_key_is_one_warning_that_names_each_effect(options: dict, said: str, drawn: set) -> None:
    (message,) = put(full(), **options)
    assert message.startswith("gaincell_28nm: no effect of ") and message.endswith(f": {said}")
    named = message.removeprefix("gaincell_28nm: no effect of ").removesuffix(f": {said}").split(", ")
    assert named == [name for name, effect in EFFECTS.items() if effect.drawn in drawn]


def test_drift_without_stress_is_announced() -> None:
    (message,) = put(full(**{"drift.stress_time": "0 s"}))
    assert message == "gaincell_28nm: no effect of threshold drift: drift.stress_time is 0"


def test_refresh_that_comes_too_late_is_announced() -> None:
    """The oldest of 12 tokens is 11 periods old when it is read for the last time."""
    (message,) = put(full(**{"refresh.interval": "1.2 ms"}))
    assert message == "gaincell_28nm: no effect of refresh: the oldest token is 0.0011 s old, the interval is 0.0012 s"
    late = idle_effects(full(**{"refresh.interval": "1.2 ms"}), die=True, noise=True, token_period_s=PERIOD)
    just = idle_effects(full(**{"refresh.interval": "1.05 ms"}), die=True, noise=True, token_period_s=PERIOD)
    assert list(late) == ["refresh"] and just == {}
    never, once = (outputs(full(**{"refresh.interval": f"{x} ms"})) for x in (1.2, 1.05))
    assert torch.equal(never, outputs(without(full(), "refresh"))) and not torch.equal(once, never)


def test_reasons_are_told_apart() -> None:
    device = full(**{"drift.stress_time": "0 s", "refresh.interval": "1 s"})
    reasons = {message.rpartition(": ")[2].split(" ")[0] for message in put(device, die_seed=None, noise_seed=None)}
    assert reasons == {"no", "drift.stress_time", "the"}
    assert len(put(device, die_seed=None, noise_seed=None)) == 4
    assert put(without(device, *EFFECTS), die_seed=None, noise_seed=None) == []
