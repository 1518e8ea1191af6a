"""Collections in the playground: many files at once, what they hold, and what is not in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import User, picture
from tests.browser.test_access import found as axe
from tests.browser.test_errors import in_view

pytestmark = pytest.mark.browser
SAMPLES = Path("services/gateway/playground/samples").resolve()
HIT = {"id": "cat.jpeg", "score": 0.5, "metadata": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of two photographs, a broken one, and files that are none."""
    made = tmp_path / "photographs"
    (made / "pets").mkdir(parents=True)
    (made / "pets" / "cat.jpeg").write_bytes(picture("JPEG")["buffer"])
    (made / "coffee.jpg").write_bytes((SAMPLES / "coffee.jpg").read_bytes())
    (made / "broken.png").write_bytes(b"no image")
    (made / "phone.heic").write_bytes(b"no image")
    (made / "notes.txt").write_text("no image")
    (made / ".hidden.jpg").write_bytes(b"no image")
    return made


def add(user: User, collection: str, folder: Path) -> None:
    user.unfold_more()
    user.page.fill("#collection", collection)
    user.page.set_input_files("#folder", folder)
    user.says(f"2 of 4 photographs were added to {collection}. Not added: broken.png, phone.heic.")


def search(user: User, text: str, answer: dict[str, Any] | None = None) -> None:
    if answer:
        user.page.route("**/search", lambda route: route.fulfill(json=answer))
    user.page.fill("#query", text)
    user.page.press("#query", "Enter")


def test_a_folder_is_added_and_its_photographs_open(user: User, folder: Path) -> None:
    page, collection = user.page, f"folder-{user.touch}"
    user.open_sample()
    user.turn_to("Collections")
    add(user, collection, folder)
    expect(page.locator("#failed-count")).to_have_text("2 not added")
    for name in ("broken.png", "phone.heic"):
        in_view(page.locator("#failures li", has_text=name))
    row = page.locator("#collections button", has_text=collection)
    expect(row).to_contain_text("2 photographs")
    expect(row).to_have_attribute("aria-pressed", "true")
    search(user, "a cup of coffee")
    hits = page.locator(".hits li")
    expect(hits).to_have_count(2)
    expect(hits.first.locator("img")).to_have_js_property("complete", True)
    assert not axe(user)
    page.get_by_label("Open coffee.jpg").click()
    user.says("coffee.jpg")

    page.reload()  # the page knows no files any more
    user.turn_to("Collections")
    page.locator("#collections button", has_text=collection).click()
    search(user, "a cat")
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Open pets/cat.jpeg").click()
    chooser.value.set_files(folder)
    user.says("cat.jpeg, 451 × 300")


def test_a_folder_that_is_dropped_is_added(desktop: User, folder: Path) -> None:
    desktop.open_sample()
    desktop.turn_to("Collections")
    session = desktop.page.context.new_cdp_session(desktop.page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 400, "y": 300, "data": data}
        session.send("Input.dispatchDragEvent", event)
    desktop.says("2 of 4 photographs were added")


def test_adding_can_be_stopped_and_leaves_the_page_usable(desktop: User, folder: Path) -> None:
    page = desktop.page
    desktop.open_sample()
    desktop.unfold_more()
    page.route("**/index", lambda route: None)  # never answered
    page.set_input_files("#folder", folder)
    expect(page.locator("#added-count")).to_contain_text("of 4 photographs")
    desktop.segment()
    expect(page.locator("#adding")).to_be_visible()
    page.click("#stop")
    expect(page.locator("#adding")).to_be_hidden()
    desktop.says("0 of 4 photographs were added")
    page.set_input_files("#folder", folder / "pets")  # may be added once more
    expect(page.locator("#adding")).to_be_visible()


def test_a_busy_service_is_asked_again_and_a_refusal_ends_it(desktop: User, folder: Path) -> None:
    page, statuses = desktop.page, [429, 429, 401]
    desktop.open_sample()
    desktop.unfold_more()

    def refuse(route: Route) -> None:
        route.fulfill(status=statuses.pop(0) if statuses else 401, json={"detail": "no"})

    page.route("**/index", refuse)
    page.set_input_files("#folder", folder)
    desktop.fails("This service wants an API key")
    assert not statuses
    expect(page.locator("#adding")).to_be_hidden()
    desktop.problems.clear()


def test_nothing_like_it_is_said_and_the_nearest_are_shown_below(user: User) -> None:
    user.open_sample()
    user.knows("playground")
    user.turn_to("Collections")
    far, near = {"hits": [HIT], "likely_score": 0.6}, {"hits": [HIT], "likely_score": 0.4}
    search(user, "a submarine", far)
    user.says("Nothing clearly like “a submarine” in ")
    expect(user.page.locator("#nothing")).to_be_visible()
    expect(user.page.locator("#hits li")).to_have_count(0)
    assert not axe(user)
    expect(user.page.locator("#others li")).to_be_visible()
    search(user, "a cat", near)
    user.says("1 found")
    expect(user.page.locator("#nothing")).to_be_hidden()
    expect(user.page.locator("#unlikely")).to_be_hidden()


def test_a_filter_is_pairs_and_names_are_no_markup(desktop: User) -> None:
    desktop.open_sample()
    desktop.knows("playground")
    desktop.turn_to("Collections")
    desktop.page.get_by_text("Only some photographs").click()
    desktop.page.fill("#where", "owner")
    search(desktop, "a cat", {"hits": []})
    desktop.fails("“owner” is no pair")
    desktop.page.fill("#where", "owner=ann, x=a=b")
    bad = "<img src=x onerror=alert(1)>"
    thumbnail = "data:image/svg+xml,<svg onload=alert(1)>"
    hit = {"id": bad, "score": 1, "metadata": {"thumbnail": thumbnail}}
    search(desktop, "a cat", {"hits": [hit]})
    expect(desktop.page.locator("#hits p")).to_have_text(bad)
    expect(desktop.page.locator("#hits img")).to_have_count(0)
    sent = desktop.form().split('name="filter"\r\n\r\n')[1].split("\r\n")[0]
    assert json.loads(sent) == {"owner": "ann", "x": "a=b"}


def test_what_is_found_stands_under_the_search_and_goes_with_its_collection(user: User) -> None:
    page = user.page
    user.open_sample()
    user.knows("one", "two")
    user.unfold_more()
    unknown = {"hits": [HIT | {"score": -0.1}], "likely_score": 0}  # from which score on is unknown
    search(user, "a cat", unknown)
    user.says("1 found")
    hit, add = page.locator("#hits li").bounding_box(), page.locator("#index").bounding_box()
    assert hit is not None
    assert add is not None
    assert hit["y"] < add["y"]
    held: list[Route] = []
    page.route("**/search", lambda route: held.append(route))
    with page.expect_request("**/search"):
        page.press("#query", "Enter")
    page.locator("#collections button", has_text="two").click()
    expect(page.locator("#hits li")).to_have_count(0)
    with page.expect_response("**/search"):
        held[0].fulfill(json=unknown)
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("#hits li")).to_have_count(0)


def test_files_that_have_gone_are_said_and_the_others_added(desktop: User, tmp_path: Path) -> None:
    page = desktop.page
    desktop.open_sample()
    desktop.turn_to("Collections")
    page.route("**/index", lambda route: route.fulfill(json={"indexed": 1, "errors": []}))
    for name in ("here.jpeg", "gone.jpeg"):
        (tmp_path / name).write_bytes(picture("JPEG")["buffer"])
    page.evaluate("window.take = many.onchange; many.onchange = null")
    page.set_input_files("#many", [tmp_path / "here.jpeg", tmp_path / "gone.jpeg"])
    (tmp_path / "gone.jpeg").unlink()
    page.evaluate("take()")
    desktop.says("1 of 2 photographs were added")
    expect(page.locator("#failures")).to_contain_text("gone.jpeg: it cannot be read")


def test_the_arrow_keys_show_the_collections(desktop: User) -> None:
    desktop.knows("one")
    desktop.page.get_by_role("tab", name="Map").press("ArrowDown")
    expect(desktop.page.get_by_role("tab", name="Collections")).to_be_focused()
    expect(desktop.page.locator("#collections li")).to_have_count(1)


def confirm(user: User, button: Any, question: str, answer: str) -> None:
    """Press a button that deletes, and answer what it asks."""
    button.click()
    dialog = user.page.locator("#really")
    expect(dialog).to_contain_text(question)
    assert not axe(user)
    dialog.get_by_role("button", name=answer).click()
    expect(dialog).to_be_hidden()


def test_a_photograph_and_a_collection_are_deleted_in_two_steps(user: User) -> None:
    page, collection = user.page, f"deleted-{user.touch}"
    user.open_sample()
    user.add_to(collection)
    page.set_input_files("#file", picture("JPEG"))
    user.says("cat.jpeg")
    user.add_to(collection)
    search(user, "a cat")
    row, hits = page.locator("#collections li", has_text=collection), page.locator(".hits li")
    expect(hits).to_have_count(2)
    of_row, of_hit = row.get_by_label("delete"), page.get_by_label("delete cat.jpeg")
    confirm(user, of_hit, "Delete “cat.jpeg”", "Keep")
    user.says("Nothing was deleted.")
    confirm(user, of_hit, "Delete “cat.jpeg”", "Delete")
    user.says(f"1 photograph was deleted from {collection}.")
    expect(hits).to_have_count(1)
    expect(row).to_contain_text("1 photograph")
    confirm(user, of_row, f"“{collection}” with 1 photograph?", "Delete")
    user.says("1 photograph was deleted")
    expect(row).to_have_count(0)
    expect(hits).to_have_count(0)
    expect(page.locator("#unlikely")).to_be_hidden()


def test_without_a_collection_one_is_told_to_add_photographs(user: User) -> None:
    user.knows()
    user.turn_to("Collections")
    in_view(user.page.get_by_text("There is no collection yet."))
    expect(user.page.get_by_role("button", name="Search")).to_be_hidden()
    in_view(user.page.locator("#index"))


def test_a_hit_that_is_an_object_opens_outlined_and_selected(user: User) -> None:
    page = user.page
    user.open_sample()
    user.unfold_more()
    page.check("#with-objects")
    user.add_to(f"opened-{user.touch}")
    page.check("#by-objects")
    search(user, "a cat")
    user.says("1 found")
    before = page.locator("#stage").screenshot()
    page.get_by_label("Open chelsea.jpg").click()
    expect(page.locator("#about")).to_be_visible()
    assert page.locator("#stage").screenshot() != before
    user.turn_to("Objects")
    expect(user.objects()).to_have_count(1)
    expect(user.objects()).to_have_attribute("aria-pressed", "true")
    expect(user.objects()).to_contain_text("a cat")
