"""What can be done with stored files: upload, list, delete and copy one's own."""

from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway import SECRET, TestGateway, running
from stored import HTML, PNG, kept, key_with_id, upload


async def listed(gateway: TestGateway, key: str, query: str = "") -> list[str]:
    reply = await gateway.call("GET", f"/api/QueryFiles{query}", key=key)
    assert reply.status == 200, reply.body
    return [row["name"] for row in reply.json()["results"]]


@pytest.mark.parametrize("location", ["pub", "secure"])
async def test_upload_is_read_where_the_answer_says(gateway: TestGateway, location: str) -> None:
    key, key_id = await key_with_id(gateway)
    reply = await upload(gateway, location, ("file", "a b.png", PNG), key=key)
    assert reply.status == 200, reply.body
    [address] = reply.json()["results"]
    assert address == f"/uploads/{location}/{key_id}/a%20b.png"
    read = await gateway.call("GET", address, key=key)
    assert (read.status, read.body) == (200, PNG)
    assert read.headers["content-type"] == "image/png"
    assert read.headers["cache-control"].endswith("no-cache")
    attached = await gateway.call("GET", f"{address}?attachment=true", key=key)
    assert attached.headers["content-disposition"].startswith("attachment")


async def test_files_of_a_form_may_have_any_field_names(gateway: TestGateway) -> None:
    files = [("x", "1.txt", b"1"), ("file", "2.txt", b"2"), ("file", "3.txt", b"3")]
    reply = await upload(gateway, "pub", *files)
    found = {path: (await gateway.call("GET", path)).body for path in reply.json()["results"]}
    assert found == {f"/uploads/pub/0/{n}.txt": str(n).encode() for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("sent", "kept_as"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\dir\\a.txt", "a.txt"),
        ("a\u202etxt.exe", "atxt.exe"),
        ("%2e%2e%2fa.txt", "%252e%252e%252fa.txt"),
    ],
)
async def test_name_of_an_upload_is_no_path(gateway: TestGateway, sent: str, kept_as: str) -> None:
    reply = await upload(gateway, "pub", ("file", sent, b"words"))
    assert reply.json()["results"] == [f"/uploads/pub/0/{kept_as}"]
    assert (await gateway.call("GET", f"/uploads/pub/0/{kept_as}")).body == b"words"


@pytest.mark.parametrize("name", ["..", ".htaccess", "\u202e"])
async def test_upload_without_a_name_is_refused(gateway: TestGateway, name: str) -> None:
    assert (await upload(gateway, "pub", ("file", name, b"x"))).status == 400


async def test_upload_to_nowhere_is_refused(gateway: TestGateway) -> None:
    reply = await upload(gateway, "elsewhere", ("file", "a.txt", b"x"))
    assert (reply.status, reply.problem()["message"]) == (
        404,
        "No place 'elsewhere' for uploads; use pub or secure.",
    )
    reply = await gateway.call("POST", "/uploads/pub", {})
    assert reply.status == 400
    assert "send a form with a file" in reply.problem()["message"]


async def test_upload_has_a_largest_size(tmp_path: Path, migrated: bytes) -> None:
    async with running(tmp_path / "data", migrated, MAX_FILE="1000") as gateway:
        assert (await upload(gateway, "pub", ("file", "a.txt", b"x" * 1000))).status == 200
        both = [("a", "b.txt", b"x"), ("b", "c.txt", b"x" * 1001)]
        reply = await upload(gateway, "pub", *both)
        assert reply.status == 413
        assert "c.txt is larger than 0.001 MB" in reply.problem()["message"]
        assert await listed(gateway, SECRET) == ["a.txt"]


async def test_usual_largest_upload_is_ten_megabytes(gateway: TestGateway) -> None:
    assert (await upload(gateway, "pub", ("file", "a.txt", b"x" * 10_000_000))).status == 200
    reply = await upload(gateway, "pub", ("file", "a.txt", b"x" * 10_000_001))
    assert reply.status == 413
    assert "larger than 10 MB" in reply.problem()["message"]


async def test_upload_is_replaced_in_its_place(gateway: TestGateway) -> None:
    await upload(gateway, "secure", ("file", "a.txt", b"one"))
    first = await gateway.call("GET", "/uploads/secure/0/a.txt")
    put = await upload(gateway, "secure/0/a.txt", ("file", "other.txt", b"two!"), method="PUT")
    assert put.status == 200, put.body
    second = await gateway.call("GET", "/uploads/secure/0/a.txt")
    assert second.body == b"two!"
    assert second.headers["etag"] != first.headers["etag"]
    assert await listed(gateway, SECRET) == ["a.txt"]
    many = [("a", "a.txt", b"1"), ("b", "b.txt", b"2")]
    assert (await upload(gateway, "secure/0/a.txt", *many, method="PUT")).status == 400
    nothing = await upload(gateway, "secure/0/no.txt", ("file", "a.txt", b"1"), method="PUT")
    assert nothing.status == 404


async def test_upload_is_deleted(gateway: TestGateway) -> None:
    await upload(gateway, "pub", ("file", "a.txt", b"one"))
    reply = await gateway.call("DELETE", "/uploads/pub/0/a.txt")
    assert (reply.status, reply.json()) == (200, {"result": True})
    assert (await gateway.call("GET", "/uploads/pub/0/a.txt")).status == 404
    assert (await gateway.call("DELETE", "/uploads/pub/0/a.txt")).status == 404


async def test_page_that_was_uploaded_is_only_downloaded(gateway: TestGateway) -> None:
    await upload(gateway, "pub", ("file", "a.png", HTML))
    reply = await gateway.call("GET", "/uploads/pub/0/a.png", key=None)
    assert reply.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("form", ["/files/{}", "/api/DeleteFile?path=/artifacts/{}"])
async def test_own_file_is_deleted_by_its_path(gateway: TestGateway, form: str) -> None:
    key, key_id = await key_with_id(gateway)
    file = await kept(gateway, key_id=key_id)
    assert (await gateway.call("DELETE", form.format(file.path), key=key)).status == 200
    assert (await gateway.call("GET", f"/artifacts/{file.path}", key=key)).status == 404
    again = await gateway.call("DELETE", form.format(file.path), key=key)
    assert (again.status, again.problem()["message"]) == (404, "Artifact not found")
    assert not list((gateway.data / "artifacts").rglob("*.png"))


async def test_many_files_are_deleted_and_told_apart(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    mine, other = await kept(gateway, key_id=key_id), await kept(gateway, b"GIF89a", key_id=0)
    await upload(gateway, "pub", ("file", "a.txt", b"one"), key=key)
    gone = f"/artifacts/2026/01/01/{key_id}/{'0' * 64}.png"
    paths = [f"/artifacts/{mine.path}", f"/pub/{key_id}/a.txt", gone, f"/artifacts/{other.path}"]
    paths.append("/artifacts/../app.db")
    reply = await gateway.call("POST", "/api/DeleteFiles", {"paths": paths}, key=key)
    assert reply.json() == {"deleted": paths[:2], "missing": [gone], "failed": paths[3:]}
    assert (await gateway.call("GET", f"/artifacts/{other.path}")).status == 200


async def test_bounds_of_a_list_to_delete(gateway: TestGateway) -> None:
    reply = await gateway.call("POST", "/api/DeleteFiles", {"paths": []})
    assert (reply.status, reply.problem()["message"]) == (400, "No artifact paths specified")
    paths = [f"/pub/0/{n}" for n in range(1001)]
    assert (await gateway.call("POST", "/api/DeleteFiles", {"paths": paths})).status == 400
    reply = await gateway.call("POST", "/api/DeleteFiles", {"paths": paths[:1000]})
    assert len(reply.json()["missing"]) == 1000


async def test_artifact_is_copied_to_another_day(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    file = await kept(gateway, key_id=key_id)
    asked = {"path": f"/artifacts/{file.path}", "date": "2025-03-04T05:06:07Z"}
    reply = await gateway.call("POST", "/api/MigrateArtifact", asked, key=key)
    assert reply.status == 200, reply.body
    copy = reply.json()["filePath"]
    assert copy == f"/artifacts/2025/03/04/{key_id}/{file.sha256}.png"
    for path in (copy, f"/artifacts/{file.path}"):
        assert (await gateway.call("GET", path, key=key)).body == PNG
    today = await gateway.call("POST", "/api/MigrateArtifact", {"path": copy}, key=key)
    assert today.json()["filePath"].startswith(f"/artifacts/{datetime.now(UTC):%Y/%m/}")


@pytest.mark.parametrize("path", ["", "/pub/0/a.txt", "2026/11/23/0/a.png", "/etc/passwd"])
async def test_only_an_artifact_is_copied(gateway: TestGateway, path: str) -> None:
    reply = await gateway.call("POST", "/api/MigrateArtifact", {"path": path})
    assert reply.status == 400
    assert reply.problem()["message"].startswith("Invalid Path")


async def test_own_files_are_listed_and_searched(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    await kept(gateway, key_id=key_id, name="Black Cat.png")
    await kept(gateway, b"GIF89a", key_id=key_id, name="dog_1.gif", extension="gif")
    await upload(gateway, "secure", ("file", "cat.txt", b"one"), key=key)
    await kept(gateway, key_id=0, name="cat of another.png")
    assert sorted(await listed(gateway, key)) == ["Black Cat.png", "cat.txt", "dog_1.gif"]
    assert sorted(await listed(gateway, key, "?contains=CAT")) == ["Black Cat.png", "cat.txt"]
    assert await listed(gateway, key, "?contains=g_1") == ["dog_1.gif"]
    assert await listed(gateway, key, "?contains=%25") == []
    assert await listed(gateway, key, "?kind=secure") == ["cat.txt"]
    assert await listed(gateway, key, "?keyId=0") == []
    assert len(await listed(gateway, SECRET)) == 4
    assert await listed(gateway, SECRET, "?keyId=0") == ["cat of another.png"]
    pages = [(await listed(gateway, key, f"?skip={n}&take=1")) for n in range(4)]
    assert [len(page) for page in pages] == [1, 1, 1, 0]


async def test_listed_file_tells_what_it_is(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    file = await kept(gateway, key_id=key_id)
    reply = await gateway.call("GET", "/api/QueryFiles?include=total", key=key)
    assert reply.json()["total"] == 1
    [row] = reply.json()["results"]
    assert row | {"url": "", "createdDate": ""} == {
        "id": file.id,
        "path": f"/artifacts/{file.path}",
        "url": "",
        "kind": "artifact",
        "keyId": key_id,
        "name": "cat.png",
        "contentType": "image/png",
        "size": len(PNG),
        "sha256": file.sha256,
        "createdDate": "",
    }
    parts = urlsplit(row["url"])
    read = await gateway.call("GET", f"{parts.path}?{parts.query}", key=None)
    assert (read.status, read.body) == (200, PNG)


@pytest.mark.parametrize(
    "query",
    [
        "contains=%00",
        "keyId=2147483648",
        "sizeFrom=3",
        "orderBy=name",
        "fields=distinct%20name",
        "kind=x",
    ],
)
async def test_query_that_files_cannot_answer_is_refused(gateway: TestGateway, query: str) -> None:
    assert (await gateway.call("GET", f"/api/QueryFiles?{query}")).status == 400
