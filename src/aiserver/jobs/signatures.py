"""Signs callbacks as Standard Webhooks says, so that a receiver knows who sent them."""

import base64
import binascii
import hmac
import os
from collections.abc import Sequence

PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """32 random bytes as `whsec_` and base64."""
    return PREFIX + base64.b64encode(os.urandom(_SECRET_BYTES)).decode()


def signed_headers(
    message_id: str, *, timestamp: int, body: bytes, secrets: Sequence[str]
) -> dict[str, str]:
    """The three headers of one attempt; a signature for each secret, the first one first.

    `timestamp` in seconds since 1970. Raises ValueError for what is no secret.
    """
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(secret, signed) for secret in secrets),
    }


def _signature(secret: str, signed: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("A callback secret is whsec_ and base64.") from None
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"
