"""What can be called about variants of stored pictures."""

from typing import Annotated

from msgspec import Meta

from aiserver.contract.operation import GET, Access, Content, Route, operation
from aiserver.contract.responses import Wire
from aiserver.files.operations import Expires, FilePath

Options = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        description="A preset such as thumb, or a comma list of width=N, height=N, fit, gravity, "
        "dpr, quality, format, blur, rotate and strip.",
    ),
]


@operation(
    tag="Files",
    verbs=GET,
    access=Access.OPEN,
    returns=Content,
    routes=(Route("/variants/{variant}/{path*}", GET),),
)
class GetVariant(Wire, kw_only=True):
    """Downloads a picture in another size or format: one's own, a public or a signed one."""

    variant: Options
    path: FilePath
    expires: Expires | None = None
    signature: str | None = None
