"""What the playground can do, on a desktop and on a phone."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Route, expect
from skimage import data

from tests.browser.conftest import User

pytestmark = pytest.mark.browser


def picture(kind: str, size: tuple[int, int] = (451, 300), **save: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(data.chelsea()).resize(size).save(file, kind, **save)
    return {
        "name": f"cat.{kind.lower()}",
        "mimeType": f"image/{kind.lower()}",
        "buffer": file.getvalue(),
    }


def prompt(user: User) -> dict[str, Any]:
    """Return the only prompt of the latest request."""
    (found,) = json.loads(user.form().split('name="prompts"\r\n\r\n')[1].split("\r\n")[0])
    return dict(found)


def make_known(user: User) -> None:
    """Have the photograph sent, so that later requests are short enough to read."""
    user.open_sample()
    user.point(0.4, 0.5)
    expect(user.objects()).to_have_count(1)
    user.page.click("#clear")
    expect(user.objects()).to_have_count(0)


def test_the_first_mask_is_two_clicks_away(user: User) -> None:
    user.open_sample()
    user.point(0.4, 0.5)
    expect(user.objects()).to_have_count(1)
    user.says("Mask of")


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
    expect(phone.page.locator("#camera")).to_be_visible()
    expect(phone.page.locator("#snapshot")).to_have_attribute("capture", "environment")


def test_points_are_included_and_excluded_by_a_switch(user: User) -> None:
    user.open_sample()
    user.point(0.4, 0.5)
    expect(user.objects()).to_have_count(1)
    user.page.get_by_text("excludes").first.click()
    user.point(0.9, 0.2)
    expect(user.page.locator("#choices")).to_be_hidden()  # two points: one mask
    points = prompt(user)["points"]
    assert [point.get("negative", False) for point in points] == [False, True]


def test_a_second_request_sends_the_key_of_the_photograph(desktop: User) -> None:
    desktop.open_sample()
    for x in (0.4, 0.5):
        desktop.point(x, 0.5)
        expect(desktop.page.locator("#busy")).to_be_hidden()
        desktop.says("Mask of")
    assert desktop.sent[0].post_data_buffer is None  # the file, which the browser does not show
    assert re.search(r'name="image"\r\n\r\n[0-9a-f]{64}\r\n', desktop.form())


def test_a_box_is_drawn_by_mouse_or_finger(user: User) -> None:
    make_known(user)
    user.page.get_by_text("draws a box").click()
    stage = user.page.locator("#stage")
    place = stage.bounding_box()
    assert place is not None
    corners = [(0.1, 0.1), (0.9, 0.9)]
    spots = [
        (place["x"] + x * place["width"], place["y"] + y * place["height"]) for x, y in corners
    ]
    kind = "touch" if user.touch else "mouse"
    for name, (x, y) in zip(
        ("pointerdown", "pointermove", "pointerup"), (spots[0], spots[1], spots[1]), strict=True
    ):
        stage.dispatch_event(
            name, {"clientX": x, "clientY": y, "pointerId": 1, "pointerType": kind, "button": 0}
        )
    expect(user.objects()).to_have_count(1)
    box = prompt(user)["box"]
    assert [box["x_min"], box["x_max"]] == pytest.approx([45.1, 405.9], abs=2)


def test_undo_and_redo_and_escape(desktop: User) -> None:
    desktop.open_sample()
    for x, count in ((0.3, 1), (0.7, 2)):
        desktop.point(x, 0.5)
        expect(desktop.objects()).to_have_count(count)
        desktop.page.click("#next")
    desktop.page.keyboard.press("Control+z")
    desktop.page.keyboard.press("Control+z")
    desktop.page.keyboard.press("Control+z")
    expect(desktop.objects()).to_have_count(1)
    desktop.page.keyboard.press("Control+Shift+z")
    desktop.page.keyboard.press("Control+Shift+z")
    expect(desktop.objects()).to_have_count(2)
    desktop.page.keyboard.press("Escape")
    expect(desktop.objects()).to_have_count(0)


def test_a_click_that_another_question_ends_leaves_nothing_behind(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.route("**/segment", lambda route: None)  # no answer
    desktop.point(0.4, 0.5)
    undo = desktop.page.locator("#undo")
    expect(undo).to_be_enabled()
    desktop.turn_to("Classify")
    desktop.page.locator("#classify").click()
    expect(desktop.page.locator("#answers li").first).to_be_visible()
    expect(undo).to_be_disabled()


def test_one_of_three_masks_is_chosen(user: User) -> None:
    user.open_sample()
    user.point(0.4, 0.5)
    choices = user.page.locator("#choices label")
    expect(choices).to_have_count(3)
    shares = [text.split(" · ")[1] for text in choices.all_inner_texts()]
    choices.nth(2).click()
    expect(user.objects().first).to_contain_text(shares[2])


def test_points_are_set_with_the_keyboard_alone(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.focus("#stage")
    for _ in range(3):
        desktop.page.keyboard.press("ArrowLeft")
    desktop.page.keyboard.press("Enter")
    expect(desktop.objects()).to_have_count(1)


def test_a_text_finds_objects_above_a_score(user: User) -> None:
    user.open_sample()
    user.turn_to("Find")
    user.page.fill("#phrase", "a cat")
    user.page.locator("#find button").first.click()
    expect(user.objects().first).to_contain_text("a cat")
    user.page.fill("#least", "1")
    expect(user.page.locator("#least-shown")).to_have_text("1.00")
    user.page.locator("#find button").first.click()
    user.says("Not found: “a cat”")
    expect(user.objects()).to_have_count(0)


def test_a_photograph_and_an_object_are_classified(user: User) -> None:
    user.open_sample()
    user.turn_to("Classify")
    user.page.click("#classify")
    expect(user.page.locator("#answers li").first).to_contain_text("a cat")
    user.page.click("#classify-object")
    user.fails("Select an object first")
    user.point(0.4, 0.5)
    expect(user.objects()).to_have_count(1)
    user.page.click("#classify-object")
    user.says("The object is most likely")


def test_every_pixel_gets_a_label_and_a_heat_map_shows_where(user: User) -> None:
    user.open_sample()
    user.turn_to("Map")
    user.page.fill("#labels", "a cat\na cushion")
    user.page.click("#semantic")
    expect(user.objects().first).to_contain_text("a cat")
    user.page.select_option("#explained", "a cat")
    user.page.click("#explain")
    user.says("Where the model sees “a cat”")


def test_everything_lists_objects_whose_rows_light_up(desktop: User) -> None:
    desktop.open_sample()
    desktop.turn_to("Everything")
    desktop.page.click("#everything")
    desktop.says("objects in")
    before = desktop.page.locator("#stage").screenshot()
    desktop.objects().nth(2).hover()
    expect(desktop.objects().nth(2)).to_have_class("lit")
    desktop.page.wait_for_timeout(200)
    assert desktop.page.locator("#stage").screenshot() != before


def test_the_object_under_a_resting_pointer_stays_lit_while_more_arrive(desktop: User) -> None:
    desktop.open_sample()
    desktop.turn_to("Everything")
    desktop.page.click("#everything")
    expect(desktop.objects().first).to_be_visible()
    desktop.page.hover("#stage", position={"x": 400, "y": 250})
    desktop.says("objects in")
    expect(desktop.page.locator("#objects li.lit")).to_have_count(1)


def test_everything_is_drawn_as_it_is_found(desktop: User) -> None:
    desktop.open_sample("Rocket")
    counts = desktop.page.evaluate_handle(
        """() => {
          const counts = [];
          const list = document.getElementById("objects");
          const count = () => counts.push(list.children.length);
          new MutationObserver(count).observe(list, {childList: true});
          return counts;
        }"""
    )
    desktop.turn_to("Everything")
    desktop.page.click("#everything")
    desktop.says("objects in")
    drawn = counts.json_value()
    assert len(set(drawn)) > 2
    assert 0 < drawn[0] < max(drawn)
    desktop.page.keyboard.press("Control+z")  # all of it is one step
    expect(desktop.objects()).to_have_count(0)


def test_a_collection_is_searched_with_pictures_of_its_hits(user: User) -> None:
    user.turn_to("Search")
    user.page.fill("#collection", f"photographs-{user.touch}")
    for title in ("Cat", "Rocket"):
        if user.page.locator("#start").is_visible():
            user.open_sample(title)
        else:
            user.page.set_input_files("#other", picture("JPEG"))
        user.page.click("#index")
        user.says("was added")
    user.page.fill("#query", "a cat")
    user.page.get_by_role("button", name="Search by words").click()
    hits = user.page.locator("#hits li")
    expect(hits).to_have_count(2)
    expect(hits.first.locator("img")).to_have_js_property("complete", True)
    hits.nth(1).get_by_role("button").click()
    user.says("1 photographs found")  # the others, without itself
    user.point(0.5, 0.5)
    expect(user.objects()).to_have_count(1)
    user.page.click("#similar-object")
    user.says("2 photographs found")


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
    desktop.point(0.5, 0.5)
    expect(desktop.objects()).to_have_count(1)
    (point,) = prompt(desktop)["points"]
    assert point["x"] > 0.95 * 451
    assert point["y"] > 0.95 * 300


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_other_formats_are_converted_by_the_browser(desktop: User, kind: str) -> None:
    desktop.page.set_input_files("#file", picture(kind))
    desktop.says("cat.png, 451 × 300")
    desktop.point(0.4, 0.5)
    expect(desktop.objects()).to_have_count(1)


def test_a_file_that_no_browser_can_read_is_refused_at_once(desktop: User) -> None:
    desktop.page.set_input_files(
        "#file", {"name": "photo.heic", "mimeType": "image/heic", "buffer": b"ftypheic"}
    )
    desktop.fails("This browser cannot read photo.heic. Choose a JPEG, PNG or WebP file.")
    assert not desktop.sent


def test_a_service_that_is_away_is_said_in_a_sentence(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.route("**/segment", lambda route: route.abort())
    desktop.point(0.4, 0.5)
    desktop.fails("The service does not answer")
    desktop.page.unroute("**/segment")
    desktop.point(0.4, 0.5)
    expect(desktop.objects()).to_have_count(1)
    desktop.problems.clear()


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
    desktop.point(0.4, 0.5)
    expect(desktop.objects()).to_have_count(1)
    desktop.problems.clear()


def test_answers_about_the_former_photograph_do_not_stay_beside_the_next(desktop: User) -> None:
    held: dict[str, Route] = {}
    page = desktop.page

    def hold(route: Route) -> None:
        held[route.request.url.rpartition("/")[2]] = route

    desktop.open_sample()
    desktop.turn_to("Classify")
    page.click("#classify")
    expect(page.locator("#answers li").first).to_be_visible()
    page.route(re.compile("/everything$|/rocket.jpg$"), hold)
    page.locator("#samples button").last.dispatch_event("click")
    desktop.turn_to("Everything")
    with page.expect_request("**/everything"):
        page.click("#everything")  # while the next photograph is fetched
    held["rocket.jpg"].continue_()
    desktop.says("rocket.jpg")
    expect(page.locator("#answers li")).to_have_count(0)
    expect(page.locator("#busy")).to_be_hidden()
    mask = {"rle": {"height": 300, "width": 451, "counts": "0P4"}, "area": 128}
    part = {"found": [{"id": 1, "mask": mask}], "withdrawn": [], "progress": 1}
    held["everything"].fulfill(body=json.dumps(part) + "\n")
    page.wait_for_timeout(300)
    expect(desktop.objects()).to_have_count(0)
    desktop.says("rocket.jpg")


def test_long_work_shows_its_time_and_can_be_cancelled(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.route("**/everything", lambda route: None)  # never answered
    desktop.turn_to("Everything")
    desktop.page.click("#everything")
    expect(desktop.page.locator("#elapsed")).to_contain_text("s")
    desktop.page.click("#cancel")
    desktop.says("Cancelled")
    expect(desktop.page.locator("#busy")).to_be_hidden()


def test_ninety_masks_of_12_megapixels_need_few_canvases_and_little_memory(desktop: User) -> None:
    from pycocotools import mask as coco_mask

    desktop.page.set_input_files("#file", picture("JPEG", (4000, 3000)))
    desktop.says("4000 × 3000")
    masks = []
    for index in range(90):
        inside = np.zeros((3000, 4000), np.uint8, order="F")
        inside[index * 20 : index * 20 + 1200, index * 25 : index * 25 + 1500] = 1
        counts = coco_mask.encode(inside)["counts"].decode()
        masks.append(
            {"rle": {"height": 3000, "width": 4000, "counts": counts}, "predicted_iou": 0.9}
        )
    found = [{"id": index, "mask": mask} for index, mask in enumerate(masks)]
    parts = [
        {"found": found[:50], "withdrawn": [], "progress": 0.5},
        {"found": found[50:], "withdrawn": [], "progress": 1},
    ]
    lines = "".join(f"{json.dumps(part)}\n" for part in parts)
    desktop.page.route("**/everything", lambda route: route.fulfill(body=lines))
    desktop.turn_to("Everything")
    desktop.page.click("#everything")
    expect(desktop.objects()).to_have_count(90)
    session = desktop.page.context.new_cdp_session(desktop.page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")
    assert used["usedSize"] + used.get("backingStorageSize", 0) < 300e6


def saved(user: User, what: str, folder: Path) -> Path:
    with user.page.expect_download() as download:
        user.page.get_by_role("button", name=what, exact=True).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_what_is_saved_is_the_mask(desktop: User, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    desktop.open_sample()
    desktop.point(0.4, 0.5)
    expect(desktop.objects()).to_have_count(1)
    mask = np.asarray(Image.open(saved(desktop, "Mask", tmp_path)).convert("L")) == 255
    assert mask.shape == (300, 451)
    assert 0.05 < mask.mean() < 0.95

    cut = np.asarray(Image.open(saved(desktop, "Cut-out", tmp_path)))
    np.testing.assert_array_equal(cut[..., 3] == 255, mask)
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
    assert abs(area) == mask.sum()


@pytest.mark.parametrize("width", [360, 768, 961, 2560])
def test_nothing_is_wider_than_the_window(desktop: User, width: int) -> None:
    desktop.page.set_viewport_size({"width": width, "height": 800})
    desktop.open_sample()
    desktop.point(0.4, 0.5)
    expect(desktop.objects()).to_have_count(1)
    for tab in ("Segment", "Find", "Classify", "Map", "Everything", "Search"):
        desktop.turn_to(tab)
        root = desktop.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert root[0] <= root[1]


def test_a_theme_is_kept(desktop: User) -> None:
    desktop.page.select_option("#theme", "dark")
    desktop.page.reload()
    background = desktop.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(20, 21, 24)"


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
        user.page.get_by_text(button, exact=True).click()
    chooser.value.set_files({"name": name, "mimeType": "image/heic", "buffer": content})


@pytest.fixture
def small(user: User) -> User:
    """Return a user with a laptop's window, or a phone's."""
    if not user.touch:
        user.page.set_viewport_size({"width": 1366, "height": 768})
    return user


@pytest.mark.parametrize("button", ["Choose a file", "Open"])
def test_a_bad_file_is_refused_in_view_and_beside_the_button(small: User, button: str) -> None:
    if button == "Open":
        small.open_sample("Astronaut")
    choose(small, button, "photo.heic", b"ftypheic")
    small.fails("This browser cannot read photo.heic")
    for place in ("#error", "#beside"):
        in_view(small.page.locator(place))
    expect(small.page.locator("#beside")).to_have_text(re.compile("cannot read photo.heic"))
    small.page.set_input_files("#other", picture("JPEG"))
    small.says("cat.jpeg")
    expect(small.page.locator("#beside")).to_have_text("")


@pytest.mark.parametrize(
    "button", ["#index", "#similar", "#find button", "#classify", "#everything"]
)
def test_a_service_that_is_away_is_said_in_view_and_beside_the_button(
    small: User, button: str
) -> None:
    small.open_sample("Astronaut")
    small.page.route("**/*", lambda route: route.abort())
    tab = {"#index": "Search", "#similar": "Search", "#find button": "Find"}.get(button)
    small.turn_to(tab or button[1:].capitalize())
    small.page.locator(button).first.click()
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
    desktop.turn_to("Search")
    desktop.page.fill("#collection", "one")
    desktop.page.click("#index")
    desktop.says("was added")
    desktop.page.click("#similar")
    more = desktop.page.locator("#hits button")
    desktop.page.route("**/search", lambda route: route.abort())
    more.click()
    expect(desktop.page.locator("#hits #beside")).to_contain_text("does not answer")
    desktop.page.unroute("**/search")
    desktop.page.click("#similar")
    desktop.says("1 photographs found")
    desktop.page.click("#similar-object")
    expect(desktop.page.locator("#beside")).to_contain_text("Select an object first")
    desktop.problems.clear()


def test_a_sample_that_cannot_be_had_is_said(small: User) -> None:
    small.page.route("**/samples/*.jpg", lambda route: route.abort())
    small.page.locator("#samples button").nth(1).click()
    small.fails("The service does not answer")
    in_view(small.page.locator("#beside"))
    small.problems.clear()


def test_an_answer_that_is_cut_off_is_said(desktop: User) -> None:
    desktop.open_sample()
    desktop.page.evaluate(
        """() => { window.fetch = async () => new Response(new ReadableStream({
          pull(controller) { controller.error(new TypeError("network error")); }})); }"""
    )
    for tab in ("everything", "classify"):
        desktop.turn_to(tab.capitalize())
        desktop.page.locator(f"#{tab}").click()
        desktop.fails("The service does not answer")


@pytest.mark.parametrize("action", ["everything", "semantic", "index", "similar"])
def test_long_work_and_its_end_are_in_view(small: User, action: str) -> None:
    small.open_sample("Astronaut")
    small.turn_to({"everything": "Everything", "semantic": "Map"}.get(action, "Search"))
    small.page.route("**/*", lambda route: None)  # never answered
    small.page.click(f"#{action}")
    small.says("Asking the service")
    for place in ("#status", "#progress", "#elapsed", "#cancel"):
        in_view(small.page.locator(place))
    small.page.focus("#cancel")
    small.page.keyboard.press("Enter")
    small.says("Cancelled")
    in_view(small.page.locator("#status"))
    expect(small.page.locator(f"#{action}")).to_be_focused()


def samples() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(
        Path("services/gateway/playground/samples/samples.json").read_text()
    )
    return found


@pytest.mark.parametrize("title", [sample["title"] for sample in samples()])
def test_each_sample_can_be_added_with_a_thumbnail(desktop: User, title: str) -> None:
    desktop.open_sample(title)
    desktop.turn_to("Search")
    desktop.page.fill("#collection", f"sample-{title[:3]}")
    desktop.page.click("#index")
    desktop.says("was added")
    desktop.page.click("#similar")
    expect(desktop.page.locator("#hits img")).to_have_js_property("complete", True)


@pytest.mark.parametrize("longest", [20, 120])
def test_a_photograph_of_noise_is_added_at_any_length_of_name(desktop: User, longest: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    name = "ü" * longest + ".jpg"
    desktop.page.set_input_files(
        "#file", {"name": name, "mimeType": "image/jpeg", "buffer": file.getvalue()}
    )
    desktop.says("2000 × 1500")
    desktop.turn_to("Search")
    desktop.page.fill("#collection", f"noise-{longest}")
    desktop.page.click("#index")
    desktop.says("was added")
    desktop.page.click("#similar")
    expect(desktop.page.locator("#hits img")).to_have_count(1)


@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample["title"])
def test_a_sample_comes_with_words_that_the_model_knows(
    desktop: User, sample: dict[str, str]
) -> None:
    there, absent = sample["phrase"].split(", ")
    desktop.open_sample(sample["title"])
    desktop.turn_to("Classify")
    desktop.page.click("#classify")
    best = sample["labels"].split("\n")[0]
    expect(desktop.page.locator("#answers li").first).to_contain_text(best)
    desktop.turn_to("Find")
    desktop.page.locator("#find button").first.click()
    expect(desktop.objects()).to_have_count(1)
    expect(desktop.objects()).to_contain_text(there)
    desktop.says(f"Not found: “{absent}”")


def test_words_that_were_typed_are_kept(desktop: User) -> None:
    desktop.turn_to("Classify")
    desktop.page.fill("#labels", "a fox")
    desktop.open_sample()
    expect(desktop.page.locator("#labels")).to_have_value("a fox")
    expect(desktop.page.locator("#phrase")).to_have_value("a tabby cat, a bicycle")
    desktop.page.set_input_files("#other", picture("JPEG"))
    desktop.says("cat.jpeg")
    expect(desktop.page.locator("#phrase")).to_have_value("")
