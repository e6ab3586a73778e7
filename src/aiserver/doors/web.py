"""The start page: what runs here and how to make the first call."""

from importlib import resources

from aiserver import __version__
from aiserver.doors.gateway import Page, Scope
from aiserver.doors.replies import Pairs, Send, send_bytes

_POLICY = (
    b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


class Web:
    """Static files that are part of the package, read once."""

    def __init__(self) -> None:
        folder = resources.files("aiserver.doors") / "static"
        self._files = {
            entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()
        }
        start = self._files["index.html"].replace(b"{{version}}", __version__.encode())
        self._files["index.html"] = start

    def pages(self) -> dict[str, Page]:
        pages = {f"/static/{name}": self._file(name) for name in self._files}
        return {"/": self._file("index.html"), "/favicon.ico": self._file("icon.svg"), **pages}

    def _file(self, name: str) -> Page:
        body = self._files[name]
        kind = _TYPES[name.rsplit(".", 1)[-1]]

        async def page(scope: Scope, send: Send, headers: Pairs) -> None:
            await send_bytes(
                send,
                200,
                [
                    *headers,
                    (b"Content-Type", kind),
                    (b"Content-Security-Policy", _POLICY),
                    (b"X-Content-Type-Options", b"nosniff"),
                    (b"Referrer-Policy", b"no-referrer"),
                    (b"Cache-Control", b"no-cache"),
                ],
                body,
            )

        return page
