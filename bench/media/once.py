"""A new variant that a hundred ask for at once: how often its picture is decoded."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from bench.machines import Server, family
from bench.media import server as ours
from bench.media.contestants import variant_of
from bench.report import verdict

CALLERS = 100
_PATIENCE = 60.0


def measure(server: Server, picture: Path) -> dict[str, Any]:
    """Counted by what the children that decode have read: the picture's bytes, so often."""
    path = ours.upload(server, ours.file_part("file", picture))
    # The first begins a child, which reads its own program too.
    ours.read(server, variant_of(path, 601))
    before = _bytes_read(server)
    ours.read(server, variant_of(path, 602))
    one = _bytes_read(server) - before
    before = _bytes_read(server)
    answers = asyncio.run(_all_at_once(server, variant_of(path, 603)))
    decoded = (_bytes_read(server) - before) / one
    wrong = sum(answer != answers[0] for answer in answers)
    if wrong or not answers[0].startswith(b"HTTP/1.1 200"):
        sys.exit(f"{wrong + 1} of {CALLERS} answers were not the variant.")
    print(f"\n{CALLERS} callers of one new variant at once")
    return verdict("times its picture was decoded, at most 1", round(decoded, 2), 1)


async def _all_at_once(server: Server, path: str) -> list[bytes]:
    """The answers, all asked for before the first is there, without what differs by call."""
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(CALLERS)]
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    for _, writer in opened:
        writer.write(f"{head}Authorization: Bearer {server.key}\r\n\r\n".encode())
    async with asyncio.timeout(_PATIENCE):
        answers = await asyncio.gather(*(reader.read() for reader, _ in opened))
    for _, writer in opened:
        writer.close()
    return [_without_own(answer) for answer in answers]


def _without_own(answer: bytes) -> bytes:
    status = answer.partition(b"\r\n")[0]
    return status + answer.partition(b"\r\n\r\n")[2]


def _bytes_read(server: Server) -> int:
    """By all children of the server since they began."""
    total = 0
    for pid in family(server.process.pid)[1:]:
        told = Path(f"/proc/{pid}/io").read_text()
        total += int(told.partition("rchar: ")[2].split()[0])
    return total
