"""Starts AI Server for files, and sends them to it and back as a client does."""

import http.client
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bench.gateway import NAME, SECRET, admin
from bench.machines import GATEWAY_CORE, LOAD_CORE, Server, free_port, start, wait_for

EVERY_CORE = f"{GATEWAY_CORE},{LOAD_CORE}"
PIECE = 64 * 1024
_BOUNDARY = "bench-0123456789"
_PATIENCE = 300.0


class Part(NamedTuple):
    """A file of a form: its field, its name, its size in bytes, and these in pieces."""

    field: str
    name: str
    size: int
    pieces: Callable[[], Iterable[bytes]]


def files_server(folder: Path, *, core: str = GATEWAY_CORE) -> Server:
    """With a key of its own, and room for files of 2 GB."""
    port = free_port()
    log = folder / f"{NAME}-{port}.log"
    command: list[str | Path] = [Path(sys.executable).with_name("ai-server"), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--data", tempfile.mkdtemp(dir=folder)]
    environment = {"AUTH_SECRET": SECRET, "LOCAL_MODELS": "false"}
    environment |= {"MAX_FILE": "2GB", "MAX_UPLOAD": "2GB"}
    process = start(command, core=core, log=log, environment=environment)
    server = wait_for(Server(NAME, process, port), "/health/ready", log)
    try:
        key = admin(server, "AdminCreateApiKey", {"name": "bench"})["result"]
    except BaseException:
        server.stop()
        raise
    return Server(NAME, process, port, key)


def file_part(field: str, path: Path) -> Part:
    def pieces() -> Iterable[bytes]:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    return Part(field, path.name, path.stat().st_size, pieces)


def upload(server: Server, part: Part) -> str:
    """Sends one file to be kept; the path it can be read at."""
    [path] = send(server, "/uploads/secure", part, {})["results"]
    return path


def send(server: Server, path: str, part: Part, values: dict[str, str]) -> Any:
    """POSTs a form with this file, a piece in memory at a time; the answer's JSON."""
    fields = "".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in values.items()
    )
    named = f'name="{part.field}"; filename="{part.name}"'
    head = f"{fields}--{_BOUNDARY}\r\nContent-Disposition: form-data; {named}\r\n\r\n".encode()
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
    connection = _connected(server)
    try:
        connection.putrequest("POST", path)
        connection.putheader("Authorization", f"Bearer {server.key}")
        connection.putheader("Content-Type", f"multipart/form-data; boundary={_BOUNDARY}")
        connection.putheader("Content-Length", str(len(head) + part.size + len(tail)))
        connection.endheaders()
        connection.send(head)
        for piece in part.pieces():
            connection.send(piece)
        connection.send(tail)
        return json.loads(_read(connection, path))
    finally:
        connection.close()


def read(server: Server, path: str) -> bytes:
    connection = _asked(server, path)
    try:
        return _read(connection, path)
    finally:
        connection.close()


def read_away(server: Server, path: str) -> int:
    """Reads a file a piece at a time and keeps nothing; how many bytes came."""
    connection = _asked(server, path)
    try:
        answer = connection.getresponse()
        if answer.status != 200:
            sys.exit(f"{server.name}: {path} answers {answer.status}.")
        came, room = 0, bytearray(PIECE)
        while count := answer.readinto(room):
            came += count
        return came
    finally:
        connection.close()


def _asked(server: Server, path: str) -> http.client.HTTPConnection:
    connection = _connected(server)
    connection.request("GET", path, headers={"Authorization": f"Bearer {server.key}"})
    return connection


def _connected(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=_PATIENCE)


def _read(connection: http.client.HTTPConnection, path: str) -> bytes:
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        sys.exit(f"{path} answers {answer.status}: {body[:500].decode(errors='replace')}")
    return body
