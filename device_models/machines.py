"""Numbers of machines and networks that are not devices: baselines beside a device, and links to a server.

Their files have the form of device files: every number stands beside its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

from device_models.errors import InputError, nearest
from device_models.fields import STRICT, Duration, Energy, Quantity, Rate
from device_models.loading import check_range, preset_folder, read_leaves, units_of, validated
from device_models.provenance import Provenance
from device_models.strict_yaml import read_yaml


@dataclass(frozen=True)
class Network:
    """Link of a client to the server, at the client's interface.

    Attributes:
        uplink_bit: [J] one bit sent by a client.
        downlink_bit: [J] one bit received by a client.
        uplink_rate: [1/s] bits per second sent.
        downlink_rate: [1/s] bits per second received.
        name: Name of the file.
        title: One line for reports.
        provenance: Source of each number.
    """

    __pydantic_config__: ClassVar = STRICT
    uplink_bit: Energy
    downlink_bit: Energy
    uplink_rate: Rate
    downlink_rate: Rate
    name: str = ""
    title: str = ""
    provenance: Mapping[str, Provenance] | None = None


@dataclass(frozen=True)
class Machine:
    """Processor: board power [W], memory bandwidth [1/s] in bits, arithmetic [1/s] in half-precision operations."""

    __pydantic_config__: ClassVar = STRICT
    power: Annotated[float, Quantity("W", above=0.0, most=1e6)]
    bandwidth: Rate
    arithmetic: Rate | None = None


@dataclass(frozen=True)
class PublishedAttention:
    """Measured attention of twelve heads of 64 dimensions and 1024 tokens, one token: energy [J], time [s]."""

    __pydantic_config__: ClassVar = STRICT
    energy: Annotated[float, Quantity("J", above=0.0, most=1e3)]
    latency: Duration

    HEADS: ClassVar[int] = 12
    HEAD_DIM: ClassVar[int] = 64
    WINDOW: ClassVar[int] = 1024


@dataclass(frozen=True)
class TernaryCpu:
    """Ternary inference on a processor: energy [J] of one weight and token."""

    __pydantic_config__: ClassVar = STRICT
    weight: Energy


@dataclass(frozen=True)
class SramWindow:
    """Digital attention over a window in SRAM banks: a bit read, a multiply-accumulate, a score's softmax [J]."""

    __pydantic_config__: ClassVar = STRICT
    kv_bit: Energy
    mac: Energy
    softmax: Energy


@dataclass(frozen=True)
class SurveyFloor:
    """Least energy [J] of one conversion among published converters."""

    __pydantic_config__: ClassVar = STRICT
    conversion: Energy


@dataclass(frozen=True)
class Baselines:
    """What digital hardware spends on the same work; ``provenance`` holds the source of each number."""

    h100: Machine
    jetson_orin: Machine
    published_rtx4090: PublishedAttention
    published_jetson_nano: PublishedAttention
    published_h100: PublishedAttention
    bitnet_cpp_m2_ultra: TernaryCpu
    bitnet_cpp_i7_13700h: TernaryCpu
    sram_window: SramWindow
    survey_floor: SurveyFloor
    provenance: Mapping[str, Provenance] | None = None


_HEADER = ("schema_version", "title")


def network_names() -> list[str]:
    """Return the names of the shipped networks."""
    return sorted(path.stem for path in (preset_folder() / "networks").glob("*.yaml"))


def load_network(name_or_path: str | Path) -> Network:
    """Load a network by the name of a shipped one (``lan``, ``wifi``, ``5g``) or the path of a file of that form.

    Raises:
        InputError: If there is no such file, or it is not valid.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = preset_folder() / "networks" / f"{name_or_path}.yaml"
    if not path.is_file():
        raise InputError(
            "no such network", where=str(name_or_path), expected=f"{', '.join(network_names())} or a file",
            remedy=nearest(str(name_or_path), network_names()),
        )  # fmt: skip
    tree = read_yaml(path)
    if isinstance(tree, dict) and tree.get("schema_version") != 1:
        raise InputError(
            "not a network file of this version", where=str(path), expected="schema_version: 1",
            received=tree.get("schema_version"),
        )  # fmt: skip
    if not isinstance(tree, dict) or set(tree) - {*_HEADER, "network"} or not isinstance(tree.get("network"), dict):
        raise InputError("not a network file", where=str(path), expected="one section `network` with its numbers")
    values, provenance = read_leaves({"network": tree["network"]}, str(path))
    made: Network = validated(Network, values["network"], f"{path}: network")
    _check_ranges(provenance, "network", made, str(path))
    return Network(
        made.uplink_bit, made.downlink_bit, made.uplink_rate, made.downlink_rate, path.stem,
        str(tree.get("title", path.stem)), provenance,
    )  # fmt: skip


def _check_ranges(provenance: Mapping[str, Provenance], section: str, made: object, where: str) -> None:
    units = units_of(type(made))
    for key, found in provenance.items():
        name = key.removeprefix(f"{section}.")
        if name != key:
            check_range(found, getattr(made, name), units[name], f"{where}: {key}")


@cache
def load_baselines() -> Baselines:
    """Load the numbers of the baselines that are shipped with the package."""
    path = Path(__file__).parent / "baselines.yaml"
    tree = {key: value for key, value in read_yaml(path).items() if key not in _HEADER}
    values, provenance = read_leaves(tree, path.name)
    kinds = {
        "h100": Machine, "jetson_orin": Machine, "published_rtx4090": PublishedAttention,
        "published_jetson_nano": PublishedAttention, "published_h100": PublishedAttention,
        "bitnet_cpp_m2_ultra": TernaryCpu, "bitnet_cpp_i7_13700h": TernaryCpu, "sram_window": SramWindow,
        "survey_floor": SurveyFloor,
    }  # fmt: skip
    made = {name: validated(kind, values[name], f"{path.name}: {name}") for name, kind in kinds.items()}
    for name, machine in made.items():
        _check_ranges(provenance, name, machine, path.name)
    return Baselines(**made, provenance=provenance)
