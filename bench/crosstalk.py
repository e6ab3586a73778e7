"""Whether every answer belongs to its request, plain and streamed calls mixed on many connections."""

from pathlib import Path
from typing import Any

from bench.gateway import alone
from bench.loads import checked
from bench.report import verdict

# Short and long bodies in turn, so that answers of different sizes meet in the pool.
_SHAPES = ({"size": 300, "chunks": 5}, {"size": 20_000, "chunks": 9}, {"size": 900, "chunks": 2})
_LONG = 0.1


def check(calls: int, folder: Path, *, lane: str) -> dict[str, Any]:
    """Sends so many calls and counts the answers that are not their request's own."""
    with alone(folder, lane=lane) as server:
        print(f"\nCross-talk: {calls} calls on 64 connections, each third streamed ({server.name})")
        wrong = sent = 0
        for shape in _SHAPES:
            share = _LONG if shape["size"] > 10_000 else (1 - _LONG) / 2
            shape = {**shape, "requests": round(calls * share), "connections": 64}
            done = checked(server, folder, **shape, stream_every=3, gap=1)
            sent += done["requests"]
            wrong += done["mismatches"] + done["failures"]
        return {"calls": sent, **verdict("answers not their request's own", wrong, 0)}
