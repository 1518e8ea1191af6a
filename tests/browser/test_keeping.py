"""Work that survives a reload: objects and their names are kept in the browser."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import User, picture

pytestmark = pytest.mark.browser
AGAIN = "The objects of last time are here again."
FORBIDDEN = "indexedDB.open = () => { throw new DOMException('', 'SecurityError'); };"
SILENT = "indexedDB.open = () => ({});"
REFUSED = "{ throw new DOMException('', 'SecurityError'); }"
NO_WORDS = {
    "getter": f"Object.defineProperty(window, 'localStorage', {{get() {REFUSED}}});",
    "setItem": f"Storage.prototype.setItem = () => {REFUSED};",
}
SLOW = """
const real = indexedDB.open.bind(indexedDB);
indexedDB.open = (...given) => {
  const late = {};
  window.answer = () => {
    const opening = real(...given);
    opening.onsuccess = () => { late.result = opening.result; late.onsuccess(); };
  };
  return late;
};
"""
STALLED = """
const real = IDBObjectStore.prototype.get;
let stalls = true;
window.answer = () => { stalls = false; };
IDBObjectStore.prototype.get = function (key) {
  const late = {};
  const read = () => {
    real.call(this, key).onsuccess = ({target}) => {
      if (stalls) return read();
      late.result = target.result;
      late.onsuccess();
    };
  };
  read();
  return late;
};
"""
FULL = "IDBObjectStore.prototype.put = () => { throw new DOMException('', 'QuotaExceededError'); };"


def name_one(user: User, kind: str = "JPEG") -> None:
    user.page.set_input_files("#file", picture(kind))
    user.says("Click a thing")
    user.segment()
    user.page.fill("#called", "tom")
    user.page.press("#called", "Enter")
    expect(user.objects()).to_contain_text("tom")


@pytest.mark.parametrize("kind", ["JPEG", "BMP"])
def test_objects_and_their_names_are_there_after_a_reload(desktop: User, kind: str) -> None:
    page = desktop.page
    name_one(desktop, kind)
    page.wait_for_timeout(300)  # until it is written
    page.reload()
    desktop.says(AGAIN)
    desktop.turn_to("Objects")
    expect(desktop.objects()).to_have_count(1)
    expect(desktop.objects()).to_contain_text("tom")
    desktop.objects().click()
    desktop.point(0.6, 0.6)  # its points are still there: this one refines it
    desktop.says("of the photograph")
    expect(desktop.objects()).to_have_count(1)
    expect(desktop.objects()).to_contain_text("tom")
    desktop.page.click("#more")
    desktop.page.click("#forget")
    desktop.says("are forgotten")
    page.reload()
    expect(page.locator("#status")).to_contain_text(re.compile("found|Not there"))


def test_a_page_of_another_version_is_not_blocked(desktop: User) -> None:
    name_one(desktop)
    page = desktop.page.context.new_page()
    page.goto(desktop.page.url)
    opened = """new Promise(done => {
      const opening = indexedDB.open("samclip-work", 2);
      opening.onsuccess = () => { opening.result.close(); done("open"); };
      setTimeout(() => done("blocked"), 5000);
    })"""
    assert page.evaluate(opened) == "open"
    page.close()
    desktop.page.click("#next")
    desktop.segment(0.9, 0.1, count=2)  # what was kept before stays
    desktop.says("cannot keep your work")


def test_work_after_everything_was_forgotten_is_kept(desktop: User) -> None:
    name_one(desktop)
    desktop.page.click("#more")
    desktop.page.click("#forget")
    desktop.says("are forgotten")
    desktop.page.keyboard.press("Escape")
    desktop.page.click("#next")
    desktop.segment(0.9, 0.1, count=2)
    desktop.page.wait_for_timeout(300)
    desktop.page.reload()
    desktop.says(AGAIN)


def test_two_pages_with_the_same_photograph_show_the_same_objects(desktop: User) -> None:
    name_one(desktop)
    desktop.page.wait_for_timeout(300)
    page = desktop.page.context.new_page()
    page.goto(desktop.page.url)
    expect(page.locator("#status")).to_contain_text(AGAIN)
    desktop.page.bring_to_front()
    desktop.page.click("#next")
    desktop.segment(0.9, 0.1, count=2)
    expect(page.locator("#status")).to_contain_text("changed in another page")
    expect(page.locator("#objects .pick[aria-pressed]")).to_have_count(2)
    desktop.page.click("#undo")
    expect(page.locator("#objects .pick[aria-pressed]")).to_have_count(1)
    page.close()


def test_undo_takes_nothing_of_last_time_away(desktop: User) -> None:
    name_one(desktop)
    for _ in range(2):
        desktop.page.wait_for_timeout(300)
        desktop.page.reload()
        desktop.says(AGAIN)
        desktop.page.keyboard.press("Control+z")
        expect(desktop.page.locator("#objects .pick[aria-pressed]")).to_have_count(1)


@pytest.mark.parametrize("ends", ["answer", "cancelled"])
def test_an_answer_that_is_awaited_undoes_nothing_of_another_page(desktop: User, ends: str) -> None:
    name_one(desktop)
    desktop.page.wait_for_timeout(300)
    page = desktop.page.context.new_page()
    page.goto(desktop.page.url)
    expect(page.locator("#status")).to_contain_text(AGAIN)
    held: list[Route] = []
    page.route("**/segment", lambda route: held.append(route))
    page.keyboard.press("n")
    box = page.locator("#stage").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"])
    expect(page.locator("#status")).to_contain_text("Asking")
    desktop.page.bring_to_front()
    desktop.page.click("#next")
    desktop.segment(0.9, 0.1, count=2)
    desktop.page.wait_for_timeout(300)
    if ends == "answer":
        held[0].continue_()
    else:
        page.keyboard.press("Escape")
    count = 3 if ends == "answer" else 2
    for each in (page, desktop.page):
        expect(each.locator("#objects .pick[aria-pressed]")).to_have_count(count)
    page.close()


@pytest.mark.parametrize("what", ["getter", "setItem"])
def test_a_browser_that_remembers_no_words_answers_all_the_same(desktop: User, what: str) -> None:
    desktop.page.context.add_init_script(NO_WORDS[what])
    desktop.page.reload()
    name_one(desktop)
    desktop.page.fill("#phrase", "a cat")
    desktop.page.press("#phrase", "Enter")
    expect(desktop.page.locator("#status")).to_contain_text(re.compile("found|Not there"))
    desktop.page.click("#more")
    desktop.page.fill("#key", "secret")
    desktop.page.press("#key", "Enter")
    desktop.says("the API key lasts until you close the page")


@pytest.mark.parametrize("script", [SLOW, STALLED], ids=["opening", "reading"])
@pytest.mark.parametrize("made", [True, False])
def test_storage_that_answers_late_shows_what_it_has_and_keeps_what_was_made_meanwhile(
    desktop: User, tmp_path: Path, made: bool, script: str
) -> None:
    page, file = desktop.page, tmp_path / "cat.jpeg"
    file.write_bytes(picture("JPEG")["buffer"])
    page.set_input_files("#file", file)
    desktop.says("Click a thing")
    desktop.segment()
    page.wait_for_timeout(300)
    page.context.add_init_script(script)
    page.reload()
    desktop.begin()
    page.set_input_files("#file", file)
    desktop.says("What was kept could not be read in time")
    if made:
        desktop.segment(0.9, 0.1)
        desktop.says("cannot keep your work yet, because its storage does not answer")
        page.click("#next")
        desktop.segment(0.1, 0.9, count=2)
        page.keyboard.press("Delete")  # stays removed
    page.evaluate("answer()")
    desktop.says("This browser keeps your work now.")
    expect(desktop.objects()).to_have_count(1 + made)


@pytest.mark.parametrize("script", [FORBIDDEN, SILENT, FULL])
def test_a_browser_that_keeps_nothing_says_so_and_goes_on(desktop: User, script: str) -> None:
    desktop.page.context.add_init_script(script)
    desktop.page.reload()
    desktop.begin()
    desktop.page.set_input_files("#file", picture("JPEG"))
    desktop.says("Click a thing")
    desktop.segment()
    desktop.says("cannot keep your work")
    desktop.page.click("#next")
    desktop.segment(0.9, 0.1, count=2)
