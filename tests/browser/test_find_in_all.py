"""Find in all: suggestions on every photograph of a folder, accepted or rejected."""

import json
from pathlib import Path
from shutil import copy2
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import User
from tests.browser.test_access import found as axe
from tests.browser.test_job import folder, label, opened
from tests.browser.test_objects import found

__all__ = ["folder"]
pytestmark = pytest.mark.browser
NOTHING: dict[str, Any] = {"masks": [], "things": []}
SCORES = [0.95, 0.7]


def result(scores: list[float]) -> dict[str, Any]:
    """An answer with two things of these scores, one beside the other."""
    boxes = [(10, 10, 210, 210, "a cat"), (240, 20, 440, 180, "a cat")]
    masks = [found(at, boxes[at])["mask"] | {"label_score": s} for at, s in enumerate(scores)]
    return {"masks": masks, "things": list(range(len(scores)))}


def answers(user: User, *statuses: int) -> list[Route]:
    """Let the service answer, first with these statuses; returns what it is asked."""
    asked: list[Route] = []
    rest = list(statuses)

    def reply(route: Route) -> None:
        asked.append(route)
        if rest and (status := rest.pop(0)) != 200:
            route.fulfill(status=status, json={"detail": "no such luck"})
        else:
            route.fulfill(json={"results": [result(SCORES)], "image": {"key": "0" * 64}})

    user.page.route("**/segment", reply)
    return asked


def refused(user: User) -> None:
    """Forget that the browser has logged the refusals."""
    assert all("Failed to load resource" in problem for problem in user.problems)
    user.problems.clear()


def find_all(user: User, words: str = "a cat") -> None:
    user.page.fill("#sought", words)
    user.page.press("#sought", "Enter")


def rows(user: User) -> Any:
    return user.page.locator("#job-list li span")


def test_suggestions_are_accepted_photograph_by_photograph(user: User, folder: Path) -> None:
    page = opened(user, folder).page
    asked = answers(user, 429, 503)
    find_all(user)
    user.says("12 suggested for “a cat”.")
    assert len(asked) == 8
    assert {route.request.headers["x-samclip-priority"] for route in asked} == {"bulk"}
    expect(rows(user)).to_have_text([*["2 suggested"] * 4, "cannot be read", *["2 suggested"] * 2])
    expect(page.locator("#accept")).to_have_text("Accept 2")
    assert not axe(user)
    expect(page.locator("#suggested")).to_have_text("a cat:")
    page.click("#accept")
    user.says("b.jpg")
    user.says("Accept or reject what is suggested: a cat.")
    expect(rows(user).first).to_have_text("2 objects")
    expect(page.locator("#job-count")).to_contain_text("1 of 7 done")
    page.keyboard.press("r")
    user.says("c.jpg")
    expect(rows(user).nth(1)).to_be_empty()
    user.turn_to("Objects")
    expect(user.objects().first).to_contain_text("suggested, 0.95")
    user.objects().first.click()
    page.keyboard.press("Delete")
    expect(page.locator("#accept")).to_have_text("Accept 1")
    if not user.touch:
        page.locator("#objects .line").hover()
    page.get_by_role("button", name="accept a cat").click()
    expect(page.locator("#accept")).to_be_hidden()
    expect(user.objects()).not_to_contain_text("suggested")
    page.click("#following")
    user.says("d.jpg")
    expect(rows(user).nth(2)).to_have_text("1 object")
    for name in ("f.jpg", "g.jpg", "b.jpg"):
        page.click("#accept")
        user.says(name)
    user.says("No suggestions are left.")  # but photographs are
    refused(user)


def test_all_above_a_score_are_accepted_and_a_refusal_is_named(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    answers(desktop, 200, 200, 400)
    find_all(desktop)
    desktop.says("10 suggested for “a cat”. The service refused 1: the list gives the reasons.")
    row = page.locator("#job-list li", has_text="refused")
    expect(row.get_by_role("button")).to_have_attribute("title", "No such luck.")
    page.fill("#accepted-least", "0.95")
    expect(page.locator("#accept-all")).to_have_text("Accept 5")
    page.click("#accept-all")
    desktop.says("5 suggestions were accepted.")
    expect(rows(desktop).first).to_have_text("1 suggested, 1 object")
    page.uncheck("#split")
    with page.expect_download() as download:
        page.click("#job-coco")
    whole = json.loads(Path(download.value.path()).read_text())
    assert [one["score"] for one in whole["annotations"]] == [0.95] * 5
    page.click("#reject-all")
    desktop.says("5 suggestions were rejected.")
    expect(page.locator("#offered")).to_be_hidden()
    find_all(desktop)  # what is labelled already is not suggested again
    desktop.says("7 suggested for “a cat”.")
    refused(desktop)


def test_undo_takes_back_what_the_user_did_and_leaves_suggestions(
    desktop: User, folder: Path
) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    answers(desktop)
    find_all(desktop)
    desktop.says("suggested for “a cat”.")
    expect(rows(desktop).first).to_have_text("2 suggested, 1 object")
    page.press("#stage", "Control+z")  # the name
    page.press("#stage", "Control+z")
    expect(rows(desktop).first).to_have_text("2 suggested")
    page.press("#stage", "Control+Shift+z")
    expect(rows(desktop).first).to_have_text("2 suggested, 1 object")
    page.click("#reject-all")
    desktop.says("were rejected")
    expect(rows(desktop).first).to_have_text("1 object")
    page.press("#stage", "Control+z")
    expect(rows(desktop).first).to_have_text("2 suggested, 1 object")


def test_the_selected_object_stays_selected_when_suggestions_before_it_are_rejected(
    desktop: User, folder: Path
) -> None:
    for file in [*folder.glob("*.jpg"), *folder.glob("deep/*")]:
        if file.name != "a.jpg":
            file.unlink()
    page = opened(desktop, folder).page
    answers(desktop)
    find_all(desktop)
    desktop.says("2 suggested for “a cat”.")
    page.unroute("**/segment")
    desktop.segment(count=3)
    page.click("#reject")
    desktop.says("No suggestions are left.")
    expect(desktop.objects()).to_have_attribute("aria-pressed", "true")


def test_what_was_clicked_meanwhile_is_not_accepted_as_well(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    answers(desktop)
    find_all(desktop)
    desktop.says("12 suggested for “a cat”.")
    mask = found(1, (12, 10, 210, 210, ""))  # nearly the first suggestion
    answer = {"results": [{"masks": [mask["mask"]]}], "image": {"key": "0" * 64}}
    page.route("**/segment", lambda route: route.fulfill(json=answer))
    desktop.point(0.3, 0.3)
    desktop.says("of the photograph")
    expect(rows(desktop).first).to_have_text("2 suggested, 1 object")
    page.click("#accept")
    desktop.says("b.jpg")
    expect(rows(desktop).first).to_have_text("2 objects")


def test_a_thing_is_suggested_once_with_its_likeliest_name(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    dogs = json.loads(json.dumps(result([0.9, 0.6])).replace("a cat", "a dog"))
    answer = {"results": [result([0.8, 0.7]), dogs], "image": {"key": "0" * 64}}
    page.route("**/segment", lambda route: route.fulfill(json=answer))
    find_all(desktop, "a cat, a dog")
    desktop.says("12 suggested for “a cat”, “a dog”.")
    desktop.turn_to("Objects")
    expect(desktop.objects()).to_contain_text(["a dog", "a cat"])
    expect(desktop.objects()).to_contain_text(["0.90", "0.70"])


def test_a_key_that_is_held_decides_once(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    answers(desktop)
    find_all(desktop)
    desktop.says("12 suggested")
    page.keyboard.press("Escape")
    page.keyboard.down("r")
    desktop.says("b.jpg")
    page.keyboard.down("r")  # a repetition
    page.wait_for_timeout(300)
    page.keyboard.up("r")
    expect(rows(desktop)).to_have_text(
        ["", *["2 suggested"] * 3, "cannot be read", *["2 suggested"] * 2]
    )


def test_another_folder_has_a_count_of_its_own(desktop: User, folder: Path, tmp_path: Path) -> None:
    page = opened(desktop, folder).page
    answers(desktop)
    find_all(desktop)
    desktop.says("12 suggested for “a cat”.")
    (tmp_path / "dogs").mkdir()
    for name in ("a.jpg", "b.jpg"):
        copy2(folder / name, tmp_path / "dogs")
    page.set_input_files("#job-folder", tmp_path / "dogs")
    expect(page.locator("#job-count")).to_have_text("0 of 2 done, 2 left")
    expect(rows(desktop)).to_have_text(["", ""])  # files of the same name, size and date
    find_all(desktop)
    expect(page.locator("#status")).to_have_text("4 suggested for “a cat”.")
    expect(page.locator("#sought-count")).to_contain_text("2 of 2 searched")


def test_a_search_of_a_folder_asks_two_at_a_time_and_can_be_cancelled(
    desktop: User, folder: Path
) -> None:
    page = opened(desktop, folder).page
    held: list[Route] = []
    page.route("**/segment", lambda route: held.append(route))
    find_all(desktop)
    expect(page.locator("#sought-count")).to_have_text("0 of 7 searched for “a cat”, 0 suggested")
    page.wait_for_timeout(500)
    assert len(held) == 2
    page.click("#find-all button.main")
    desktop.fails("cancel it first")
    page.click("#stop-finding")
    desktop.says("7 photographs were not searched: press the button again to continue.")
    expect(page.locator("#seeking")).to_be_hidden()
    page.unroute("**/segment")
    answers(desktop, 200, 401)
    find_all(desktop)
    expect(page.locator("#menu")).to_be_visible()  # it asks for a key
    page.keyboard.press("Escape")
    page.unroute("**/segment")
    asked = answers(desktop)
    find_all(desktop)
    desktop.says("suggested for “a cat”.")
    assert len(asked) < 6
    refused(desktop)


def test_an_object_is_an_example_for_all_and_is_sent_again(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    page.click("#find-alike")
    desktop.fails("Select an object first")
    label(desktop)
    page.click("#find-alike")
    desktop.fails("Name the object first")
    page.fill("#called", "tom")
    page.press("#called", "Enter")
    page.keyboard.press("x")
    desktop.says("b.jpg")
    page.keyboard.press(",")
    desktop.says("a.jpg")
    desktop.objects().first.dispatch_event("click")
    asked = answers(desktop, 200, 409, 409, 409, 409)  # two photographs, each sent twice
    page.click("#find-alike")
    desktop.says("suggested for “tom”.")
    bodies = [route.request.post_data_buffer.decode("utf-8", "replace") for route in asked]
    assert '"points":' in bodies[0]  # the photograph has been opened again: it is sent first
    assert f'"key":"{"0" * 64}"' in bodies[1]
    assert sum('"points":' in body for body in bodies) == 3
    refused(desktop)
