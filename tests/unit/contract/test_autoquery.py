"""Queries over rows in memory: every naming convention, paging, order, and what must do no harm."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiserver.contract.autoquery import Query, Table, as_pairs
from aiserver.contract.errors import InvalidRequest
from aiserver.contract.responses import Wire


class Kind(Enum):
    TEXT = "text"
    JSON_OBJECT = "json_object"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Part(Wire, kw_only=True):
    label: str


class Person(Wire, kw_only=True):
    id: int
    name: str
    age: int | None = None
    ratio: float = 0.5
    active: bool = True
    kind: Kind = Kind.TEXT
    level: Level = Level.LOW
    born: datetime
    died: datetime | None = None
    worked: timedelta = timedelta(hours=1)
    finish_reason: str | None = msgspec.field(default=None, name="finish_reason")
    tags: list[str] = []
    part: Part | None = None
    arguments: dict[str, Any] = {}


class QueryPeople(Query, kw_only=True):
    name: str | None = None
    born: datetime | None = None
    id: list[int] | None = None
    active: bool | None = None
    level: list[Level] | None = None


PEOPLE = [
    Person(
        id=3,
        name="Jimi Hendrix",
        age=27,
        ratio=0.25,
        born=datetime(1942, 11, 27, tzinfo=UTC),
        died=datetime(1970, 9, 18, tzinfo=UTC),
        tags=["guitar", "voice"],
        part=Part(label="x"),
        arguments={"Max_Tokens": 1},
    ),
    Person(
        id=1,
        name="Janis Joplin",
        age=27,
        active=False,
        born=datetime(1943, 1, 19, tzinfo=UTC),
        died=datetime(1970, 10, 4, tzinfo=UTC),
        finish_reason="stop",
        tags=["voice"],
    ),
    Person(
        id=2,
        name="Eddie_Vedder 100%",
        age=48,
        ratio=2.0,
        kind=Kind.JSON_OBJECT,
        level=Level.HIGH,
        born=datetime(1964, 12, 23, 12, 0, 0, 500, tzinfo=UTC),
        worked=timedelta(hours=3),
    ),
    Person(id=4, name="Élan \\ Zoë", born=datetime(1990, 1, 1)),
]
TABLE = Table(Person, PEOPLE)
NOTHING = Query()


def found(*pairs: tuple[str, str], request: Query = NOTHING) -> set[int]:
    return {row.id for row in TABLE.query(request, pairs).results}


def order(**members: Any) -> list[int]:
    return [row.id for row in TABLE.query(Query(**members)).results]


def some(fields: str, **members: Any) -> Any:
    return TABLE.query(Query(fields=fields, **members)).results


def problems(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        TABLE.query(Query(), pairs)
    return [(error.field_name, error.message) for error in caught.value.fields]


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("age", "27", {1, 3}),
        ("age", " 27 ", {1, 3}),
        ("NameContains", "jo", {1}),
        ("nameStartsWith", "j", {1, 3}),
        ("nameEndsWith", "IX", {3}),
        ("nameLike", "j%i%", {1, 3}),
        ("nameLike", "Jimi Hendri_", {3}),
        ("nameLike", "jimi", set()),
        ("idIn", "1,2", {1, 2}),
        ("idIn", "[1, 2]", {1, 2}),
        ("Ids", "1, 4", {1, 4}),
        ("names", '["Jimi Hendrix","x,y"]', {3}),
        ("names", "[Jimi Hendrix,Janis Joplin]", {1, 3}),
        ("idBetween", "2,3", {2, 3}),
        ("bornBetween", "1942-01-01,1943-12-31", {1, 3}),
        ("ageNotEqualTo", "27", {2}),
        ("diedIsNull", "true", {2, 4}),
        ("diedIsNull", "", {2, 4}),
        ("diedIsNotNull", "true", {1, 3}),
        ("age>", "27", {1, 2, 3}),
        (">age", "27", {1, 2, 3}),
        ("age<", "27", {1, 3}),
        ("<age", "48", {1, 3}),
        ("age!", "27", {2}),
        ("<>age", "48", {1, 3}),
        *((f"age{more}", "27", {2}) for more in ("GreaterThan", "Above", "Over", "OlderThan")),
        *((f"age{less}", "48", {1, 3}) for less in ("LessThan", "Below", "Under", "YoungerThan")),
        *((name, "48", {2}) for name in ("ageGreaterThanOrEqualTo", "ageFrom", "minAge")),
        *((n, "27", {1, 3}) for n in ("ageLessThanOrEqualTo", "toAge", "maxAge", "untilAge")),
        ("bornAfter", "1943-01-19", {2, 4}),
        ("bornBefore", "1943-01-19", {3}),
        ("sinceBorn", "1964-12-23T12:00:00Z", {2, 4}),
        ("untilBorn", "/Date(-849484800000)/", {1, 3}),
    ],
)
def test_name_says_the_condition(name: str, text: str, ids: set[int]) -> None:
    assert found((name, text)) == ids


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("ratio", "2", {2}),
        ("ratio>", "0.5", {1, 2, 4}),
        ("active", "False", {1}),
        ("active", "1", {2, 3, 4}),
        ("kind", "JsonObject", {2}),
        ("kindIn", "TEXT,json_object", {1, 2, 3, 4}),
        ("kindContains", "object", {2}),
        ("level", "2", {2}),
        ("level", "High", {2}),
        ("level>", "2", {2}),
        ("born", "1943-01-19T01:00:00+01:00", {1}),
        ("born", "1990-01-01", {4}),
        ("bornStartsWith", "1964-12", {2}),
        ("worked>", "PT2H", {2}),
        ("workedUnder", "02:00:00", {1, 3, 4}),
        ("finishReason", "stop", {1}),
        ("finish_reasonContains", "to", {1}),
        ("tags", '["voice"]', {1}),
        ("tagsContains", "voice", {1, 3}),
        ("partContains", "label", {3}),
        ("argumentsContains", "Max_Tokens", {3}),
    ],
)
def test_value_is_read_as_its_column(name: str, text: str, ids: set[int]) -> None:
    assert found((name, text)) == ids


@pytest.mark.parametrize("name", ["ageFrom", "AgeFrom", "age_from", "AGEFROM", "age_From"])
def test_condition_is_known_in_any_spelling(name: str) -> None:
    assert found((name, "40")) == {2}


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("nameContains", "%", {2}),
        ("nameContains", "_", {2}),
        ("nameContains", "\\", {4}),
        ("nameStartsWith", "%e", set[int]()),
        ("nameEndsWith", "0%", {2}),
        ("nameLike", "%\\%", {4}),
    ],
)
def test_wildcard_in_a_value_is_text(name: str, text: str, ids: set[int]) -> None:
    assert found((name, text)) == ids


def test_conditions_hold_together() -> None:
    assert found(("age", "27"), ("idOver", "1")) == {3}
    assert found(("age", "27"), ("age", "48")) == set()


@pytest.mark.parametrize(
    "pair",
    [
        ("genericArgs", "[]"),
        ("version", "1"),
        ("nobodyContains", "x"),
        ("", "x"),
        (">", "1"),
        ("Contains", "1"),
        ("c0", "1"),
        ("rowid", "1"),
        ("take", "0"),
        ("nameContains", ""),
        ("age", ""),
        ("idIn", ""),
    ],
)
def test_what_says_nothing_is_ignored(pair: tuple[str, str]) -> None:
    assert found(pair) == {1, 2, 3, 4}


def test_value_that_does_not_fit_names_its_field() -> None:
    told = problems(("minAge", "old"), ("bornBetween", "1,2,3"), ("kind", "x"), ("ageIn", "1,b"))
    assert [field for field, _ in told] == ["Age", "Born", "Kind"]
    assert told[0][1] == "'Age' is not valid: expected a whole number, got text."
    assert problems(("ageBetween", "1")) == [
        ("Age", "'Age' is not valid: expected two values: lowest,highest.")
    ]
    with pytest.raises(InvalidRequest) as caught:
        TABLE.query(Query(), [("born", "yesterday")])
    assert (caught.value.http_status, caught.value.error_code) == (400, "RequestBindingException")
    assert caught.value.param == "born"


def test_declared_member_is_an_equality() -> None:
    assert found(request=QueryPeople(name="Jimi Hendrix")) == {3}
    assert found(request=QueryPeople(name="jimi hendrix")) == set()
    assert found(request=QueryPeople(active=False)) == {1}
    assert found(request=QueryPeople(level=[Level.LOW, Level.HIGH], name="Jimi Hendrix")) == {3}
    assert found(request=QueryPeople(id=[4, 2])) == {2, 4}
    assert found(request=QueryPeople(born=datetime(1943, 1, 19, tzinfo=UTC))) == {1}
    early = datetime.fromisoformat("0001-01-01T00:00:00+14:00")
    assert found(request=QueryPeople(born=early)) == set()
    assert found(request=QueryPeople(level=[])) == {1, 2, 3, 4}


def test_bound_value_wins_over_the_same_pair() -> None:
    request = QueryPeople(name="Jimi Hendrix")
    assert found(("Name", "Janis Joplin"), request=request) == {3}
    assert found(("nameContains", "x"), request=request) == {3}


def test_rows_are_the_objects_that_were_loaded() -> None:
    assert TABLE.query(Query(skip=0)).results[0] is PEOPLE[1]


def test_loading_replaces_all_rows() -> None:
    table = Table(Person, PEOPLE)
    table.load([PEOPLE[2]])
    assert table.query(Query()).results == [PEOPLE[2]]
    table.load([])
    assert table.query(Query(include="total")).results == []


def test_rows_keep_their_order_until_paged() -> None:
    assert order() == [3, 1, 2, 4]
    assert order(take=10) == [1, 2, 3, 4]
    assert order(skip=1) == [2, 3, 4]


@pytest.mark.parametrize(
    ("members", "ids"),
    [
        ({"order_by": "Name"}, [2, 1, 3, 4]),
        ({"order_by": "age,-Id"}, [4, 3, 1, 2]),
        ({"order_by": "-age, id"}, [2, 1, 3, 4]),
        ({"order_by": "finish_reason,-id"}, [4, 3, 2, 1]),
        ({"order_by_desc": "Id"}, [4, 3, 2, 1]),
        ({"order_by_desc": "age,-id"}, [2, 1, 3, 4]),
        ({"order_by": "age", "order_by_desc": "id"}, [4, 3, 1, 2]),
        ({"order_by": "nobody,-id"}, [4, 3, 2, 1]),
        ({"order_by": "nobody", "take": 2}, [1, 2]),
        ({"order_by": "id,-id,id"}, [1, 2, 3, 4]),
        ({"order_by": ",-,"}, [3, 1, 2, 4]),
    ],
)
def test_order_is_a_list_of_names(members: dict[str, Any], ids: list[int]) -> None:
    assert order(**members) == ids


def test_table_without_id_pages_by_its_first_member() -> None:
    class Plain(Wire, kw_only=True):
        code: str

    table = Table(Plain, [Plain(code="b"), Plain(code="a")])
    assert [row.code for row in table.query(Query(take=2)).results] == ["a", "b"]


@pytest.mark.parametrize(
    ("members", "ids", "offset"),
    [
        ({"skip": -5, "take": 2}, [1, 2], 0),
        ({"take": -1}, [], 0),
        ({"take": 0}, [], 0),
        ({"take": 10**30}, [1, 2, 3, 4], 0),
        ({"skip": 10**30}, [], 2**31 - 1),
        ({"skip": 3, "take": 5}, [4], 3),
    ],
)
def test_page_out_of_range_is_capped(members: dict[str, Any], ids: list[int], offset: int) -> None:
    assert order(**members) == ids
    assert TABLE.query(Query(**members)).offset == offset


def test_page_holds_at_most_a_thousand() -> None:
    table = Table(Person, [msgspec.structs.replace(PEOPLE[0], id=n) for n in range(1200)])
    reply = table.query(Query(include="total"))
    assert (len(reply.results), reply.total) == (1000, 1200)
    assert len(table.query(Query(take=5000)).results) == 1000


@pytest.mark.parametrize(
    ("include", "total"),
    [
        ("total", 3),
        ("Total", 3),
        ("COUNT(*), TOTAL", 3),
        (None, 0),
        ("", 0),
        ("COUNT(*),MAX(Id)", 0),
        ("subtotal", 0),
    ],
)
def test_total_is_counted_when_asked_for(include: str | None, total: int) -> None:
    reply = TABLE.query(Query(include=include, skip=1, take=1), [("idUnder", "4")])
    assert (reply.offset, reply.total, [row.id for row in reply.results]) == (1, total, [2])


def test_answer_has_its_shape_on_the_wire() -> None:
    empty = TABLE.query(Query(take=0))
    assert msgspec.json.encode(empty) == b'{"offset":0,"total":0,"results":[]}'


def test_fields_name_the_members_of_the_answer() -> None:
    assert some("Name,id", take=1) == [{"name": "Janis Joplin", "id": 1}]
    assert some("finishReason,id,id,nobody", take=2) == [
        {"finish_reason": "stop", "id": 1},
        {"id": 2},
    ]
    assert some("arguments,part,born", order_by="arguments", take=1) == [
        {"arguments": {"Max_Tokens": 1}, "part": Part(label="x"), "born": PEOPLE[0].born}
    ]
    for nothing in ("", " ", "nobody", "*", ",", "distinct", "DISTINCT nobody"):
        assert some(nothing, take=1) == [PEOPLE[1]]


def test_distinct_rows_differ_in_what_is_answered() -> None:
    assert some("DISTINCT age", order_by="age") == [{}, {"age": 27}, {"age": 48}]
    assert some("distinct kind, level", order_by="-level") == [
        {"kind": Kind.JSON_OBJECT, "level": Level.HIGH},
        {"kind": Kind.TEXT, "level": Level.LOW},
    ]
    reply = TABLE.query(Query(fields="DISTINCT age", include="total", take=1, skip=1))
    assert (reply.total, reply.results) == (3, [{"age": 27}])


@pytest.mark.parametrize(
    "evil",
    [
        "id) OR 1=1 --",
        "'; DROP TABLE held; --",
        '" OR ""="',
        "1 UNION SELECT * FROM sqlite_master",
        "(SELECT 1)",
        "id;id",
        "c0",
        "{}",
        "?",
    ],
)
def test_sql_in_names_and_values_is_harmless(evil: str) -> None:
    every = {1, 2, 3, 4}
    assert found((evil, "1"), (f"{evil}Contains", "1"), (f">{evil}", "1")) == every
    assert found(("name", evil)) == found(("nameLike", evil)) == found(("nameIn", evil)) == set()
    assert set(order(order_by=evil, order_by_desc=evil)) == every
    assert {row.id for row in some(evil)} == {row.id for row in some(f"DISTINCT {evil}")} == every
    assert TABLE.query(Query(include=evil)).total == 0
    assert found(request=QueryPeople(name=evil)) == set()
    assert found() == every


def test_query_is_bounded() -> None:
    assert found(*[("ageFrom", "27")] * 100) == {1, 2, 3}
    with pytest.raises(InvalidRequest, match="at most 100 conditions"):
        found(*[("ageFrom", "27")] * 101)
    with pytest.raises(InvalidRequest, match="at most 1000 values"):
        found(("idIn", ",".join(map(str, range(1001)))))
    with pytest.raises(InvalidRequest, match="at most 1000 values"):
        found(request=QueryPeople(id=list(range(40_000))))
    assert problems(("nameContains", "x" * 201))[0][0] == "Name"
    assert "10 wildcards" in problems(("nameLike", "%a" * 11))[0][1]
    assert found(*((f"unknown{n}", "1") for n in range(1000))) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    "pair",
    [
        ("ageOver", "9" * 25),
        ("ageUnder", "-" + "9" * 25),
        ("ratioOver", "nan"),
        ("age", "null"),
        ("bornAfter", "0001-01-01T00:00:00+14:00"),
        ("workedOver", "99999999999999:00"),
        ("name", "\ud800"),
        ("nameContains", "\0"),
        ("idIn", "[" * 100_000),
        ("idIn", "[[1],{}]"),
        ("kindIn", '[{"a":1}]'),
    ],
)
def test_extreme_value_is_answered_or_refused(pair: tuple[str, str]) -> None:
    with suppress(InvalidRequest):
        found(pair)


def test_members_that_compare_oddly_are_stored() -> None:
    class Odd(Wire, kw_only=True):
        id: UUID
        price: Decimal
        size: int
        raw: bytes
        mode: Literal["a", "b"]
        either: int | str
        path: str
        unset: int | msgspec.UnsetType = msgspec.UNSET

    row = Odd(
        id=UUID(int=1),
        price=Decimal("9.5"),
        size=10**30,
        raw=b"x",
        mode="a",
        either=5,
        path="\udcff",
    )
    table = Table(
        Odd, [row, msgspec.structs.replace(row, id=UUID(int=2), price=Decimal(10), unset=1)]
    )

    def count(name: str, text: str) -> int:
        return len(table.query(Query(), [(name, text)]).results)

    assert count("id", "00000000000000000000000000000001") == 1
    assert count("priceUnder", "10") == 1
    assert count("sizeOver", "7") == 2
    assert count("mode", "a") == 2
    assert count("raw", "eA==") == 2
    assert count("path", "?") == 2
    assert count("unsetIsNull", "") == 1
    assert count("eitherIsNotNull", "") == 2
    dicts: Any = table.query(Query(fields="price,unset")).results
    assert dicts == [{"price": Decimal("9.5")}, {"price": Decimal(10), "unset": 1}]
    with pytest.raises(InvalidRequest):
        count("mode", "c")


def test_members_of_a_body_are_conditions_too() -> None:
    members = {
        "nameContains": "jo",
        "ageFrom": 27,
        "active": False,
        "idIn": [1, 2],
        "x": {},
        "y": None,
    }
    assert as_pairs(members) == [
        ("nameContains", "jo"),
        ("ageFrom", "27"),
        ("active", "false"),
        ("idIn", "[1,2]"),
    ]
    assert found(*as_pairs(members)) == {1}


def _names() -> st.SearchStrategy[str]:
    words = (
        "{}|{}s|{}In|{}Between|{}Like|{}Contains|{}StartsWith|{}From|To{}|{}>|<{}|{}!|<>{}|{}IsNull"
    )
    fields = st.sampled_from(
        ["id", "Name", "age", "ratio", "active", "kind", "born", "worked", "tags"]
    )
    known = st.tuples(st.sampled_from(words.split("|")), fields).map(lambda p: p[0].format(p[1]))
    return known | st.text()


def _values() -> st.SearchStrategy[str]:
    likely = st.lists(
        st.integers().map(str) | st.floats().map(str) | st.datetimes().map(str) | st.text()
    )
    return st.text() | likely.map(",".join) | st.from_regex(re.compile(r"[\[{%_/\\'\",0-9a-zT:-]*"))


@given(
    st.lists(st.tuples(_names(), _values()), max_size=8),
    st.builds(
        Query,
        skip=st.integers() | st.none(),
        take=st.integers() | st.none(),
        order_by=_names() | st.none(),
        order_by_desc=_names() | st.none(),
        include=st.text() | st.none(),
        fields=_names() | st.none(),
    ),
)
@example([("born", "99999-01-01")], NOTHING)
@example([("bornAfter", "/Date(999999999999999)/")], NOTHING)
def test_any_query_is_answered_or_refused(pairs: list[tuple[str, str]], request: Query) -> None:
    with suppress(InvalidRequest):
        reply = TABLE.query(request, pairs)
        msgspec.json.encode(reply)
        assert len(reply.results) <= len(PEOPLE)
