"""Addresses of results in answers: ours in full and signed, all else as it was."""

import json

import pytest

from aiserver.files.signing import SignedUrls
from aiserver.kit.clock import SystemClock
from aiserver.kit.db import Database
from aiserver.kit.tables import SqliteTables
from aiserver.work.links import Links

PATH = f"2026/11/23/1/{'0' * 64}.png"
OURS = f"/artifacts/{PATH}"


@pytest.fixture
def urls(database: Database) -> SignedUrls:
    return SignedUrls(SqliteTables(database), SystemClock(), ttl=60)


def private(key_id: int) -> bool:
    return False


async def test_address_begins_with_what_the_caller_reached_the_server_by(urls: SignedUrls) -> None:
    url = await Links(urls, private).of(OURS, base="http://here:1")
    assert url.startswith(f"http://here:1{OURS}?expires=")


async def test_own_address_counts_more_and_is_written_once(urls: SignedUrls) -> None:
    links = Links(urls, private, base="https://ai.example/gate/")
    for stored in (OURS, f"https://ai.example/gate{OURS}"):
        url = await links.of(stored, base="http://here:1")
        assert url.startswith(f"https://ai.example/gate{OURS}?expires=")


async def test_public_address_has_no_signature(urls: SignedUrls) -> None:
    links, other = Links(urls, lambda key_id: key_id == 1), OURS.replace("/1/", "/11/")
    assert await links.of(OURS, base="http://h") == f"http://h{OURS}"
    assert "?expires=" in await links.of(other, base="http://h")


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere/a.png",
        f"https://elsewhere{OURS}",
        "/artifacts/../secret",
        "/artifacts/a.png",
        f"{OURS}?signature=x",
        "",
    ],
)
async def test_what_is_not_ours_stays_as_it_is(urls: SignedUrls, url: str) -> None:
    assert await Links(urls, private, base="https://ai.example").of(url) == url


@pytest.mark.parametrize(
    "body",
    [b"/artifacts/", b"[1]", b'{"results": "/artifacts/"}', b'{"a": "/artifacts/"}', b"\xff"],
)
async def test_body_without_a_list_of_files_stays_as_it_is(urls: SignedUrls, body: bytes) -> None:
    made = await Links(urls, private).written(body, base="http://here:1")
    assert made == body or json.loads(made) == json.loads(body)


async def test_lists_of_answers_and_callbacks_are_written(urls: SignedUrls) -> None:
    body = {"refId": "r", "outputs": [{"url": OURS, "outputFormat": "png"}, {"text": "t"}]}
    made = json.loads(
        await Links(urls, private).written(json.dumps(body).encode(), base="http://h")
    )
    [file, text] = made.pop("outputs")
    assert file["url"].startswith(f"http://h{OURS}?expires=")
    assert (file["outputFormat"], text, made) == ("png", {"text": "t"}, {"refId": "r"})
