"""The built documentation is complete and readable from disk: nothing in it is on another host."""

import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import samclip

from samclip_core import errors
from services.request.routes import ROUTES
from tests.checkout import ROOT

pytestmark = pytest.mark.site

SITE = ROOT / "out/site"
PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html"))


class Loaded(HTMLParser):
    """The addresses from which a page loads something, which links of a reader are not."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag != "a" and not (tag == "link" and named.get("rel") in ("canonical", "prev", "next")):
            self.addresses += [named[name] or "" for name in ("src", "href") if name in named]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_only_files_of_the_site(page: str) -> None:
    for address in Loaded(SITE / page).addresses:
        assert ":" not in address.split("?")[0].removeprefix("data:"), address
        if page != "404.html" and not address.startswith("data:"):
            assert (SITE / page).parent.joinpath(address.split("#")[0].split("?")[0]).exists()


def test_style_sheets_load_nothing_from_elsewhere() -> None:
    for sheet in SITE.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", sheet.read_text()), sheet


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("cli", ["samclip segment", "samclip cache warm", "--multimask"]),
        ("client", [f'id="samclip.{name}"' for name in samclip.__all__]),
        ("client", ["samclip.Client.search", "samclip.Photo.segment", "samclip.Mask.cutout"]),
        ("library", ['id="samclip_core.SamClip.segment"', 'id="samclip_core.Geometry.resize"']),
        ("proto", [route.rpc for routes in ROUTES.values() for route in routes]),
        ("proto", ["StreamEverything", "lower-case hex sha256", 'id="maskencoding"']),
        (
            "rest",
            [f'id="post-{r.path.replace("/", "")}"' for each in ROUTES.values() for r in each],
        ),
        ("errors", ["InvalidPrompt: invalid prompt", "400", "BackupError"]),
        ("rest", [errors.ImageTooLarge.__name__, "413"]),
        (
            "metrics",
            [
                "samclip_requests_total",
                "samclip_ready",
                "samclip_certificate_expiry_timestamp_seconds",
            ],
        ),
    ],
)
def test_the_reference_has_what_the_code_has(page: str, expected: list[str]) -> None:
    text = (SITE / f"reference/{page}.html").read_text()
    assert [each for each in expected if each not in text] == []


@pytest.fixture(scope="module")
def search() -> Iterator[Callable[[str], list[str]]]:
    """Return a function that searches in a browser, and returns the links in order."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))

        def found(text: str) -> list[str]:
            page.goto((SITE / "index.html").as_uri())
            page.get_by_role("textbox", name="Search").click()
            page.keyboard.insert_text(text)
            page.keyboard.press("End")
            links = page.locator(".md-search-result__link")
            links.first.wait_for()
            return [unquote(link.get_attribute("href") or "") for link in links.all()]

        yield found
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("SamclipRedisDown", "RUNBOOK.html"),
        ("point (500, 20) lies outside the image of 451×300 pixels", "point---lies-outside"),
        (
            "cannot listen at 127.0.0.1:8000 (Address already in use): stop the process that "
            "listens there, or choose another port with --http-port",
            "cannot-listen-at",
        ),
        (
            "samclip segment: --out cat.jpg is the photograph itself: name another file",
            "--out--is-the-photograph-itself",
        ),
    ],
)
def test_the_search_finds_an_alert_and_a_message_as_it_was_printed(
    search: Callable[[str], list[str]], words: str, expected: str
) -> None:
    assert expected in " ".join(search(words)[:2])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_its_version(page: str) -> None:
    assert f"SAM-CLIP Serve {samclip.__version__}" in (SITE / page).read_text()
