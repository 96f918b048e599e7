"""The page against the real server on a small finished run: they speak the same language."""

import threading

import pytest

from pipeline.groups import file

pytestmark = pytest.mark.slow


@pytest.fixture
def page(browser, project):
    """The page of the run's 22 photos in three groups."""
    import uvicorn

    from pipeline.cli.review import ADDRESS, bound
    from pipeline.params import read_params
    from pipeline.review.server import Review, make_app

    opened = bound(0)
    port = opened.getsockname()[1]
    app = make_app(Review(read_params()), "secret", port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.goto(f"http://{ADDRESS}:{port}/secret/")
    page.wait_for_selector(".tabs")
    yield page
    context.close()
    server.should_exit = True
    thread.join(10)
    assert not errors


def said(page, text):
    page.wait_for_selector(f".said:has-text({text!r})")


def test_names_merges_splits_and_undo_reach_the_files(page):
    page.fill("#name-2", "my dog")
    page.keyboard.press("Enter")
    said(page, "my dog")
    assert "my dog" in file.FILE.read_text()
    page.locator("#group-1").get_by_role("button", name="Merge…").click()
    page.locator(".choices label", has_text="my dog").click()
    page.get_by_role("button", name="Merge 2 into 1").click()
    page.wait_for_selector("#group-2", state="detached")
    page.reload()
    page.wait_for_selector("#group-1")
    assert page.locator(".card").count() == 2
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector("#group-2")
    page.locator("#group-1").get_by_role("button", name="Split…").click()
    page.wait_for_selector(".parts section:nth-child(2)")
    page.get_by_role("button", name="Split into 2").click()
    page.wait_for_selector("#group-1", state="detached")
    assert page.locator(".card").count() == 4


def test_moves_and_answers_reach_the_files(page):
    page.get_by_role("button", name="Images", exact=True).click()
    page.locator(".tile").first.click(modifiers=["Control"])
    page.select_option(".selection select", "3")
    page.get_by_role("button", name="Move").click()
    page.wait_for_selector(".selection:not(.some)")
    assert "3" in file.ANSWERS.read_text()
    page.get_by_role("tab", name="To check").click()
    before = len(file.ANSWERS.read_text().splitlines())
    page.wait_for_selector(".question")
    page.keyboard.press("1")
    page.wait_for_selector(".progress:has-text('1 answer;')")
    page.wait_for_selector(".saved:text-is('all is saved')")
    assert len(file.ANSWERS.read_text().splitlines()) == before + 1
    page.keyboard.press("z")
    page.wait_for_selector(".progress:has-text('0 answers;')")
    assert len(file.ANSWERS.read_text().splitlines()) == before


def test_the_check_of_sure_images(page):
    page.get_by_role("button", name="sure ones").click()
    count = page.locator(".progress progress").get_attribute("max")
    for i in range(int(count)):
        page.wait_for_selector(f".progress:has-text('{i + 1} of {count}')")
        page.keyboard.press("y")
    page.wait_for_selector(f".result:has-text('100 % right ({count} checked')")
    page.get_by_role("tab", name="Copies & odd").click()
    page.wait_for_selector("#copies")
    assert "it is cut off" in page.inner_text("#rejected")


def test_pictures_come(page):
    page.get_by_role("button", name="Images", exact=True).click()
    page.wait_for_selector(".tile img")
    page.locator(".tile").nth(3).click()
    page.wait_for_selector("dialog.photo .large img[src^=photo]")
    assert page.evaluate("[...document.images].every(image => !image.complete || image.naturalWidth > 0)")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Map").click()
    page.wait_for_selector(".canvas")
