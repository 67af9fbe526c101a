"""Each constant that is missing or would do nothing, met once; and what an override takes along."""

from __future__ import annotations

import pytest

from device_models import InputError, load_device
from device_models.consistency import LAWS, taken_along
from device_models.loading import key_units

STRETCHED = {"retention.kind": "stretched", "retention.beta": 0.26}
LOG = {"retention.kind": "log_self_limited", "retention.v_scale": "45.6 mV", "retention.t0": "8.7 ns"}
NO_LEVELS = {"storage.levels": None}
IDEAL = {"readout.bits": None, "readout.codes": "ideal"}
SCORES = {"activation.kind": "softmax", "readout_qk.bits": 6}


def keys_of(value: object) -> str:
    return "+".join(value) if isinstance(value, dict) else ""


REFUSED: list[tuple[str, dict[str, object], list[str]]] = [
    ("gaincell_28nm", {"retention.tau": None}, ["retention: tau is missing", "tau and v_inf for kind exponential"]),
    ("gaincell_28nm", {"retention.v_inf": None}, ["retention: v_inf is missing"]),
    ("gaincell_28nm", {"retention.kind": "stretched"}, ["retention: beta is missing", "tau and beta and v_inf"]),
    ("gaincell_28nm", {**STRETCHED, "retention.tau": None}, ["retention: tau is missing"]),
    ("gaincell_28nm", LOG, ["retention: v_top is missing"]),
    ("gaincell_28nm", {**LOG, "retention.v_top": "0.9 V", "retention.t0": None}, ["retention: t0 is missing"]),
    ("gaincell_28nm", {**LOG, "retention.v_top": "0.9 V", "retention.v_scale": None}, ["v_scale is missing"]),
    ("gaincell_28nm", {"retention.kind": "constant_current"}, ["retention: rate is missing"]),
    ("gaincell_28nm", {"retention.beta": 0.5}, ["retention: beta would do nothing", "no beta with kind exponential"]),
    ("gaincell_28nm", {"retention.rate": "90 V/s"}, ["retention: rate would do nothing"]),
    ("gaincell_28nm", {"retention.v_scale": "45 mV"}, ["retention: v_scale would do nothing"]),
    ("gaincell_28nm", {"retention.t0": "9 ns"}, ["retention: t0 would do nothing"]),
    ("gaincell_28nm", {"retention.v_top": "0.9 V"}, ["retention: v_top would do nothing"]),
    ("gaincell_28nm_logic", {"retention.tau": "1 ms"}, ["retention: tau would do nothing", "log_self_limited"]),
    ("ideal", {"retention.v_inf": "0.45 V"}, ["retention: v_inf would do nothing"]),
    ("ideal", {"retention.tau_sigma_ln": 0.4}, ["tau_sigma_ln would do nothing", "with kind none"]),
    ("ideal", {"retention.activation_energy": "0.5 eV"}, ["retention: activation_energy would do nothing"]),
    ("gaincell_28nm", {"drift.amplitude": "10 mV"}, ["drift: tau is missing"]),
    ("gaincell_28nm", {"drift.amplitude": "-10 mV"}, ["drift: tau is missing"]),
    ("gaincell_28nm", {"refresh.kind": "periodic"}, ["refresh: interval is missing", "received 'periodic'"]),
    ("gaincell_28nm", {"refresh.kind": "on_droop"}, ["refresh: droop is missing"]),
    ("gaincell_28nm", {"refresh.interval": "1 ms"}, ["refresh: interval would do nothing", "received 'none'"]),
    ("gaincell_28nm", {"refresh.droop": 0.5}, ["refresh: droop would do nothing"]),
    (
        "gaincell_28nm",
        {"refresh.kind": "periodic", "refresh.interval": "1 ms", "refresh.droop": 0.5},
        ["refresh: droop would do nothing"],
    ),
    (
        "gaincell_28nm",
        {"refresh.kind": "on_droop", "refresh.interval": "1 ms", "refresh.droop": 0.5},
        ["refresh: interval would do nothing"],
    ),
    (
        "gaincell_28nm",
        {"retention.kind": "none", "refresh.kind": "periodic", "refresh.interval": "1 ms"},
        ["refresh: there is nothing to refresh"],
    ),
    ("gaincell_28nm", {**NO_LEVELS, "refresh.kind": "on_droop", "refresh.droop": 0.5}, ["cannot be restored"]),
    ("gaincell_28nm", {**NO_LEVELS, "refresh.kind": "periodic", "refresh.interval": "1 s"}, ["cannot be restored"]),
    ("ideal", {"write.ktc": True}, ["write: capacitance is missing"]),
    ("ideal", {"write.capacitor_mismatch": "0.00664 fF**0.5"}, ["write: capacitance is missing"]),
    ("gaincell_28nm", {**NO_LEVELS, "write.dac_inl": 0.1}, ["write: dac_inl would do nothing", "storage.levels"]),
    ("gaincell_28nm", {"input.levels": None, "input.inl": 0.1}, ["input: inl would do nothing", "input.levels"]),
    ("gaincell_28nm", {"cost.time_qk": "0 s"}, ["input: jitter of a pulse without length"]),
    ("gaincell_28nm", {"cost.time_av": "0 s"}, ["input: jitter of a pulse without length"]),
    ("ideal", {"wire.resistance": "2 ohm"}, ["wire: resistance and cell_current belong together", "both or neither"]),
    ("ideal", {"wire.cell_current": "1 uA"}, ["wire: resistance and cell_current belong together"]),
    ("gaincell_28nm", {"wire.resistance": "0 ohm", "wire.cell_current": "1 uA"}, ["belong together"]),
    ("gaincell_28nm", {"tile.slots": 512}, ["wire: a line of 512 cells loses 180% of the supply", "cut the tile"]),
    ("gaincell_28nm", {"tile.rows": 512}, ["wire: a line of 512 cells"]),
    *(("ideal", {f"readout.{name}": 0.1}, [f"readout: {name} would do nothing"])
      for name in ("gain_sigma", "offset_sigma", "inl", "dnl", "noise")),
    ("gaincell_28nm", {**IDEAL, "readout.inl": 0.3}, ["readout: inl would do nothing"]),
    ("gaincell_28nm", {"activation.kind": "softmax"}, ["activation: softmax needs signed", "readout_qk"]),
    ("gaincell_28nm", {**SCORES, "readout_qk.bits": 1}, ["readout_qk.bits from 2 to 16", "received 1"]),
    ("gaincell_28nm", {"activation.levels": 16}, ["activation: levels would do nothing"]),
    ("parity_leroux2025", {"retention.kind": "none"}, ["parity: bfloat16_decay has no meaning"]),
    ("parity_leroux2025", {"retention.kind": "stretched", "retention.beta": 0.5}, ["bfloat16_decay has no meaning"]),
    ("parity_leroux2025", {"retention.tau_sigma_ln": 0.1}, ["parity: bfloat16_decay", "without spread"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "said"), REFUSED, ids=keys_of)
def test_contradiction_is_one_line(name: str, overrides: dict[str, object], said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_device(name, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message


ACCEPTED: list[tuple[str, dict[str, object]]] = [
    ("gaincell_28nm", STRETCHED),
    ("gaincell_28nm", {**LOG, "retention.v_top": "0.9 V"}),
    ("gaincell_28nm", {"retention.kind": "constant_current", "retention.rate": "90 V/s"}),
    ("gaincell_28nm", {"drift.amplitude": "10 mV", "drift.tau": "3e5 s"}),
    ("gaincell_28nm", {"refresh.kind": "periodic", "refresh.interval": "0.1 ms"}),
    ("gaincell_28nm", {"refresh.kind": "on_droop", "refresh.droop": 0.5}),
    ("gaincell_28nm", {"input.jitter": "0 s", "cost.time_av": "0 s"}),
    ("gaincell_28nm", {"tile.slots": 256}),
    ("gaincell_28nm", SCORES),
    ("gaincell_28nm", {**SCORES, "activation.levels": 16}),
    ("ideal", {"write.capacitance": "1 fF", "write.ktc": True}),
    ("ideal", {"wire.resistance": "2 ohm", "wire.cell_current": "1 uA"}),
]


@pytest.mark.parametrize(("name", "overrides"), ACCEPTED, ids=keys_of)
def test_whole_set_of_constants_is_accepted(name: str, overrides: dict[str, object]) -> None:
    assert load_device(name, overrides).name == name


TAKEN = [
    ({"retention.kind": "none"}, ["tau", "v_inf", "tau_sigma_ln", "activation_energy", "reference_temperature"]),
    ({"retention.kind": "constant_current", "retention.rate": "90 V/s"}, ["tau"]),
    ({"input.levels": None}, ["inl"]),
    ({"storage.levels": None}, ["dac_inl"]),
    ({"write.capacitance": None}, ["ktc", "capacitor_mismatch"]),
    (IDEAL, ["gain_sigma", "offset_sigma", "inl", "dnl", "noise"]),
    ({"wire.resistance": "0 ohm"}, ["cell_current", "supply"]),
]


@pytest.mark.parametrize(("overrides", "gone"), TAKEN, ids=keys_of)
def test_switching_a_part_off_takes_its_constants_along(overrides: dict[str, object], gone: list[str]) -> None:
    plain, device = load_device("gaincell_28nm"), load_device("gaincell_28nm", overrides)
    lost = set(plain.provenance) - set(device.provenance)
    assert {path.partition(".")[2] for path in lost} == set(gone)


@pytest.mark.parametrize("first", ["kind", "constant"])
def test_constant_given_beside_the_switch_is_not_dropped_silently(first: str) -> None:
    wanted = [("retention.kind", "none"), ("retention.tau", "1 ms")]
    with pytest.raises(InputError, match="tau would do nothing"):
        load_device("gaincell_28nm", dict(wanted if first == "kind" else wanted[::-1]))


def test_refresh_and_softmax_can_be_switched_off_again(tmp_path) -> None:
    import yaml

    from device_models.loading import preset_folder
    from device_models.strict_yaml import read_yaml

    tree = read_yaml(preset_folder() / "gaincell_28nm.yaml")
    like = {"source": "leroux2025", "where": "p. 1", "kind": "simulated"}
    tree["refresh"] = {"kind": {"value": "on_droop", **like}, "droop": {"value": 0.5, **like}}
    tree["readout_qk"] = {"bits": {"value": 6, **like}}
    tree["activation"] = {"kind": {"value": "softmax", **like}, "levels": {"value": 16, **like}}
    file = tmp_path / "device.yaml"
    file.write_text(yaml.safe_dump(tree))
    off = load_device(file, {"refresh.kind": "none", "activation.kind": "hard_sigmoid"})
    assert (off.refresh.droop, off.activation.levels) == (None, None)
    periodic = load_device(file, {"refresh.kind": "periodic", "refresh.interval": "1 ms"})
    assert (periodic.refresh.droop, periodic.refresh.interval) == (None, 1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("retention.kind", "nonne"),
        ("retention.kind", 5),
        ("retention.kind", ["none"]),
        ("wire.resistance", "0 V"),
        ("wire.resistance", "zero"),
        ("wire.resistance", 0),
        ("wire.resistance", "1 ohm"),
        ("input.levels", 16),
        ("readout.codes", "counter"),
        ("title", None),
    ],
    ids=str,
)
def test_other_values_take_nothing_along(key: str, value: object) -> None:
    assert taken_along(key, value) == ()


def test_what_is_taken_along_exists() -> None:
    laws = [("retention.kind", law) for law in LAWS]
    refreshes = [("refresh.kind", kind) for kind in ("none", "periodic", "on_droop")]
    words = [("wire.resistance", "0 ohm"), ("readout.codes", "ideal"), ("activation.kind", "hard_sigmoid")]
    absent = [("input.levels", None), ("storage.levels", None), ("write.capacitance", None)]
    for key, value in [*laws, *refreshes, *words, *absent]:
        gone = taken_along(key, value)
        assert gone and set(gone) <= set(key_units()), (key, value)
