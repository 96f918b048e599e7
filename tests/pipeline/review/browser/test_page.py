"""The page of scan review in a browser: what one does arrives at the server, and what comes back is shown."""

import pytest

from tests.pipeline.review.browser import mock_data

pytestmark = pytest.mark.slow


def numbers(opened):
    """The groups in the order of their cards."""
    return [int(text) for text in opened.page.locator(".card .number").all_inner_texts()]


def card(opened, number):
    return opened.page.locator(f"#group-{number}")


def group_of(opened, number):
    return next(group for group in opened.project.data["groups"] if group["number"] == number)


def test_the_top_says_what_it_is_and_how_far_to_trust_it(opened):
    top = opened.page.inner_text(".top")
    assert "1,000 images · 12 groups (9 to 15 are plausible)" in top
    assert "WEAK" in top
    assert "9 groups hold together, 3 look mixed." in top
    assert "Checked by you: not yet." in top


def test_weak_groups_come_first(opened):
    words = opened.page.locator(".card .badge").all_inner_texts()
    assert words == sorted(words, key=["weak", "none", "strong"].index)


def test_enter_accepts_the_suggestion_and_goes_to_the_next_name(opened):
    first, second = [n for n in numbers(opened) if group_of(opened, n)["suggested"]][:2]
    opened.page.focus(f"#name-{first}")
    opened.page.keyboard.press("Enter")
    opened.said(f"group {first} is")
    assert opened.sent("name") == {"action": "name", "group": first, "name": group_of(opened, first)["suggested"]}
    following = numbers(opened)[numbers(opened).index(first) + 1]
    assert opened.page.evaluate("document.activeElement.id") == f"name-{following}"
    assert second


def test_a_typed_name_is_sent_once_and_taken_away_when_emptied(opened):
    number = numbers(opened)[0]
    opened.page.fill(f"#name-{number}", "my dog")
    opened.page.keyboard.press("Enter")
    opened.said("my dog")
    assert len(opened.project.edits) == 1
    opened.page.fill(f"#name-{number}", "")
    opened.page.focus(f"#name-{number}")
    opened.page.keyboard.press("Enter")
    opened.said("is '' now")
    assert opened.sent("name")["name"] == ""


def test_all_suggested_names_at_once(opened):
    opened.page.get_by_role("button", name="suggested names").click()
    opened.said("took the suggested names")
    assert opened.page.get_by_role("button", name="suggested names").count() == 0


def test_merge_offers_similar_groups_first(opened):
    number = numbers(opened)[0]
    likest = group_of(opened, number)["similar"][0]["group"]
    size = group_of(opened, number)["size"] + group_of(opened, likest)["size"]
    card(opened, number).get_by_role("button", name="Merge…").click()
    opened.page.locator(".choices label").first.click()
    opened.page.get_by_role("button", name=f"Merge {likest} into {number}").click()
    opened.page.wait_for_selector("dialog", state="detached")
    assert opened.sent("merge")["groups"] == [number, likest]
    assert likest not in numbers(opened)
    assert f"{size} images" in card(opened, number).inner_text()


def test_split_shows_the_parts_before_anything_changes(opened):
    number = numbers(opened)[0]
    card(opened, number).get_by_role("button", name="Split…").click()
    opened.page.wait_for_selector(".parts section:nth-child(2)")
    assert opened.page.locator(".parts img").count() == 24
    assert opened.project.data["version"] == 1
    opened.page.select_option("dialog select", "3")
    opened.page.wait_for_selector(".parts section:nth-child(3)")
    opened.page.get_by_role("button", name="Split into 3").click()
    opened.page.wait_for_selector("dialog", state="detached")
    assert {13, 14, 15} <= set(numbers(opened))


def test_an_error_is_shown_above_the_dialog(opened):
    number = numbers(opened)[0]
    card(opened, number).get_by_role("button", name="Split…").click()
    opened.page.wait_for_selector(".parts section:nth-child(2)")
    opened.project.data["groups"] = [g for g in opened.project.data["groups"] if g["number"] != number]
    opened.page.get_by_role("button", name="Split into 2").click()
    opened.said(f"there is no group {number}")
    opened.errors.clear()  # the browser notes each 4xx


def test_leave_out_and_undo(opened):
    number = numbers(opened)[0]
    card(opened, number).get_by_role("button", name="Leave out").click()
    opened.said("left out")
    assert numbers(opened)[-1] == number
    opened.page.get_by_role("button", name="Undo").click()
    opened.said("taken back")
    assert numbers(opened)[0] == number


def test_chips_filter(opened):
    opened.page.locator(".chip", has_text="fit").click()
    n = opened.project.data["counts"]["fits nowhere"]
    opened.shows(".filters", f"{n} of 1,000 images")
    assert opened.page.locator(".tile").count() == n
    opened.page.locator(".chip", has_text="unreadable").click()
    opened.shows("#panel", "cut off after 12,288 bytes")


@pytest.mark.parametrize(
    "place, has",
    [
        ("group=3", lambda images, i: images["group"][i] == 3),
        ("state=1", lambda images, i: images["state"][i] == 1),
        ("folder=home/2021-01", lambda images, i: images["source"][i].startswith("home/2021-01/")),
        ("split=val", lambda images, i: images["split"][i] == "val"),
        ("from=2022-01-01&to=2022-12-31", lambda images, i: images["date"][i].startswith("2022")),
        ("text=img_0001", lambda images, i: "IMG_0001" in images["source"][i]),
        ("state=0&group=2", lambda images, i: images["state"][i] == 0 and images["group"][i] == 2),
    ],
)
def test_every_filter(opened, place, has):
    opened.go(f"view=images&{place}")
    images = opened.project.data["images"]
    opened.shows(".filters", f"{sum(has(images, i) for i in range(1000))} of 1,000 images")


def test_filters_are_in_the_address_and_survive_a_reload(opened):
    opened.go("view=images")
    opened.page.fill(".filters input[type=search]", "img_0002")
    opened.page.select_option(".filters label:has-text('Sureness') select", "0")
    count = opened.page.inner_text(".count")
    opened.page.reload()
    opened.page.wait_for_selector(".tabs")
    assert opened.page.inner_text(".count") == count
    assert opened.page.input_value(".filters input[type=search]") == "img_0002"
    opened.page.get_by_role("tab", name="To check").click()
    opened.page.reload()
    opened.page.wait_for_selector(".question")
    opened.page.go_back()
    opened.page.wait_for_selector(".grid")


def test_select_many_and_move_them(opened):
    opened.go("view=images&group=1")
    tiles = opened.page.locator(".tile")
    tiles.nth(0).click(modifiers=["Control"])
    tiles.nth(4).click(modifiers=["Shift"])
    tiles.nth(2).click(modifiers=["Control"])
    opened.shows(".selection", "4 selected")
    opened.page.select_option(".selection select", "5")
    opened.page.get_by_role("button", name="Move").click()
    opened.said("4 moved to group 5")
    assert opened.sent("move")["group"] == 5
    opened.shows(".selection", "A picture")


def test_the_corner_selects_and_the_rest_opens(opened):
    opened.go("view=images")
    opened.page.locator(".tile").nth(1).hover()
    opened.page.locator(".tile").nth(1).locator(".tick").click()
    opened.shows(".selection", "1 selected")
    opened.page.keyboard.press("Escape")
    opened.page.locator(".tile").nth(3).click()
    opened.page.wait_for_selector("dialog.photo")


def test_the_grid_by_keys(opened):
    opened.go("view=images")
    opened.page.focus(".grid")
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press(" ")
    opened.page.keyboard.press("Shift+ArrowRight")
    opened.shows(".selection", "2 selected")
    opened.page.keyboard.press("Control+a")
    opened.shows(".selection", "1,000 selected")
    opened.page.keyboard.press("Escape")
    opened.page.keyboard.press("End")
    opened.page.wait_for_selector("#tile-999")
    opened.page.keyboard.press("Enter")
    opened.shows("dialog.photo", "1,000 of 1,000")


def test_a_photo_opens_large_with_its_facts(opened):
    opened.go("view=images")
    opened.page.locator(".tile").nth(5).click()
    dialog = opened.page.locator("dialog.photo")
    images = opened.project.data["images"]
    opened.shows("dialog.photo", "IMG_000005.JPG")
    opened.shows("dialog.photo", images["source"][5].rpartition("/")[0])
    opened.page.keyboard.press("ArrowRight")
    opened.shows("dialog.photo", "IMG_000006.JPG")
    opened.page.keyboard.press("ArrowLeft")
    opened.shows("dialog.photo", "IMG_000005.JPG")
    dialog.locator("select").select_option("7" if images["group"][5] != 7 else "8")
    dialog.get_by_role("button", name="Move").click()
    opened.said("1 moved to group")
    assert opened.sent("move")["images"] == [5]
    opened.page.keyboard.press("Escape")
    opened.page.wait_for_selector("dialog", state="detached")


def test_a_dialog_keeps_the_focus(opened):
    opened.go("view=images")
    opened.page.locator(".tile").nth(5).click()
    inside = "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
    for _ in range(12):
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate(inside)


def test_more_like_this(opened):
    opened.go("view=images")
    opened.page.locator(".tile").nth(5).click()
    opened.page.get_by_role("button", name="More like this").click()
    opened.shows(".filters", "Most like IMG_000005.JPG")
    opened.page.wait_for_selector("#tile-5:first-child + #tile-999 + #tile-998")


def test_answers_by_one_key(opened):
    opened.go("tab=check")
    first, second, third = opened.project.data["questions"][:3]
    name = opened.project.data["images"]["source"][first["image"]].rpartition("/")[2]
    opened.shows(".shot", name)
    opened.page.keyboard.press("1")
    opened.said(f"answered: group {first['group']}")
    opened.page.keyboard.press("2")
    opened.said(f"answered: group {second['runner_up']}")
    opened.page.keyboard.press("n")
    opened.said("left as it is")
    sent = [edit["group"] for edit in opened.project.edits]
    assert sent == [first["group"], second["runner_up"], None]
    # What was left as it is changed nothing on the server, so the first z only brings the question back.
    opened.page.keyboard.press("z")
    third_name = opened.project.data["images"]["source"][third["image"]].rpartition("/")[2]
    opened.page.wait_for_selector(f".shot:has-text({third_name!r})")
    assert len(opened.project.edits) == 3
    opened.page.keyboard.press("z")
    opened.said("taken back")
    second_name = opened.project.data["images"]["source"][second["image"]].rpartition("/")[2]
    opened.page.wait_for_selector(f".shot:has-text({second_name!r})")
    opened.shows(".progress", "1 answer;")


def test_the_check_of_thirty(opened):
    opened.page.get_by_role("button", name="Look at 30 sure ones").click()
    for i in range(30):
        opened.page.wait_for_selector(f".progress:has-text('{i + 1} of 30')")
        opened.page.keyboard.press("n" if i == 4 else "y")
        if i == 9:  # a reload goes on where one was
            opened.said("right")
            opened.page.wait_for_selector(".saved:text-is('all is saved')")
            opened.page.reload()
    opened.page.wait_for_selector(".result:has-text('30 checked')")
    opened.shows(".result", "sure images: 97 % right (30 checked, 95 %: 83 to 99)")
    assert sorted(edit["image"] for edit in opened.project.edits) == sorted(opened.project.drawn)
    opened.page.get_by_role("button", name="Back to the groups").click()
    opened.shows(".promise", "Checked by you: sure images: 97 % right")


def test_going_back_in_the_check_replaces_what_was_said(opened):
    opened.go("tab=check&promise=1")
    opened.page.wait_for_selector(".progress:has-text('1 of 30')")
    opened.page.keyboard.press("n")
    opened.page.keyboard.press("z")
    opened.page.keyboard.press("y")
    opened.page.wait_for_selector(".progress:has-text('2 of 30')")
    opened.page.wait_for_selector(".saved:text-is('all is saved')")
    assert opened.project.data["promise"]["right"] == opened.project.data["promise"]["checked"] == 1


def test_copies_and_odd_ones(opened):
    opened.page.get_by_role("tab", name="Copies & odd").click()
    for text in ("sets of near copies", "Outliers", "Dark", "Blurred"):
        opened.shows("#panel", text)
    opened.page.locator(".copy .picture").first.click()
    opened.shows("dialog.photo", "1 of 2")


def test_the_map_selects_and_shows(opened):
    opened.go("view=map")
    box = opened.page.locator(".canvas").bounding_box()
    opened.page.mouse.move(box["x"] + 40, box["y"] + 40)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 300, box["y"] + 200)
    opened.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 400)
    opened.page.mouse.up()
    opened.page.wait_for_selector(".selection.some")
    images = opened.project.data["images"]
    x, y = images["x"][7], images["y"][7]
    at = [0.02 + 0.96 * x, 0.02 + 0.96 * y]
    opened.page.mouse.move(box["x"] + 1 + at[0] * (box["width"] - 2), box["y"] + 1 + at[1] * (box["height"] - 2))
    opened.page.wait_for_selector(".tip")


@pytest.mark.parametrize("opened", [{"labels": True}], indirect=True)
def test_with_labels_the_classes_of_a_group(opened):
    (first, share), *_ = group_of(opened, numbers(opened)[0])["classes"]
    assert f"classes: {first} {round(100 * share)} %" in opened.page.locator(".card").first.inner_text()
    opened.shows(".more", "by the labels 70 % of the images are right, with k-means 61 %")


def test_names_and_paths_stay_text(opened):
    opened.page.fill(f"#name-{numbers(opened)[0]}", mock_data.HOSTILE)
    opened.page.keyboard.press("Enter")
    opened.said("<script>")
    opened.go("view=images&text=script")
    opened.page.locator(".tile").first.click()
    assert mock_data.HOSTILE in opened.page.locator("dialog.photo").inner_text().replace("\n", "")
    opened.page.keyboard.press("Escape")
    opened.page.get_by_role("tab", name="Copies & odd").click()
    assert mock_data.HOSTILE in opened.page.inner_text(".rejected")
    for details in opened.page.locator(".more summary").all():
        details.click()
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("window.stolen") is None
    assert opened.page.locator("#app script").count() == 0


def test_another_review_is_noticed(opened):
    opened.project.edit({"action": "name", "group": 9, "name": "by another"})
    number = next(n for n in numbers(opened) if n != 9)
    opened.page.fill(f"#name-{number}", "mine")
    opened.page.keyboard.press("Enter")
    opened.said("mine")
    expect = opened.page.locator("#name-9")
    expect.wait_for()
    assert expect.input_value() == "by another"


def test_a_server_that_has_ended_is_said(opened):
    opened.page.route("**/edit", lambda route: route.abort())
    opened.page.get_by_role("button", name="Undo").click()
    opened.said("is scan review still running?")
    opened.errors.clear()


@pytest.mark.parametrize("opened", [{"groups": 2, "word": "strong"}, {"word": "none"}, {"groups": 80}], indirect=True)
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(opened, width):
    opened.page.set_viewport_size({"width": width, "height": 844})
    for place in ("", "view=images", "view=map", "tab=check", "tab=check&promise=1", "tab=odd"):
        opened.go(place)
        for details in opened.page.locator(".more summary").all():
            details.click()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, place
