import hashlib
import os
from pathlib import Path

import pytest

from aiserver.providers.local.weights import (
    WEIGHTS,
    Package,
    Progress,
    Url,
    Weight,
    WeightStore,
    WeightUnavailable,
)

CONTENT = b"the numbers of a very small model"


def a_weight(content: bytes = CONTENT) -> Weight:
    return Weight(
        id="tiny:1",
        file="tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        licence="Apache-2.0",
        description="nothing",
        sources=(),
    )


def test_every_weight_is_pinned() -> None:
    for weight in WEIGHTS:
        assert len(bytes.fromhex(weight.sha256)) == 32
        assert weight.size_bytes > 0
        assert weight.licence
        assert weight.sources
        assert Path(weight.file).name == weight.file


def test_the_default_weight_is_called_a_toy() -> None:
    assert "toy" in WEIGHTS[0].description.lower()


def test_absent_weight_has_no_path(tmp_path: Path) -> None:
    assert WeightStore(tmp_path / "none", None).path(a_weight()) is None


def test_copied_weight_is_found(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    assert WeightStore(tmp_path, None).path(a_weight()) == tmp_path / "tiny.gguf"


def test_verification_is_remembered(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(CONTENT)
    store = WeightStore(tmp_path, None)
    assert store.path(a_weight()) == file
    found = file.stat()
    file.write_bytes(CONTENT[::-1])
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert store.path(a_weight()) == file
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert store.path(a_weight()) is None


def test_refusal_is_remembered_for_that_hash_only(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[::-1])
    store = WeightStore(tmp_path, None)
    assert store.path(a_weight()) is None
    assert store.path(a_weight(CONTENT[::-1])) is not None


def test_broken_side_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    (tmp_path / "tiny.gguf.verified").write_bytes(b"{")
    assert WeightStore(tmp_path, None).path(a_weight()) is not None


def test_other_size_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT + b"!")
    assert WeightStore(tmp_path, None).path(a_weight()) is None
    assert not (tmp_path / "tiny.gguf.verified").exists()


def test_present_weight_is_not_pulled(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    seen: list[Progress] = []
    assert WeightStore(tmp_path, None).pull(a_weight(), seen.append) == tmp_path / "tiny.gguf"
    assert seen == []


def test_sources_hide_credentials() -> None:
    assert str(Url("https://who:secret@host.test/a?token=t")) == "https://host.test/a"
    assert str(Package("p", "1", "m")) == "the Python package p==1"


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host.test/f", "https://u:p@h.test"])
def test_unsafe_url_is_not_opened(tmp_path: Path, url: str) -> None:
    store = WeightStore(tmp_path, url)
    with pytest.raises(WeightUnavailable, match=r"only http|not supported") as raised:
        store.pull(a_weight(), print)
    assert "u:p" not in str(raised.value)


def test_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightUnavailable, match="cannot hold tiny:1"):
        WeightStore(tmp_path / "file" / "models", None).pull(a_weight(), print)
