"""Every way to write a base URL reaches the same address."""

import pytest

from aiserver.providers.catalogue import TYPES, api_root, type_named


@pytest.mark.parametrize(
    ("written", "root"),
    [
        ("http://host", "http://host/v1"),
        ("http://host/", "http://host/v1"),
        ("http://host/v1", "http://host/v1"),
        ("http://host/v1/", "http://host/v1"),
        ("http://host/v1/chat/completions", "http://host/v1"),
        ("https://openrouter.ai/api", "https://openrouter.ai/api/v1"),
        ("https://api.groq.com/openai/v1", "https://api.groq.com/openai/v1"),
        ("https://host/api/paas/v4", "https://host/api/paas/v4"),
        ("https://host/v1beta/openai/chat/completions", "https://host/v1beta/openai"),
        ("https://host/deployments/x/chat/completions", "https://host/deployments/x"),
    ],
)
def test_base_url_ends_as_it_likes(written: str, root: str) -> None:
    assert api_root(written) == root


def test_types_are_found_by_id_and_name() -> None:
    assert type_named("Open AI") is type_named("openai") is type_named("open ai")
    assert type_named("nobody") is None


def test_each_type_is_listed_once() -> None:
    assert len({t.wire.id for t in TYPES}) == len({t.name for t in TYPES}) == len(TYPES)
