"""Of the SuperLink's interfaces, those who dial from outside reach the one for sites alone."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from device_models import InputError
from fllm.deployment.folders import make_federation
from fllm.deployment.gateway import open_gateway
from fllm.deployment.processes import free_port
from fllm.deployment.settings import Federation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("federation") / "made"


@pytest.fixture(scope="module")
def federation(folder: Path) -> Federation:
    made = make_federation(folder, 1, f"127.0.0.1:{free_port()}", tls=True)
    return made.model_copy(update={"control_port": free_port()})


@pytest.fixture(scope="module")
def reached() -> list[str]:
    """Return the paths that arrived behind the gateway."""
    return []


@pytest.fixture(scope="module")
def gateway(folder: Path, federation: Federation, reached: list[str]) -> Iterator[Federation]:
    """Return a gateway before a server that answers with what it was sent."""

    async def echo(request: Request) -> Response:
        reached.append(request.url.path)
        headers = {"flwr-answer": request.headers.get("flwr-timestamp", "none")}
        return Response(await request.body(), 401 if request.url.path.endswith("refused") else 200, headers)

    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
    config = uvicorn.Config(
        app, host="127.0.0.1", port=federation.control_port, log_level="error",
        ssl_certfile=str(folder / "server.crt"), ssl_keyfile=str(folder / "server.key"),
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with open_gateway(folder, federation):
        yield federation
    server.should_exit = True
    thread.join()


def post(
    folder: Path, port: int, path: str, body: bytes = b"", method: str = "POST"
) -> tuple[int, bytes, dict[str, str]]:
    """Send a request as it is; httpx would tidy up its path."""
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=10)) as connection:
        connection.request(method, path, body, {"flwr-timestamp": "noon"})
        reply = connection.getresponse()
        return reply.status, reply.read(), {name.lower(): value for name, value in reply.getheaders()}


def test_what_a_site_sends_arrives_with_its_signature(gateway: Federation, folder: Path) -> None:
    body = bytes(range(256)) * 40_000  # 10 MB, in pieces
    status, answer, headers = post(folder, gateway.port, "/v1/fleet/push-object", body)
    assert status == 200
    assert answer == body
    assert headers["flwr-answer"] == "noon"


def test_refusal_by_the_superlink_is_handed_back(gateway: Federation, folder: Path) -> None:
    assert post(folder, gateway.port, "/v1/fleet/refused")[0] == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/pull-task-input"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/x%0a/v1/control/start-run"),
        ("POST", "//v1/control/start-run"),
        ("POST", "/v1/fleet/"),
        ("POST", "/openapi.json"),
        ("GET", "/v1/fleet/push-object"),
        ("GET", "/docs"),
    ],
)
def test_nothing_else_is_reached(gateway: Federation, folder: Path, reached: list[str], method: str, path: str) -> None:
    before = list(reached)
    assert post(folder, gateway.port, path, method=method)[0] in (404, 405)
    assert reached == before
    assert post(folder, gateway.control_port, "/v1/control/start-run")[0] == 200  # on this machine it is there


def test_plain_text_is_not_answered(gateway: Federation) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    with contextlib.closing(connection), pytest.raises((http.client.HTTPException, OSError)):
        connection.request("POST", "/v1/fleet/push-object")
        connection.getresponse()


def test_superlink_that_is_gone_is_told(folder: Path, federation: Federation) -> None:
    alone = federation.model_copy(update={"address": f"127.0.0.1:{free_port()}", "control_port": free_port()})
    with open_gateway(folder, alone):
        assert post(folder, alone.port, "/v1/fleet/push-object")[0] == 502
    with pytest.raises(OSError, match="refused"):  # the port is closed again
        post(folder, alone.port, "/v1/fleet/push-object")


def test_port_that_cannot_be_opened_is_named(folder: Path, federation: Federation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = federation.model_copy(update={"address": f"127.0.0.1:{port}"})
        with pytest.raises(InputError, match=f"port {port}: cannot be opened"), open_gateway(folder, other):
            pass
