"""The port that sites dial: TLS, and of the SuperLink's interfaces only the one for sites.

Flower 1.41 serves sites, commands and its own programs on one port, and its commands need no key: whoever reaches it
can submit code that every site runs. Here the SuperLink listens on this machine alone, and the gateway hands on what
sites need, which Flower checks against their registered keys.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from device_models import InputError
from fllm.deployment.folders import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY
from fllm.deployment.settings import LOOPBACK, Federation

if TYPE_CHECKING:
    from starlette.applications import Starlette

ALLOWED = re.compile(r"/v1/fleet/[a-z-]+")
"""Paths of the interface for sites."""
HELD_BACK = frozenset({"connection", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
"""Headers of one connection that mean nothing on the next."""
TIMEOUT_S = 300.0


def make_gateway(port: int, trust: ssl.SSLContext) -> Starlette:
    """Make the gateway's application.

    Args:
        port: Port of the SuperLink on this machine.
        trust: What the SuperLink's certificate is checked against.
    """
    import httpx
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    client = httpx.AsyncClient(
        base_url=f"https://{LOOPBACK}:{port}", verify=trust, timeout=TIMEOUT_S, trust_env=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
    )  # fmt: skip

    async def hand_on(request: Request) -> Response:
        if ALLOWED.fullmatch(request.url.path) is None:
            return Response("not for sites", status_code=404)
        headers = [(name, value) for name, value in request.headers.items() if name not in HELD_BACK]
        inner = client.build_request("POST", request.url.path, headers=headers, content=request.stream())
        try:
            reply = await client.send(inner, stream=True)
        except httpx.TransportError:
            return Response("the SuperLink does not answer", status_code=502)
        kept = {name: value for name, value in reply.headers.items() if name not in HELD_BACK}
        return StreamingResponse(reply.aiter_raw(), reply.status_code, kept, background=BackgroundTask(reply.aclose))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    return Starlette(routes=[Route("/{path:path}", hand_on, methods=["POST"])], lifespan=lifespan)


@contextlib.contextmanager
def open_gateway(folder: Path, federation: Federation) -> Iterator[None]:
    """Open the port for sites, in a thread of this process.

    Raises:
        InputError: If the port cannot be opened.
    """
    import uvicorn

    trust = ssl.create_default_context(cafile=str(folder / CA_CERTIFICATE))
    config = uvicorn.Config(
        make_gateway(federation.control_port, trust), ssl_certfile=str(folder / SERVER_CERTIFICATE),
        ssl_keyfile=str(folder / SERVER_KEY), log_level="warning", access_log=False, server_header=False, ws="none",
    )  # fmt: skip
    server = uvicorn.Server(config)
    with _opened(federation.listen, federation.port) as door:
        thread = threading.Thread(target=server.run, args=([door],), name="gateway", daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.05)
            yield
        finally:
            server.should_exit = True
            thread.join(5.0)


def _opened(host: str, port: int) -> socket.socket:
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name != "nt":
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just closed may be opened again
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise InputError(
            f"cannot be opened ({error.strerror})", where=f"{host}, port {port}", remedy="see what else uses it"
        ) from None
    return door
