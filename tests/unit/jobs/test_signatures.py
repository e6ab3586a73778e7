"""Signatures that the public verifier of Standard Webhooks accepts."""

import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from aiserver.jobs.signatures import new_secret, signed_headers

BODY = '{"refId": "ä"}'.encode()


def headers(*secrets: str, at: int | None = None, body: bytes = BODY) -> dict[str, str]:
    timestamp = int(time.time()) if at is None else at
    return signed_headers("msg_1", timestamp=timestamp, body=body, secrets=secrets)


def test_signature_is_accepted_by_the_verifier() -> None:
    secret = new_secret()
    assert Webhook(secret).verify(BODY, headers(secret)) == {"refId": "ä"}


def test_both_secrets_sign_during_a_rotation() -> None:
    current, previous = new_secret(), new_secret()
    sent = headers(current, previous)
    assert len(sent["webhook-signature"].split(" ")) == 2
    Webhook(current).verify(BODY, sent)
    Webhook(previous).verify(BODY, sent)


@pytest.mark.parametrize("changed", ["body", "id", "time", "secret"])
def test_what_was_changed_is_refused(changed: str) -> None:
    secret = new_secret()
    sent = headers(secret)
    body = BODY
    if changed == "body":
        body += b" "
    elif changed == "id":
        sent["webhook-id"] = "msg_2"
    elif changed == "time":
        sent["webhook-timestamp"] = str(int(sent["webhook-timestamp"]) - 1)
    else:
        secret = new_secret()
    with pytest.raises(WebhookVerificationError, match="No matching"):
        Webhook(secret).verify(body, sent)


def test_old_attempt_is_refused() -> None:
    secret = new_secret()
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(secret).verify(BODY, headers(secret, at=int(time.time()) - 301))


def test_empty_body_is_signed() -> None:
    secret = new_secret()
    Webhook(secret).verify(b"", headers(secret, body=b""), json_parse=False)


def test_secrets_are_long_and_new() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith("whsec_")
    assert len(Webhook(first)._whsecret) == 32


def test_unreadable_secret_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="whsec_") as refused:
        headers("whsec_!!not-base64!!")
    assert "not-base64" not in str(refused.value)
