"""Files in every shape that a recorded client sends, with an operation declared here."""

from enum import Enum
from typing import Any

import pytest

from aiserver.contract.operation import POST, Access, Call, operation
from aiserver.contract.registry import Registry
from aiserver.contract.responses import Wire
from aiserver.contract.uploads import FileField
from aiserver.dispatch import Dispatch
from gateway import Reply, TestGateway


class ImageOutputFormat(Enum):
    JPG = "jpg"
    WEBP = "webp"


class PaintResponse(Wire, kw_only=True):
    fields: dict[str, Any]
    files: dict[str, str]


@operation(
    tag="T",
    verbs=POST,
    access=Access.KEY,
    returns=PaintResponse,
    files=(FileField("image"), FileField("mask", required=False)),
)
class PaintImage(Wire, kw_only=True):
    """Paints."""

    positive_prompt: str | None = None
    output_format: ImageOutputFormat | None = None
    width: int | None = None
    tags: list[str] | None = None
    meta: dict[str, Any] | None = None


async def paint(request: PaintImage, call: Call) -> PaintResponse:
    fields = {n: getattr(request, n) for n in request.__struct_fields__}
    files = {n: f"{f.filename}:{(await f.read()).decode()}" for n, f in call.files.items()}
    return PaintResponse(fields={n: v for n, v in fields.items() if v is not None}, files=files)


@pytest.fixture
def painting(gateway: TestGateway) -> TestGateway:
    registry = Registry({PaintImage: paint})
    door = gateway.app.gateway
    door._registry, door._dispatch = (
        registry,
        Dispatch(registry, gateway.app._ring, gateway.app.settlement),
    )
    return gateway


async def send(gateway: TestGateway, *parts: bytes, query: str = "") -> Reply:
    body = b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=XX"}
    return await gateway.call("POST", f"/api/PaintImage{query}", body, headers=headers)


def field(name: str, value: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


PYTHON = (
    b'Content-Disposition: form-data; name="positivePrompt"\r\n\r\na cat',
    b'Content-Disposition: form-data; name="outputFormat"\r\n\r\nImageOutputFormat.WEBP',
    b'Content-Disposition: form-data; name="meta"\r\n\r\n{"a_B":1}',
    'Content-Disposition: form-data; name="image"; filename="té st.png"\r\n\r\npixels'.encode(),
)
JAVA = (
    b'Content-Disposition: form-data; name="positivePrompt"\r\n'
    b"Content-Type: text/plain; charset=UTF-8\r\n\r\na cat",
    b'Content-Disposition: form-data; name="outputFormat"\r\n'
    b"Content-Type: text/plain; charset=UTF-8\r\n\r\nWebp",
    b'Content-Disposition: form-data; name="meta"\r\n'
    b'Content-Type: text/plain; charset=UTF-8\r\n\r\n{"a_B":1}',
    'Content-Disposition: form-data; name="image"; filename="té st.png"\r\n'.encode("latin-1")
    + b"Content-Type: image/png\r\n\r\npixels",
)
CSHARP = (
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Disposition: form-data; name=PositivePrompt\r\n\r\na cat",
    b"Content-Disposition: form-data; name=OutputFormat\r\n\r\nWEBP",
    b'Content-Disposition: form-data; name=Meta\r\n\r\n{"a_B":1}',
    b'Content-Disposition: form-data; name=image; filename="=?utf-8?B?dMOpIHN0LnBuZw==?="'
    b"\r\nContent-Type: image/png\r\n\r\npixels",
)
WANTED = {
    "fields": {"positive_prompt": "a cat", "output_format": "webp", "meta": {"a_B": 1}},
    "files": {"image": "té st.png:pixels"},
}


@pytest.mark.parametrize("parts", [PYTHON, JAVA, CSHARP])
async def test_form_of_each_client_binds(painting: TestGateway, parts: tuple[bytes, ...]) -> None:
    assert (await send(painting, *parts)).json() == WANTED


async def test_values_may_be_in_the_query(painting: TestGateway) -> None:
    query = "?positivePrompt=a%20cat&outputFormat=webp&width=&mask&meta=%7B%22a_B%22%3A1%7D"
    reply = await send(painting, PYTHON[3], query=query)
    assert reply.json() == WANTED
    reply = await send(painting, field("positivePrompt", "the form wins"), PYTHON[3], query=query)
    assert reply.json()["fields"]["positive_prompt"] == "the form wins"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b'filename="a.png"', "a.png"),
        (b"filename=a.png", "a.png"),
        (b"filename*=UTF-8''t%C3%A9.png", "té.png"),
        (b'filename="=?utf-8?B?dMOpLnBuZw==?="', "té.png"),
        (b'filename="=?nope?B?dMOp?="', "=?nope?B?dMOp?="),
        (b'filename="=?utf-8?B?a?="', "=?utf-8?B?a?="),
        ('filename="té.png"'.encode("latin-1"), "té.png"),
        ('filename="té.png"'.encode(), "té.png"),
        (b'filename="a\\"b.png"', 'a"b.png'),
    ],
)
async def test_file_name_is_read_in_every_form(
    painting: TestGateway, header: bytes, name: str
) -> None:
    part = b'Content-Disposition: form-data; name="image"; ' + header + b"\r\n\r\nx"
    reply = await send(painting, part)
    assert (reply.status, reply.json().get("files")) == (200, {"image": f"{name}:x"})


@pytest.mark.parametrize("name", ["image", "IMAGE", "Image", "upload", "upload0", "file", ""])
async def test_single_file_is_taken_under_any_name(painting: TestGateway, name: str) -> None:
    part = f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\nx'.encode()
    assert (await send(painting, part)).json()["files"] == {"image": "a.png:x"}


async def test_named_files_keep_their_names(painting: TestGateway) -> None:
    parts = [
        f'Content-Disposition: form-data; name="{name}"; filename="{name}.png"\r\n\r\nx'.encode()
        for name in ("Mask", "image")
    ]
    files = (await send(painting, *parts)).json()["files"]
    assert files == {"image": "image.png:x", "mask": "Mask.png:x"}


async def test_part_without_file_name_is_a_value(painting: TestGateway) -> None:
    part = b'Content-Disposition: form-data; name="image"\r\nContent-Type: image/png\r\n\r\nx'
    reply = await send(painting, part)
    assert reply.status == 400
    assert reply.problem() == {
        "errorCode": "ArgumentNullException",
        "message": "No image file provided",
        "errors": [
            {
                "errorCode": "ArgumentNullException",
                "fieldName": "Image",
                "message": "No image file provided",
            }
        ],
    }


async def test_missing_file_is_a_400_whatever_the_body(painting: TestGateway) -> None:
    for body in ({}, {"image": "x"}, b""):
        assert (await painting.call("POST", "/api/PaintImage", body)).status == 400


async def test_wrong_values_and_missing_file_are_told_apart(painting: TestGateway) -> None:
    reply = await send(painting, field("outputFormat", "tiff"), field("width", "wide"), PYTHON[3])
    names = [error["fieldName"] for error in reply.problem()["errors"]]
    assert names == ["OutputFormat", "Width"]
