"""The samples of docs/callbacks.md verify what the server signs, and nothing else."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiserver.jobs.attempts import SCHEDULE
from aiserver.jobs.deliveries import Limits
from aiserver.jobs.signatures import new_secret, signed_headers

PAGE = (Path(__file__).parents[3] / "docs" / "callbacks.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BODY = b'{"refId": "abc"}'
Reader = Callable[[bytes, dict[str, str], str], Any]


@pytest.fixture(params=range(2), ids=["package", "plain"])
def read_callback(request: pytest.FixtureRequest) -> Reader:
    names: dict[str, Any] = {}
    exec(SAMPLES[request.param], names)
    return names["read_callback"]


def sent(*secrets: str, at: float | None = None) -> dict[str, str]:
    timestamp = int(time.time() if at is None else at)
    return signed_headers("msg_1", timestamp=timestamp, body=BODY, secrets=secrets)


def test_sample_reads_what_was_signed(read_callback: Reader) -> None:
    secret = new_secret()
    assert read_callback(BODY, sent(secret), secret) == {"refId": "abc"}
    assert read_callback(BODY, sent(new_secret(), secret), secret) == {"refId": "abc"}


def test_sample_refuses_what_was_not(read_callback: Reader) -> None:
    secret = new_secret()
    with pytest.raises(Exception, match=r"(?i)signature|signed"):
        read_callback(BODY, sent(new_secret()), secret)
    with pytest.raises(Exception, match=r"(?i)signature|signed"):
        read_callback(BODY + b" ", sent(secret), secret)
    with pytest.raises(Exception, match="too old"):
        read_callback(BODY, sent(secret, at=time.time() - 301), secret)


def test_page_tells_the_plan_that_is_kept() -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    [row] = re.findall(r"\| after the one before \| at once \|(.*)\|", PAGE)
    told = [int(number) * units[unit] for number, unit in re.findall(r"(\d+) (s|min|h)", row)]
    assert (0, *told) == SCHEDULE
    limits = Limits()
    assert f"at most {limits.per_receiver} callbacks" in PAGE
    assert f"at most {limits.most}:" in PAGE
    assert f"within {limits.seconds:.0f} seconds" in PAGE
