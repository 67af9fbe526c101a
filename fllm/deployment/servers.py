"""Start a SuperLink from a federation's folder, and a SuperNode from a site's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from device_models import InputError
from fllm.deployment.folders import CA_CERTIFICATE, DATABASE, HOME_FOLDER, NODE_KEY, SERVER_CERTIFICATE, SERVER_KEY
from fllm.deployment.gateway import open_gateway
from fllm.deployment.processes import environment, free_port, is_taken, serve, start
from fllm.deployment.settings import LOOPBACK, SITE_FILE, Federation, Site, read_federation, read_site


def superlink_command(folder: Path, federation: Federation) -> list[str]:
    """Return the command of a federation's SuperLink; it listens on this machine alone."""
    folder = folder.resolve()
    command = [
        "flower-superlink", "--host", LOOPBACK, "--port", str(federation.control_port),
        "--database", str(folder / DATABASE), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    if not federation.tls:
        return [*command, "--insecure"]
    return [
        *command, "--ssl-certfile", str(folder / SERVER_CERTIFICATE), "--ssl-keyfile", str(folder / SERVER_KEY),
        "--ssl-ca-certfile", str(folder / CA_CERTIFICATE), "--enable-supernode-auth",
    ]  # fmt: skip


def supernode_command(folder: Path, site: Site, port: int) -> list[str]:
    """Return the command of a site's SuperNode.

    Args:
        folder: The site's folder.
        site: Its settings.
        port: Port on this machine for the SuperNode's own parts.
    """
    folder = folder.resolve()
    file = str(folder / SITE_FILE)
    if "'" in file:  # Flower's parser knows no escapes
        raise InputError("a folder's name holds a quotation mark", where=file, remedy="move the site's folder")
    command = [
        "flower-supernode", "--superlink", site.superlink, "--host", LOOPBACK, "--port", str(port), "--node-config",
        f"partition-id={site.partition_id} num-partitions={site.num_partitions} site='{file}'",
    ]  # fmt: skip
    if not site.tls:
        return [*command, "--insecure"]
    keys = ["--root-certificates", folder / CA_CERTIFICATE, "--auth-supernode-private-key", folder / NODE_KEY]
    return [*command, *map(str, keys)]


def run_superlink(folder: Path) -> int:
    """Run a federation's SuperLink until it is asked to stop; return its exit code. Raises InputError."""
    federation = read_federation(folder)
    if federation.tls:
        _need(folder, (CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY))
    for host, port in {(federation.listen, federation.port), (LOOPBACK, federation.control_port)}:
        if is_taken(port, host):
            raise InputError("is in use", where=f"port {port}", remedy="is the SuperLink running already?")
    process = start(superlink_command(folder, federation), environment(folder / HOME_FOLDER))
    if not federation.tls:
        return serve(process)
    # The gateway opens last and closes first: a site that is told of an error gives up, and one that meets none waits
    answers = partial(is_taken, federation.control_port)
    return serve(process, beside=lambda: open_gateway(folder, federation), when=answers)


def run_supernode(folder: Path, port: int | None) -> int:
    """Run a site's SuperNode until it is asked to stop; return its exit code. Raises InputError."""
    site = read_site(folder / SITE_FILE)
    if site.tls:
        _need(folder, (CA_CERTIFICATE, NODE_KEY))
    if port is not None and is_taken(port):
        raise InputError("is in use", where=f"--port {port}", remedy="give another, or none")
    Path(site.state).mkdir(parents=True, exist_ok=True)
    return serve(start(supernode_command(folder, site, port or free_port()), environment(folder / HOME_FOLDER)))


def _need(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise InputError("no such file", where=str(folder / name), remedy="copy it from where init wrote it")
