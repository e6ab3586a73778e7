"""The session cookie: read in every client's style, trusted only from our own pages."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers

from aiserver.contract.errors import Forbidden
from aiserver.contract.operation import Cookie, Operation, operation_of
from aiserver.keys.operations import Authenticate

SESSION, PERMANENT, OPTION = "ss-id", "ss-pid", "ss-opt"
_SIGN_IN = operation_of(Authenticate)


def session_of(headers: Headers) -> str | None:
    """The session's token, from `a=b; c=d` or Java's `$Version="1"; a="b";$Path="/"`."""
    sent = headers.get("cookie", "")
    if SESSION not in sent and PERMANENT not in sent:
        return None
    cookies: dict[str, str] = {}
    for part in sent.split(";"):
        name, _, value = part.strip().partition("=")
        cookies.setdefault(name, value.strip().strip('"'))
    first, second = (PERMANENT, SESSION) if cookies.get(OPTION) == "perm" else (SESSION, PERMANENT)
    return cookies.get(first) or cookies.get(second) or None


def set_cookie(cookie: Cookie) -> bytes:
    # Max-Age and not Expires: a typed client splits at the comma of a date.
    return (
        f"{cookie.name}={cookie.value}; Path=/; Max-Age={cookie.max_age}; HttpOnly; SameSite=Strict"
    ).encode("latin-1")


def guard(method: str, operation: Operation, headers: Headers) -> None:
    """Raises Forbidden when a cookie must not run this: another verb, another site."""
    verbs = (*operation.verbs, "POST") if "GET" in operation.verbs else operation.verbs
    if method not in verbs and not (method == "HEAD" and operation.verbs == ("GET",)):
        raise Forbidden(f"With a session, {operation.name} is called by {operation.verbs[0]}.")
    if not _own_page(headers):
        raise Forbidden(
            "This call came from a page of another site. Send an API key instead of a session."
        )


def guard_sign_in(operation: Operation, headers: Headers, *, named: bool) -> None:
    """Raises Forbidden where another site's page, not one `named`, signs its visitor in or out.

    The visitor would go on in a session that somebody else can look into.
    """
    if operation is _SIGN_IN and not (named or _own_page(headers)):
        raise Forbidden(
            "This sign-in came from a page of another site. Sign in on this server's own page, or "
            "have its administrator name the other site in CORS_ORIGINS; * names none."
        )


def _own_page(headers: Headers) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        # Not a browser: there SameSite=Strict keeps the cookie from other sites' pages.
        return True
    try:
        return urlsplit(origin).netloc == headers.get("host", "")
    except ValueError:
        return False
