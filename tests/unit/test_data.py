"""What is known of the data before any of it is opened."""

import pytest

from aiserver import settings as s
from aiserver.data import redactor_for


def loaded(url: str) -> s.Settings:
    return s.load(environment={"DATABASE_URL": url, "ENCRYPTION_KEY": "0" * 64})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://x:hunter2secret[@h/z",
        "postgresql://x:hunter2secret]@h/z",
        "postgresql://x:hunter2secret\u2100@h/z",
    ],
)
def test_database_address_that_cannot_be_read_is_refused(url: str) -> None:
    with pytest.raises(s.SettingError, match=r"DATABASE_URL.*percent-encode") as caught:
        redactor_for(loaded(url))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_password_of_the_database_is_masked() -> None:
    redact = redactor_for(loaded("postgresql://x:hunter2%5Bsecret@h/z"))
    assert redact("login hunter2[secret failed") == "login *** failed"
