"""Reads what a query over files asks for."""

import msgspec

from aiserver.contract.autoquery import Pairs, language_of, page_of
from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.contract.spelling import fold, pascal
from aiserver.files.operations import QueryFiles, StoredArtifact
from aiserver.files.paths import has_unseen

LANGUAGE = language_of(StoredArtifact)
_OURS = {fold(field.encode_name) for field in msgspec.structs.fields(QueryFiles)}
_NEWEST_FIRST = ("", "-createddate")


def page_asked(request: QueryFiles, pairs: Pairs) -> tuple[int, int]:
    """How many to skip and to take. Raises InvalidRequest for what the table cannot look for."""
    for name, text in pairs:
        if fold(name) not in _OURS and LANGUAGE.conditions.clauses([(name, text)]):
            raise _refused(name, "files are found by kind, contains and keyId alone")
    if has_unseen(request.contains or ""):
        raise _refused("contains", "it has a character that no name of a file has")
    descending = f"-{request.order_by_desc}" if request.order_by_desc else ""
    if fold(request.order_by or descending) not in _NEWEST_FIRST:
        raise _refused("orderBy", "files come newest first; leave it out")
    if (request.fields or "").strip().lower().startswith("distinct"):
        raise _refused("fields", "files cannot be made distinct; leave the word out")
    return page_of(request)


def _refused(name: str, problem: str) -> InvalidRequest:
    field = pascal(name)
    return InvalidRequest.of(
        [FieldError("ArgumentException", field, f"'{field}': {problem}.")], param=name
    )
