"""Opens the sockets that the server listens on, before anything else is started."""

import errno
import socket


class CannotListen(Exception):
    """The address cannot be listened on; the message says why and what to do."""


def bind(host: str, port: int) -> list[socket.socket]:
    """`localhost` means 127.0.0.1 and, where the machine has it, ::1. Port 0 picks a free one."""
    if host != "localhost":
        return [_bound(host, port)]
    first = _bound("127.0.0.1", port)
    try:
        return [first, _bound("::1", first.getsockname()[1])]
    except CannotListen:
        return [first]


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"Cannot use the address {host}: {error.strerror}.") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
        opened.set_inheritable(False)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"Port {port} is in use on {host}. Stop what listens there, or choose another: "
                "PORT=5007 make serve, or ai-server serve --port 5007."
            ) from None
        raise CannotListen(f"Cannot listen on {host} port {port}: {error.strerror}.") from None
    return opened
