"""Files in a test's gateway: kept as results, or sent as clients send them."""

from datetime import datetime
from pathlib import Path
from typing import Any

from aiserver.files.artifacts import Artifact
from gateway import SECRET, Reply, TestGateway

PNG = bytes.fromhex("89504e470d0a1a0a") + bytes(range(256)) * 4
HTML = b"<!doctype html><script>alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


async def key_with_id(gateway: TestGateway, **members: Any) -> tuple[str, int]:
    """A new key and its id."""
    key = await gateway.key(**members)
    key_id = gateway.app._ring.id_of(key)
    assert key_id is not None
    return key, key_id


async def kept(
    gateway: TestGateway,
    content: bytes = PNG,
    *,
    key_id: int = 0,
    name: str | None = "cat.png",
    extension: str = "png",
    kind: str = "artifact",
    expires: datetime | None = None,
) -> Artifact:
    source = Path(gateway.data) / "source"
    source.write_bytes(content)
    return await gateway.app._data.artifacts.save(
        source, key_id=key_id, extension=extension, name=name, kind=kind, expires=expires
    )


def form(*files: tuple[str, str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a form with these files: field, name, bytes."""
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for field, name, content in files
    ]
    return b"".join(parts) + b"--XX--\r\n", {"content-type": "multipart/form-data; boundary=XX"}


async def upload(
    gateway: TestGateway,
    location: str,
    *files: tuple[str, str, bytes],
    key: str | None = SECRET,
    method: str = "POST",
) -> Reply:
    body, headers = form(*files)
    return await gateway.call(method, f"/uploads/{location}", body, key=key, headers=headers)
