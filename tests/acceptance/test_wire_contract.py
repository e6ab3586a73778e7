"""The page of the wire contract names every number once, and only tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "wire-contract.md"
NUMBERS = (*range(1, 36), *range(40, 46), *range(50, 57), *range(60, 65), *range(70, 74))


class Row(NamedTuple):
    number: int
    asks: str
    proof: str

    @property
    def tests(self) -> list[tuple[str, str]]:
        """Files and names; what a parametrised name has in brackets is cut."""
        return re.findall(r"`([\w/]+\.py)::(\w+)(?:\[[^`]*\])?`", self.proof)


def rows() -> list[Row]:
    found = re.findall(
        r"^\| P(\d+) \| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [Row(int(number), asks, proof) for number, asks, proof in found]


@cache
def defined_in(path: str) -> frozenset[str]:
    if not (TESTS / path).is_file():
        return frozenset()
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    functions = (n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(f.name for f in functions if f.name.startswith("test_"))


def test_every_number_stands_on_the_page_once() -> None:
    assert sorted(row.number for row in rows()) == list(NUMBERS)


def test_no_row_is_left_unread() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| P") for line in lines) == len(NUMBERS)
    assert sum(line.count("::test_") for line in lines) == sum(len(row.tests) for row in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"P{row.number}")
def test_row_names_tests_that_exist(row: Row) -> None:
    missing = [f"{path}::{name}" for path, name in row.tests if name not in defined_in(path)]
    assert missing == []
    assert len(set(row.tests)) == len(row.tests)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"P{row.number}")
def test_row_without_a_test_says_why(row: Row) -> None:
    assert row.tests or re.match(r"(Not done|Later): .{20}", row.proof)
