"""What can be called about stored files: read, list, delete and copy them, and upload new ones."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from aiserver.contract.autoquery import Query
from aiserver.contract.operation import (
    DELETE,
    GET,
    POST,
    PUT,
    Access,
    Content,
    Route,
    operation,
)
from aiserver.contract.responses import EmptyResponse, QueryResponse, ResponseStatus, Wire
from aiserver.contract.uploads import ANY_FILES, WHOLE_BODY

MOST_PATHS = 1000
LONGEST_EXPIRY = 86400
FilePath = Annotated[str, Meta(min_length=1, max_length=2000)]
Expires = Annotated[
    int, Meta(ge=0, le=2**53, description="Seconds since 1970, as a signed address has it.")
]


class StoredArtifact(Wire, kw_only=True):
    """A stored file: `url` is signed unless public, `size` in bytes, `duration` in seconds."""

    id: str
    path: str
    url: str
    kind: str
    key_id: int
    name: str | None = None
    content_type: str | None = None
    size: int
    sha256: str
    created_date: datetime
    expires: datetime | None = None
    operation: str | None = None
    job_id: int | None = None
    ref_id: str | None = None
    width: int | None = None
    height: int | None = None
    duration: float | None = None


@operation(
    tag="Files",
    verbs=GET,
    access=Access.OPEN,
    returns=Content,
    routes=(Route("/artifacts/{path*}", GET), Route("/files/{path*}", GET)),
)
class GetArtifact(Wire, kw_only=True):
    """Downloads a file: one's own, a public one, or one with a signed address.

    Ranges and conditional requests are answered as HTTP has them.
    """

    path: FilePath
    download: Annotated[bool, Meta(description="Sends it as an attachment.")] | None = None
    expires: Expires | None = None
    signature: str | None = None


@operation(
    tag="Files",
    verbs=DELETE,
    access=Access.KEY,
    returns=EmptyResponse,
    routes=(Route("/files/{path*}", DELETE),),
)
class DeleteFile(Wire, kw_only=True):
    """Deletes a file of one's own."""

    path: FilePath


class DeleteFilesResponse(Wire, kw_only=True, omit_defaults=False):
    """Paths as they were sent; `failed` are those of others."""

    deleted: list[str]
    missing: list[str]
    failed: list[str]


@operation(tag="Files", verbs=POST, access=Access.KEY, returns=DeleteFilesResponse)
class DeleteFiles(Wire, kw_only=True):
    """Deletes files of one's own, at most 1000 a call."""

    paths: Annotated[list[FilePath], Meta(max_length=MOST_PATHS)]


class MigrateArtifactResponse(Wire, kw_only=True):
    file_path: str
    response_status: ResponseStatus | None = None


@operation(tag="Files", verbs=POST, access=Access.KEY, returns=MigrateArtifactResponse)
class MigrateArtifact(Wire, kw_only=True):
    """Copies an artifact of one's own to another day's folder, today's without a `date`."""

    path: Annotated[str, Meta(max_length=2000)] | None = None
    date: datetime | None = None


@operation(
    tag="Files",
    verbs=GET,
    access=Access.KEY,
    returns=QueryResponse[StoredArtifact],
    beyond_contract=True,
)
class QueryFiles(Query, kw_only=True):
    """Queries the caller's files, newest first; an administrator sees everyone's."""

    kind: Literal["artifact", "upload", "pub", "secure"] | None = None
    contains: Annotated[str, Meta(max_length=200, description="A part of the name.")] | None = None
    key_id: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class StoreFileUploadResponse(Wire, kw_only=True):
    """Addresses of the files, in the order in which they were sent."""

    results: list[str]
    response_status: ResponseStatus | None = None


@operation(
    tag="Files",
    verbs=POST,
    access=Access.KEY,
    returns=StoreFileUploadResponse,
    routes=(Route("/uploads/{name}", POST),),
    files=ANY_FILES,
)
class StoreFileUpload(Wire, kw_only=True):
    """Keeps the files of a form at a location: `pub` is for anyone to read, `secure` is not."""

    name: str


@operation(
    tag="Files",
    verbs=GET,
    access=Access.OPEN,
    returns=Content,
    routes=(Route("/uploads/{path*}", GET),),
)
class GetFileUpload(Wire, kw_only=True):
    """Downloads an uploaded file: a public one, one's own, or one with a signed address."""

    path: FilePath
    attachment: bool | None = None
    download: bool | None = None
    expires: Expires | None = None
    signature: str | None = None


class ReplaceFileUploadResponse(Wire, kw_only=True):
    response_status: ResponseStatus | None = None


@operation(
    tag="Files",
    verbs=PUT,
    access=Access.KEY,
    returns=ReplaceFileUploadResponse,
    routes=(Route("/uploads/{path*}", PUT),),
    files=ANY_FILES,
)
class ReplaceFileUpload(Wire, kw_only=True):
    """Puts another file in the place of one's own."""

    path: FilePath


class DeleteFileUploadResponse(Wire, kw_only=True):
    result: bool
    response_status: ResponseStatus | None = None


@operation(
    tag="Files",
    verbs=DELETE,
    access=Access.KEY,
    returns=DeleteFileUploadResponse,
    routes=(Route("/uploads/{path*}", DELETE),),
)
class DeleteFileUpload(Wire, kw_only=True):
    """Deletes an uploaded file of one's own."""

    path: FilePath


class CreateUploadUrlResponse(Wire, kw_only=True):
    """`url` takes one PUT of at most `max_size` bytes until `expires`; `path` is where it lies."""

    url: str
    path: str
    max_size: int
    expires: datetime
    response_status: ResponseStatus | None = None


@operation(
    tag="Files",
    verbs=POST,
    access=Access.KEY,
    returns=CreateUploadUrlResponse,
    beyond_contract=True,
)
class CreateUploadUrl(Wire, kw_only=True):
    """Gives an address to which anybody may send one file, once, for the caller's folder.

    The file counts on the caller's storage and replaces one of the same name.
    """

    name: Annotated[str, Meta(min_length=1, max_length=1000, description="Of the file.")]
    location: Annotated[
        Literal["pub", "secure"], Meta(description="`pub` is for anyone to read.")
    ] = "secure"
    max_size: (
        Annotated[
            int, Meta(ge=1, le=2**53, description="Bytes of the file at most; else MAX_FILE.")
        ]
        | None
    ) = None
    expires_in: Annotated[
        int, Meta(ge=1, le=LONGEST_EXPIRY, description="Seconds until nothing more is taken.")
    ] = 900


@operation(
    tag="Files",
    verbs=PUT,
    access=Access.OPEN,
    returns=StoreFileUploadResponse,
    routes=(Route("/signed-uploads/{path*}", PUT),),
    files=WHOLE_BODY,
    beyond_contract=True,
)
class SendSignedUpload(Wire, kw_only=True):
    """Takes the file that is the body of a request, at an address of CreateUploadUrl."""

    path: FilePath
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    max_size: Annotated[int, Meta(ge=1, le=2**53)]
    expires: Expires
    signature: Annotated[str, Meta(min_length=1, max_length=200)]
