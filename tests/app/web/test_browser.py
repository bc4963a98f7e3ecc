"""The front end in a real browser: every page, upload, download, scrubbing, stopping, errors; nothing fetched from elsewhere.

Needs Playwright and a Chromium: Playwright's own, or the system's (CHROMIUM names another). Without one the tests are
skipped. SCREENSHOTS names a folder to keep pictures of the pages in.
"""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image

from tests.app.web.scripted import scripted

gr = pytest.importorskip("gradio", reason="Gradio is not installed (extra 'demo')")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra 'dev')")

from app.web.build import build_demo, launch_options  # noqa: E402
from app.web.controls import example  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SHOTS = os.environ.get("SCREENSHOTS")
PAGES = ["Ask", "Extract", "Ground", "Infill", "Read", "Compare"]
PATIENCE = 120_000  # ms; not a measure of speed


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as p:
        try:
            found = p.chromium.launch(executable_path=path, args=FLAGS)
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield found
        found.close()


def served(model, folder):
    """The address of the app, and the app."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    demo = build_demo(model)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, **launch_options())
    return url, demo


@pytest.fixture(scope="module")
def model(tiny):
    return scripted(tiny)


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", "")
        address, demo = served(model, tmp_path_factory.mktemp("gradio"))
        yield address
        demo.close()


@pytest.fixture
def page(browser, url):
    """A fresh page that has loaded the app; afterwards nothing may have gone wrong or out."""
    yield from opened(browser, url)


def opened(browser, url, **context):
    trouble = []
    inside = browser.new_context(viewport=context.pop("viewport", {"width": 1280, "height": 900}), **context)
    page = inside.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda m: trouble.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: trouble.append(f"page: {e}"))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else trouble.append(f"request: {r.url}"))
    page.on("response", lambda r: trouble.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.goto(url)
    page.locator("#ask-run").wait_for()
    yield page
    assert trouble == []
    inside.close()


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()
    page.locator(f"#{name.lower()}-run").wait_for()


def says(page, name, words):
    """Wait for words on a page's status line."""
    playwright.expect(page.locator(f"#{name}-status")).to_contain_text(words, timeout=PATIENCE)


def keep(page, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("name", PAGES)
def test_the_first_example_of_each_page(page, name):
    tab(page, name)
    page.click(f"#{name.lower()}-example-0")
    says(page, name.lower(), "Done")
    keep(page, name.lower())


def test_upload_extract_scrub_and_download(page, picture):
    tab(page, "Extract")
    page.locator("#extract-file input[type=file]").set_input_files(str(picture("page one.png", size=(80, 60))))
    playwright.expect(page.locator("#extract-page img")).to_have_attribute("alt", "page one.png")
    page.get_by_label("JSON Schema or short template").fill('{"name": "string", "total": "number"}')
    page.click("#extract-run")
    says(page, "extract", "Done")
    playwright.expect(page.locator("#extract-fields")).to_contain_text("Ada Byron")
    assert page.locator("#extract-page rect").count() == 2
    assert page.evaluate("document.querySelector('#extract-page img').naturalWidth") == 80
    slider = page.locator("#extract-step input[type=range]")
    steps = int(slider.get_attribute("max"))
    assert steps > 2
    slider.focus()
    for _ in range(steps - 1):
        page.keyboard.press("ArrowLeft")
    playwright.expect(page.locator("#extract-fields")).not_to_contain_text("Ada Byron")
    playwright.expect(page.locator("#extract-canvas .mask").first).to_be_visible()
    for button, check in (
        ("extract-get-json", lambda text: json.loads(text)["data"]["total"] == 12.5),
        ("extract-get-csv", lambda text: "/total,12.5," in text),
    ):
        with page.expect_download() as waiting:
            page.click(f"#{button}")
        assert waiting.value.suggested_filename.startswith("page one.") and check(Path(waiting.value.path()).read_text())


def test_a_page_of_a_pdf(page, tmp_path):
    pages = [Image.new("RGB", (300, 200), shade) for shade in ("white", "silver")]
    pages[0].save(tmp_path / "two.pdf", save_all=True, append_images=pages[1:])
    tab(page, "Extract")
    page.locator("#extract-file input[type=file]").set_input_files(str(tmp_path / "two.pdf"))
    playwright.expect(page.locator("#extract-page img")).to_have_attribute("alt", "two.pdf page 1")
    number = page.get_by_label("Page of the file").first
    number.fill("2")
    number.press("Tab")
    playwright.expect(page.locator("#extract-page img")).to_have_attribute("alt", "two.pdf page 2")
    page.get_by_label("JSON Schema or short template").fill('{"name": "string"}')
    page.click("#extract-run")
    says(page, "extract", "Done")
    playwright.expect(page.locator("#extract-fields")).to_contain_text("Ada Byron")
    number.fill("3")
    number.press("Tab")
    playwright.expect(page.locator("#extract-page")).to_contain_text("there is no page 3")
    page.click("#extract-run")
    says(page, "extract", "there is no page 3")


def test_conversation(page):
    box = page.locator("#ask-say textarea")
    box.fill("how many?")
    box.press("Enter")
    says(page, "ask", "Done")
    playwright.expect(page.locator("#ask-chat")).to_contain_text("two red shapes")
    playwright.expect(box).to_have_value("")
    box.fill("and now?")
    page.click("#ask-run")
    playwright.expect(page.locator("#ask-chat")).to_contain_text("and now?")
    says(page, "ask", "Done")
    assert page.locator("#ask-chat").inner_text().count("two red shapes") == 2
    page.click("#ask-clear")
    playwright.expect(page.locator("#ask-chat")).not_to_contain_text("and now?")


def test_schema_as_a_table(page):
    tab(page, "Extract")
    page.get_by_label("JSON Schema or short template").fill('{"who": "string", "when": "date"}')
    page.get_by_role("tab", name="Table", exact=True).click()
    playwright.expect(page.locator("#extract-table")).to_contain_text("when")
    page.get_by_role("tab", name="JSON", exact=True).click()
    page.get_by_label("JSON Schema or short template").fill('{"a": {"b": "string"}}')
    page.get_by_role("tab", name="Table", exact=True).click()
    playwright.expect(page.locator("#extract-table-note")).to_contain_text("edit it as JSON")


def test_many_files(page, picture, tmp_path):
    tab(page, "Extract")
    page.get_by_role("tab", name="Many files", exact=True).click()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    page.get_by_label("JSON Schema or short template").fill('{"name": "string"}')
    page.locator("#many-files input[type=file]").set_input_files([str(picture("a.png")), str(bad)])
    playwright.expect(page.locator("#many-files")).to_contain_text("bad")
    page.click("#many-run")
    says(page, "many", "1 error")
    keep(page, "many")
    with page.expect_download() as waiting:
        page.click("#many-get-jsonl")
    rows = [json.loads(line) for line in Path(waiting.value.path()).read_text().splitlines()]
    assert sorted((row["source"], row["status"]) for row in rows) == [("a.png", "ok"), ("bad.png", "error")]


@pytest.mark.parametrize(("name", "words"), [("Extract", "there is no picture"), ("Ask", "the question is empty"), ("Infill", "the text is empty")])
def test_errors(page, name, words):
    tab(page, name)
    page.click(f"#{name.lower()}-run")
    playwright.expect(page.get_by_role("alert").filter(has_text=words)).to_be_visible(timeout=PATIENCE)


def test_a_file_that_is_no_picture(page, tmp_path):
    (tmp_path / "notes.png").write_text("hello")
    tab(page, "Read")
    page.locator("#read-file input[type=file]").set_input_files(str(tmp_path / "notes.png"))
    playwright.expect(page.locator("#read-page")).to_contain_text("notes.png")
    page.click("#read-run")
    says(page, "read", "is not an image")
    assert str(tmp_path) not in page.locator("#read-status").inner_text()


def test_stop(page, model, monkeypatch):
    monkeypatch.setattr("app.web.runs.FRAME", 0.0)  # a fast machine takes the second step before it would be drawn
    model.engine.gate = gate = threading.Event()
    try:
        page.locator("#ask-say textarea").fill("how many?")
        page.click("#ask-run")
        says(page, "ask", "Step 2")
        page.click("#ask-stop")
        says(page, "ask", "Stopped after step")
        playwright.expect(page.locator("#ask-canvas .mask").first).to_be_visible()
    finally:
        model.engine.gate = None
        gate.set()
    page.locator("#ask-say textarea").fill("again")  # the next request does not wait for the stopped one
    page.click("#ask-run")
    says(page, "ask", "Done")


@pytest.mark.parametrize(("scheme", "name"), [("light", "light"), ("dark", "dark")])
def test_narrow_and_in_both_schemes(browser, url, scheme, name):
    for page in opened(browser, url, viewport={"width": 390, "height": 844}, color_scheme=scheme):
        for one in PAGES:
            if not page.get_by_role("tab", name=one, exact=True).is_visible():  # tabs that do not fit are in a menu
                page.locator(".overflow-menu button").first.click()
                page.locator(".overflow-dropdown").get_by_text(one, exact=True).click()
            else:
                tab(page, one)
            page.locator(f"#{one.lower()}-run").wait_for()
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 392, f"{one} is {wide} pixels wide"
        keep(page, f"narrow-{name}")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(v) for v in dark.strip("rgba()").split(",")[:3]) < 300) == (scheme == "dark")


def test_by_keyboard_and_by_name(page):
    """Every control can be reached by its name, and a request can be made without a mouse."""
    tab(page, "Ground")
    page.locator("#ground-file input[type=file]").set_input_files(example("shapes.png"))
    page.get_by_label("Instruction").fill("press it")
    page.get_by_label("Instruction").press("Enter")
    says(page, "ground", "Done")
    assert "Canvas after step" in page.locator("#ground-canvas [role=img]").get_attribute("aria-label")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input:not([type=file]):not([type=hidden]), textarea, select')].filter(e => e.offsetParent
        && !(e.innerText || e.ariaLabel || e.title || e.placeholder || e.labels?.length || e.getAttribute('aria-labelledby') || e.querySelector('img'))).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


def test_files_of_the_server_stay_there(url, page):
    """Only what the app made or a visitor uploaded is handed out."""
    outside = Path(__file__).resolve()
    answer = page.request.get(f"{url}gradio_api/file={outside}")
    assert answer.status in (403, 404) and "playwright" not in answer.text()
