"""The single file in a browser: it needs no server, and its corrections become commands."""

import shlex

import pytest

from pipeline.groups import edits
from tests.pipeline.review.browser import mock_data, mock_server
from tests.pipeline.review.test_report import written

pytestmark = pytest.mark.slow


@pytest.fixture
def file(browser, tmp_path):
    """The page of the file, which must ask for nothing but itself."""
    data = mock_data.make(1000, 12)
    data["images"]["source"][7] = "it's; rm -rf $HOME\x1b[31m.jpg"
    path = tmp_path / "report.html"
    path.write_text(mock_server.report(mock_server.Project(data), 150), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector(".tabs")
    yield page
    context.close()
    assert not errors
    assert not [url for url in requests if not url.startswith((path.as_uri(), "data:", "blob:"))]


def test_the_file_of_a_run_opens_without_a_request_or_an_error(project, browser):
    edits.name(1, "</script><script>window.stolen = 1</script>")
    written(project)
    said, asked = [], []
    page = browser.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((project / "report.html").as_uri())
    page.wait_for_selector(".tabs")
    assert page.locator(".card").count() == 3 and page.evaluate("window.stolen") is None
    page.wait_for_function("[...document.querySelectorAll('.card img')].some((each) => each.naturalWidth > 0)")
    page.close()
    assert said == [] and [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def commands(page):
    page.get_by_role("button", name="Copy corrections").click()
    text = page.input_value("#commands")
    page.keyboard.press("Escape")
    return [shlex.split(line) for line in text.splitlines()]


def test_it_says_that_it_holds_a_sample(file):
    assert "the pictures of 150 of 1,000 images" in file.inner_text(".sample")
    assert file.get_by_role("button", name="Look at 30").count() == 0
    assert file.get_by_role("button", name="Copy corrections").is_disabled()


def test_corrections_become_commands_and_undo_takes_the_last_back(file):
    numbers = [int(text) for text in file.locator(".card .number").all_inner_texts()]
    file.fill(f"#name-{numbers[0]}", "it's a dog")
    file.keyboard.press("Enter")
    file.locator(f"#group-{numbers[1]}").get_by_role("button", name="Merge…").click()
    file.locator(".choices label").first.click()
    file.get_by_role("button", name=f"into {numbers[1]}").click()
    file.locator(f"#group-{numbers[0]}").get_by_role("button", name="Split…").click()
    assert "cannot show the parts" in file.inner_text("dialog")
    file.get_by_role("button", name="Split into 2").click()
    file.locator(f"#group-{numbers[0]}").get_by_role("button", name="Leave out").click()
    file.get_by_role("button", name="Undo").click()
    file.reload()
    file.wait_for_selector(".tabs")
    found = commands(file)
    assert found[0] == ["scan", "edit", "name", str(numbers[0]), "it's a dog"]
    assert found[1][:4] == ["scan", "edit", "merge", str(numbers[1])]
    assert found[2] == ["scan", "edit", "split", str(numbers[0]), "--parts", "2"]
    assert len(found) == 3
    assert len(file.locator(".card").all()) == 11


def test_a_moved_file_is_one_word_whatever_its_name(file):
    file.evaluate("location.hash = 'view=images&text=rm+-rf'")
    file.wait_for_selector(".tile")
    file.locator(".tile").first.click(modifiers=["Control"])
    file.select_option(".selection select", "3")
    file.get_by_role("button", name="Move").click()
    file.get_by_role("button", name="Copy corrections").click()
    assert file.input_value("#commands") == "scan edit move 3 $'it\\'s; rm -rf $HOME\\x1b[31m.jpg'\n"


def test_questions_are_answered_as_moves(file):
    file.get_by_role("tab", name="To check").click()
    file.keyboard.press("1")  # stays where it is: no command
    file.wait_for_selector(".progress:has-text('1 answer;')")
    file.keyboard.press("2")
    file.wait_for_selector(".progress:has-text('2 answers;')")
    assert [words[:3] for words in commands(file)] == [["scan", "edit", "move"]]
