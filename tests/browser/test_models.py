"""The choice of a model in the playground, with a service that has several."""

import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.browser.conftest import User

pytestmark = pytest.mark.browser
EDGE = {"name": "edge", "digest": "e" * 64, "default": True, "state": "loaded", "alias_of": ""}
MOBILE = {**EDGE, "name": "mobile", "digest": "b" * 64, "default": False, "state": "idle"}
TEXT = {**MOBILE, "name": "text", "digest": "c" * 64, "without_masks": True, "state": "loaded"}
TODAY = {**EDGE, "name": "today", "default": False, "alias_of": "edge"}
SERVED = [EDGE, MOBILE, TEXT, TODAY]
NAMED = 'name="model"\r\n\r\n'


def model_in(request: Request) -> str:
    """Return the model that a request names, "" if it names none."""
    form = (request.post_data_buffer or b"").decode("utf-8", "replace")
    return form.partition(NAMED)[2].split("\r\n")[0]


def of_edge(route: Route) -> None:
    """Have the only model of the tests' service answer in place of the one that is named."""
    if not (name := model_in(route.request)):
        return route.continue_()  # with the file, which is not in the body that a test sees
    form = route.request.post_data_buffer or b""
    route.continue_(post_data=form.replace((NAMED + name).encode(), NAMED.encode()))
    return None


@pytest.fixture
def several(desktop: User) -> Page:
    """Return the page of a service with several models, whose photograph has a key."""
    page = desktop.page
    page.route("**/models", lambda route: route.fulfill(json={"models": SERVED}))
    for path in ("embed-text", "segment"):
        page.route(f"**/{path}", of_edge)
    page.reload()
    desktop.begin()
    return page


@pytest.fixture
def asked(several: Page) -> list[tuple[str, str]]:
    """Return the path and the model of each request that is sent from now on."""
    found: list[tuple[str, str]] = []

    def note(request: Request) -> None:
        if request.method == "POST":
            found.append((request.url.rsplit("/")[-1], model_in(request)))

    several.on("request", note)
    return found


def choose(page: Page, name: str) -> None:
    page.click("#more")
    page.get_by_role("combobox", name="Model").select_option(name)
    page.keyboard.press("Escape")


def click(page: Page, user: User) -> None:
    with page.expect_response("**/segment"):
        user.point(0.6, 0.5)


def test_there_is_no_choice_with_one_model(user: User) -> None:
    user.page.click("#more")
    expect(user.page.locator("#model")).to_contain_text("edge")
    expect(user.page.locator("#models")).to_be_hidden()


def test_the_chosen_model_answers_and_is_remembered(
    desktop: User, several: Page, asked: list[tuple[str, str]]
) -> None:
    options = several.locator("#models option")
    expect(options).to_have_text(["edge", "mobile, idle", "text", "today (now edge)"])
    choose(several, "mobile")
    desktop.says("mobile answers from now on.")
    assert asked == [("embed-text", "mobile")]
    click(several, desktop)
    assert asked[-1] == ("segment", "mobile")
    choose(several, "edge")
    desktop.says("edge answers from now on.")
    click(several, desktop)
    assert asked[-1] == ("segment", "")  # the default needs no name
    choose(several, "today")
    desktop.says("today answers from now on.")
    nothing = {"image": {"key": "k"}, "results": 2 * [{"masks": []}], "model": EDGE}
    several.route("**/segment", lambda route: route.fulfill(json=nothing))
    several.click("#more")
    several.click("#forget")  # else the page begins with what was clicked
    desktop.says("are forgotten")
    several.reload()
    desktop.says("Not there")
    assert asked[-1] == ("segment", "today")
    several.click("#more")
    expect(several.locator("#models")).to_have_value("today")


def test_a_model_that_is_gone_is_forgotten(
    desktop: User, several: Page, asked: list[tuple[str, str]]
) -> None:
    choose(several, "mobile")
    desktop.says("mobile answers from now on.")
    several.unroute("**/models")
    several.click("#more")
    expect(several.locator("#models")).to_be_hidden()
    several.keyboard.press("Escape")
    click(several, desktop)
    assert asked[-1] == ("segment", "")


def test_the_page_says_which_model_is_loaded(desktop: User, several: Page) -> None:
    held: list[Route] = []
    several.route("**/embed-text", lambda route: held.append(route))
    choose(several, "mobile")
    desktop.says("Loading mobile …")
    expect(several.locator("#cancel")).to_be_visible()
    held[0].fulfill(json={})
    desktop.says("mobile answers from now on.")


def test_the_reason_why_a_model_cannot_be_loaded_is_shown(desktop: User, several: Page) -> None:
    why = {"detail": "model 'mobile' cannot be loaded: a file is cut off"}
    several.route("**/embed-text", lambda route: route.fulfill(status=503, json=why))
    choose(several, "mobile")
    desktop.fails("Model 'mobile' cannot be loaded: a file is cut off.")
    desktop.problems.clear()  # the browser's own line about the 503


def test_a_model_without_masks_has_no_tools_for_them_until_another_is_chosen(
    desktop: User, several: Page
) -> None:
    finds = several.get_by_role("tab", name="Objects")
    choose(several, "text")
    expect(several.locator("#model")).to_contain_text("makes no masks")
    expect(finds).to_be_disabled()
    choose(several, "mobile")
    expect(finds).to_be_enabled()


@pytest.mark.parametrize(("collection", "model"), [("known", ""), ("new", "mobile")])
def test_a_collection_keeps_its_own_model(
    desktop: User, several: Page, asked: list[tuple[str, str]], collection: str, model: str
) -> None:
    desktop.knows("known")
    done = {"indexed": 1, "replaced": 0, "errors": []}
    several.route("**/index", lambda route: route.fulfill(json=done))
    several.route("**/search", lambda route: route.fulfill(json={"hits": [], "likely_score": 0}))
    choose(several, "mobile")
    desktop.says("mobile answers from now on.")
    desktop.add_to(collection)
    several.click("#similar")
    desktop.says("No photograph in")
    about = [request for request in asked if request[0] in ("index", "search")]
    assert about == [("index", model), ("search", "")]


def test_a_copied_request_names_the_model(desktop: User, several: Page) -> None:
    choose(several, "mobile")
    desktop.says("mobile answers from now on.")
    click(several, desktop)
    desktop.turn_to("Objects")
    for kind, expected in {
        "curl": "--form-string 'model=mobile'",
        "Python": ', model="mobile")\n',
        "CLI": " --model='mobile' ",
        "grpcurl": '"model":"mobile"',
    }.items():
        several.get_by_role("button", name=kind, exact=True).click()
        assert expected in several.locator("#copied").inner_text()
