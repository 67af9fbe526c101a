"""What each client works on: its device, the model placed on that device, and its chip.

Clients may have devices of different kinds. A model is loaded and calibrated once for each of them; the adapter is the
same tensors on all, drawn from the same seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from device_models import DeviceModel, InputError
from fllm.config import RunConfig
from hwsim import Die

if TYPE_CHECKING:  # a bench is made there from what is here
    from fllm.preparation import Bench

CHIPS_KEPT = 16
"""Chips whose deviations are kept once they are drawn: some 25 MB each for the shipped model."""


class ClientChips:
    """Devices, benches and chips of the clients of a run.

    Args:
        config: The run.
        devices: Device of each client; clients of one kind share the object.
        load: Puts the model on a device and attaches the adapter.
        chip: Returns a client's chip of a device in a round; None is the device as designed.
    """

    def __init__(
        self, config: RunConfig, devices: Sequence[DeviceModel], load: Callable[[DeviceModel], Bench],
        chip: Callable[[DeviceModel, int, int], Die | None],
    ) -> None:  # fmt: skip
        self._config, self._devices, self._load = config, devices, load
        self._benches: dict[int, Bench] = {}
        self._chip = lru_cache(CHIPS_KEPT)(lambda client, number: chip(devices[client], client, number))

    @property
    def mixed(self) -> bool:
        """Whether clients have devices of their own."""
        return bool(self._config.client_devices)

    @property
    def own(self) -> bool:
        """Whether each client has one chip for all rounds."""
        return self._config.training_chips == "own"

    def device(self, client: int) -> DeviceModel:
        """Return the device of a client."""
        return self._devices[client]

    def bench(self, client: int) -> Bench:
        """Return the model on the device of a client, loaded when it is first asked for."""
        device = self.device(client)
        if id(device) not in self._benches:
            self._benches[id(device)] = self._load(device)
        return self._benches[id(device)]

    def die(self, client: int, server_round: int) -> Die | None:
        """Return the chip that a client trains on in a round; None is the device as designed."""
        return self._chip(client, server_round if self._config.training_chips == "new" else 0)

    def kinds(self) -> list[tuple[DeviceModel, list[int]]]:
        """Return each kind of device with its clients, in the order of their first ones."""
        found: dict[int, tuple[DeviceModel, list[int]]] = {}
        for client, device in enumerate(self._devices):
            found.setdefault(id(device), (device, []))[1].append(client)
        return list(found.values())

    def facts(self) -> dict[str, Any]:
        """Describe which client has which device, with a digest over the device files."""
        kinds = [
            {"name": device.name, "title": device.title, "file_sha256": device.file_sha256, "clients": clients}
            for device, clients in self.kinds()
        ]
        digests = [f"{one['file_sha256']} {one['clients']}" for one in kinds]
        return {"sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest(), "devices": kinds}


def deal_devices(config: RunConfig, device: DeviceModel, load: Callable[[str], DeviceModel]) -> list[DeviceModel]:
    """Return the device of each client of a run.

    Args:
        config: The run.
        device: Its own device.
        load: Reads another one by its name or path.

    Raises:
        InputError: If no one adapter could be trained on all of them.
    """
    if not config.client_devices:
        return [device] * config.num_clients
    if config.lora.train_scalers:
        raise InputError(
            "range scalers are set to one device's currents, so clients on others cannot share trained ones",
            where="client_devices", remedy="leave out lora.train_scalers, or client_devices",
        )  # fmt: skip
    known = {config.device_model: device}
    for name in config.client_devices:
        if name not in known:
            known[name] = _fitting(load(name), device)
    return [known[config.client_devices[i % len(config.client_devices)]] for i in range(config.num_clients)]


def _fitting(other: DeviceModel, device: DeviceModel) -> DeviceModel:
    """Return a client's device; raises InputError where its model would be another one than the run's."""
    for key, own, given in (
        ("activation.kind", device.activation.kind, other.activation.kind),
        ("window.tokens", device.window.tokens, other.window.tokens),
    ):
        if own != given:
            raise InputError(
                "clients of this run cannot share an adapter", where=f"client_devices: {other.name}: {key}",
                expected=f"{own}, as {device.name} has", received=given,
                remedy=f"--set device.{key}={own} sets it for all",
            )  # fmt: skip
    return other
