"""What a new user sees: a demonstration that says so, and a page that says what it does and why."""

import re

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import User, picture
from tests.browser.test_access import found as axe
from tests.browser.test_errors import in_view

pytestmark = pytest.mark.browser


def test_a_demonstration_says_so_and_how_to_get_a_real_model(user: User) -> None:
    mark = user.page.locator("#demonstration")
    expect(mark).to_have_text("edge · a demonstration")
    in_view(mark)
    expect(user.objects().first).to_contain_text("likely")
    mark.click()
    expect(user.page.get_by_text("make serve MODEL=mobile")).to_be_visible()
    assert not axe(user)


def test_the_first_screen_has_at_most_twenty_controls(desktop: User) -> None:
    """What nobody needs yet is not there: a zoom, undo, a filter, programs."""
    controls = desktop.page.locator("button, input, select, textarea, a, summary")
    shown = controls.evaluate_all(
        "all => all.filter(one => one.checkVisibility()).map(one => one.id || one.textContent)"
    )
    assert len(shown) <= 20, shown
    desktop.segment(count=2)
    for name in ("#undo", "#copy", "#filter"):
        expect(desktop.page.locator(name)).to_be_visible()
    desktop.page.press("#stage", "+")
    for name in ("#smaller", "#fit"):
        expect(desktop.page.locator(name)).to_be_visible()


def test_very_sure_is_a_word_for_scores_whose_right_answers_were_counted(desktop: User) -> None:
    said = {"demonstration": False, "uncalibrated": False}

    def as_said(route: Route) -> None:
        answer = route.fetch()
        result = answer.json()
        result["model"] |= said
        for mask in result["results"][0]["masks"]:
            mask["label_score"] = 0.95
        route.fulfill(response=answer, json=result)

    desktop.page.route("**/segment", as_said)
    for words, least, expected in (("cat", 0, "likely, 0.95"), ("a cat", 0.94, "very sure, 0.95")):
        said["sure"] = least
        desktop.find(words)
        named = desktop.objects().filter(has_text=re.compile(f"^{words}"))
        expect(named.first).to_contain_text(expected)


def test_an_own_photograph_is_named_and_mapped_in_everyday_words(user: User) -> None:
    page = user.page
    page.set_input_files("#file", picture("JPEG"))
    user.says("cat.jpeg")
    expect(page.locator("#welcome")).to_be_hidden()  # it is about the sample
    user.ask("classify")
    user.says("most likely “cat”.")
    expect(page.locator("#answers li")).to_have_count(10)
    user.ask("semantic")
    expect(page.locator("#legend li").first).to_contain_text("cat")
    page.select_option("#explained", "airplane")
    page.click("#explain")
    user.says("The model sees “airplane” nowhere.")


def test_undone_questions_are_not_copied(desktop: User) -> None:
    desktop.segment(count=2)
    desktop.find("a cat")
    desktop.says("1 found.")
    copied = desktop.page.locator("#copied")
    for word in ('"text"', '"points"'):
        desktop.page.get_by_role("button", name="curl", exact=True).click()
        expect(copied).to_contain_text(word)
        desktop.page.click("#undo")
        expect(copied).to_be_hidden()


def test_escape_closes_the_keys_and_leaves_the_object_selected(desktop: User) -> None:
    desktop.segment(count=2)
    desktop.page.keyboard.press("?")
    sheet = desktop.page.locator("#sheet")
    expect(sheet).to_be_visible()
    desktop.page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    expect(desktop.page.locator("#about")).to_be_visible()


def test_a_greyed_button_says_why(user: User) -> None:
    redo = user.page.locator("#redo")
    user.segment(count=2)
    user.page.locator("#undo").click()
    redo.click()
    expect(redo).to_be_disabled()
    redo.dispatch_event("click")
    user.says("There is nothing to do again.")
    expect(redo).to_have_attribute("title", "There is nothing to do again.")
    user.page.locator("#undo").click()
    user.says("Undone")
    expect(redo).to_have_attribute("title", "Ctrl-Shift-Z")


def test_a_new_question_says_what_became_of_the_one_before(desktop: User) -> None:
    held: list[Route] = []
    desktop.page.route("**/everything", lambda route: held.append(route))
    desktop.ask("everything")
    desktop.says("Asking the service")
    desktop.ask("classify")
    desktop.says("most likely “a cat”. “Find everything” was stopped.")
    desktop.page.click("#classify")
    expect(desktop.page.locator("#status")).to_have_text(re.compile("“a cat”.$"))


def test_a_map_has_its_legend_beside_it(user: User) -> None:
    user.turn_to("Map")
    user.page.click("#semantic")
    rows = user.page.locator("#legend li")
    expect(rows.first).to_contain_text(re.compile(r"a cat\d+\.\d %"))
    in_view(rows.first)
    dots = [
        row.evaluate("row => getComputedStyle(row.querySelector('i')).backgroundColor")
        for row in rows.all()
    ]
    assert len({*dots}) == len(dots) > 1
    user.find("a cat")
    user.says("found")
    expect(user.objects()).to_have_count(len(dots) + 1)
    expect(rows).to_have_count(len(dots))  # until it is switched off
    user.page.get_by_role("button", name="Map off").click()
    expect(rows).to_have_count(0)
    expect(user.objects()).to_have_count(1)
    user.page.click("#undo")
    expect(rows).to_have_count(len(dots))


def test_with_a_panel_open_a_phone_keeps_two_thirds_of_the_picture(phone: User) -> None:
    phone.segment(count=2)
    phone.turn_to("Objects")
    picture, over = (phone.page.locator(name).bounding_box() for name in ("#picture", "#about"))
    assert picture
    assert over
    assert over["y"] - picture["y"] >= picture["height"] * 2 / 3
    for name in ("Next", "More like this", "Save cut-out"):
        in_view(phone.page.locator("#about").get_by_role("button", name=name))
