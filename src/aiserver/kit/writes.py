"""Writes to many sockets, made together: a peer that sleeps is woken once for all of them."""

import asyncio


class Writes:
    """The first write of a millisecond goes out at once, those that follow at the turn's end.

    Waking a process on another core costs more than the write that wakes it. Whoever closes a
    transport or writes to it past this must `flush` first. For one loop.
    """

    __slots__ = ("_held", "_last", "_loop")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: list[tuple[asyncio.Transport, bytes]] = []
        self._last = 0.0

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        if self._held:
            self._held.append((transport, data))
            return
        loop = self._loop = self._loop or asyncio.get_running_loop()
        # The loop reads its clock once a turn, and counts milliseconds.
        now = loop.time()
        if now != self._last:
            self._last = now
            transport.write(data)
        else:
            self._held.append((transport, data))
            loop.call_soon(self.flush)

    def flush(self) -> None:
        held, self._held = self._held, []
        for transport, data in held:
            if not transport.is_closing():
                transport.write(data)
