"""Settings of a federation's server and of its sites, each one YAML file."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, Field, StrictBool, StrictInt, ValidationError, model_validator

from device_models import InputError
from device_models.errors import nearest
from device_models.strict_yaml import read_yaml
from fllm.sections import Count, Strict

FEDERATION_FILE = "federation.yaml"
SITE_FILE = "site.yaml"
LOOPBACK = "127.0.0.1"

Port = Annotated[StrictInt, Field(ge=1, le=65535)]


def split_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[IPv6]:port``; raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise ValueError("not an address; expected host:port, such as fl.example.org:8443")
    return found[1] or found[2], int(found[3])


def _readable(text: str) -> str:
    split_address(text)
    return text


Address = Annotated[str, AfterValidator(_readable)]
"""Host and port."""


class Federation(Strict):
    """What the server's operator decides.

    Attributes:
        sites: Sites of the federation, one partition each.
        address: Host and port that sites dial, as they see it.
        tls: Whether sites speak TLS and sign what they send; without it the address must be of this machine.
        listen: Address of the network interface that the port for sites is opened on.
        control_port: Port on this machine alone for commands such as ``submit``; with TLS another one than sites dial.
    """

    sites: Count
    address: Address
    tls: StrictBool
    listen: str
    control_port: Port

    @model_validator(mode="after")
    def _private(self) -> Federation:
        if not self.tls and not is_loopback(self.host):
            raise ValueError("without TLS the address must be of this machine, such as 127.0.0.1")
        if self.tls and self.control_port == self.port:
            raise ValueError("control_port must differ from the port that sites dial")
        return self

    @property
    def host(self) -> str:
        """Host that sites dial."""
        return split_address(self.address)[0]

    @property
    def port(self) -> int:
        """Port that sites dial."""
        return split_address(self.address)[1]


class Site(Strict):
    """What a site's operator decides; a site reads no path that does not stand here.

    Attributes:
        partition_id: Number of the site, counted from 0.
        num_partitions: Sites of the federation.
        superlink: Host and port of the server.
        tls: Whether to speak TLS, with ``ca.crt`` and ``node.key`` beside this file.
        data_dir: Folder of the site's cases in the MIMIC-IV-Ext-CDM layout; None takes the site's part of the
            synthetic cohort.
        data_files: Table or text files of the tasks ``csv`` and ``text``.
        model: Folder of the base model; None is the shipped one.
        device_model: Device file or name of a shipped one; None is that of the run.
        secure_threshold: Least threshold of secure aggregation that this site takes part with; None takes part without.
        state: Folder for what the site keeps from round to round.
    """

    partition_id: Annotated[StrictInt, Field(ge=0)]
    num_partitions: Count
    superlink: Address
    tls: StrictBool
    data_dir: str | None = None
    data_files: tuple[str, ...] = ()
    model: str | None = None
    device_model: str | None = None
    secure_threshold: Annotated[StrictInt, Field(ge=2)] | None = None
    state: str = "state"

    @model_validator(mode="after")
    def _known(self) -> Site:
        if self.partition_id >= self.num_partitions:
            raise ValueError(f"partition_id must be below num_partitions ({self.num_partitions}), counted from 0")
        if not self.tls and not is_loopback(split_address(self.superlink)[0]):
            raise ValueError("without TLS the superlink must be on this machine, such as 127.0.0.1:8000")
        return self


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, seen from itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


Settings = TypeVar("Settings", Federation, Site)


def check_settings(kind: type[Settings], tree: Any, where: str) -> Settings:
    """Validate settings; raises InputError."""
    if not isinstance(tree, dict):
        raise InputError("holds no settings", where=where, expected="keys and values", received=type(tree).__name__)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in problem["loc"])
        place = f"{where}: {path}" if path else where
        if problem["type"] == "extra_forbidden":
            raise InputError("unknown key", where=place, remedy=nearest(path, kind.model_fields)) from None
        message = str(problem["msg"]).removeprefix("Value error, ")
        raise InputError(message, where=place) from None


def read_federation(folder: Path) -> Federation:
    """Read the settings of a federation's folder; raises InputError."""
    return _read(Federation, folder / FEDERATION_FILE, "make one with fllm federation init")


def read_site(file: Path) -> Site:
    """Read a site's settings; relative paths in them become those beside the file. Raises InputError."""
    site = _read(Site, file, "copy the site's folder from the server's operator")
    beside = file.resolve().parent

    def absolute(path: str) -> str:
        return str(beside / Path(path).expanduser())

    changes: dict[str, object] = {"state": absolute(site.state)}
    for key in ("data_dir", "model"):
        if (value := getattr(site, key)) is not None:
            changes[key] = absolute(value)
    changes["data_files"] = tuple(map(absolute, site.data_files))
    if site.device_model is not None and (beside / site.device_model).is_file():  # else the name of a shipped one
        changes["device_model"] = absolute(site.device_model)
    return site.model_copy(update=changes)


def _read(kind: type[Settings], file: Path, remedy: str) -> Settings:
    if not file.is_file():
        raise InputError("no such file", where=str(file), remedy=remedy)
    return check_settings(kind, read_yaml(file), str(file))


def write_settings(file: Path, settings: Federation | Site, comment: str) -> None:
    """Write settings below a comment of one or more lines."""
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    body = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    file.write_text(lines + body, encoding="utf-8")
