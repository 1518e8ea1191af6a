"""What the playground can do, on a desktop and on a phone."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Route, expect
from samclip.mask_codecs import decode_rle

from tests.browser.conftest import User, picture

pytestmark = pytest.mark.browser


def prompt(user: User) -> dict[str, Any]:
    """Return the only prompt of the latest request."""
    (found,) = json.loads(user.form().split('name="prompts"\r\n\r\n')[1].split("\r\n")[0])
    return dict(found)


def make_known(user: User) -> None:
    """Have the photograph sent, so that later requests are short enough to read."""
    user.open_sample()
    user.segment()
    user.turn_to("Objects")
    user.page.click("#clear")
    expect(user.objects()).to_have_count(0)


def test_a_sample_is_open_with_an_answer_and_the_photograph_has_the_keys(user: User) -> None:
    expect(user.objects()).to_have_count(1)
    expect(user.page.locator("#missing li")).to_contain_text("not there")
    expect(user.page.locator("#stage")).to_be_focused()
    expect(user.page.locator("#welcome")).to_be_visible()
    user.segment(count=2)
    expect(user.page.locator("#welcome")).to_be_hidden()


def test_a_photograph_is_chosen_pasted_or_dropped(desktop: User) -> None:
    desktop.page.set_input_files("#file", picture("JPEG"))
    desktop.says("cat.jpeg, 451 × 300")
    for event, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        desktop.page.evaluate(
            """async ([event, holder]) => {
              const files = new DataTransfer();
              const blob = await (await fetch("/playground/samples/rocket.jpg")).blob();
              files.items.add(new File([blob], `${event}.jpg`, {type: "image/jpeg"}));
              const given = event === "paste"
                ? new ClipboardEvent(event, {[holder]: files, bubbles: true})
                : new DragEvent(event, {[holder]: files, bubbles: true});
              document.body.dispatchEvent(given);
            }""",
            [event, holder],
        )
        desktop.says(f"{event}.jpg, 640 × 427")


def test_only_a_phone_offers_its_camera(desktop: User, phone: User) -> None:
    expect(desktop.page.locator("#camera")).to_be_hidden()
    phone.page.click("#more")
    expect(phone.page.locator("#camera")).to_be_visible()
    expect(phone.page.locator("#snapshot")).to_have_attribute("capture", "environment")


def test_a_click_adds_or_takes_away(user: User) -> None:
    user.open_sample()
    user.segment()
    user.page.get_by_text("Remove", exact=True).first.click()
    user.point(0.9, 0.2)
    expect(user.page.locator("#choices")).to_be_hidden()  # two points: one mask
    points = prompt(user)["points"]
    assert [point.get("negative", False) for point in points] == [False, True]


def test_a_second_request_sends_the_key_of_the_photograph(desktop: User) -> None:
    desktop.open_sample()
    for x in (0.4, 0.5):
        desktop.point(x, 0.5)
        expect(desktop.page.locator("#busy")).to_be_hidden()
        desktop.says("% of the photograph")
    assert desktop.sent[0].post_data_buffer is None  # the file, which the browser does not show
    assert re.search(r'name="image"\r\n\r\n[0-9a-f]{64}\r\n', desktop.form())


def drag(user: User, *shares: tuple[float, float]) -> None:
    """Drag from place to place, at these shares of the photograph's width and height."""
    stage = user.page.locator("#stage")
    canvas = stage.bounding_box()
    assert canvas is not None
    kind = "touch" if user.touch else "mouse"
    names = ["pointerdown", *["pointermove"] * (len(shares) - 1), "pointerup"]
    for name, share in zip(names, (*shares, shares[-1]), strict=True):
        x, y = user.place(*share)
        place = {"clientX": canvas["x"] + x, "clientY": canvas["y"] + y}
        stage.dispatch_event(name, {**place, "pointerId": 1, "pointerType": kind, "button": 0})


def test_a_line_round_a_thing_is_a_rough_mask(user: User) -> None:
    make_known(user)
    user.page.get_by_text("Draw", exact=True).click()
    drag(user, (0.1, 0.1), (0.8, 0.1), (0.8, 1.2), (0.1, 0.9))
    expect(user.objects()).to_have_count(1)
    mask = prompt(user)["mask"]
    mask_HW = decode_rle(mask["counts"].encode(), mask["height"], mask["width"])
    assert mask_HW.shape == user.size[::-1]
    outside_HW = mask_HW.copy()
    outside_HW[27:, 42:364] = False  # the line has a width
    assert mask_HW[35:260, 50:355].all()
    assert not outside_HW.any()
    user.point(0.5, 0.5)
    expect(user.page.locator("#busy")).to_be_hidden()
    user.says("% of the photograph")
    expect(user.objects()).to_have_count(1)
    assert [*prompt(user)] == ["points", "mask"]


def test_a_box_is_drawn_by_mouse_or_finger(user: User) -> None:
    make_known(user)
    user.page.get_by_text("Box", exact=True).click()
    drag(user, (0.1, 0.1), (0.9, 0.9))
    expect(user.objects()).to_have_count(1)
    box = prompt(user)["box"]
    assert [box["x_min"], box["x_max"]] == pytest.approx([45.1, 405.9], abs=2)


def test_undo_redo_escape_and_delete(desktop: User) -> None:
    desktop.open_sample()
    for x, count in ((0.3, 1), (0.7, 2)):
        desktop.segment(x, count=count)
        desktop.page.click("#next")
    desktop.page.keyboard.press("Control+z")
    desktop.page.keyboard.press("Control+z")
    desktop.page.keyboard.press("Control+z")
    expect(desktop.objects()).to_have_count(1)
    desktop.page.keyboard.press("Control+y")
    desktop.page.keyboard.press("Control+Shift+z")
    expect(desktop.objects()).to_have_count(2)
    desktop.objects().first.click()
    desktop.page.keyboard.press("Escape")
    expect(desktop.page.locator("#about")).to_be_hidden()
    desktop.objects().first.click()
    desktop.page.keyboard.press("Delete")
    expect(desktop.objects()).to_have_count(1)


def test_a_click_that_another_question_ends_leaves_nothing_behind(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.route("**/segment", lambda route: None)  # no answer
    desktop.point(0.4, 0.5)
    undo = desktop.page.locator("#undo")
    expect(undo).to_be_enabled()
    desktop.ask("classify")
    expect(desktop.page.locator("#answers li").first).to_be_visible()
    expect(undo).to_be_disabled()


def test_one_of_three_masks_is_chosen(user: User) -> None:
    user.open_sample()
    user.point(0.4, 0.5)
    choices = user.page.locator("#choices label")
    expect(choices).to_have_count(3)
    assert sorted(choices.all_inner_texts()) == ["large", "medium", "small"]
    share = (choices.nth(2).get_attribute("title") or "").partition(" (")[0]
    choices.nth(2).click()
    expect(user.objects().first).to_contain_text(share.partition(" of")[0])
    user.says(share)
    for _ in range(2):
        user.page.keyboard.press("ArrowLeft")
    expect(choices.first.locator("input")).to_be_checked()


def test_things_are_found_clicked_and_saved_with_the_keyboard_alone(desktop: User) -> None:
    keyboard = desktop.page.keyboard
    keyboard.press("/")
    keyboard.type("a cat")
    keyboard.press("Enter")
    expect(desktop.objects()).to_have_count(1)
    keyboard.press("Escape")
    expect(desktop.page.locator("#stage")).to_be_focused()
    for key in ("ArrowLeft", "ArrowLeft", "Enter"):
        keyboard.press(key)
    expect(desktop.objects()).to_have_count(2)
    save = desktop.page.locator("#cut")
    for _ in range(8):
        if not save.evaluate("button => button === document.activeElement"):
            keyboard.press("Tab")
    expect(save).to_be_focused()
    with desktop.page.expect_download():
        keyboard.press("Enter")
    desktop.says("Saved: chelsea.cutout.png.")


def test_the_preview_is_bulk_work_and_stops_where_the_service_is_busy(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.keyboard.press("p")
    desktop.page.hover("#stage", position={"x": 300, "y": 200})
    expect(desktop.page.locator("#preview")).to_be_checked()
    with desktop.page.expect_request("**/segment") as request:
        desktop.page.hover("#stage", position={"x": 320, "y": 220})
    assert request.value.headers["x-samclip-priority"] == "bulk"
    desktop.page.route("**/segment", lambda route: route.fulfill(status=429, body="{}"))
    desktop.page.hover("#stage", position={"x": 340, "y": 240})
    desktop.says("The preview is off")
    expect(desktop.page.locator("#preview")).not_to_be_checked()
    desktop.problems.clear()  # the browser logs the 429


def test_a_zoomed_photograph_is_clicked_where_it_is_seen(desktop: User) -> None:
    make_known(desktop)
    place = desktop.page.locator("#stage").bounding_box()
    assert place is not None
    desktop.page.mouse.move(place["x"] + place["width"], place["y"] + place["height"])
    desktop.page.locator("#stage").dispatch_event(
        "wheel",
        {
            "deltaY": -2000,
            "clientX": place["x"] + place["width"],
            "clientY": place["y"] + place["height"],
        },
    )
    desktop.segment(0.5)
    (point,) = prompt(desktop)["points"]
    assert point["x"] > 0.95 * 451
    assert point["y"] > 0.95 * 300


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_other_formats_are_converted_by_the_browser(desktop: User, kind: str) -> None:
    desktop.page.set_input_files("#file", picture(kind))
    desktop.says("cat.png, 451 × 300")
    desktop.segment()


def test_a_key_is_asked_for_in_a_field_and_sent(desktop: User) -> None:
    desktop.open_sample()

    def guard(route: Route) -> None:
        known = route.request.headers.get("x-api-key") == "sesame"
        route.continue_() if known else route.fulfill(status=401, json={"detail": "no API key"})

    desktop.page.route("**/segment", guard)
    desktop.point(0.4, 0.5)
    desktop.fails("This service wants an API key")
    expect(desktop.page.locator("#key")).to_be_focused()
    desktop.page.keyboard.type("sesame")
    desktop.page.keyboard.press("Enter")
    desktop.segment()
    desktop.problems.clear()


def saved(user: User, what: str, folder: Path) -> Path:
    with user.page.expect_download() as download:
        user.page.get_by_role("button", name=what, exact=True).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_what_is_saved_is_the_mask(desktop: User, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    desktop.open_sample()
    desktop.segment()
    desktop.page.fill("#called", "cat")
    desktop.page.press("#called", "Enter")
    desktop.turn_to("Objects")
    small = np.asarray(Image.open(saved(desktop, "Save cut-out", tmp_path)))
    desktop.page.check("#whole")
    cut = np.asarray(Image.open(saved(desktop, "Cut-out", tmp_path)))
    mask = np.asarray(Image.open(saved(desktop, "Mask", tmp_path)).convert("L")) == 255
    assert mask.shape == (300, 451)
    assert 0.05 < mask.mean() < 0.95

    np.testing.assert_array_equal(cut[..., 3] == 255, mask)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_array_equal(small, cut[box])
    sample = np.asarray(Image.open("services/gateway/playground/samples/chelsea.jpg")).astype(int)
    assert np.abs(cut[..., :3].astype(int) - sample)[mask].max() <= 3

    coco = COCO(saved(desktop, "COCO", tmp_path))
    (annotation,) = coco.loadAnns(coco.getAnnIds())
    np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
    assert annotation["area"] == mask.sum()
    y, x = np.nonzero(mask)
    assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]

    paths = saved(desktop, "SVG", tmp_path).read_text().split(' d="')[1].split('"')[0]
    area = 0.0
    for ring in paths.strip("MZ").split("ZM"):
        x, y = np.array(ring.split(), float).reshape(-1, 2).T
        area += (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert abs(area) == pytest.approx(mask.sum(), rel=0.01)


@pytest.mark.parametrize("width", [360, 768, 961, 2560])
def test_nothing_is_larger_than_the_window(desktop: User, width: int) -> None:
    desktop.page.set_viewport_size({"width": width, "height": 800})
    desktop.open_sample()
    desktop.segment()
    for tab in ("Objects", "Name", "Map", "Collections"):
        desktop.turn_to(tab)
        root = "document.documentElement"
        wide, high = desktop.page.evaluate(f"[{root}.scrollWidth, {root}.scrollHeight]")
        assert wide <= width
        assert high <= 800


def test_targets_on_a_phone_are_large_enough(phone: User) -> None:
    phone.segment(count=2)
    phone.page.click("#more")
    for tab in ("Objects", "Name", "Map", "Collections"):
        phone.turn_to(tab)
        small = phone.page.evaluate(
            """() => [...document.querySelectorAll("button:not(.link), .button, summary, select")]
              .filter(one => one.offsetParent)
              .filter(one => Math.min(one.offsetWidth, one.offsetHeight) < 44)
              .map(one => one.outerHTML)"""
        )
        assert not small


def test_a_theme_is_kept(desktop: User) -> None:
    desktop.page.click("#more")
    desktop.page.select_option("#theme", "dark")
    desktop.page.reload()
    background = desktop.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(27, 29, 33)"


def test_a_photograph_that_was_forgotten_is_sent_to_a_collection(desktop: User) -> None:
    """Its key may also be of another task, whose frame has another side."""
    desktop.open_sample()
    desktop.segment()
    message = "no embedding is cached for the image key: send the image"
    answer = {"indexed": 0, "replaced": 0, "errors": [{"id": "cat.jpg", "message": message}]}
    desktop.page.route("**/index", lambda route: route.fulfill(json=answer), times=1)
    desktop.add_to("forgotten")
    assert '"key"' in desktop.form(-2)
    assert '"key"' not in desktop.form()


def test_a_low_window_has_room_for_the_photograph_beside_a_panel(desktop: User) -> None:
    desktop.page.set_viewport_size({"width": 844, "height": 390})
    desktop.turn_to("Objects")
    stage = desktop.page.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["height"] > 150
    assert stage["width"] > 300
