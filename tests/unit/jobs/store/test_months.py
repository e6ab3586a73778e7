"""Moments and the UTC months that they are in."""

from aiserver.jobs.store.months import began, month_of


def test_month_begins_at_its_first_millisecond() -> None:
    assert month_of(began("2026-12")) == "2026-12"
    assert month_of(began("2026-12") - 1) == "2026-11"
