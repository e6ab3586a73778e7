"""Requests of every operation, made from their declared types and then spoilt; a seed names each."""

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast, get_args
from urllib.parse import quote, quote_plus

import msgspec
from msgspec import inspect

from aiserver.contract.operation import Operation


def words(text: str) -> list[str]:
    return text.split()


# JSON texts to stand where something else is expected.
ODD = [
    *words(r"""
    null true false 0 -1 1.5 -0.0 1e999 9223372036854775808 -9223372036854775809 18446744073709551616
    NaN Infinity - \ ' 'a' "\x" [] {} [[]] [null] [""] ["a",{"b":[]},1,null] {"":null} {"a":{"b":[1]}}
    "" "\u0020" "NaN" "null" "true" "1e5" "-1" "\u0000" "\ud800" "\udfff\ud800" "\u202eabc" "\ufeff"
    "2026-01-01" "0001-01-01T00:00:00+14:00" "9999-12-31T23:59:59-14:00" "2026-13-99T99:99" "P1D" "-P9W"
    "/Date(999999999999999)/" "/Date(-62135596800001)/" "9999999.23:59:59" "[1,2" "{\"a\":1}" "a,b,,"
    "%s%n%00" "'\u0020OR\u00201=1--" "../../etc/passwd" "é\u202e日本😀" "<script>" "${jndi:x}"
    """),
    *("1" + "0" * 400, '"' + "9" * 5000 + '"', '"' + "é" * 5000 + '"', "\x00", '"\n"'),
    *("[" * 40 + "]" * 40, '{"a":' * 30 + "1" + "}" * 30),
]
# Around what a parser in C may recurse, and well beyond.
DEPTHS = (300, 600, 850, 900, 940, 960, 980, 1000, 1100, 5000, 50_000)
VERBS = words("GET POST PUT PATCH DELETE HEAD OPTIONS TRACE QUERY post")
TYPES = """\
application/json
application/json; charset=utf-16
APPLICATION/JSON ; a
application/x-www-form-urlencoded
application/xml
multipart/form-data
multipart/form-data; boundary=
multipart/form-data; boundary=é
multipart/form-data; boundary=edge; charset=idna
multipart/mixed; boundary=edge

text/plain""".splitlines()
# Written as Latin-1, so ÿ is a byte that UTF-8 never has.
HEADERS = f"""\
Authorization: Bearer
Authorization: Basic YTpi
Authorization: ÿþ
Authorization: Bearer é
Authorization: Bearer {"a" * 600}
X-Api-Key: é
Authsecret: x
Cookie: ss-id
Cookie: ss-id=ÿ; ss-opt=perm
Cookie: $Version="1"; ss-pid="x";$Path="/"
Cookie: ;;==;
Cookie: {"a=b;" * 900}
Accept-Encoding: gzip
Accept: text/xml, ÿ
X-Request-Id: {"é" * 300}
User-Agent: servicestack/php
Origin: null
Origin: http://[
Sec-Fetch-Site: cross-site
Content-Encoding: gzip
Range: bytes=0-1
If-None-Match: *
X-Http-Method-Override: DELETE
Content-Language: ÿ
Connection: close
Host: é""".splitlines()
CONDITIONS = words("""
%s %ss %sIn >%s %s> %s< %s! <>%s %sFrom %sUntil %sLessThan %sContains %sStartsWith %sEndsWith %sLike
%sBetween %sIsNull %sIsNotNull
""")
QUERIES = words("""
? a &&& = % %zz=% a=%ff%fe name=%00 %ED%A0%80=1 id[]=1&id=2 jsconfig=edv authsecret=x reset=id,name
format=xml format=csv format= take=-1&skip=999999999999999999999 orderBy=-id,,-,name&fields=,
include=total&fields=distinct%20id
""")
SUFFIXES = words(".json .csv .xml [] %5B%5D [].csv / // %00 /.. %2F . %ff")
BASES = words("/api/ /json/reply/ /json/oneway/ /API/ /json/ //api/")
WORDS = ("test", "é", "日本", "a b", "x" * 50, "id", "Admin", "text")
FILES = """\
plain.txt
né.txt
=?utf-8?b?a?=
=?utf-8?b?//8=?=
=?x?q?=ff?=
../../up\\"; name="x
\u202e.exe""".splitlines()


class Caller(NamedTuple):
    """One way to show who calls: a line of the head, or none."""

    name: str
    header: str


@dataclass
class Draft:
    """A request before it is written; what is None is left to the operation."""

    operation: Operation
    members: Any
    verb: str
    path: str
    query: str = ""
    kind: str = "json"
    content_type: str | None = None
    headers: list[str] = field(default_factory=list[str])
    odd: list[str] = field(default_factory=list[str])
    twins: list[str] = field(default_factory=list[str])
    file: str = FILES[0]
    spoil: Callable[[bytes], bytes] | None = None

    def text(self) -> str:
        """The members as JSON, with what JSON's writer would refuse put in."""
        written = json.dumps(self.members, ensure_ascii=False)
        if self.twins and written.startswith("{") and len(written) > 2:
            written = "{" + "".join(f"{twin}," for twin in self.twins) + written[1:]
        return re.sub(r'"@odd(\d+)@"', lambda found: self.odd[int(found[1])], written)

    def pairs(self) -> list[tuple[str, str]]:
        if not isinstance(self.members, dict):
            return [("", self.text())]
        shown: list[tuple[str, str]] = []
        for name, value in cast("dict[str, Any]", self.members).items():
            text = value if isinstance(value, str) else json.dumps(value)
            found = re.fullmatch(r'"?@odd(\d+)@"?', text)
            shown.append((name, self.odd[int(found[1])].strip('"') if found else text))
        return shown


class Requests:
    """`[index]` is the bytes of a request; the same seed and state give the same bytes."""

    def __init__(
        self, operations: Sequence[Operation], callers: Sequence[Caller], *, seed: int, url: str
    ) -> None:
        self._operations = operations
        self.callers = callers
        self._seed = seed
        # Addresses stay on this machine: a provider may be made of any request.
        self._hints: dict[str, Sequence[Any]] = {
            "url": (url, f"{url}/v1", "http://127.0.0.1:1/"),
            "model": ("fake-model", "fake-model", "other"),
            "role": ("user", "system", "assistant"),
            "content": ("hello", "hi"),
            "aitypeid": ("Custom",),
            "apikey": ("upstream-key",),
            "provider": ("fake", "credentials", "logout"),
            "restrictto": (["Hello"],),
            "orderby": ("-id,name", "name"),
            "fields": ("id,name", "distinct name"),
            "include": ("total",),
            "id": range(2, 15),
        }

    def __getitem__(self, index: int) -> tuple[Operation, bytes]:
        rng = random.Random(f"{self._seed}/{index}")
        operation = self._operations[index % len(self._operations)]
        draft = self._valid(rng, operation)
        draft.headers.append(rng.choices(self.callers, (50, 25, 15, 10))[0].header)
        for mutate in rng.choices(MUTATIONS, WEIGHTS, k=rng.choice((0, 1, 1, 1, 2, 3))):
            mutate(rng, draft)
        return operation, _written(draft)

    def _valid(self, rng: random.Random, operation: Operation) -> Draft:
        info = cast(inspect.StructType, inspect.type_info(operation.request))
        members = cast("dict[str, Any]", self._value(rng, info, ""))
        verb, path = rng.choice(operation.verbs), rng.choice(BASES[:3]) + operation.name
        if operation.routes and rng.random() < 0.5:
            route = rng.choice(operation.routes)
            verb = rng.choice(route.verbs)
            path = re.sub(r"\{\w+\*?\}", lambda _: quote(rng.choice(WORDS)), route.path)
        if path.startswith("/api/") and rng.random() < 0.1:
            verb = "POST"
        draft = Draft(operation, members, verb, path)
        if verb in ("GET", "DELETE"):
            draft.kind = "query"
        return draft

    def _value(self, rng: random.Random, info: inspect.Type, name: str) -> Any:
        folded = name.replace("_", "").lower()
        hints = self._hints.get("url" if folded.endswith("url") else folded)
        match info:
            case inspect.Metadata(type=inner):
                return self._value(rng, inner, name)
            case inspect.StructType(fields=fields):
                share = rng.choice((0.1, 0.4, 0.9))
                return {
                    field.encode_name: self._value(rng, field.type, field.encode_name)
                    for field in fields
                    if field.required or rng.random() < share
                }
            case inspect.UnionType(types=types):
                some = [each for each in types if not isinstance(each, inspect.NoneType)]
                return self._value(rng, rng.choice(some), name)
            case inspect.StrType() | inspect.IntType() | inspect.ListType() if hints is not None:
                return copy.deepcopy(rng.choice(hints))
            case inspect.ListType(item_type=item):
                return [self._value(rng, item, "") for _ in range(rng.randrange(3))]
            case inspect.DictType(value_type=value):
                return {rng.choice(WORDS): self._value(rng, value, "")}
            case inspect.EnumType(cls=kind):
                return rng.choice([member.value for member in kind])
            case inspect.StrType():
                return f"{rng.choice(WORDS)}{rng.randrange(1000)}"
            case _:
                return rng.choice(_PLAIN.get(type(info), ("text", 1, 0.5, True, [1], {"a": 1})))


_PLAIN: dict[type[inspect.Type], Sequence[Any]] = {
    inspect.IntType: (0, 1, 7, 100),
    inspect.FloatType: (0.5, 1),
    inspect.BoolType: (True, False),
    inspect.DateTimeType: ("2031-05-09T12:34:56.5Z", "2031-05-09", "/Date(1900000000000)/"),
    inspect.TimeDeltaType: ("00:01:30", "PT1M30S"),
}


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, name or position) below a value."""
    if isinstance(value, dict):
        held = list(cast("dict[Any, Any]", value).items())
    elif isinstance(value, list):
        held = list(enumerate(cast("list[Any]", value)))
    else:
        return []
    return [(value, at) for at, _ in held] + [
        place for _, below in held for place in _places(below)
    ]


def _odd(rng: random.Random, draft: Draft) -> str:
    text = rng.choice(ODD)
    if rng.random() < 0.05:
        depth = rng.choice(DEPTHS) - rng.randrange(40)
        text = rng.choice((("[", "]"), ('{"a":', "}"), ('{"parts":[', "]}")))[0] * depth
        text += "1" + ("]" if text[0] == "[" else "]}" if "[" in text else "}") * depth
    draft.odd.append(text)
    return f"@odd{len(draft.odd) - 1}@"


def _wrong_value(rng: random.Random, draft: Draft) -> None:
    places = _places(draft.members)
    if places:
        holder, at = rng.choice(places)
        holder[at] = _odd(rng, draft)


def _undeclared(rng: random.Random, draft: Draft) -> None:
    """A declared member that the request had left out, or one of no meaning, with any value."""
    if isinstance(draft.members, dict):
        names = [f.encode_name for f in msgspec.structs.fields(draft.operation.request)]
        draft.members[rng.choice([*names, "", "\u202e", "x" * 3000, "__class__"])] = _odd(
            rng, draft
        )


def _respelled(rng: random.Random, draft: Draft) -> None:
    named = [(h, at) for h, at in _places(draft.members) if isinstance(at, str)]
    if named:
        holder, at = rng.choice(named)
        spelling = rng.choice((str.upper, str.lower, str.title, "_{}_".format, "{}é".format))
        holder[spelling(at)] = holder[at] if rng.random() < 0.5 else holder.pop(at)


def _twice(rng: random.Random, draft: Draft) -> None:
    if isinstance(draft.members, dict) and draft.members:
        name = rng.choice(list(cast("dict[str, Any]", draft.members)))
        draft.twins.append(f"{json.dumps(name)}:{rng.choice(ODD)}")


def _no_object(rng: random.Random, draft: Draft) -> None:
    odd = _odd(rng, draft)
    draft.members = rng.choice((odd, [draft.members], [odd, draft.members], {"": odd}, [], {}))


def _batch(rng: random.Random, draft: Draft) -> None:
    draft.verb, draft.kind = rng.choice(("POST", "POST", "PUT", "GET")), "json"
    draft.path += rng.choice(("[]", "%5B%5D"))
    count = rng.choice((0, 1, 2, 5)) if rng.random() < 0.98 else 1001
    draft.members = [draft.members] * count if count < 1001 else [{}] * count


def _spoilt(rng: random.Random, draft: Draft) -> None:
    choice, at, seed = rng.randrange(4), rng.random(), rng.randrange(2**32)

    def spoil(body: bytes) -> bytes:
        # Half an address may be another machine's.
        if not body or b"127.0.0.1" in body:
            return body
        cut = int(at * len(body))
        if choice == 0:
            return body[:cut]
        if choice == 1:
            return flipped(random.Random(seed), body)
        added = (b"\xff\xfe", b"\x00", b'"', b"}", b"--", b"\xed\xa0\x80", b"&=%", b"\r\n\r\n")
        return body[:cut] + added[seed % len(added)] + body[cut:]

    draft.spoil = spoil


def _another_form(rng: random.Random, draft: Draft) -> None:
    draft.kind = rng.choice(("form", "multipart", "multipart", "query", "json", "broken", "latin"))
    draft.file = rng.choice(FILES)
    if draft.kind != "query" and rng.random() < 0.8:
        draft.verb = "POST"


def _odd_type(rng: random.Random, draft: Draft) -> None:
    draft.content_type = rng.choice(TYPES)


def _odd_query(rng: random.Random, draft: Draft) -> None:
    draft.query += "&" + rng.choice(QUERIES)
    if rng.random() < 0.02:
        draft.query += "&a=b" * rng.choice((999, 1001, 5000, 9000))


def _conditions(rng: random.Random, draft: Draft) -> None:
    row = get_args(draft.operation.returns)
    fields = (
        msgspec.structs.fields(row[0]) if row else msgspec.structs.fields(draft.operation.request)
    )
    for known in rng.choices(fields, k=rng.choice((1, 2, 5, 120))) if fields else ():
        name = rng.choice(CONDITIONS) % rng.choice(
            (known.encode_name, known.name, known.encode_name.upper())
        )
        value = rng.choice(
            (rng.choice(ODD).strip('"'), "1,2", "a", "%", "%_%" * 9, "[1,", "true", "")
        )
        draft.query += f"&{quote_plus(name)}={quote_plus(value, errors='replace')}"


def _odd_path(rng: random.Random, draft: Draft) -> None:
    if rng.random() < 0.7:
        draft.path += rng.choice(SUFFIXES)
    else:
        name = rng.choice(
            (draft.operation.name.upper(), draft.operation.name.lower(), "Nothing", "é" * 90)
        )
        draft.path = rng.choice(BASES) + quote(name)


def _odd_verb(rng: random.Random, draft: Draft) -> None:
    draft.verb = rng.choice(VERBS)


def _odd_header(rng: random.Random, draft: Draft) -> None:
    draft.headers.append(rng.choice(HEADERS))
    if rng.random() < 0.3:
        draft.headers.pop(0)


_WEIGHED: dict[Callable[[random.Random, Draft], None], int] = {
    _wrong_value: 30,
    _undeclared: 15,
    _respelled: 8,
    _twice: 5,
    _no_object: 5,
    _batch: 6,
    _spoilt: 8,
    _another_form: 15,
    _odd_type: 5,
    _odd_query: 8,
    _conditions: 12,
    _odd_path: 6,
    _odd_verb: 6,
    _odd_header: 10,
}
MUTATIONS, WEIGHTS = list(_WEIGHED), list(_WEIGHED.values())


def flipped(rng: random.Random, data: bytes) -> bytes:
    """With one to four bits turned."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _written(draft: Draft) -> bytes:
    query = draft.query.lstrip("&")
    kind, body = None, b""
    if draft.kind == "query":
        encoded = _encoded(draft.pairs())
        query = f"{encoded}&{query}" if query else encoded
        # Over this a head is refused as too large, whatever is in it.
        query = query[:20_000] if "127.0.0.1" not in query[-60:] else query
    elif draft.kind == "json":
        kind, body = "application/json", draft.text().encode("utf-8", "surrogatepass")
    elif draft.kind == "form":
        kind, body = "application/x-www-form-urlencoded", _encoded(draft.pairs()).encode()
    else:
        kind, body = "multipart/form-data; boundary=edge", _multipart(draft)
    if draft.spoil is not None:
        body = draft.spoil(body)
    kind = kind if draft.content_type is None else draft.content_type
    lines = [f"{draft.verb} {draft.path}{'?' if query else ''}{query} HTTP/1.1", "Host: localhost"]
    lines += [line for line in draft.headers if line]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    if body or draft.verb not in ("GET", "HEAD"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def _encoded(pairs: list[tuple[str, str]]) -> str:
    return "&".join(f"{quote_plus(n)}={quote_plus(v, errors='replace')}" for n, v in pairs)


def _multipart(draft: Draft) -> bytes:
    parts: list[bytes] = []
    charset = "latin-1" if draft.kind == "latin" else "utf-8"
    pairs = draft.pairs()
    for name, value in [*pairs, ("file", "content")]:
        named = f'form-data; name="{name}"' + (
            f'; filename="{draft.file}"' if name == "file" else ""
        )
        head = f"--edge\r\nContent-Disposition: {named}\r\n\r\n".encode(charset, "replace")
        parts.append(head + value.encode(charset, "replace") + b"\r\n")
    if draft.kind == "broken":
        return (b"".join(parts) + b"--wrong--\r\n").replace(b"name=", b"nam", 1)
    return b"".join(parts) + b"--edge--\r\n"
