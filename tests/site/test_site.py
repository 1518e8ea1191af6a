"""The built documentation is complete and readable from disk: nothing in it is on another host."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

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


def slug(path: str) -> str:
    """Return the end of a heading's anchor."""
    return path.replace("/", "")


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("cli", ["samclip segment", "samclip cache warm", "--multimask"]),
        ("client", [f'id="samclip.{name}"' for name in samclip.__all__]),
        ("client", ["samclip.Client.search", "samclip.Photo.segment", "samclip.Clicks.undo"]),
        ("library", ['id="samclip_core.SamClip.segment"', 'id="samclip_core.Geometry.resize"']),
        ("proto", [route.rpc for routes in ROUTES.values() for route in routes]),
        ("proto", ["SegmentStream", "lower-case hex sha256", 'id="maskencoding"']),
        ("rest", [f'id="post-{slug(route.path)}"' for each in ROUTES.values() for route in each]),
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


def test_the_search_works_from_disk(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((SITE / "index.html").as_uri())
        page.get_by_role("textbox", name="Search").click()
        page.keyboard.type("SamclipRedisDown")
        found = page.locator(".md-search-result__link").first
        found.wait_for()
        assert "RUNBOOK.html" in (found.get_attribute("href") or "")
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
