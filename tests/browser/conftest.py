"""The playground of the real service in headless Chromium, as a desktop and as a phone."""

import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from skimage import data

from tests.e2e.conftest import Service, checkpoint_name, index_dir, service

__all__ = ["checkpoint_name", "index_dir", "service"]
PATIENCE_MS = 120_000  # a busy machine takes a minute for everything in a photograph
expect.set_options(timeout=PATIENCE_MS)


PANELS = {
    "classify": "Name",
    "classify-object": "Name",
    "semantic": "Map",
    "everything": "Objects",
    "index": "Collections",
    "similar": "Collections",
    "similar-object": "Collections",
}


@dataclass
class User:
    """A browser tab on the playground, and what it has sent and logged."""

    page: Page
    touch: bool
    size: tuple[int, int] = (451, 300)
    """Width and height of the photograph that is open."""
    sent: list[Any] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Wait for the answer about the sample that the page begins with, and forget it."""
        expect(self.page.locator("#status")).to_contain_text(re.compile("found|Not there"))
        self.sent.clear()

    def open_sample(self, title: str = "Cat") -> None:
        self.page.locator("#samples button", has=self.page.get_by_alt_text(title)).dispatch_event(
            "click"
        )
        self.says("Click a thing")
        status = self.page.locator("#status").inner_text()
        width, height = re.findall(r"(\d+) × (\d+)", status)[0]
        self.size = int(width), int(height)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where in the canvas a share of the photograph's width and height is seen."""
        canvas = self.page.locator("#stage").bounding_box()
        assert canvas is not None
        sides = (canvas["width"], canvas["height"])
        scale = min(side / own for side, own in zip(sides, self.size, strict=True))
        left, top = (
            side / 2 + (share - 0.5) * own * scale
            for side, share, own in zip(sides, (x, y), self.size, strict=True)
        )
        return left, top

    def point(self, x: float, y: float) -> None:
        """Click the photograph at this share of its width and height."""
        left, top = self.place(x, y)
        position: Any = {"x": left, "y": top}
        if self.touch:
            self.page.tap("#stage", position=position)
        else:
            self.page.click("#stage", position=position)

    def segment(self, x: float = 0.4, y: float = 0.5, count: int = 1) -> None:
        """Click an object, and wait until there are so many."""
        self.point(x, y)
        expect(self.objects()).to_have_count(count)

    def turn_to(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name)
        if tab.get_attribute("aria-selected") == "true":  # a second click closes the panel
            return
        tab.click()
        if name == "Collections":  # a click on a button that moves meanwhile is lost
            expect(self.page.locator("#collections")).to_have_attribute("aria-busy", "false")

    def ask(self, button: str) -> None:
        """Press a button of a panel."""
        self.turn_to(PANELS[button])
        if button == "index":
            self.unfold_more()
        self.page.click(f"#{button}")

    def unfold_more(self) -> None:
        """Show the fields with which photographs are added to a collection."""
        self.turn_to("Collections")
        self.page.locator("#more-photographs").evaluate("details => { details.open = true; }")

    def find(self, words: str) -> None:
        self.page.fill("#phrase", words)
        self.page.press("#phrase", "Enter")

    def add_to(self, collection: str) -> None:
        """Add the photograph to a collection."""
        self.unfold_more()
        self.page.fill("#collection", collection)
        self.page.locator("#collection").blur()  # the list is read again
        expect(self.page.locator("#collections")).to_have_attribute("aria-busy", "false")
        self.page.click("#index")
        self.says("was added")

    def knows(self, *collections: str) -> None:
        """Let the service say that it has these collections."""
        known = [{"name": name, "count": 1, "objects": 0} for name in collections]
        self.page.route("**/describe", lambda route: route.fulfill(json={"collections": known}))

    def objects(self) -> Any:
        """Return the lines of single objects in the list, as buttons that select them."""
        return self.page.locator("#objects .pick[aria-pressed]")

    def says(self, text: str) -> None:
        expect(self.page.locator("#status")).to_contain_text(text)

    def fails(self, text: str) -> None:
        expect(self.page.locator("#error")).to_contain_text(text)

    def form(self, at: int = -1) -> str:
        """Return the body of a request that was sent; files in it are not text."""
        body: bytes = self.sent[at].post_data_buffer
        return body.decode("utf-8", "replace")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium: make browser installs it as root")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "color_scheme": "dark",
    "has_touch": True,
    "is_mobile": True,
}


def _asks(request: Any) -> bool:
    """Return whether a request is a question of the user: the list of collections is none."""
    return bool(request.method == "POST" and not request.url.endswith("/describe"))


def _user(browser: Browser, service: Service, window: dict[str, Any]) -> Iterator[User]:
    context = browser.new_context(**window, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    user = User(page, touch=window is PHONE)
    page.on("request", lambda r: user.sent.append(r) if _asks(r) else None)
    page.on("pageerror", lambda error: user.problems.append(str(error)))
    page.on("console", lambda m: user.problems.append(m.text) if m.type == "error" else None)
    page.goto(service.url)
    user.begin()
    assert not user.problems
    yield user
    context.close()
    assert not user.problems


@pytest.fixture
def desktop(browser: Browser, service: Service) -> Iterator[User]:
    yield from _user(browser, service, DESKTOP)


@pytest.fixture
def phone(browser: Browser, service: Service) -> Iterator[User]:
    yield from _user(browser, service, PHONE)


@pytest.fixture(params=["desktop", "phone"])
def user(request: pytest.FixtureRequest) -> User:
    """Return the desktop, then the phone."""
    found: User = request.getfixturevalue(request.param)
    return found


def picture(kind: str, size: tuple[int, int] = (451, 300)) -> dict[str, Any]:
    """Return a file of a cat, as a page is given it."""
    file = io.BytesIO()
    Image.fromarray(data.chelsea()).resize(size).save(file, kind)
    kind = kind.lower()
    return {"name": f"cat.{kind}", "mimeType": f"image/{kind}", "buffer": file.getvalue()}
