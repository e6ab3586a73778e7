"""Callbacks of jobs that made files or texts: the contract's names, addresses in full."""

from typing import Any

import msgspec
import pytest

from aiserver.jobs.callback_outputs import absolute, outputs_of

BASE = "https://ai.example/gate/"


def made(results: Any) -> Any:
    return outputs_of(msgspec.Raw(msgspec.json.encode(results)), base=BASE)


def test_files_have_addresses_in_full() -> None:
    assert made([{"url": "/artifacts/a.png", "fileName": "a.png", "provider": "p"}]) == {
        "outputs": [{"url": "https://ai.example/gate/artifacts/a.png", "fileName": "a.png"}]
    }


def test_texts_have_a_list_of_their_own() -> None:
    assert made([{"text": "a cat"}, {"url": "/a.png"}]) == {
        "outputs": [{"url": "https://ai.example/gate/a.png"}],
        "textOutputs": [{"text": "a cat"}],
    }


@pytest.mark.parametrize("results", [None, [], {}, "x", [1], [{}], [{"name": "llama"}]])
def test_other_results_stay_as_they_are(results: Any) -> None:
    assert made(results) is None


@pytest.mark.parametrize("url", ["https://cdn/a.png", "//cdn/a.png", "a.png", ""])
def test_only_paths_of_the_server_are_completed(url: str) -> None:
    assert absolute(url, base=BASE) == url
    assert absolute("/a.png", base="") == "/a.png"
