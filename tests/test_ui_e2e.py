"""The page at `/ui`, in a headless Chromium, of work that the SDK did through the gateway."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from playwright.sync_api import Browser, Locator, Page, expect

from tests.accounts import http, keys
from tests.browser import chromium
from tests.data import some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
STEPS = 12
FAULT = "datum 0: ppo needs the input 'logprobs' in loss_fn_inputs"
PICTURES = Path(__file__).parent.parent / "out" / "ui"


@dataclass(frozen=True)
class Work:
    """What was done, as its client knows it."""

    model_id: str
    losses: list[float]
    grad_norms: list[float]
    rewards: list[float]
    weights: list[float]
    sampled_tokens: int
    error: str
    sample: Callable[[], Any]


@pytest.fixture(scope="module")
def work(stack: Stack) -> Iterator[Work]:
    """Steps of two passes each, an error and samples. The session stays open while the page is looked at."""
    name = "two batches, again and again"
    with tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key, display_name=name) as service:
        trainer = service.create_lora_training_client(MODEL, rank=8, seed=1).result()
        batches = [[supervised(some_tokens(1))], [supervised(some_tokens(2), 0.5)]]
        losses: list[float] = []
        norms: list[float] = []
        for _ in range(STEPS):
            passes = [trainer.forward_backward(batch, "cross_entropy") for batch in batches]
            trainer.forward(batches[0], "cross_entropy")  # adds nothing to the curve
            stepped = trainer.optim_step(tinker.AdamParams(learning_rate=2e-3))
            losses.append(sum(item.result().metrics["loss:sum"] for item in passes))
            norms.append((stepped.result().metrics or {})["grad_norm"])
        rewards = [round(1 - 0.75 * 0.8**step, 3) for step in range(STEPS)]
        telemetry = service.get_telemetry()
        assert telemetry is not None
        model_id = trainer.get_info().model_id
        for index, reward in enumerate(rewards):
            telemetry.log("tinsmith/metrics", {"model_id": model_id, "step": index, "reward": reward})
        with pytest.raises(tinker.TinkerError) as failed:
            trainer.forward_backward(batches[0], "ppo").result()
        sampler = trainer.save_weights_and_get_sampling_client().result()
        prompt = tinker.ModelInput.from_ints(some_tokens(3, 40))
        params = tinker.SamplingParams(max_tokens=8, seed=1)
        answers = [sampler.sample(prompt, 2, params).result() for _ in range(2)]
        yield Work(
            model_id=model_id,
            losses=losses,
            grad_norms=norms,
            rewards=rewards,
            weights=[23 + 0.5 * 23] * STEPS,
            sampled_tokens=sum(len(item.tokens) for answer in answers for item in answer.sequences),
            error=str(failed.value),
            sample=lambda: sampler.sample(prompt, 4, params).result(),
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@dataclass(frozen=True)
class Tab:
    page: Page
    complaints: list[str]


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """An empty tab on a wide screen, with what its console complains about."""
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield Tab(page, complaints)
    page.close()


def open_with(page: Page, stack: Stack, key: str) -> None:
    page.goto(f"{stack.base_url}/ui")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Watch").click()


def table(page: Page, name: str) -> list[list[str]]:
    """What a table of the page shows, row by row."""
    rows: Any = page.locator(f"#{name} tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
    )
    return rows


def tile(page: Page, name: str) -> Locator:
    """The figure of a tile at the top."""
    return page.locator("#tiles div").filter(has_text=name).locator("dd")


def read(client: httpx.Client, path: str, until: Callable[[Any], object]) -> Any:
    """What the page reads there, once it is as it will be: notes and reports are written seconds later."""
    end = time.monotonic() + 30
    while True:
        answer = client.get(f"/ui/{path}").raise_for_status().json()
        if until(answer) or time.monotonic() > end:
            return answer
        time.sleep(0.5)


@pytest.mark.row("watch-training", "watch-history", "watch-sampling", call="raw HTTP")
def test_what_the_page_reads_is_what_the_client_got(stack: Stack, work: Work) -> None:
    with http(stack, stack.api_key) as client:
        history = read(
            client,
            f"runs/{work.model_id}/history",
            lambda found: len(found["steps"]) == STEPS == len(found["reports"]),
        )
        training = read(client, "training", lambda found: found["failures"])
        sampling = read(client, "sampling", lambda found: work.model_id in str(found))
    assert [step["loss_sum"] for step in history["steps"]] == pytest.approx(work.losses, rel=1e-6)
    assert [step["weight_sum"] for step in history["steps"]] == work.weights
    assert [step["grad_norm"] for step in history["steps"]] == pytest.approx(work.grad_norms, rel=1e-6)
    assert [report["value"] for report in history["reports"]] == work.rewards
    run = next(run for run in training["runs"] if run["run_id"] == work.model_id)
    assert (run["state"], run["rank"], run["last_step"]["number"]) == ("loaded", 8, STEPS)
    assert FAULT in {failure["error"] for failure in training["failures"]}
    adapters = [(held["run_id"], held["state"]) for each in sampling["replicas"] for held in each["adapters"]]
    assert (work.model_id, "resident") in adapters


def test_the_page_shows_runs_with_the_losses_that_the_client_got(stack: Stack, work: Work, tab: Tab) -> None:
    open_with(tab.page, stack, stack.api_key)
    run = tab.page.get_by_role("button", name=work.model_id)
    run.click()
    expect(tab.page.locator("#run-title")).to_have_text(f"Run {work.model_id}")
    tab.page.get_by_text("The newest steps as a table").click()
    expect(tab.page.locator("#steps tbody tr")).to_have_count(STEPS, timeout=15_000)
    steps = table(tab.page, "steps")[::-1]
    assert [row[0] for row in steps] == [str(number) for number in range(1, STEPS + 1)]
    # Figures are shown with seven digits.
    assert [float(row[3]) for row in steps] == pytest.approx(work.losses, rel=1e-6)
    means = [loss / weight for loss, weight in zip(work.losses, work.weights, strict=True)]
    assert [float(row[4]) for row in steps] == pytest.approx(means, rel=1e-6)
    assert [float(row[6]) for row in steps] == pytest.approx(work.grad_norms, rel=1e-6)
    assert {(row[2], row[7], row[8], row[9]) for row in steps} == {("cross_entropy", "0.002", "2", "46")}
    chart = tab.page.locator("#loss svg")
    expect(chart.locator(".dot")).to_have_count(STEPS)
    label = chart.get_attribute("aria-label") or ""
    assert label.startswith(f"loss, mean from {float(f'{means[0]:.5g}')} at step 1 to")
    assert tab.complaints == []


def test_the_page_shows_the_rewards_that_the_client_reported(stack: Stack, work: Work, tab: Tab) -> None:
    open_with(tab.page, stack, stack.api_key)
    tab.page.get_by_role("button", name=work.model_id).click()
    chart = tab.page.locator("#reward svg")
    # The SDK sends its events every ten seconds.
    label = f"reward from 0.25 at step 0 to {work.rewards[-1]} at step {STEPS - 1}"
    expect(chart).to_have_attribute("aria-label", label, timeout=30_000)
    tab.page.get_by_label("Which reward").select_option("advantage")
    expect(tab.page.locator("#reward .note")).to_contain_text("The protocol carries no rewards")
    # A cross-entropy has no advantages.
    expect(chart).to_have_attribute("aria-label", "mean advantage: no values yet")


def test_the_page_shows_lanes_replicas_adapters_and_errors(stack: Stack, work: Work, tab: Tab) -> None:
    open_with(tab.page, stack, stack.api_key)
    expect(tab.page.locator("#lanes")).to_contain_text(work.model_id)
    expect(tab.page.locator("#adapters")).to_contain_text(work.model_id, timeout=15_000)
    assert FAULT in work.error
    expect(tab.page.locator("#errors")).to_contain_text(FAULT, timeout=15_000)
    lanes = [row for row in table(tab.page, "lanes") if row[0] == work.model_id]
    assert lanes == [[work.model_id, MODEL, "idle", "0", "0"]]
    (replica,) = table(tab.page, "replicas")
    assert replica[1:3] == ["ready", MODEL]
    assert int(replica[6]) >= work.sampled_tokens
    # The second sample of the same prompt found most of it in the cache.
    assert float(replica[7].removesuffix(" %")) > 0
    adapter = next(row for row in table(tab.page, "adapters") if row[0].startswith(work.model_id))
    assert (adapter[1], adapter[2], adapter[4], adapter[5]) == (
        MODEL,
        replica[0].split()[0],
        "resident",
        "0 requests",
    )
    tab.page.get_by_role("button", name=work.model_id).click()
    expect(tab.page.locator("#loss svg .dot")).to_have_count(STEPS, timeout=15_000)
    work.sample()
    expect(tile(tab.page, "Sampled")).to_have_text(re.compile(r"[1-9].* tokens/s"), timeout=15_000)
    # The whole prompt but its last token is in the cache.
    assert float(tile(tab.page, "Prompts from cache").inner_text().removesuffix("%")) > 90
    expect(tile(tab.page, "Time to first token")).to_have_text(re.compile(r"[1-9].* (ms|s) mean"))
    expect(tab.page.locator("#reward svg .dot")).to_have_count(STEPS, timeout=30_000)
    PICTURES.mkdir(parents=True, exist_ok=True)
    tab.page.screenshot(path=PICTURES / "page.png", full_page=True)


def test_a_name_of_a_client_s_is_text_and_never_markup(stack: Stack, tab: Tab) -> None:
    with tinker.ServiceClient(
        base_url=stack.base_url, api_key=stack.api_key, display_name=HOSTILE
    ) as service:
        service.create_lora_training_client(MODEL, rank=1, seed=1).result()
        open_with(tab.page, stack, stack.api_key)
        expect(tab.page.locator("#runs")).to_contain_text(HOSTILE)
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("#main img, #main script").count() == 0
    # And were it ever taken for markup, it could do nothing.
    tab.page.evaluate("name => document.querySelector('#problems').innerHTML = name", HOSTILE)
    tab.page.wait_for_timeout(200)
    assert tab.page.evaluate("window.hacked") is None


def test_a_wrong_key_is_said_and_the_right_one_is_kept_in_the_tab_alone(
    stack: Stack, work: Work, tab: Tab
) -> None:
    open_with(tab.page, stack, "tml-wrong")
    expect(tab.page.get_by_role("alert")).to_contain_text("this API key is not known here")
    expect(tab.page.locator("#main")).to_be_hidden()
    tab.page.get_by_label("API key").fill(stack.api_key)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#runs")).to_contain_text(work.model_id)
    expect(tab.page.get_by_role("alert")).to_be_empty()
    tab.page.reload()
    expect(tab.page.locator("#runs")).to_contain_text(work.model_id)
    assert tab.page.evaluate("localStorage.length") == 0
    assert stack.api_key not in tab.page.url
    tab.page.get_by_role("button", name="Forget the key").click()
    expect(tab.page.get_by_label("API key")).to_be_visible()
    assert tab.page.evaluate("sessionStorage.length") == 0


def test_a_service_that_does_not_answer_is_named_and_what_was_known_stays(
    stack: Stack, work: Work, tab: Tab
) -> None:
    open_with(tab.page, stack, stack.api_key)
    expect(tab.page.locator("#runs")).to_contain_text(work.model_id)
    tab.page.route(
        "**/api/v1/ui/training", lambda route: route.fulfill(status=503, body="no healthy upstream")
    )
    alert = tab.page.get_by_role("alert")
    expect(alert).to_have_text("The train service does not answer: 503 no healthy upstream", timeout=15_000)
    expect(tab.page.locator("#runs")).to_contain_text(work.model_id)
    tab.page.unroute("**/api/v1/ui/training")
    expect(alert).to_be_empty(timeout=15_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(stack: Stack, work: Work, browser: Browser, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 800}, color_scheme=scheme, has_touch=True)
    page = context.new_page()
    open_with(page, stack, stack.api_key)
    expect(page.locator("#runs")).to_contain_text(work.model_id)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"phone-{scheme}.png")
    context.close()


def test_another_account_sees_none_of_it(stack: Stack, work: Work, tab: Tab) -> None:
    key = keys(stack, "create", "watcher@example.org")
    open_with(tab.page, stack, key)
    expect(tab.page.locator("#who")).to_have_text("watcher@example.org")
    expect(tab.page.locator("#replicas")).to_contain_text("ready")
    for name in ("runs", "lanes", "adapters", "errors"):
        assert work.model_id not in tab.page.locator(f"#{name}").inner_text()
    expect(tab.page.locator("#adapters-note")).to_contain_text("of other accounts")
    with http(stack, key) as client:
        assert client.get(f"/ui/runs/{work.model_id}/history").status_code == 404
    with http(stack, stack.api_key) as client:
        assert client.get(f"/ui/runs/{work.model_id}/history").status_code == 200


def test_the_page_needs_no_key_and_what_it_reads_does(stack: Stack) -> None:
    page = httpx.get(f"{stack.base_url}/ui")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert httpx.get(f"{stack.base_url}/ui/secrets.txt").status_code == 404
    for path in ("training", "sampling", "runs/x/history"):
        assert httpx.get(f"{stack.base_url}/api/v1/ui/{path}").status_code == 401
