"""The pages for people who use a screen reader or a keyboard, by axe's rules."""

import pytest
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import User

pytestmark = pytest.mark.browser
TABS = ("Objects", "Name", "Map", "Collections")


def found(user: User) -> list[str]:
    page = user.page
    # The page's policy forbids scripts of others: axe is given as a script of the test.
    violations = Axe().run(page)["violations"]
    return [f"{rule['id']}: {[node['html'] for node in rule['nodes']]}" for rule in violations]


def test_axe_finds_nothing_on_the_playground(user: User) -> None:
    assert not found(user)
    user.page.click("#more")
    assert not found(user)
    user.page.keyboard.press("Escape")
    user.open_sample()
    user.segment()
    for tab in TABS:
        user.turn_to(tab)
        assert not found(user), tab


def test_axe_finds_nothing_in_an_error_and_during_work(user: User) -> None:
    user.open_sample()
    user.ask("classify-object")
    user.fails("Select an object first")
    assert not found(user)
    user.page.route("**/classify", lambda route: None)  # never answered
    user.page.click("#classify")
    expect(user.page.locator("#busy")).to_be_visible()
    assert not found(user)


def test_tabs_are_turned_with_arrow_keys(desktop: User) -> None:
    expect(desktop.page.locator("#tab-heads")).to_be_hidden()
    desktop.turn_to("Objects")
    desktop.page.get_by_role("tab", name="Objects").focus()
    for tab in (*TABS[1:], TABS[0]):
        desktop.page.keyboard.press("ArrowRight")
        expect(desktop.page.get_by_role("tab", name=tab)).to_be_focused()
        expect(desktop.page.get_by_role("tabpanel")).to_have_count(1)
