"""The page at `/`, in a browser, against a running server."""

import asyncio
import http.client
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, async_playwright, expect

from acceptance.running import RunningServer
from fakes.upstream import FakeUpstream, Slow

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What the server needs here is the gateway alone.
ENVIRONMENT = {"LOCAL_MODELS": "false"}
POLL = 5_000
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, fake: FakeUpstream) -> Iterator[RunningServer]:
    running = RunningServer.start(tmp_path_factory.mktemp("data"), ENVIRONMENT)
    provider = {
        "aiTypeId": "Custom",
        "name": "fake",
        "apiBaseUrl": fake.base_url,
        "models": [{"model": "fake-model"}, {"model": "local", "apiModel": "fake-model"}],
    }
    post(running, "/api/CreateAiProvider", provider)
    yield running
    running.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "the browser tests need chromium; scripts/system.sh installs it"
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield launched
        await launched.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, server: RunningServer) -> AsyncIterator[Page]:
    context = await browser.new_context(base_url=server.base_url, reduced_motion="reduce")
    yield await context.new_page()
    await context.close()


def post(server: RunningServer, path: str, body: object) -> None:
    connection = http.client.HTTPConnection("localhost", server.port, timeout=10)
    headers = {"Authorization": f"Bearer {server.secret}", "Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


async def type_key(page: Page, key: str) -> None:
    await page.get_by_label("API key or administrator’s secret").fill(key)


async def unlock(page: Page, server: RunningServer) -> None:
    await page.goto("/")
    await type_key(page, server.secret)
    await expect(page.locator("#key-note")).to_have_text("Accepted. 2 models can be used.")


async def answer_health(page: Page, status: int, health: dict[str, Any]) -> None:
    async def fulfil(route: Route) -> None:
        await route.fulfill(status=status, json=health)

    await page.route("**/health/ready", fulfil)


async def test_page_says_what_runs(page: Page):
    await page.goto("/")
    await expect(page.locator("#server")).to_contain_text("Ready")
    await expect(page.locator("#local")).to_contain_text("Switched off")
    await expect(page.locator("[aria-busy=true]")).to_have_count(0)
    await expect(page.get_by_role("heading", level=1)).to_contain_text("0.")


async def test_every_state_of_embedded_model_is_put_in_words(page: Page):
    health: dict[str, Any] = {"status": "ready"}
    await answer_health(page, 200, health)
    for state, reason, said in [
        ("ready", None, "smollm2:135m answers as local — a toy model"),
        ("absent", None, "ai-server models pull"),
        ("starting", None, "is being loaded"),
        ("failed", "The engine ended.", "The engine ended."),
        ("unsupported", "No such library.", "No such library."),
        ("from the future", None, "From the future"),
    ]:
        health["local"] = {"state": state, "model": "smollm2:135m", "reason": reason}
        await page.goto("/")
        await expect(page.locator("#local")).to_contain_text(said)


async def test_server_that_is_not_ready_gives_reason_of_each_problem(page: Page):
    problems = {"storage": "disk I/O error", "server": "stopping"}
    await answer_health(page, 503, {"status": "unready", "problems": problems})
    await page.goto("/")
    await expect(page.locator("#server")).to_contain_text("Not ready")
    await expect(page.locator("#server")).to_contain_text(
        "Storage: disk I/O error. Server: stopping."
    )


async def test_server_that_went_is_noticed_and_found_again(browser: Browser, tmp_path: Path):
    running = RunningServer.start(tmp_path, ENVIRONMENT)
    context = await browser.new_context(base_url=running.base_url)
    page = await context.new_page()
    await page.clock.install()
    await page.goto("/")
    state = page.locator("#server .word")
    await expect(state).to_have_text("Ready")
    await type_key(page, running.secret)
    running.stop()
    await page.clock.fast_forward(POLL)
    await expect(state).to_have_text("Cannot be reached")
    await expect(page.locator("#send-why")).to_have_text("The server cannot be reached.")
    await expect(page.get_by_role("button", name="Send")).to_be_disabled()
    running = RunningServer.start(tmp_path, ENVIRONMENT, port=running.port)
    await page.clock.fast_forward(POLL)
    await expect(state).to_have_text("Ready")
    await expect(page.get_by_role("button", name="Send")).to_be_enabled()
    await context.close()
    running.stop()


async def test_hidden_page_asks_nothing_until_it_is_seen_again(page: Page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.clock.install()
    await page.goto("/")
    await expect(page.locator("#server .word")).to_have_text("Ready")
    await page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", { value: true, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    before = len(asked)
    await page.clock.run_for(20 * POLL)
    assert len(asked) == before
    async with page.expect_request("**/health/ready"):
        await page.evaluate(
            """() => {
                delete document.hidden;
                document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )


async def test_wrong_key_shows_message_of_server(page: Page):
    await page.goto("/")
    await expect(page.locator("#send-why")).to_have_text("Type a key above first.")
    await type_key(page, "ak-wrong")
    await expect(page.locator("#key-note")).to_have_text("Invalid API Key")
    await page.get_by_role("button", name="Send").click()
    await expect(page.get_by_role("alert")).to_have_text("Invalid API Key")


async def test_key_is_kept_nowhere_but_in_its_field(page: Page, server: RunningServer):
    await unlock(page, server)
    field = page.get_by_label("API key or administrator’s secret")
    await expect(field).to_have_attribute("type", "password")
    await page.get_by_role("button", name="Show the key").click()
    await expect(field).to_have_attribute("type", "text")
    kept = await page.evaluate(
        "[document.documentElement.outerHTML, document.cookie, location.href,"
        " JSON.stringify(localStorage), JSON.stringify(sessionStorage)].join()"
    )
    assert server.secret not in kept
    await page.reload()
    await expect(field).to_have_value("")


async def test_answer_appears_as_it_is_streamed(
    page: Page, server: RunningServer, fake: FakeUpstream
):
    await unlock(page, server)
    slow = Slow()
    fake.next(slow)
    await page.get_by_label("Model", exact=True).select_option("fake-model")
    await page.get_by_label("Prompt").fill("naïve 漢字 🙂, <b>not bold</b>")
    await page.get_by_label("Prompt").press("Control+Enter")
    answer = page.locator("#answer-text")
    await expect(answer).to_have_text("Waiting for the first word…")
    slow.release(3)
    await expect(answer).to_have_text("echo: naïve 漢字 🙂")
    await expect(page.get_by_role("button", name="Send")).to_be_disabled()
    slow.release(100)
    await expect(answer).to_have_text("echo: naïve 漢字 🙂, <b>not bold</b>")
    await expect(page.locator("#answer-note")).to_contain_text("Answered by fake-model")
    await expect(page.get_by_role("button", name="Stop")).to_be_disabled()


async def test_stop_ends_answer_and_keeps_what_came(
    page: Page, server: RunningServer, fake: FakeUpstream
):
    await unlock(page, server)
    slow = Slow()
    fake.next(slow)
    cancelled = fake.cancelled.count
    await page.get_by_role("button", name="Send").click()
    slow.release(2)
    await expect(page.locator("#answer-text")).to_have_text("echo: Sa")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator("#answer-note")).to_contain_text("Stopped after")
    await expect(page.locator("#answer-text")).to_have_text("echo: Sa")
    await expect(page.get_by_role("button", name="Send")).to_be_focused()
    slow.release(100)
    await fake.cancelled.reach(cancelled + 1)


async def test_error_within_stream_is_shown_under_what_came(
    page: Page, server: RunningServer, fake: FakeUpstream
):
    await unlock(page, server)
    fake.next("error-in-stream")
    await page.get_by_role("button", name="Send").click()
    await expect(page.get_by_role("alert")).to_contain_text("Provider fake failed")
    await expect(page.locator("#answer-text")).to_have_text("echo: Sa")


async def test_events_survive_every_cut(page: Page):
    await page.goto("/")
    stream = 'data: {"say":"ü🙂"}\r\n\r\n: comment\n\nevent: x\ndata: a\ndata: b\n\ndata:[DONE]\n\n'
    read = await page.evaluate(
        """async (text) => {
            const { events } = await import("/static/chat.js");
            const bytes = new TextEncoder().encode(text);
            const found = new Set();
            for (let first = 0; first <= bytes.length; first += 1) {
                for (let second = first; second <= bytes.length; second += 1) {
                    const parts = [bytes.slice(0, first), bytes.slice(first, second),
                                   bytes.slice(second)];
                    const stream = new ReadableStream({
                        start(controller) {
                            for (const part of parts) controller.enqueue(part);
                            controller.close();
                        },
                    });
                    const seen = [];
                    for await (const data of events(stream)) seen.push(data);
                    found.add(JSON.stringify(seen));
                }
            }
            return [...found].map((item) => JSON.parse(item));
        }""",
        stream,
    )
    assert read == [['{"say":"ü🙂"}', "a\nb", "[DONE]"]]


async def test_tabs_follow_the_keyboard(page: Page):
    await page.goto("/")
    await page.get_by_role("tab", name="curl").focus()
    for key, name in [
        ("ArrowRight", "OpenAI Python"),
        ("ArrowRight", "ServiceStack Python"),
        ("End", "JavaScript"),
        ("ArrowRight", "curl"),
        ("ArrowLeft", "JavaScript"),
        ("Home", "curl"),
    ]:
        await page.keyboard.press(key)
        await expect(page.get_by_role("tab", name=name)).to_be_focused()
        await expect(page.get_by_role("tab", selected=True)).to_have_text(name)
        await expect(page.get_by_role("tabpanel")).to_have_count(1)
        await expect(page.get_by_role("tabpanel", name=name)).to_be_visible()


async def test_skip_link_leads_to_first_call(page: Page):
    await page.goto("/")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the first call")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#first-call")).to_be_focused()


async def test_copy_button_copies_and_says_so(page: Page, server: RunningServer):
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.clock.install()
    await unlock(page, server)
    button = page.get_by_role("button", name="Copy curl example")
    await button.click()
    await expect(button).to_have_text("Copied")
    await expect(page.locator("#copied")).to_have_text("curl example copied.")
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"curl -N {server.base_url}/v1/chat/completions")
    assert "$AI_SERVER_KEY" in copied
    assert server.secret not in copied
    await page.clock.fast_forward(2_000)
    await expect(button).to_have_text("Copy")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def examples(browser: Browser, server: RunningServer) -> dict[str, str]:
    page = await browser.new_page(base_url=server.base_url)
    await page.goto("/")
    shown = await page.locator("pre code").all()
    found = {await code.get_attribute("id"): await code.text_content() for code in shown}
    await page.close()
    return {name: code for name, code in found.items() if name and code}


@pytest.mark.parametrize(
    ("example", "command"),
    [
        ("curl", ["sh", "-c"]),
        ("openai", [sys.executable, "-c"]),
        ("servicestack", [sys.executable, "-c"]),
        ("js", ["node", "--input-type=module", "-e"]),
    ],
)
async def test_examples_work_as_they_stand(
    examples: dict[str, str], server: RunningServer, example: str, command: list[str]
):
    needed = "curl" if example == "curl" else command[0]
    assert shutil.which(needed), f"the examples need {needed}; scripts/system.sh installs curl"
    process = await asyncio.create_subprocess_exec(
        *command,
        examples[f"code-{example}"],
        env={**os.environ, "AI_SERVER_KEY": server.secret},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(15):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert b"echo: " in out, err.decode()


async def test_page_keeps_to_its_own_origin_and_policy(page: Page, server: RunningServer):
    complaints: list[str] = []
    asked: list[str] = []
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))

    def violated(directive: str) -> None:
        complaints.append(directive)

    await page.expose_function("violated", violated)
    await page.add_init_script(
        "addEventListener('securitypolicyviolation', (event) => violated(event.violatedDirective))"
    )
    await unlock(page, server)
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#answer-note")).to_contain_text("Answered")
    assert complaints == []
    assert [url for url in asked if not url.startswith(f"{server.base_url}/")] == []


async def test_narrow_screen_needs_no_sideways_scrolling(page: Page, server: RunningServer):
    await page.set_viewport_size({"width": 360, "height": 740})
    await unlock(page, server)
    await page.get_by_label("Prompt").fill("W" * 300)
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#answer-note")).to_contain_text("Answered")
    for tab in await page.get_by_role("tab").all():
        await tab.click()
        assert await page.evaluate("document.documentElement.scrollWidth") == 360


async def test_news_moves_nothing_on_the_page(page: Page):
    held: list[Route] = []
    await page.route("**/health/ready", lambda route: held.append(route))
    async with page.expect_request("**/health/ready"):
        await page.goto("/")
    before = await page.locator("#first-call").bounding_box()
    local = {"state": "absent", "model": "smollm2:135m"}
    await held[0].fulfill(status=200, json={"status": "ready", "local": local})
    await expect(page.locator("#local .word")).to_have_text("Not here yet")
    assert await page.locator("#first-call").bounding_box() == before


async def test_dark_scheme_has_colours_of_its_own(page: Page):
    colours: set[str] = set()
    await page.goto("/")
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        colours.add(
            await page.evaluate(
                "(({ color, backgroundColor }) => `${color} on ${backgroundColor}`)"
                "(getComputedStyle(document.body))"
            )
        )
    assert len(colours) == 2
