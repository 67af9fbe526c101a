"""What is submitted to a deployment: a job on the server's disk, and the part of it that sites are told.

Flower hands the settings of a run to all sites; ours are the name of a job alone, and the ServerApp reads the rest from
the server's folder. Sites are told the run's settings in each message, without a path: which files a site reads stands
in its own ``site.yaml``.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_models import InputError, preset_names
from fllm.config import RunConfig, validate_config
from fllm.deployment.folders import JOBS_FOLDER
from fllm.deployment.settings import Site
from fllm.results import replace_file

PATH_KEYS = ("data_dir", "data_files", "model", "adapter", "network")
"""Keys of a run that name files of the server; the last one prices bytes, which sites do not."""
DEVICE_KEYS = ("device_model", "client_devices", "device")
"""Keys that name devices; they are told where all are shipped ones, whose names mean the same everywhere."""
RUN, BASE = "run", "base-sha256"
"""Settings that travel in each message: the run as JSON, and the digest of the base model."""


@dataclass(frozen=True)
class Job:
    """One run as it was submitted.

    Attributes:
        name: Of the run, and of its folder.
        config: Its configuration.
        token: Sites keep what stays with them from round to round under it; resuming a run keeps it.
        command: How it was submitted, for the report.
        resumed: Whether the run is there and goes on.
        from_round: An earlier round to go on from.
    """

    name: str
    config: RunConfig
    token: str
    command: str
    resumed: bool = False
    from_round: int | None = None


def new_token() -> str:
    """Return a token that no other run has."""
    return secrets.token_hex(8)


def write_job(folder: Path, job: Job) -> None:
    """Write a job into the server's folder."""
    (folder / JOBS_FOLDER).mkdir(parents=True, exist_ok=True)
    plain = {
        "name": job.name, "config": job.config.model_dump(mode="json"), "token": job.token, "command": job.command,
        "resumed": job.resumed, "from_round": job.from_round,
    }  # fmt: skip
    replace_file(_file(folder, job.name), json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def read_job(folder: Path, name: str) -> Job:
    """Read a job of a server's folder; raises InputError if it is not there or cannot be read."""
    if not re.fullmatch(r"[\w.+-]+", name) or not name.strip("."):
        raise InputError("no name of a job", where=str(folder), received=name)
    file = _file(folder, name)
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        return Job(**plain | {"config": validate_config(plain["config"], str(file))})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("no such job", where=str(file), remedy="submit it with fllm federation submit") from None


def _file(folder: Path, name: str) -> Path:
    return folder / JOBS_FOLDER / f"{name}.json"


def check_deployable(config: RunConfig) -> None:
    """Refuse what sites could not follow; raises InputError."""
    if config.evaluate_only:
        raise InputError("nothing is trained", where="evaluate_only", remedy="run it with fllm-run")
    if config.adapter is not None and (config.lora.freeze_a or config.strategy.factors == "share_a"):
        raise InputError(
            "sites do not have the adapter, and would not be sent all of it", where="adapter",
            remedy="leave out lora.freeze_a and strategy.factors: share_a, or start without an adapter",
        )  # fmt: skip


def told(job: Job) -> str:
    """Write what sites are told of a run, as JSON; no path is in it."""
    config = {key: value for key, value in job.config.model_dump(mode="json").items() if key not in PATH_KEYS}
    if not _shipped(config["device_model"], config["client_devices"]):
        for key in DEVICE_KEYS:
            del config[key]
    own_data = job.config.data_dir is not None or bool(job.config.data_files)
    return json.dumps({"token": job.token, "own_data": own_data, "config": config}, sort_keys=True)


def _shipped(device: object, dealt: object) -> bool:
    """Return whether devices that the server tells of are all names of shipped ones."""
    return isinstance(dealt, list) and all(name in preset_names() for name in (device, *dealt))


@dataclass(frozen=True)
class SiteRun:
    """A run as one site takes part in it.

    Attributes:
        config: The run, with the site's own files.
        kept: Folder of what the site keeps from round to round.
        own_cases: Whether the cases are the site's own; else it takes its part of the run's.
    """

    config: RunConfig
    kept: Path
    own_cases: bool


def site_run(text: str, site: Site) -> SiteRun:
    """Join what the server tells with the settings of a site, which win.

    Args:
        text: What :func:`told` wrote, somewhere else.
        site: Settings of this site.

    Raises:
        InputError: If it is of another form, names a path, or needs something that the site has not named.
    """
    where = "run of the server"
    try:
        plain: dict[str, Any] = json.loads(text)
        token, own_data, config = str(plain["token"]), bool(plain["own_data"]), dict(plain["config"])
    except (ValueError, KeyError, TypeError):
        raise InputError("cannot be read", where=where, remedy="have the same version of fllm as the server") from None
    if not re.fullmatch(r"[0-9a-f]{16}", token):
        raise InputError("a token of another form", where=where)
    if named := sorted(set(config) & set(PATH_KEYS)):
        raise InputError(f"names paths: {', '.join(named)}", where=where, expected="paths in site.yaml alone")
    own_cases = site.data_dir is not None or bool(site.data_files)
    if own_data and not own_cases:
        raise InputError("reads cases, and the site names none", where=where, remedy="set data_dir in site.yaml")
    if site.device_model is not None:  # overrides are made for another device
        config |= {"device_model": site.device_model, "device": {}, "client_devices": []}
    elif not _shipped(config.get("device_model"), config.get("client_devices")):
        raise InputError("its device is a file of the server", where=where, remedy="set device_model in site.yaml")
    own = {"data_dir": site.data_dir, "data_files": site.data_files, "model": site.model}
    joined = validate_config(config | own, where)
    threshold = joined.secure.threshold_of(joined.asked)
    if site.secure_threshold is not None and (threshold or 0) < site.secure_threshold:
        raise InputError(
            "has no secure aggregation of the threshold that this site asks for", where=where,
            expected=f"at least {site.secure_threshold}", received=threshold,
        )  # fmt: skip
    return SiteRun(joined, Path(site.state) / token, own_cases)
