"""Signed addresses open what they were made for, for as long as they say."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest

from aiserver.files.signing import FRESH_SECONDS, MOST_SECRETS, SignedUrls, Verdict
from aiserver.kit.tables import Tables

PATH = "2026/11/23/1/" + "a" * 64 + ".webp"
TTL = 3600.0


class HeldClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def urls(tables: Tables, clock: HeldClock) -> SignedUrls:
    return SignedUrls(tables, clock, ttl=TTL)


def read(url: str) -> tuple[int, str]:
    found = dict(parse_qsl(urlsplit(url).query))
    return int(found["expires"]), found["signature"]


async def test_signed_address_opens_its_own_file(urls: SignedUrls) -> None:
    url = await urls.signed(PATH, "https://ai.example.com/base/")
    assert url.startswith(f"https://ai.example.com/base/artifacts/{PATH}?expires=")
    assert await urls.verdict(PATH, *read(url)) is Verdict.VALID
    assert await urls.verdict(PATH.replace("/1/", "/2/"), *read(url)) is Verdict.WRONG


async def test_query_of_a_file_opens_its_variants(urls: SignedUrls) -> None:
    url, variant = await urls.signed(PATH), await urls.variant(PATH, "width=512,height=512")
    assert urlsplit(variant).path == f"/variants/width=512,height=512/{PATH}"
    assert urlsplit(variant).query == urlsplit(url).query


async def test_signature_ends_at_its_time(urls: SignedUrls, clock: HeldClock) -> None:
    shown = read(await urls.signed(PATH))
    assert shown[0] == clock.time.timestamp() + TTL
    clock.time += timedelta(seconds=TTL - 1)
    assert await urls.verdict(PATH, *shown) is Verdict.VALID
    clock.time += timedelta(seconds=1)
    assert await urls.verdict(PATH, *shown) is Verdict.EXPIRED
    assert await urls.verdict(PATH, shown[0] + 1, shown[1]) is Verdict.WRONG


@pytest.mark.parametrize("signature", [None, "", "x", "é" * 43, "A" * 43, "A" * 5000, "\ud800"])
async def test_made_up_signature_is_wrong(urls: SignedUrls, signature: str | None) -> None:
    expires = read(await urls.signed(PATH))[0]
    assert await urls.verdict(PATH, expires, signature) is Verdict.WRONG
    assert await urls.verdict(PATH, None, signature) is Verdict.WRONG


async def test_other_process_knows_the_signature(
    urls: SignedUrls, tables: Tables, clock: HeldClock
) -> None:
    other = SignedUrls(tables, clock, ttl=TTL)
    first, second = await urls.signed(PATH), await other.signed(PATH)
    assert first == second
    await urls.rotate()
    renewed = await urls.signed(PATH)
    assert renewed != first
    assert await other.verdict(PATH, *read(renewed)) is Verdict.VALID


async def test_rotated_secret_still_opens_for_a_while(urls: SignedUrls, tables: Tables) -> None:
    shown = read(await urls.signed(PATH))
    for _ in range(MOST_SECRETS - 1):
        await urls.rotate()
        assert await urls.verdict(PATH, *shown) is Verdict.VALID
    await urls.rotate()
    assert await urls.verdict(PATH, *shown) is Verdict.WRONG
    rows = await tables.read("SELECT name FROM secrets WHERE name LIKE 'artifact_urls/%'")
    assert len(rows) == MOST_SECRETS


async def test_other_process_follows_a_rotation(
    urls: SignedUrls, tables: Tables, clock: HeldClock
) -> None:
    other = SignedUrls(tables, clock, ttl=TTL)
    before = await other.signed(PATH)
    assert await urls.rotate() == 1
    clock.time += timedelta(seconds=FRESH_SECONDS)
    assert await other.signed(PATH) == await urls.signed(PATH)
    assert await other.verdict(PATH, *read(before)) is Verdict.VALID


async def test_revoked_links_close_in_other_processes_too(
    urls: SignedUrls, tables: Tables, clock: HeldClock
) -> None:
    other = SignedUrls(tables, clock, ttl=TTL)
    shown = read(await other.signed(PATH))
    await urls.rotate()
    assert await urls.rotate(keep=0) == 0
    clock.time += timedelta(seconds=FRESH_SECONDS)
    for each in (urls, other):
        assert await each.verdict(PATH, *shown) is Verdict.WRONG
        assert await each.verdict(PATH, *read(await each.signed(PATH))) is Verdict.VALID
    assert len(await tables.read("SELECT name FROM secrets WHERE name LIKE 'artifact_urls/%'")) == 1


async def test_first_rotation_needs_no_secret_before(urls: SignedUrls) -> None:
    await urls.rotate()
    assert await urls.verdict(PATH, *read(await urls.signed(PATH))) is Verdict.VALID


def test_secrets_show_themselves_nowhere(urls: SignedUrls) -> None:
    assert repr(urls) == "SignedUrls(***)"
