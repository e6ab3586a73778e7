"""How long an upstream may take, as the operator set it."""

from aiserver import settings as s
from aiserver.kit.upstream import Timeouts


def timeouts_of(settings: s.Settings) -> Timeouts:
    return Timeouts(
        connect=settings[s.PROVIDER_CONNECT],
        first_byte=settings[s.PROVIDER_FIRST_BYTE],
        gap=settings[s.PROVIDER_GAP],
        total=settings[s.PROVIDER_TOTAL],
    )
