"""One request and its answer on uvicorn's ground, header names written as the contract has them."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from aiserver.doors.headers import canonical

# A message beyond ASGI's own: an answer that has begun ends here, so that its reader sees it.
CUT_OFF = {"type": "aiserver.cut_off"}


class Cycle(RequestResponseCycle):
    """One request and its answer, header names written canonically."""

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected and message is not CUT_OFF:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self.response_started:
            self._start(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body" and not self.response_complete:
            self._body(message.get("body", b""), last=not message.get("more_body", False))
        elif message is CUT_OFF:
            self._cut_off()
        else:
            raise RuntimeError(f"{message['type']} is out of order")

    def _cut_off(self) -> None:
        if not self.response_started:
            return
        self.disconnected = True
        self.message_event.set()
        if self.response_complete:
            self.transport.close()
        else:
            self.transport.abort()

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        sized = status in (204, 304) or self.scope["method"] == "HEAD"
        for name, value in (*self.default_headers, *headers):
            if b"\n" in value or b"\r" in value:
                raise RuntimeError(f"the header {name!r} holds a line break")
            written = canonical(name)
            if written == b"Content-Length":
                sized = True
            elif written == b"Connection" and value.lower() == b"close":
                self.keep_alive = False
                continue
            lines += (written, b": ", value, b"\r\n")
        self.chunked_encoding = not sized and self.scope["http_version"] == "1.1"
        if self.chunked_encoding:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif not sized:
            # HTTP/1.0 knows no chunks: the end of the connection is the end of the answer.
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        self.transport.write(b"".join(lines))

    def _body(self, body: bytes, *, last: bool) -> None:
        if self.scope["method"] != "HEAD":
            if self.chunked_encoding:
                end = b"0\r\n\r\n" if last else b""
                body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + end
            if body:
                self.transport.write(body)
        if last:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
