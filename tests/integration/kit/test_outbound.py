"""Calls to addresses that a caller chose, against a real socket."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aiserver.kit.outbound import (
    MOST_READ,
    AddressRefused,
    Answer,
    Broken,
    Guard,
    Outbound,
    Resolve,
    TimedOut,
    Unreachable,
)
from fakes.receiver import OK, SILENT, Received, Receiver, redirect
from fakes.receiver import Answer as Reply
from fakes.upstream import Exchange, FakeUpstream, closed_port, raw

ALLOWED = Guard("127.0.0.1")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as running:
        yield running


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    opened = Outbound(ALLOWED)
    yield opened
    await opened.close()


def naming(*addresses: str) -> Resolve:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


def failing(error: OSError) -> Resolve:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise error

    return resolve


async def send(
    outbound: Outbound, url: str, *, method: str = "POST", body: bytes = b"{}"
) -> Answer:
    return await outbound.send(
        url, method=method, headers={"content-type": "application/json"}, body=body, seconds=5
    )


async def test_request_arrives_as_it_was_meant(outbound: Outbound, receiver: Receiver) -> None:
    answer = await send(outbound, f"{receiver.url}/a%2Fb?x=%20&y=%c3%BC", method="PUT")
    assert (answer.status, answer.body) == (200, b"thanks")
    got = receiver.received[0]
    assert (got.verb, got.path, got.body) == ("PUT", "/hook/a%2Fb?x=%20&y=%c3%BC", b"{}")
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["accept-encoding"] == "identity"


async def test_address_without_path_is_called(outbound: Outbound, receiver: Receiver) -> None:
    await send(outbound, f"http://127.0.0.1:{receiver.port}?x=1#part")
    assert receiver.received[0].path == "/?x=1"


async def test_name_is_kept_while_the_address_is_pinned(receiver: Receiver) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    outbound = Outbound(ALLOWED, resolve=resolve)
    await send(outbound, f"http://Hooks.Example:{receiver.port}/")
    await outbound.close()
    assert receiver.received[0].headers["host"].lower() == f"hooks.example:{receiver.port}"
    assert [name.lower() for name in asked] == ["hooks.example"]


async def test_allowed_name_is_called_in_any_case(receiver: Receiver) -> None:
    outbound = Outbound(Guard(f"hooks.example:{receiver.port}"), resolve=naming("127.0.0.1"))
    for host in ("HOOKS.Example", "hooks.example."):
        assert (await send(outbound, f"http://{host}:{receiver.port}/")).status == 200
    await outbound.close()


async def test_private_address_is_not_connected_to(receiver: Receiver) -> None:
    outbound = Outbound(Guard(), resolve=naming("127.0.0.1"))
    for host in ("hooks.example", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
        with pytest.raises(AddressRefused):
            await send(outbound, f"http://{host}:{receiver.port}/")
    await outbound.close()
    assert receiver.received == []


async def test_one_private_address_among_public_ones_refuses(receiver: Receiver) -> None:
    outbound = Outbound(Guard(), resolve=naming("8.8.8.8", "127.0.0.1"))
    with pytest.raises(AddressRefused):
        await send(outbound, f"http://hooks.example:{receiver.port}/")
    await outbound.close()


async def test_every_call_looks_its_name_up_again(receiver: Receiver) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    outbound = Outbound(ALLOWED, resolve=resolve)
    await send(outbound, f"http://hooks.example:{receiver.port}/")
    with pytest.raises(AddressRefused):
        await send(outbound, f"http://hooks.example:{receiver.port}/")
    await outbound.close()
    assert len(receiver.received) == 1


async def test_redirect_is_not_followed(outbound: Outbound, receiver: Receiver) -> None:
    receiver.next(redirect(receiver.url))
    assert (await send(outbound, receiver.url)).status == 302
    assert len(receiver.received) == 1


async def test_cookies_are_not_kept(outbound: Outbound, receiver: Receiver) -> None:
    receiver.next(Reply(200, ("Set-Cookie: a=b",)))
    await send(outbound, receiver.url)
    await send(outbound, receiver.url)
    assert "cookie" not in receiver.received[1].headers


async def test_proxy_of_the_environment_is_not_used(
    outbound: Outbound, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    assert (await send(outbound, receiver.url)).status == 200


async def test_endless_answer_is_read_to_the_bound(outbound: Outbound, receiver: Receiver) -> None:
    receiver.next(Reply(200, endless=True))
    answer = await send(outbound, receiver.url)
    assert (answer.status, len(answer.body)) == (200, MOST_READ)


async def test_silent_receiver_times_out(outbound: Outbound, receiver: Receiver) -> None:
    receiver.next(SILENT)
    with pytest.raises(TimedOut):
        await outbound.send(receiver.url, headers={}, seconds=0.05)


async def test_slow_look_up_times_out() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    outbound = Outbound(Guard(), resolve=resolve)
    with pytest.raises(TimedOut):
        await outbound.send("http://hooks.example/", headers={}, seconds=0.05)
    await outbound.close()


async def test_closed_port_is_unreachable(outbound: Outbound) -> None:
    port = closed_port()
    with pytest.raises(Unreachable) as failed:
        await send(outbound, f"http://127.0.0.1:{port}/")
    assert "127.0.0.1" not in str(failed.value)


async def test_unknown_name_is_unreachable() -> None:
    outbound = Outbound(Guard(), resolve=failing(socket.gaierror(socket.EAI_NONAME, "unknown")))
    with pytest.raises(Unreachable, match="name"):
        await send(outbound, "http://hooks.example/")
    await outbound.close()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 2", b"HTTP/1.1 abc\r\n\r\n"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_what_is_not_http_is_broken(outbound: Outbound, answer: bytes, method: str) -> None:
    async with FakeUpstream() as fake:
        fake.next(raw(answer, then="close"))
        with pytest.raises(Broken):
            await send(outbound, f"{fake.base_url}/", method=method)
        assert fake.connections.count == 1


async def test_body_that_breaks_off_leaves_the_status(outbound: Outbound) -> None:
    async with FakeUpstream() as fake:
        fake.next("truncated")
        answer = await send(outbound, f"{fake.base_url}/")
        assert (answer.status, answer.body) == (200, b'{"half": ')


HEAD = b"HTTP/1.1 200 OK\r\n"
NOT_ITS_OWN = [
    (b"HTTP/1.1 204 No Content\r\nContent-Length: 100\r\n\r\nabc", 204),
    (HEAD + b"Content-Length: 0\r\n\r\nthanks", 200),
    (HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n\r\n\r\nHTTP/1.1 500 No\r\n\r\n", 200),
    (HEAD + b"Content-Length: 2\r\n\r\nokay", 200),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n", 200),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nmore", 200),
]


@pytest.mark.parametrize(("answer", "status"), NOT_ITS_OWN)
@pytest.mark.parametrize("then", ["close", "keep", "reset"])
async def test_bytes_after_an_answer_leave_its_status(
    outbound: Outbound, answer: bytes, status: int, then: str
) -> None:
    async with FakeUpstream() as fake:
        fake.next(raw(answer, then=then))
        assert (await send(outbound, f"{fake.base_url}/")).status == status


@pytest.mark.parametrize("cut", range(4))
async def test_head_that_comes_in_pieces_is_read(outbound: Outbound, cut: int) -> None:
    async def pieces(exchange: Exchange) -> None:
        await exchange.send(HEAD + b"Content-Length: 0" + b"\r\n\r\n"[:cut])
        await arrived.wait()
        await exchange.send(b"\r\n\r\n"[cut:] + b"more")

    arrived = asyncio.Event()
    async with FakeUpstream() as fake:
        fake.next(pieces)
        asyncio.get_running_loop().call_later(0.01, arrived.set)
        assert (await send(outbound, f"{fake.base_url}/")).status == 200


async def test_unresolved_name_is_left_for_the_delivery() -> None:
    await Outbound(Guard(), resolve=failing(socket.gaierror(socket.EAI_AGAIN, "later"))).check(
        "https://hooks.example/"
    )


@pytest.mark.parametrize(
    "resolve",
    [naming("10.0.0.1"), naming(), failing(socket.gaierror(socket.EAI_NONAME, "unknown"))],
)
async def test_private_and_unknown_names_are_refused_alike(resolve: Resolve) -> None:
    with pytest.raises(AddressRefused) as refused:
        await Outbound(Guard(), resolve=resolve).check("https://hooks.example/")
    assert str(refused.value).startswith("hooks.example is not a public address")


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "http://[::1]/", "http://127.1/"])
async def test_literal_private_address_is_refused_without_a_look_up(url: str) -> None:
    with pytest.raises(AddressRefused):
        await Outbound(Guard(), resolve=failing(OSError("asked"))).check(url)


async def test_public_name_passes_the_check() -> None:
    await Outbound(Guard(), resolve=naming("8.8.8.8", "2606:4700::1111")).check("https://a.test")


def certificate(folder: Path, name: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "receiver")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = folder / "receiver.pem"
    path.write_bytes(
        key.private_bytes(pem, form, serialization.NoEncryption()) + signed.public_bytes(pem)
    )
    return path


async def over_tls(folder: Path, host: str, *, trusted: bool) -> tuple[list[Received], list[str]]:
    """What a receiver with a certificate for hooks.example got, and the names asked of it."""
    path = certificate(folder, "hooks.example")
    names: list[str] = []
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    server.sni_callback = lambda _, name, __: names.append(name or "")
    client = ssl.create_default_context(cafile=path) if trusted else None
    async with Receiver(tls=server) as receiver:
        outbound = Outbound(ALLOWED, resolve=naming("127.0.0.1"), tls=client)
        try:
            await send(outbound, f"https://{host}:{receiver.port}/")
        finally:
            await outbound.close()
        return receiver.received, names


async def test_certificate_is_checked_for_the_name(tmp_path: Path) -> None:
    received, names = await over_tls(tmp_path, "hooks.example", trusted=True)
    assert received[0].answer is OK
    assert names == ["hooks.example"]


@pytest.mark.parametrize(("host", "trusted"), [("hooks.example", False), ("a.test", True)])
async def test_wrong_certificate_is_unreachable(tmp_path: Path, host: str, trusted: bool) -> None:
    with pytest.raises(Unreachable, match="certificate"):
        await over_tls(tmp_path, host, trusted=trusted)


async def test_connections_to_one_host_are_bounded(receiver: Receiver) -> None:
    outbound = Outbound(ALLOWED, most_per_host=2)
    receiver.next(SILENT, SILENT)
    silent = [asyncio.create_task(send(outbound, receiver.url)) for _ in range(2)]
    await receiver.reach(2)
    with pytest.raises(TimedOut):
        await outbound.send(receiver.url, headers={}, seconds=0.05)
    assert len(receiver.received) == 2
    async with Receiver() as other:
        assert (await send(outbound, other.url)).status == 200
    for task in silent:
        task.cancel()
    await asyncio.gather(*silent, return_exceptions=True)
    await outbound.close()
