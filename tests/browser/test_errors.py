"""Errors and long work in the playground: in a sentence, in view, and beside the button."""

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PANELS, User, picture

pytestmark = pytest.mark.browser


def in_view(found: Any) -> None:
    """Assert that an element is inside the window, with nothing over it."""
    expect(found).to_be_visible()
    assert found.evaluate(
        """element => {
          const {left, right, top, bottom} = element.getBoundingClientRect();
          const seen = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
          return top >= 0 && bottom <= innerHeight && (seen === element || element.contains(seen));
        }"""
    )


def choose(user: User, button: str, name: str, content: bytes) -> None:
    with user.page.expect_file_chooser() as chooser:
        user.page.click(button)
    chooser.value.set_files({"name": name, "mimeType": "image/heic", "buffer": content})


@pytest.fixture
def small(user: User) -> User:
    """Return a user with a laptop's window, or a phone's."""
    if not user.touch:
        user.page.set_viewport_size({"width": 1366, "height": 768})
    return user


def test_a_bad_file_is_refused_in_view_and_beside_the_button(small: User) -> None:
    choose(small, "#open", "photo.heic", b"ftypheic")
    small.fails("This browser cannot read photo.heic")
    for place in ("#error", "#beside"):
        in_view(small.page.locator(place))
    expect(small.page.locator("#beside")).to_have_text(re.compile("cannot read photo.heic"))
    small.page.set_input_files("#file", picture("JPEG"))
    small.says("cat.jpeg")
    expect(small.page.locator("#beside")).to_have_text("")


def test_a_service_that_was_away_is_asked_again(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.route("**/segment", lambda route: route.abort())
    desktop.point(0.4, 0.5)
    desktop.fails("The service does not answer")
    desktop.page.unroute("**/segment")
    desktop.segment()
    desktop.problems.clear()


@pytest.mark.parametrize(
    "button", ["#index", "#similar", "#find button", "#classify", "#everything"]
)
def test_a_service_that_is_away_is_said_in_view_and_beside_the_button(
    small: User, button: str
) -> None:
    small.open_sample("Astronaut")
    small.page.route("**/*", lambda route: route.abort())
    if button[1:] in PANELS:
        small.ask(button[1:])
    else:
        small.page.click(button)
    small.fails("The service does not answer")
    for place in ("#error", "#beside"):
        in_view(small.page.locator(place))
    gap = small.page.evaluate(
        """button => document.getElementById("beside").getBoundingClientRect().top
          - document.querySelector(button).getBoundingClientRect().bottom""",
        button,
    )
    assert 0 <= gap < 100
    small.problems.clear()


def test_an_error_beside_a_hit_goes_with_the_hits(desktop: User) -> None:
    desktop.open_sample()
    desktop.add_to("one")
    desktop.page.click("#similar")
    more = desktop.page.locator("#hits").get_by_role("button", name="More like")
    desktop.page.route("**/search", lambda route: route.abort())
    more.click()
    expect(desktop.page.locator("#hits #beside")).to_contain_text("does not answer")
    desktop.page.unroute("**/search")
    desktop.page.click("#similar")
    desktop.says("1 found")
    desktop.page.click("#similar-object")
    expect(desktop.page.locator("#beside")).to_contain_text("Select an object first")
    desktop.problems.clear()


def test_an_answer_that_is_cut_off_is_said(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.evaluate(
        """() => { window.fetch = async () => new Response(new ReadableStream({
          pull(controller) { controller.error(new TypeError("network error")); }})); }"""
    )
    for button in ("everything", "classify"):
        desktop.ask(button)
        desktop.fails("The service does not answer")


@pytest.mark.parametrize("action", ["everything", "semantic", "index", "similar"])
def test_long_work_and_its_end_are_in_view(small: User, action: str) -> None:
    small.open_sample("Astronaut")
    small.knows("one")
    small.turn_to(PANELS[action])
    small.page.route("**/*", lambda route: None)  # never answered
    small.ask(action)
    small.says("Asking the service")
    for place in ("#status", "#progress", "#elapsed", "#cancel"):
        in_view(small.page.locator(place))
    small.page.focus("#cancel")
    small.page.keyboard.press("Enter")
    small.says("Cancelled")
    in_view(small.page.locator("#status"))
    expect(small.page.locator(f"#{action}")).to_be_focused()


def test_samples_that_cannot_be_had_are_said(small: User) -> None:
    small.page.route("**/samples/*.jpg", lambda route: route.abort())
    small.page.locator("#samples button").nth(1).click()
    small.fails("The service does not answer")
    in_view(small.page.locator("#beside"))
    small.page.route("**/samples.json", lambda route: route.abort())
    small.page.reload()
    small.fails("The service does not answer")
    small.page.get_by_text("Box", exact=True).click()
    small.fails("The service does not answer")
    small.problems.clear()


def test_nothing_to_find_is_said(small: User) -> None:
    small.find(" , ")
    small.fails("Type what to find")
    assert not small.sent
