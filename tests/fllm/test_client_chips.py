"""Which client has which device, and mixes that no one adapter could be trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from device_models import DeviceModel, InputError, load_device
from fllm.client_chips import ClientChips, deal_devices
from fllm.config import RunConfig, validate_config
from fllm.preparation import device_of, training_die


def dealt(**settings: Any) -> list[DeviceModel]:
    config = RunConfig(**settings)
    return deal_devices(config, device_of(config), partial(device_of, config))


def chips_of(config: RunConfig, devices: list[DeviceModel], load: Any = None) -> ClientChips:
    return ClientChips(config, devices, load, partial(training_die, config))


def test_devices_are_dealt_in_turn_and_shared() -> None:
    names = ("gaincell_28nm", "gaincell_igzo", "gaincell_28nm_logic")
    devices = dealt(num_clients=4, client_devices=names)
    assert [device.name for device in devices] == [*names, names[0]]
    assert devices[0] is devices[3]
    assert [device.name for device in dealt(num_clients=2)] == ["gaincell_28nm"] * 2


def test_overrides_hold_for_all() -> None:
    devices = dealt(
        num_clients=2, client_devices=("gaincell_28nm", "gaincell_igzo"), device={"variability.gain_sigma": 0.1}
    )
    assert [device.variability.gain_sigma for device in devices] == [0.1, 0.1]


def test_a_device_is_loaded_once_and_when_it_is_asked_for() -> None:
    config = RunConfig(num_clients=3, client_devices=("gaincell_28nm", "gaincell_igzo"))
    loaded: list[str] = []

    def load(device: DeviceModel) -> str:
        loaded.append(device.name)
        return device.name

    chips = chips_of(config, dealt(num_clients=3, client_devices=config.client_devices), load)
    assert loaded == []
    assert chips.bench(1) == "gaincell_igzo" and loaded == ["gaincell_igzo"]
    assert chips.bench(0) == chips.bench(2) == "gaincell_28nm"
    assert loaded == ["gaincell_igzo", "gaincell_28nm"]
    assert [clients for _, clients in chips.kinds()] == [[0, 2], [1]]


def test_each_client_has_a_chip_of_its_own_device() -> None:
    config = RunConfig(num_clients=2, client_devices=("gaincell_28nm", "gaincell_igzo"))
    chips = chips_of(config, dealt(num_clients=2, client_devices=config.client_devices))
    first, second = chips.die(0, 1), chips.die(1, 1)
    assert first is not None and second is not None
    assert (first.device.name, second.device.name) == ("gaincell_28nm", "gaincell_igzo")
    assert first.seed != second.seed and chips.die(0, 2) is first
    new = config.model_copy(update={"training_chips": "new"})
    assert chips_of(new, [first.device] * 2).die(0, 1) != chips_of(new, [first.device] * 2).die(0, 2)
    assert chips_of(config.model_copy(update={"training_chips": "design"}), [first.device]).die(0, 1) is None


def test_digest_is_that_of_the_files_and_of_who_has_which() -> None:
    igzo = load_device("gaincell_igzo")
    plain, config = load_device("gaincell_28nm"), RunConfig(num_clients=2)
    digests = {
        chips_of(config, devices).facts()["sha256"]
        for devices in ([plain, igzo], [igzo, plain], [plain, plain], [igzo, igzo])
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"client_devices": ("gaincell_igzo", "no_such")}, "no_such"),
        ({"client_devices": ("gaincell_28nm", "gaincell_igzo"), "lora": {"train_scalers": True}}, "train_scalers"),
    ],
    ids=["unknown", "scalers"],
)
def test_mixes_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        dealt(num_clients=2, **settings)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "old", "change"),
    [
        (
            "activation.kind",
            "hard_sigmoid",
            lambda one: replace(one, activation=replace(one.activation, kind="softmax")),
        ),
        ("window.tokens", "1024", lambda one: replace(one, window=replace(one.window, tokens=512))),
    ],
    ids=["attention", "window"],
)
def test_other_attention_and_other_windows_are_refused(
    key: str, old: str, change: Callable[[DeviceModel], DeviceModel]
) -> None:
    config = RunConfig(num_clients=2, client_devices=("gaincell_28nm", "other"))
    with pytest.raises(InputError, match=f"gaincell_igzo: {key}") as error:
        deal_devices(config, device_of(config), lambda _: change(load_device("gaincell_igzo")))
    message = str(error.value)
    assert old in message and f"--set device.{key}={old}" in message and "\n" not in message


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"num_clients": 1, "client_devices": ["gaincell_28nm", "gaincell_igzo"]}, "more devices than the 1 clients"),
        ({"chip_table": True, "strategy": {"factors": "share_a"}}, "share_a"),
        ({"lora_baselines": ["one_chip"]}, "needs chip_table"),
        ({"lora_baselines": ["one_chip"], "chip_table": True, "training_chips": "new"}, "training_chips: own"),
    ],
    ids=["devices", "adapters", "table", "chips"],
)
def test_settings_without_sense_are_refused(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        validate_config(tree, "here")
    assert "\n" not in str(error.value)
