"""Heads of one's own in the playground, with a service that has some."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import User
from tests.browser.test_access import found
from tests.browser.test_snippets import run, shell
from tests.e2e.conftest import Service, start

__all__ = ["shell"]
pytestmark = pytest.mark.browser
HEADS = ",".join(f"tests.own_heads:{name}" for name in ("Echo", "Parts", "Faulty"))
TYPED = {"sides": "3", "colour": '{"red": 7}', "words": '["a, b"]', "sizes": "4, 5", "note": ""}
GIVEN = {
    **{"sides": 3, "shape": "square", "colour": {"red": 7}, "words": ["a, b"]},
    **{"sizes": [4, 5], "note": "", "sure": False},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, checkpoint_name: str) -> Iterator[Service]:
    """Run a service in place of that of the other tests."""
    running = start(tmp_path_factory.mktemp("heads"), checkpoint_name, HEADS=HEADS)
    yield running
    running.stop()


def ask(user: User, head: str, **typed: str) -> None:
    """Choose a head, fill in its form, and press Enter on its button."""
    user.turn_to("Heads")
    heads = user.page.get_by_role("combobox", name="Head")
    if heads.input_value() != head:  # a choice empties the form
        heads.select_option(head)
    for name, value in typed.items():
        user.page.fill(f"#parameters [name={name}]", value)
    user.page.press("#ask button", "Enter")


def cell(user: User, place: str) -> str:
    """Return the value beside a place in the table of the answer."""
    row = user.page.locator("#told tr", has=user.page.get_by_role("rowheader", name=place))
    return row.locator("td").inner_text().strip()


def test_a_form_made_from_the_schema_asks_and_the_answer_is_a_table(
    user: User, shell: Path
) -> None:
    user.open_sample()
    ask(user, "echo")
    expect(user.page.locator("[name=sides]")).to_be_focused()  # which is required
    expect(user.page.locator("[name=sides]")).to_have_accessible_description(
        "how many sides it has"
    )
    user.page.select_option("[name=shape]", label="square")
    user.page.uncheck("[name=sure]")
    ask(user, "echo", **TYPED)
    user.says("The head echo has answered")
    assert (cell(user, "given.colour.red"), cell(user, "given.sizes")) == ("7", "4, 5")
    assert cell(user, "given.share") == "null"
    assert not found(user)
    for kind in ("curl", "grpcurl", "CLI", "Python"):
        user.page.get_by_role("button", name=kind, exact=True).click()
        text = run(shell, kind, user.page.locator("#copied").inner_text())
        if kind == "CLI":
            assert "red=7 note= shape=square share=None sides=3 sizes=[4, 5] sure=False" in text
            continue
        answer = ast.literal_eval(text) if kind == "Python" else json.loads(text)
        assert answer.get("result", answer)["given"].items() >= GIVEN.items(), kind
    user.open_sample("Cup of coffee")
    expect(user.page.locator("#told")).to_be_empty()


def test_an_answer_of_a_probe_is_read_as_words_and_a_table(desktop: User) -> None:
    scores = [{"class": "cat", "probability": 0.6}, {"probability": 0.4, "class": "dog"}]
    result = {"class": "", "probability": 0.6, "scores": scores}
    answer = {"result": result, "masks": [], "tensors": [], "pictures": []}
    desktop.page.route("**/heads/echo", lambda route: route.fulfill(json=answer))
    desktop.open_sample()
    ask(desktop, "echo", sides="4")
    desktop.says("The head echo has answered")
    assert cell(desktop, "class") == "none of these"
    rows = desktop.page.locator("#told table table tr")
    assert [row.inner_text().split() for row in rows.all()] == [
        ["class", "probability"],
        ["cat", "0.6"],
        ["dog", "0.4"],
    ]


def test_masks_pictures_and_arrays_of_an_answer_are_shown(desktop: User) -> None:
    desktop.open_sample()
    ask(desktop, "parts")
    desktop.says("1 mask is over the photograph.")
    assert cell(desktop, "parts.0.mask") == "50.0 % of the photograph"
    assert cell(desktop, "parts.0.name") == "upper"
    assert "2 × " in cell(desktop, "map")
    picture = desktop.page.get_by_role("img", name="picture", exact=True)
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [4, 3]
    desktop.turn_to("Objects")
    expect(desktop.objects()).to_have_count(1)
    expect(desktop.objects()).to_contain_text("parts.0.mask")


def test_what_is_refused_what_does_not_fit_and_long_work_are_said(desktop: User) -> None:
    desktop.open_sample()
    ask(desktop, "faulty", how="invalid")
    desktop.fails("No face in the picture: send one with a face.")
    ask(desktop, "faulty", how="crash")
    desktop.fails("Internal error; request id")
    asked = len(desktop.sent)
    ask(desktop, "echo", sides="3", colour='{"red')
    desktop.fails("does not fit colour: type JSON.")
    ask(desktop, "echo", sides="3", colour="", sizes="4, five")
    desktop.fails("“4, five” does not fit sizes: type numbers with commas between them.")
    assert len(desktop.sent) == asked
    desktop.page.route("**/heads/parts", lambda route: None)  # never answered
    ask(desktop, "parts")
    expect(desktop.page.locator("#told")).to_have_attribute("aria-busy", "true")
    desktop.page.click("#cancel")
    desktop.says("Cancelled")
    expect(desktop.page.locator("#told")).not_to_have_attribute("aria-busy", "true")
    desktop.problems.clear()  # the browser's own lines about the errors
