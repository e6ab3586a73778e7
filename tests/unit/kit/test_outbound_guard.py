"""Which addresses a caller may make the server call."""

import pytest

from aiserver.kit.guard import AddressRefused, Guard, is_public, parse


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.0.9", "169.254.169.254"),
        *("172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1"),
        *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        # Metadata services of clouds.
        *("100.100.100.200", "168.63.129.16", "fd00:ec2::254"),
        *("::", "::1", "::7f00:1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1"),
        *("ff02::1", "2001:db8::1", "2001::1", "100::1", "3fff::1", "5f00::1"),
        # IPv4 in IPv6 clothes: mapped, translated, NAT64, 6to4, ISATAP.
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::10.0.0.1"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
        *("2607:f8b0::5efe:10.0.0.1", "2607:f8b0::200:5efe:a00:1"),
        *("", "localhost", "1", "127.1"),
    ],
)
def test_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "223.255.255.255"),
        *("2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"),
    ],
)  # fmt: skip
def test_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://2130706433/", "http://127.1/", "http://0x7f000001/", "http://0177.0.0.1/"),
        *("http://127.0.0.0x1/", "http://1.2.3/", "http://127.0.0.1.0/", "http://017700000001./"),
        *("http://１２７.0.0.1/", "http://ⓛocalhost/", "http://bücher.test/", "http://a%2eb/"),
        *("ftp://a.test/", "file:///etc/passwd", "gopher://a.test", "//a.test", "a.test", ""),
        *("http://user:pw@a.test/", "http://a.test@10.0.0.1/", "http://10.0.0.1\\@a.test/"),
        *("http://a.test:0/", "http://a.test:99999/", "http://a.test:x/", "http:///x"),
        *("http://a.test/ b", "http://a.test/\r\nX: y", "http://[fe80::1%25eth0]/", "http://[a]/"),
        *("http://a..test/", "http://.test/", f"http://{'a' * 64}.test/", f"http://a/{'x' * 2048}"),
    ],
)
def test_doubtful_address_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        parse(url)


def test_address_is_read_as_it_was_written() -> None:
    read = parse("https://Hooks.Example:8443/a%2Fb?x=%20&y=1#part")
    assert (read.host, read.port) == ("hooks.example", 8443)
    assert read.url == "https://Hooks.Example:8443/a%2Fb?x=%20&y=1"
    assert parse("http://[2606:4700::1111]").host == "2606:4700::1111"
    assert parse("https://hooks.example").port == 443


def test_query_of_an_address_is_not_shown() -> None:
    assert "secret" not in repr(parse("https://hooks.example/secret?key=secret"))


def test_one_private_address_refuses_all() -> None:
    with pytest.raises(AddressRefused, match="OUTBOUND_ALLOW"):
        Guard().check(parse("https://hooks.example"), ["8.8.8.8", "10.0.0.1"])


def test_refusal_does_not_name_the_inner_address() -> None:
    with pytest.raises(AddressRefused) as refused:
        Guard().check(parse("https://hooks.example"), ["10.11.12.13"])
    assert "10.11.12.13" not in str(refused.value)


def test_host_without_address_is_refused() -> None:
    with pytest.raises(AddressRefused):
        Guard().check(parse("https://hooks.example"), [])


@pytest.mark.parametrize(
    ("allow", "url", "address"),
    [
        ("hooks.internal", "http://hooks.internal:9000", "10.0.0.1"),
        ("HOOKS.internal:9000", "http://hooks.INTERNAL.:9000", "10.0.0.1"),
        ("10.0.0.0/8", "http://hooks.internal", "10.0.0.1"),
        ("10.0.0.0/8", "http://hooks.internal", "::ffff:10.0.0.1"),
        ("10.0.0.1:9000", "http://hooks.internal:9000", "10.0.0.1"),
        ("fd00::/8", "http://hooks.internal", "fd00::1"),
        ("[::1]:9000", "http://[::1]:9000", "::1"),
        ("::1", "http://localhost", "::1"),
        ("other.internal, 127.0.0.1", "http://127.0.0.1:1", "127.0.0.1"),
    ],
)
def test_operator_opens_what_is_named(allow: str, url: str, address: str) -> None:
    Guard(allow).check(parse(url), [address])


@pytest.mark.parametrize(
    ("allow", "url", "address"),
    [
        ("hooks.internal:9000", "http://hooks.internal:9001", "10.0.0.1"),
        ("hooks.internal", "http://evil.hooks.internal", "10.0.0.1"),
        ("10.0.0.0/8", "http://hooks.internal", "192.168.0.1"),
        ("10.0.0.1:9000", "http://hooks.internal:22", "10.0.0.1"),
        ("10.0.0.1", "http://hooks.internal", "10.0.0.2"),
    ],
)
def test_operator_opens_nothing_else(allow: str, url: str, address: str) -> None:
    with pytest.raises(AddressRefused):
        Guard(allow).check(parse(url), [address])


@pytest.mark.parametrize("allow", ["http://a.test", "10.0.0.0/33", "a.test:0", "a.test:70000", "*"])
def test_unreadable_allowance_stops_the_start(allow: str) -> None:
    with pytest.raises(ValueError, match="OUTBOUND_ALLOW"):
        Guard(allow)
