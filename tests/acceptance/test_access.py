"""Every route against every kind of caller: the table of who may call what."""

import re

import pytest

from aiserver.contract.operation import Access, Operation
from gateway import SECRET, TestGateway

OPEN_PAGES = {"/", "/favicon.ico", "/up", "/health/live", "/health/ready"}
# Open on the machine itself, and elsewhere with the scraper's token or as an administrator.
LOCAL_PAGES = {"/metrics"}
OPEN_OPERATIONS = {
    "Authenticate",
    "DummyReplyTo",
    "GetArtifact",
    "GetFileUpload",
    "GetVariant",
    "Hello",
    "MetadataNav",
    "PopulateChatSummary",
    "SendSignedUpload",
}
KEY_OPERATIONS = {
    "CancelJob",
    "ChatAiProvider",
    "ConvertAudio",
    "ConvertImage",
    "ConvertVideo",
    "CreateMediaTransform",
    "CreateUploadUrl",
    "CropImage",
    "CropVideo",
    "DeleteFile",
    "DeleteFileUpload",
    "DeleteFiles",
    "GetActiveProviders",
    "GetArtifactGenerationStatus",
    "GetCallbackSecret",
    "GetJobEvents",
    "GetModel",
    "GetOllamaGenerationStatus",
    "GetOpenAiChat",
    "GetOpenAiChatStatus",
    "GetTextGenerationStatus",
    "HasDummyReplyTo",
    "ListModels",
    "MigrateArtifact",
    "OllamaGeneration",
    "OpenAiChatCompletion",
    "QueryAiProviders",
    "QueryDeliveries",
    "QueryFiles",
    "QueueConvertAudio",
    "QueueConvertImage",
    "QueueConvertVideo",
    "QueueCropImage",
    "QueueCropVideo",
    "QueueOllamaGeneration",
    "QueueOpenAiChatCompletion",
    "QueueScaleImage",
    "QueueScaleVideo",
    "QueueTrimVideo",
    "QueueWatermarkImage",
    "QueueWatermarkVideo",
    "RedeliverCallback",
    "ReplaceFileUpload",
    "RotateCallbackSecret",
    "ScaleImage",
    "ScaleVideo",
    "StoreFileUpload",
    "TestCallback",
    "TrimVideo",
    "WaitForOpenAiChat",
    "WatermarkImage",
    "WatermarkVideo",
}
ADMIN_OPERATIONS = {
    "AdminCancelJobs",
    "AdminCreateApiKey",
    "AdminData",
    "AdminDeleteApiKey",
    "AdminGetJob",
    "AdminGetJobProgress",
    "AdminJobDashboard",
    "AdminJobInfo",
    "AdminQueryApiKeys",
    "AdminQueryBackgroundJobs",
    "AdminQueryCompletedJobs",
    "AdminQueryFailedJobs",
    "AdminQueryJobSummary",
    "AdminQueryRequestLogs",
    "AdminQueryScheduledTasks",
    "AdminRequeueFailedJobs",
    "AdminUpdateApiKey",
    "CancelWorker",
    "ChangeAiProviderStatus",
    "CheckAiProviderStatus",
    "CreateAiProvider",
    "CreateApiKey",
    "DeleteAiProvider",
    "GetOllamaModels",
    "GetSummaryStats",
    "GetWorkerStats",
    "Reload",
    "RequestLogs",
    "UpdateAiProvider",
}
CATALOGUE_OPERATIONS = {
    "ActiveAiModels",
    "ActiveCustomAiModels",
    "ActiveMediaModels",
    "GetModelImage",
    "QueryAiModels",
    "QueryAiTypes",
    "QueryMediaModels",
    "QueryMediaTypes",
    "QueryPrompts",
    "QueryTextToSpeechVoices",
}
WRONG = "ak-ffffffffffffffffffffffffffffffff"


def operations(gateway: TestGateway) -> list[Operation]:
    return list(gateway.app.gateway._registry)


def routes(operation: Operation) -> list[tuple[str, str]]:
    """Every address of an operation with each verb that it answers there."""
    by_name = f"/api/{operation.name}"
    verbs = ("GET", "POST", "PUT", "PATCH", "DELETE")
    named = [(verb, path) for verb in verbs for path in (by_name, by_name.lower())]
    filled = [
        (verb, re.sub(r"\{\w+(\*?)\}", lambda found: "a/b" if found[1] else "x", route.path))
        for route in operation.routes
        for verb in route.verbs
    ]
    return named + filled


async def refused(gateway: TestGateway, verb: str, path: str, key: str | None) -> int | None:
    """The status with which this caller is turned away, None when it is let in."""
    reply = await gateway.call(verb, path, b"" if verb == "GET" else {}, key=key)
    return reply.status if reply.status in (401, 403) else None


async def test_every_operation_stands_in_the_table(gateway: TestGateway) -> None:
    declared = {access: set[str]() for access in Access}
    for operation in operations(gateway):
        declared[operation.access].add(operation.name)
    assert declared[Access.OPEN] == OPEN_OPERATIONS
    assert declared[Access.KEY] == KEY_OPERATIONS
    assert declared[Access.ADMIN] == ADMIN_OPERATIONS
    assert declared[Access.CATALOGUE] == CATALOGUE_OPERATIONS


async def test_every_route_keeps_to_the_table(gateway: TestGateway) -> None:
    keys = {
        "none": None,
        "wrong": WRONG,
        "expired": await gateway.key(expiryDate="2020-01-01T00:00:00Z"),
        "restricted": await gateway.key(restrictTo=["Hello"]),
        "own": await gateway.key(),
        "scope admin": await gateway.key(scopes=["Admin"]),
        "admin": SECRET,
    }
    wanted = {
        Access.OPEN: {"none": None, "restricted": None, "own": None},
        Access.CATALOGUE: {"none": None, "restricted": None, "own": None},
        Access.KEY: {"none": 401, "restricted": 403, "own": None},
        Access.ADMIN: {"none": 401, "restricted": 401, "own": 401},
    }
    always = {"wrong": 401, "expired": 401, "scope admin": None, "admin": None}
    for operation in operations(gateway):
        for verb, path in routes(operation):
            expected = wanted[operation.access] | always
            if operation.name == "Authenticate":
                # Open, because its body may hold the password; without one it asks who calls.
                expected = expected | {"none": 401}
            found = {who: await refused(gateway, verb, path, key) for who, key in keys.items()}
            assert found == expected, (verb, path)


async def test_pages_are_open_and_nothing_else_is(gateway: TestGateway) -> None:
    pages = set(gateway.app.gateway._pages)
    shown = {page for page in pages if not page.startswith("/static/")}
    assert shown == OPEN_PAGES | LOCAL_PAGES
    through = {"x-forwarded-for": "203.0.113.9"}
    for page in pages:
        reply = await gateway.call("GET", page, key=None, headers=through)
        assert reply.status == (401 if page in LOCAL_PAGES else 200), page
        assert (await gateway.call("POST", page, key=None)).status == 405


@pytest.mark.parametrize("path", ["/api/Nothing", "/api/", "/api", "/v1/nothing", "/nothing"])
async def test_unknown_address_is_not_found(gateway: TestGateway, path: str) -> None:
    reply = await gateway.call("GET", path, key=None)
    assert reply.status == 404
    assert ("error" in reply.json()) == path.startswith("/v1/")


async def test_wrong_verb_names_the_right_ones(gateway: TestGateway) -> None:
    reply = await gateway.call("DELETE", "/v1/chat/completions")
    assert reply.status == 405
    assert "answers POST, not DELETE" in reply.problem()["message"]
    for verb in ("HEAD", "TRACE"):
        assert (await gateway.call(verb, "/api/CreateApiKey")).status == 405


async def test_head_runs_nothing_that_has_effects(gateway: TestGateway) -> None:
    for operation in operations(gateway):
        reply = await gateway.call("HEAD", f"/api/{operation.name}")
        assert (reply.status == 405) == (operation.verbs != ("GET",)), operation.name


async def test_error_bodies_follow_their_protocol(gateway: TestGateway) -> None:
    shapes = {
        "/api/OpenAiChatCompletion": {"responseStatus"},
        "/v1/models": {"error"},
        "/v1/chat/completions": {"error", "responseStatus"},
    }
    for path, shape in shapes.items():
        verb = "GET" if path == "/v1/models" else "POST"
        reply = await gateway.call(verb, path, b"" if verb == "GET" else {}, key=WRONG)
        assert set(reply.json()) == shape
        assert reply.headers["www-authenticate"] == "Bearer"
        if "responseStatus" in shape:
            assert reply.problem() == {"errorCode": "Unauthorized", "message": "Invalid API Key"}
        if "error" in shape:
            assert reply.json()["error"]["code"] == "invalid_api_key"
