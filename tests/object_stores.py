"""Object stores of other makers for the tests: moto and SeaweedFS, each in a process of its own."""

import atexit
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

KEY = "testing"
SECRET = "testing-secret"
# Of tests whose fixtures take `storage`: those that a quick run tries on an object store too.
on_moto = pytest.mark.parametrize(
    "storage", ["folder", "moto", pytest.param("seaweed", marks=pytest.mark.long)], indirect=True
)
_SECONDS = 60
# The signal at a parent's death comes when the thread ends that began the child.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="object-stores")


class ObjectStore:
    """Speaks S3 on loopback; `url` is a STORAGE_URL whose bucket is there."""

    def __init__(self, command: list[str], port: int, folder: Path) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._folder = folder
        setpriv = shutil.which("setpriv")
        # A test run that is killed cannot stop the server itself.
        prefix = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        with (folder / "log").open("wb") as log:
            self._process = _SPAWNER.submit(
                subprocess.Popen[bytes], [*prefix, *command], stdout=log, stderr=log, cwd=folder
            ).result()
        atexit.register(self.close)

    def url(self, prefix: str) -> str:
        return f"s3://bucket/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    def bucket(self) -> S3Store:
        return S3Store(
            "bucket",
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def until_ready(self, *, create: bool) -> None:
        """Returns when it takes objects."""
        until = time.monotonic() + _SECONDS
        while True:
            try:
                if create:
                    self._create()
                obstore.put(self.bucket(), "ready", b"x")
                return
            except Exception:  # whatever a server says that has just begun
                if self._process.poll() is not None or time.monotonic() > until:
                    log = (self._folder / "log").read_text(errors="replace")
                    raise RuntimeError(log[-4000:]) from None
                time.sleep(0.05)

    def close(self) -> None:
        # SeaweedFS takes half a minute to end itself.
        self._process.kill()
        self._process.wait(_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _create(self) -> None:
        credential = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request"
        request = urllib.request.Request(
            f"{self.endpoint}/bucket", method="PUT", headers={"Authorization": credential}
        )
        urllib.request.urlopen(request, timeout=_SECONDS).close()


@lru_cache(maxsize=1)
def moto() -> ObjectStore:
    folder, [port] = Path(tempfile.mkdtemp(prefix="aiserver-moto-")), _free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    opened = ObjectStore(command, port, folder)
    opened.until_ready(create=True)
    return opened


@lru_cache(maxsize=1)
def seaweed() -> ObjectStore:
    folder = Path(tempfile.mkdtemp(prefix="aiserver-seaweed-"))
    names = ("master", "volume", "filer", "s3")
    options = [f"-{name}.port{kind}" for name in names for kind in ("", ".grpc")]
    ports = _free_ports(len(options))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [str(Path(sys.executable).parent / "weed"), "server", "-dir=.", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.config=s3.json", "-volume.max=20"]
    command += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"{option}={port}" for option, port in zip(options, ports, strict=True)]
    opened = ObjectStore(command, ports[options.index("-s3.port")], folder)
    opened.until_ready(create=False)
    return opened


def named(name: str) -> ObjectStore:
    return {"moto": moto, "seaweed": seaweed}[name]()


def credentials() -> dict[str, str]:
    """The variables that a server finds its credentials in."""
    return {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
