"""Every area in a real Chromium: charts are drawn, forms act, nothing breaks the policy or the width of a phone."""

import shutil
import socket
import threading
import time
from dataclasses import replace

import pytest

from tailwise.app.workspace import links
from tailwise.history.store import History

playwright = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    # Sockets and loops of the browser's driver are closed by it after the interpreter looks.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def address(app):
    """The app behind a real port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1)
    )
    ready = threading.Event()
    startup = server.startup

    async def told(sockets=None):
        await startup(sockets)
        ready.set()

    server.startup = told
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(30)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(browser, address):
    """A page that fails the test on any error in its console; a failure shows what it asked for and what came."""
    context = browser.new_context(base_url=address, viewport={"width": 1200, "height": 900})
    context.set_default_timeout(90_000)
    opened, troubles = context.new_page(), []
    opened.on("console", lambda line: troubles.append(line.text) if line.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.troubles = troubles
    for event in ("request", "requestfinished", "requestfailed", "crash", "close"):
        opened.on(event, lambda told, event=event: print(f"{time.monotonic():.2f} {event} {getattr(told, 'url', '')}"))
    yield opened
    context.close()
    assert not troubles


def drawn(page):
    """Scroll through the page until every chart is drawn; how many there are."""
    charts = page.locator(".chart[data-source]")
    for index in range(charts.count()):
        charts.nth(index).scroll_into_view_if_needed()
        page.locator(".chart[data-source]").nth(index).locator("svg, canvas").first.wait_for()
    assert page.locator(".chart.failed").count() == 0
    return charts.count()


def test_models_lead_to_details_layers_and_back(page, ids):
    page.goto("/")
    page.get_by_role("link", name="base", exact=True).click()
    assert drawn(page) >= 6
    for family in ("Against random", "Balance", "Scale and rank", "Role × block"):
        page.get_by_role("link", name=family).click()
        assert drawn(page) >= 1
    page.get_by_role("link", name="All layers").click()
    page.wait_for_url("**/layers*")  # whole: a field that is filled before its script is there does nothing
    page.get_by_label("Filter the table").fill("role:attn_q")
    page.wait_for_url("**q=role*")
    page.locator("#table tbody tr").nth(3).wait_for()
    page.locator("#table th a", has_text="alpha").first.click()
    page.wait_for_url("**sort=alpha*")
    page.locator("#table td.name a").first.click()
    assert drawn(page) == 4
    before = page.locator("h1").inner_text()
    page.keyboard.press("]")
    page.locator(f"h1:not(:text-is('{before}'))").wait_for()


def test_a_hostile_name_stays_text(page, ids, evil):
    page.goto(links.layer(ids["base"], evil))
    assert page.locator("h1").inner_text() == evil
    assert drawn(page) == 4


def test_a_tooltip_breaks_no_policy(page, ids):
    page.goto(links.chart(ids["base"], "alpha_vs_D"))
    drawn(page)
    page.locator(".chart path[aria-roledescription='point'], .chart .mark-symbol path").first.hover(force=True)
    page.locator("#vg-tooltip-element.visible").wait_for()


def test_picked_models_are_compared(page):
    page.goto("/models")
    page.get_by_label("Pick base").check()
    page.get_by_label("Pick tuned").check()
    page.get_by_role("button", name="Compare the picked").click()
    assert drawn(page) == 8
    page.get_by_role("link", name="against").first.click()
    assert drawn(page) == 9


def test_a_live_run_grows_on_the_page(page, folder, ids):
    from tailwise.history.point import Alarm, Point

    run = "run & <i>one</i>"
    page.goto(links.run(run))
    assert drawn(page) == 2
    page.locator("#pulse.live").wait_for()
    with History(folder / "history.db") as history:
        history.add_point(Point(run=run, step=777, cadence="full", time=1.8e9, scalars={"loss": 1.0}, layers={}))
        history.add_alarm(Alarm(run=run, step=777, time=0.0, rule="TW703", severity="error", title="a new alarm"))
    page.get_by_text("a new alarm").wait_for()
    page.locator("#state", has_text="777").wait_for()


def test_tabs_that_nobody_sees_keep_no_connection(browser, address):
    context = browser.new_context(base_url=address)
    context.set_default_timeout(90_000)
    context.add_init_script("Object.defineProperty(document, 'hidden', { get: () => !window.seen })")
    pages = [context.new_page() for _ in range(8)]
    for opened in pages:  # a browser has six connections for all of them
        opened.goto("/jobs", wait_until="load")
    context.close()


def test_what_came_while_nobody_looked_is_there_at_once(page, folder):
    from tailwise.history.point import Point

    run = "run & <i>one</i>"
    page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => window.away })")
    page.goto(links.run(run))
    page.locator("#pulse.live").wait_for()
    page.evaluate("window.away = true; document.dispatchEvent(new Event('visibilitychange'))")
    with History(folder / "history.db") as history:
        history.add_point(Point(run=run, step=888, cadence="full", time=1.8e9, scalars={"loss": 1.0}, layers={}))
    page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.locator("#state", has_text="888").wait_for()


def test_going_back_leads_to_the_page_before(page, ids):
    page.goto(links.model(ids["base"]))
    page.get_by_role("link", name="All layers").click()
    page.wait_for_url("**/layers*")  # whole: a field that is filled before its script is there does nothing
    page.get_by_label("Filter the table").fill("role:attn_q")
    page.wait_for_url("**q=role*")
    page.locator("#table td.name a").first.click()
    page.wait_for_url("**/layer?*")
    page.go_back()
    page.locator("#table .quiet", has_text="4 of 10").wait_for()
    assert page.get_by_label("Filter the table").input_value() == "role:attn_q"
    page.go_back()
    page.locator("#table .quiet", has_text="10 of 10").wait_for()
    page.go_back()
    page.wait_for_url(f"**{links.model(ids['base'])}")


def test_what_is_refused_stands_above_and_loses_nothing(page, ids):
    page.goto(links.model(ids["base"]))
    page.locator("#tags summary").click()
    page.get_by_label("Tags, separated").fill("<b>bad")
    page.locator("#tags button").click()
    page.locator("#problem .finding", has_text="is no tag").wait_for()
    assert page.locator("nav").count() == 1
    assert page.get_by_label("Tags, separated").input_value() == "<b>bad"
    page.troubles.clear()  # the browser tells of a status of 400


def test_a_file_that_is_too_large_is_not_sent(page, folder):
    page.goto("/jobs")
    page.evaluate("document.querySelector('#file').dataset.largest = 10")
    page.set_input_files("#file", folder / "base.audit")
    page.get_by_role("button", name="Upload").click()
    assert "larger" in page.evaluate("document.querySelector('#file').validationMessage")
    assert page.locator("#problem").inner_text() == ""


def test_plans_are_shown(page, ids):
    page.goto("/plans")
    page.get_by_role("link", name="plan", exact=True).click()
    assert drawn(page) == 1
    assert page.get_by_text("12.5").count() == 1


def test_an_audit_is_started_followed_and_opened(page, folder, weights):
    from safetensors.numpy import save_file

    (folder / "model").mkdir()
    save_file(
        {"layers.0.mlp.up_proj.weight": weights["layers.0.mlp.up_proj.weight"]}, folder / "model" / "model.safetensors"
    )
    page.goto("/jobs")
    page.get_by_label("Model", exact=True).fill("/etc/passwd")
    page.get_by_role("button", name="Start").click()
    page.locator("#queue", has_text="not below a folder").wait_for()
    page.get_by_label("Model", exact=True).fill("model")
    page.get_by_role("button", name="Start").click()
    page.locator("#queue").get_by_role("link", name="Open").click(timeout=60_000)
    page.get_by_role("heading", name="model").wait_for()


def test_an_audit_file_is_brought(page, folder):
    page.goto("/jobs")
    page.set_input_files("#file", folder / "base.audit")
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url("**/models/**", timeout=60_000)


def test_the_assistant_answers_and_its_links_lead_on(page, ids):
    page.goto(links.model(ids["base"]))
    page.get_by_role("button", name="Ask", exact=True).first.click()
    page.get_by_label("Your question").fill("which layers are worst?")
    page.keyboard.press("Enter")
    answer = page.locator(".said.assistant:not([aria-busy])")
    answer.wait_for()
    page.goto("/help/alpha")
    assert page.locator(".said").count() == 2  # the talk goes along


def test_the_help_is_searched(page):
    page.goto("/help")
    page.get_by_label("Search the help").fill("rank collapse")
    page.wait_for_url("**q=rank*")
    page.locator("#topics a").first.click()
    page.get_by_role("heading", level=1).wait_for()


def test_the_theme_is_kept(page, ids):
    page.goto(links.model(ids["base"]))
    page.get_by_role("button", name="Change the theme").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.goto("/models")
    assert page.locator("html").get_attribute("data-theme") == "dark"


@pytest.mark.parametrize("width", [360, 1900])
def test_no_page_is_wider_than_the_window(page, ids, evil, width):
    page.set_viewport_size({"width": width, "height": 800})
    for address in (
        "/models",
        links.model(ids["base"]),
        links.layers(ids["base"]),
        links.layer(ids["base"], evil),
        "/compare",
        links.compare([ids["base"], ids["tuned"]]),
        links.against_base(ids["tuned"], ids["base"]),
        "/training",
        links.run("run & <i>one</i>"),
        "/plans",
        links.plan(ids["plan"]),
        "/jobs",
        "/help",
        "/help/TW101",
        "/settings",
    ):
        page.goto(address)
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address


def test_ten_thousand_layers_are_usable(page, app, folder, audits):
    layers = list(audits[0])
    rows = [replace(layers[i % len(layers)].row, name=f"layers.{i}.mlp.up_proj", block=i) for i in range(10_000)]
    many = type(audits[0])(
        rows, {row.name: replace(layers[i % len(layers)], row=row) for i, row in enumerate(rows)}, audits[0].provenance
    )
    many.save(folder / "many.audit")
    name = next(entry.id for entry in app.state.context.workspace.look_again() if entry.title == "many")
    page.goto(links.layers(name, sort="alpha"))
    assert page.get_by_text("of 10000").count() == 1
    page.get_by_label("Filter the table").fill("block<3")
    page.locator(".quiet", has_text="3 of 10000").wait_for()
    page.goto(links.chart(name, "alpha_vs_D"))
    assert drawn(page) == 1


def test_paper_is_light_and_has_every_chart(browser, address, ids):
    context = browser.new_context(base_url=address, viewport={"width": 1200, "height": 500}, color_scheme="dark")
    context.set_default_timeout(90_000)
    page = context.new_page()
    page.goto(links.model(ids["base"]))
    charts = page.locator(".chart[data-source]").count()
    playwright.expect(page.locator(".chart.done:not(.failed)")).to_have_count(
        charts, timeout=90_000
    )  # nothing scrolled
    theme = page.locator("html")
    assert theme.get_attribute("data-theme") == "dark"
    dark = page.locator('.chart svg.marks [fill="#15181d"]')
    assert dark.count() > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert theme.get_attribute("data-theme") == "light"
    playwright.expect(dark).to_have_count(0, timeout=90_000)
    page.emulate_media(media="print")
    for part in ("nav", ".actions", ".tabs"):
        assert not page.locator(part).first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert theme.get_attribute("data-theme") == "dark"
    assert page.evaluate("localStorage.getItem('tailwise-theme')") is None
    context.close()
