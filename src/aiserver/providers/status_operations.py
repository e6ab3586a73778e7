"""What can be called about whether a provider takes calls."""

from aiserver.contract.operation import POST, Access, operation
from aiserver.contract.responses import ResponseStatus, Wire
from aiserver.providers.operations import ProviderName


class BoolResponse(Wire, kw_only=True):
    result: bool
    meta: dict[str, str] | None = None
    response_status: ResponseStatus | None = None


class StringResponse(Wire, kw_only=True):
    result: str
    meta: dict[str, str] | None = None
    response_status: ResponseStatus | None = None


@operation(tag="Admin", verbs=POST, access=Access.ADMIN, returns=StringResponse)
class ChangeAiProviderStatus(Wire, kw_only=True):
    """Takes a provider offline until this says otherwise, or puts it back online."""

    provider: ProviderName
    online: bool = False


@operation(tag="Admin", verbs=POST, access=Access.ADMIN, returns=BoolResponse)
class CheckAiProviderStatus(Wire, kw_only=True):
    """Asks a provider now whether it answers; free of charge, no chat."""

    provider: ProviderName
