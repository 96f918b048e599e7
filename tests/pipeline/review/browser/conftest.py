"""A headless browser, if there is one, and a mock server for each test."""

import shutil

import pytest

from tests.pipeline.review.browser import mock_data, mock_server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page, the project behind it, and what must not happen in it: errors, and requests to elsewhere."""

    def __init__(self, page, project, address):
        self.page, self.project, self.address = page, project, address
        self.errors, self.requests = [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("request", lambda request: self.requests.append(request.url))
        page.set_default_timeout(10_000)
        self.go("")

    def go(self, place):
        """Opens it anew at a place of the hash."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}#{place}")
        self.page.wait_for_selector(".tabs")

    def sent(self, action):
        """The last edit of this kind that the server got."""
        return [edit for edit in self.project.edits if edit["action"] == action][-1]

    def shows(self, selector, text):
        """Waits until this part of the page has the text: it is drawn a moment after a click."""
        self.page.locator(selector, has_text=text).first.wait_for()

    def said(self, text):
        """Waits until the page says so."""
        self.shows(".said", text)


@pytest.fixture
def opened(browser, request):
    """The page of 1,000 made-up images; ``@pytest.mark.parametrize("opened", [{...}], indirect=True)`` for others."""
    given = {"images": 1000, "groups": 12, "labels": False, "word": "weak"} | getattr(request, "param", {})
    project = mock_server.Project(mock_data.make(**given))
    server, address = mock_server.start(project)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = Opened(context.new_page(), project, address)
    yield found
    context.close()
    server.shutdown()
    assert not found.errors
    assert not [url for url in found.requests if not url.startswith((found.address, "data:", "blob:", "about:"))]
