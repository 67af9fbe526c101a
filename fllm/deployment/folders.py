"""The folder of a federation and those of its sites.

The server's folder holds ``federation.yaml``, keys, and once it runs ``state.db`` (Flower's database), ``jobs/`` (what
was submitted) and ``runs/`` (results). ``sites/`` holds one folder for each site to take away.
"""

from __future__ import annotations

from pathlib import Path

from device_models import InputError
from fllm.deployment.settings import (
    FEDERATION_FILE,
    LOOPBACK,
    SITE_FILE,
    Federation,
    Site,
    check_settings,
    is_loopback,
    split_address,
    write_settings,
)

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
NODE_KEY = "node.key"
NODE_KEYS_FOLDER, SITES_FOLDER, APP_FOLDER, HOME_FOLDER = "nodes", "sites", "app", "flwr"
JOBS_FOLDER, RUNS_FOLDER, DATABASE = "jobs", "runs", "state.db"

APP = """\
# What Flower carries to the sites: names of two objects in the fllm that is installed there, and no code.
[project]
name = "fllm-federation"
version = "0.1.0"
description = "Federated fine-tuning on emulated in-memory hardware"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fllm"

[tool.flwr.app.components]
serverapp = "fllm.federation.apps:server_app"
clientapp = "fllm.federation.apps:client_app"

[tool.flwr.app.config]
job = ""
"""


def make_federation(folder: Path, sites: int, address: str, *, tls: bool) -> Federation:
    """Make the folder of a federation, with one folder per site in it.

    Args:
        folder: New folder.
        sites: Number of sites.
        address: Host and port that sites will dial.
        tls: Whether to make certificates and keys.

    Raises:
        InputError: If the folder is there already or a setting is not accepted; nothing is written then.
    """
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise InputError(str(error), where="--address", received=address) from None
    control_port = port if not tls else port + 1 if port < 65535 else port - 1
    listen = LOOPBACK if is_loopback(host) else "0.0.0.0"
    settings = {"sites": sites, "address": address, "tls": tls, "listen": listen, "control_port": control_port}
    federation = check_settings(Federation, settings, "fllm federation init")
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise InputError("is there already", where=str(folder), remedy="name a new folder") from None
    comment = "Settings of the federation's server, written by fllm federation init."
    write_settings(folder / FEDERATION_FILE, federation, comment)
    write_app(folder)
    for number in range(sites):
        _make_site(folder, federation, number)
    if tls:
        _make_keys(folder, federation)
    return federation


def site_name(number: int) -> str:
    """Return the name of a site's folder."""
    return f"site-{number}"


def write_app(folder: Path) -> Path:
    """Write the application that Flower carries to the sites, and return its folder."""
    (folder / APP_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / APP_FOLDER / "pyproject.toml").write_text(APP, encoding="utf-8")
    return folder / APP_FOLDER


def write_connection(home: Path, port: int, ca: Path | None) -> None:
    """Write how Flower's command line reaches the SuperLink on this machine.

    Written anew before each use: it must hold an absolute path, and a federation's folder may have moved.
    """
    address = f'address = "{LOOPBACK}:{port}"'
    trust = "insecure = true" if ca is None else f"root-certificates = {_quoted(ca.resolve())}"
    home.mkdir(parents=True, exist_ok=True)
    text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{address}\n{trust}\n'
    (home / "config.toml").write_text(text, encoding="utf-8")


CONNECTION = "federation"
"""Name of the connection in Flower's configuration."""


def _quoted(path: Path) -> str:
    """Write a path as TOML; raises InputError where that cannot be done without escapes."""
    if "'" in str(path):
        raise InputError("a folder's name holds a quotation mark", where=str(path), remedy="move the federation")
    return f"'{path}'"


def _make_site(folder: Path, federation: Federation, number: int) -> None:
    home = folder / SITES_FOLDER / site_name(number)
    home.mkdir(parents=True)
    site = Site(
        partition_id=number, num_partitions=federation.sites, superlink=federation.address, tls=federation.tls
    )  # fmt: skip
    comment = (
        "Settings of this site, for its own operator to fill in. Relative paths are beside this file.\n"
        "data_dir: folder of this site's cases; null takes a part of a made-up cohort.\n"
        "model, device_model: null takes the shipped base model, and the device that the run asks for.\n"
        "secure_threshold: refuse runs without secure aggregation, or with a threshold below this; null takes any.\n"
        "Nothing that comes from the server can name a path here."
    )
    write_settings(home / SITE_FILE, site, comment)


def _make_keys(folder: Path, federation: Federation) -> None:
    """Make the authority, the server's certificate and the sites' keys."""
    from fllm.deployment.certificates import make_authority, make_server, write_node_key

    authority = make_authority()
    authority.write(folder / CA_CERTIFICATE, folder / CA_KEY)
    hosts = list(dict.fromkeys([federation.host, "localhost", LOOPBACK, "::1"]))  # Flower's own parts dial loopback
    make_server(authority, hosts).write(folder / SERVER_CERTIFICATE, folder / SERVER_KEY)
    (folder / NODE_KEYS_FOLDER).mkdir()
    for number in range(federation.sites):
        name = site_name(number)
        home = folder / SITES_FOLDER / name
        write_node_key(home / NODE_KEY, folder / NODE_KEYS_FOLDER / f"{name}.pub")
        (home / CA_CERTIFICATE).write_bytes((folder / CA_CERTIFICATE).read_bytes())
