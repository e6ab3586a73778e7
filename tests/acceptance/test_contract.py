"""Our operations keep the wire contract; where they differ, tests/fixtures/wire says why."""

import asyncio
from collections.abc import Generator

import pytest

from aiserver import settings as s
from aiserver.app import App
from aiserver.contract.operation import Operation
from aiserver.data import open_data, redactor_for
from aiserver.kit.clock import SystemClock
from aiserver.rooms import open_rooms
from contract import WIRE, Contract, compare, complaints, read_contract, read_listed

# Nobody answers these yet. Whoever adds one takes it from here, and from then on it is required.
COMING = frozenset(
    [
        "AdminCreateUser",
        "AdminDatabase",
        "AdminDeleteUser",
        "AdminGetUser",
        "AdminProfiling",
        "AdminQueryUsers",
        "AdminUpdateUser",
        "CheckMediaProviderStatus",
        "CreateGeneration",
        "CreateMediaProvider",
        "DeleteMediaProvider",
        "DownloadComfyFile",
        "GetAnalyticsInfo",
        "GetAnalyticsReports",
        "GetComfyApiPrompt",
        "GetComfyModelMappings",
        "GetComfyModels",
        "GetComfyWorkflowInfo",
        "GetComfyWorkflows",
        "GetGeneration",
        "ImageToImage",
        "ImageToText",
        "ImageUpscale",
        "ImageWithMask",
        "MetadataApp",
        "QueryMediaProviders",
        "QueueComfyWorkflow",
        "QueueImageToImage",
        "QueueImageToText",
        "QueueImageUpscale",
        "QueueImageWithMask",
        "QueueSpeechToText",
        "QueueTextToImage",
        "QueueTextToSpeech",
        "SpeechToText",
        "TextToImage",
        "TextToSpeech",
        "UpdateMediaProvider",
    ]
)
# How many; the number only goes down.
MISSING = 38

# Operations of the contract that a page of the server answers.
PAGES = {"HealthCheck": "/up"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, migrated: bytes) -> Generator[App]:
    """The real one, joined but not started."""
    folder = tmp_path_factory.mktemp("contract")
    (folder / "app.db").write_bytes(migrated)
    environment = {"APP_DATA": str(folder), "LOCAL_MODELS": "false"}
    settings = s.load(environment=environment)
    redact, clock = redactor_for(settings), SystemClock()
    with asyncio.Runner() as runner:
        data = runner.run(open_data(settings, clock, redact))
        opened = open_rooms(settings, data)
        yield App(settings, data, redact, clock, rooms=runner.run(opened.__aenter__()))
        runner.run(opened.__aexit__(None, None, None))
        runner.run(data.close())


@pytest.fixture(scope="module")
def operations(app: App) -> list[Operation]:
    return list(app.gateway._registry)


@pytest.fixture(scope="module")
def contract() -> Contract:
    return read_contract()


@pytest.fixture(scope="module")
def listed() -> str:
    return (WIRE / "differences.toml").read_text(encoding="utf-8")


def test_contract_is_whole(contract: Contract) -> None:
    assert (len(contract.operations), len(contract.types)) == (127, 177)


def test_operations_of_the_contract_are_answered(
    operations: list[Operation], contract: Contract
) -> None:
    required = contract.operations.keys() - COMING - PAGES.keys()
    missing = sorted(required - {each.name for each in operations})
    assert not missing, f"Clients call {', '.join(missing)}, and no room declares that."


def test_operation_leaves_coming_once_registered(
    operations: list[Operation], contract: Contract
) -> None:
    here = sorted(COMING & {each.name for each in operations})
    assert not here, f"Take {', '.join(here)} from COMING, and lower MISSING by {len(here)}."
    assert contract.operations.keys() >= COMING


def test_missing_operations_only_get_fewer() -> None:
    assert len(COMING) == MISSING, f"Set MISSING to {len(COMING)}; it only goes down."


def test_pages_stand_in_for_operations(app: App, contract: Contract) -> None:
    for name, path in PAGES.items():
        assert path in contract.operations[name].routes
        assert path in app.gateway._pages


def test_operations_beyond_the_contract_say_so(
    operations: list[Operation], contract: Contract
) -> None:
    said = {each.name for each in operations if each.beyond_contract}
    assert said == {each.name for each in operations} - contract.operations.keys()


def test_every_difference_is_listed_with_its_reason(
    operations: list[Operation], contract: Contract, listed: str
) -> None:
    told = complaints(compare(operations, contract), read_listed(listed))
    assert not told, "\n\n" + "\n".join(told)
