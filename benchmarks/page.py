"""Count the clicks and seconds of five tasks in the playground, with a real browser.

``python -m benchmarks.page http://127.0.0.1:8000`` needs Playwright and Chromium, which
``make browser`` installs.
"""

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from skimage import data

LONGEST_MS = 120_000
READY = re.compile("found|Not there")
"""The status before the user begins: the sample's answer is there."""
FOLDER = ("chelsea", "coffee", "rocket")


class Hand:
    """A user of one page; to type in a field or to choose files counts as one click."""

    def __init__(self, page: Page, folder: Path):
        self.page, self.folder, self.clicks = page, folder, 0

    def press(self, selector: str) -> None:
        self.clicks += 1
        self.page.locator(selector).first.click()

    def turn_to(self, panel: str) -> None:
        """Show a panel, unless it is shown."""
        tab = f"#tab-{panel}"
        if self.page.locator(tab).get_attribute("aria-selected") != "true":
            self.press(tab)

    def type(self, selector: str, text: str) -> None:
        self.clicks += 1
        self.page.fill(selector, text)
        self.page.press(selector, "Enter")

    def open(self, name: str = "chelsea") -> None:
        self.clicks += 1
        self.page.set_input_files("#file", self.folder / f"{name}.png")
        self.says(f"{name}.png")

    def point(self) -> None:
        """Click the middle of the photograph."""
        self.press("#stage")
        self.says("% of the photograph")

    def says(self, text: str) -> None:
        expect(self.page.locator("#status")).to_contain_text(text)


def cut_out(hand: Hand) -> None:
    """Open your own photograph, click a thing and save its cut-out."""
    hand.open()
    hand.point()
    with hand.page.expect_download():
        hand.press("#cut")


def find(hand: Hand) -> None:
    """Open your own photograph and find a cat by words."""
    hand.open()
    hand.type("#phrase", "a cat")
    hand.says("found")


def label(hand: Hand) -> None:
    """Label three photographs of a folder."""
    for name in FOLDER:
        hand.open(name)
        hand.turn_to("classify")
        hand.press("#classify")
        hand.says("most likely")


def search(hand: Hand) -> None:
    """Add three photographs to a collection with their objects, and find a cat in it."""
    hand.turn_to("search")
    known = hand.page.locator("#collections li, #more-photographs[open]")
    expect(known.first).to_be_attached()
    if not hand.page.locator("#with-objects").is_visible():
        hand.press("#more-photographs summary")
    hand.press("#with-objects")
    hand.clicks += 1
    hand.page.set_input_files("#many", [hand.folder / f"{name}.png" for name in FOLDER])
    hand.says("3 of 3")
    hand.type("#query", "a cat")
    expect(hand.page.locator("#hits li").first).to_contain_text("chelsea")


def program(hand: Hand) -> None:
    """Click a thing in your own photograph and copy the request as Python."""
    hand.open()
    hand.point()
    hand.press("[data-copy=client]")
    expect(hand.page.locator("#copied")).to_contain_text("import samclip")


TASKS: tuple[Callable[[Hand], None], ...] = (cut_out, find, label, search, program)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the clicks and the seconds of each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    url = parser.parse_args(argv).url
    expect.set_options(timeout=LONGEST_MS)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        for name in FOLDER:
            pixels = getattr(data, name)().copy()
            pixels[0, 0] = np.random.default_rng().integers(0, 256, 3)  # the service knows none
            Image.fromarray(pixels).save(Path(folder, f"{name}.png"))
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for task in TASKS:
            page = browser.new_page(viewport={"width": 1366, "height": 768})
            page.goto(url)
            expect(page.locator("#status")).to_contain_text(READY)
            start, hand = time.perf_counter(), Hand(page, Path(folder))
            task(hand)
            seconds = time.perf_counter() - start
            print(f"{hand.clicks:3} clicks, {seconds:5.1f} s: {task.__doc__}")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
