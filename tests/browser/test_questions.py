"""The questions that the playground asks: words, labels, everything and collections."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from tests.browser.conftest import User, picture
from tests.browser.test_objects import BOXES, found

pytestmark = pytest.mark.browser


def test_a_text_finds_objects_above_a_score(user: User) -> None:
    user.open_sample()
    user.find("a cat")
    expect(user.objects().first).to_contain_text("likely")
    user.page.get_by_text("Filter and colours").click()
    user.page.fill("#least", "1")
    expect(user.page.locator("#least-shown")).to_have_text("1.00")
    user.find("a cat")
    user.says("Not there: “a cat”")
    expect(user.objects()).to_have_count(0)


def test_a_large_photograph_is_searched_closely_at_once(desktop: User) -> None:
    page = desktop.page
    page.set_input_files("#file", picture("JPEG", (2600, 1800)))
    desktop.says("2600 × 1800")
    answer = {"results": [{"masks": [], "things": []}], "image": {"key": "0" * 64}}
    page.route("**/segment", lambda route: route.fulfill(json=answer))
    desktop.find("a fox")
    page.locator("#missing").get_by_role("button", name="Search closely").click()
    expect(page.locator("#close")).to_be_checked()
    expect(page.locator("#missing button")).to_have_count(0)
    assert "tiles" in desktop.form()


def test_a_map_says_which_labels_have_no_pixels(desktop: User) -> None:
    desktop.turn_to("Map")
    desktop.page.fill("#labels", "a cat\na bicycle")
    answer = {"regions": [], "image": {"key": "0" * 64}}
    desktop.page.route("**/semantic", lambda route: route.fulfill(json=answer))
    desktop.page.click("#semantic")
    desktop.says("0 of 2 labels have pixels. Without any: “a cat”, “a bicycle”.")


def test_a_map_that_is_switched_off_leaves_the_selected_object(desktop: User) -> None:
    page = desktop.page
    desktop.open_sample()
    desktop.turn_to("Map")
    region = found(1, BOXES[1])["mask"]
    answer = {"regions": [{"mask": region, "label": "wall", "score": 1}]}
    page.route("**/semantic", lambda route: route.fulfill(json=answer))
    page.click("#semantic")
    label = page.locator("#legend button")
    label.press("Enter")
    expect(label).to_be_focused()
    held: list[Route] = []
    page.route("**/segment", lambda route: held.append(route))
    desktop.point(0.9, 0.1)
    desktop.says("Asking")
    label.click()
    desktop.says("One moment: the answer is on its way.")
    held[0].continue_()
    expect(desktop.objects()).to_have_count(2)
    page.click("#uncover")
    expect(desktop.objects()).to_have_attribute("aria-pressed", "true")


def test_words_are_remembered_and_forgotten(desktop: User) -> None:
    remembered = desktop.page.locator("#phrases option")
    expect(remembered).to_have_count(0)  # the words of a sample are not the user's
    for words in ("a cat", "a fox", "a cat"):
        desktop.find(words)
    assert [option.get_attribute("value") for option in remembered.all()] == ["a cat", "a fox"]
    desktop.find("a fox, a door, an elk, a yak, un búho")
    desktop.says(
        "Not there: “a fox”, “a door”, “an elk” and 2 more. The model has learned only English."
    )
    desktop.page.click("#more")
    desktop.page.click("#forget")
    expect(remembered).to_have_count(0)


def test_words_that_another_page_has_left_do_no_harm(desktop: User) -> None:
    desktop.page.evaluate("localStorage.setItem('samclip-phrases', '{oops')")
    desktop.page.reload()
    desktop.begin()


def test_objects_like_the_selected_one_are_found(user: User) -> None:
    user.open_sample()
    user.page.keyboard.press("m")
    user.fails("Select an object first")
    user.segment()
    user.turn_to("Objects")
    user.page.get_by_text("Filter and colours").click()
    user.page.fill("#least", "0")
    user.page.click("#alike")
    expect(user.objects().nth(1)).to_contain_text("like this")


def test_a_photograph_and_an_object_are_classified(user: User) -> None:
    user.open_sample()
    user.ask("classify")
    expect(user.page.locator("#answers li").first).to_contain_text("a cat")
    user.page.click("#classify-object")
    user.fails("Select an object first")
    user.segment()
    user.page.click("#classify-object")
    user.says("The object is most likely")
    first = user.page.locator("#answers button").first
    name = first.inner_text()
    first.click()
    expect(user.page.locator("#called")).to_have_value(name)


def test_every_pixel_gets_a_label_and_a_heat_map_shows_where(user: User) -> None:
    user.open_sample()
    user.turn_to("Map")
    user.page.fill("#labels", "a cat\na cushion")
    user.page.click("#semantic")
    expect(user.objects().first).to_contain_text("a cat")
    user.page.select_option("#explained", "a cat")
    stage, explain = user.page.locator("#stage"), user.page.locator("#explain")
    explain.click()
    user.says("the model sees “a cat”")
    over_a_map = stage.screenshot()
    off = user.page.locator("#uncover")
    expect(off).to_have_text("Heat map off")
    user.segment(count=user.objects().count() + 1)
    expect(off).to_have_text("Heat map off")  # a click leaves it
    user.page.click("#undo")
    off.click()
    expect(off).to_have_text("Map off")
    user.page.click("#undo")
    assert stage.screenshot() == over_a_map
    user.page.click("#undo")
    user.page.click("#undo")
    expect(user.objects()).to_have_count(0)
    explain.click()
    user.says("the model sees “a cat”")
    assert stage.screenshot() == over_a_map  # which is not drawn below it


def test_everything_lists_objects_whose_rows_light_up(desktop: User) -> None:
    desktop.open_sample()
    desktop.ask("everything")
    desktop.says("objects in")
    before = desktop.page.locator("#stage").screenshot()
    first = desktop.page.locator("#objects .line").first
    first.hover()
    expect(first).to_have_class("line lit")
    desktop.page.wait_for_timeout(200)
    assert desktop.page.locator("#stage").screenshot() != before


def test_the_object_under_a_resting_pointer_stays_lit_while_more_arrive(desktop: User) -> None:
    desktop.open_sample()
    desktop.ask("everything")
    expect(desktop.objects().first).to_be_visible()
    desktop.page.hover("#stage", position={"x": 400, "y": 250})
    desktop.says("objects in")
    expect(desktop.page.locator("#objects .line.lit").first).to_be_visible()


def test_everything_is_drawn_as_it_is_found(desktop: User) -> None:
    desktop.open_sample("Rocket")
    counts = desktop.page.evaluate_handle(
        """() => {
          const counts = [];
          const saved = document.getElementById("saved");
          const count = () => counts.push(parseInt(saved.textContent.replace(/\\D+/, "")) || 1);
          new MutationObserver(count).observe(saved, {childList: true});
          return counts;
        }"""
    )
    desktop.ask("everything")
    desktop.says("objects in")
    drawn = counts.json_value()
    assert len(set(drawn)) > 2
    assert 0 < drawn[0] < max(drawn)
    desktop.page.keyboard.press("Control+z")  # all of it is one step
    expect(desktop.objects()).to_have_count(0)


def test_hits_by_their_objects_have_an_outline(user: User) -> None:
    user.open_sample()
    user.unfold_more()
    user.page.check("#with-objects")
    user.add_to(f"objects-{user.touch}")
    user.page.check("#by-objects")
    user.page.fill("#query", "a cat")
    user.page.press("#query", "Enter")
    outline = user.page.locator("#hits li path")
    expect(outline).to_have_count(1)
    assert re.fullmatch(r"(M[\d. ]+Z)+", outline.get_attribute("d") or "")
    expect(user.page.locator("#hits li image")).to_have_count(1)


def test_a_collection_is_searched_with_pictures_of_its_hits(user: User) -> None:
    collection = f"photographs-{user.touch}"
    user.open_sample()
    user.add_to(collection)
    user.page.set_input_files("#file", picture("JPEG"))
    user.says("cat.jpeg")
    user.add_to(collection)
    user.page.fill("#query", "a cat")
    user.page.press("#query", "Enter")
    hits = user.page.locator("#hits li")
    expect(hits).to_have_count(2)
    expect(hits.first.locator("img")).to_have_js_property("complete", True)
    hits.nth(1).get_by_role("button", name="More like").click()
    user.says("1 found")  # the others, without itself
    user.segment(0.5)
    user.page.click("#similar-object")
    user.says("2 found")


def test_answers_about_the_former_photograph_do_not_stay_beside_the_next(desktop: User) -> None:
    held: dict[str, Route] = {}
    page = desktop.page

    def hold(route: Route) -> None:
        held[route.request.url.rpartition("/")[2]] = route

    desktop.open_sample()
    desktop.ask("classify")
    expect(page.locator("#answers li").first).to_be_visible()
    page.route(re.compile("/everything$|/rocket.jpg$"), hold)
    page.locator("#samples button").last.dispatch_event("click")
    desktop.turn_to("Objects")
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
    desktop.ask("everything")
    expect(desktop.objects()).to_have_count(90)
    session = desktop.page.context.new_cdp_session(desktop.page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")
    assert used["usedSize"] + used.get("backingStorageSize", 0) < 300e6


def samples() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(
        Path("services/gateway/playground/samples/samples.json").read_text()
    )
    return found


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
    desktop.add_to(f"noise-{longest}")
    desktop.page.click("#similar")
    expect(desktop.page.locator("#hits img")).to_have_count(1)


@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample["title"])
def test_a_sample_has_a_thumbnail_and_words_that_the_model_knows(
    desktop: User, sample: dict[str, str]
) -> None:
    there, absent = sample["phrase"].split(", ")
    desktop.open_sample(sample["title"])
    desktop.ask("classify")
    best = sample["labels"].split("\n")[0]
    expect(desktop.page.locator("#answers li").first).to_contain_text(best)
    desktop.page.click("#find button")
    # Of the cup, three parts are found.
    expect(desktop.objects().first).to_contain_text(there)
    desktop.says(f"Not there: “{absent}”")
    desktop.add_to(f"sample-{sample['title'][:3]}")
    desktop.page.click("#similar")
    expect(desktop.page.locator("#hits img")).to_have_js_property("complete", True)


def test_a_large_photograph_is_searched_closely(desktop: User) -> None:
    closely, refine = (desktop.page.locator(f"#{id}") for id in ("close", "refine"))
    desktop.page.set_input_files("#file", picture("JPEG", (1100, 300)))
    desktop.says("cat.jpeg")
    desktop.turn_to("Map")
    expect(refine).to_be_visible()
    closely.check()
    expect(refine).to_be_hidden()  # outlines of tiles cannot be sharpened
    desktop.ask("semantic")
    desktop.says("labels have pixels")
    desktop.page.get_by_role("button", name="curl", exact=True).click()
    copied = desktop.page.locator("#copied")
    expect(copied).to_contain_text("refine=false")
    expect(copied).to_contain_text("tiles=-1")
    desktop.find("a cat")
    expect(desktop.page.locator("#status")).to_contain_text(re.compile("found|Not there"))
    desktop.page.get_by_role("button", name="CLI").click()
    expect(copied).to_contain_text("--tiles auto")
    desktop.page.set_input_files("#file", picture("PNG"))
    desktop.says("cat.png")
    expect(closely).to_be_hidden()
    expect(closely).not_to_be_checked()
    desktop.turn_to("Map")
    expect(refine).to_be_visible()


def test_words_that_were_typed_are_kept(desktop: User) -> None:
    desktop.turn_to("Name")
    desktop.page.fill("#labels", "a fox")
    desktop.open_sample()
    expect(desktop.page.locator("#labels")).to_have_value("a fox")
    expect(desktop.page.locator("#phrase")).to_have_value("a tabby cat, a bicycle")
    desktop.page.set_input_files("#file", picture("JPEG"))
    desktop.says("cat.jpeg")
    expect(desktop.page.locator("#phrase")).to_have_value("")


def test_a_checkpoint_without_masks_has_no_tools_for_them(desktop: User) -> None:
    page = desktop.page
    about = {"name": "v4", "digest": "0" * 64, "state": "loaded", "default": True}
    model = {**about, "uncalibrated": True, "without_masks": True}
    page.route("**/models", lambda route: route.fulfill(json={"models": [model]}))
    page.reload()
    expect(page.locator("#model")).to_contain_text("makes no masks")
    expect(page.get_by_role("tab", name="Objects")).to_be_disabled()
    for tool in ("#modes input >> nth=0", "#phrase"):
        expect(page.locator(tool)).to_be_disabled()
    name = page.get_by_role("tab", name="Name")
    name.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Collections")).to_be_focused()
    desktop.turn_to("Map")
    expect(page.locator("#refine")).to_be_disabled()
    expect(page.locator("#refine")).not_to_be_checked()
    expect(page.get_by_role("button", name="Find", exact=True)).to_be_disabled()


def test_a_photograph_that_is_opened_before_the_sample_is_not_asked_about(desktop: User) -> None:
    page = desktop.page
    held: list[Route] = []
    page.route("**/samples/chelsea.jpg", lambda route: held.append(route))
    with page.expect_request("**/samples/chelsea.jpg"):
        page.reload()
    page.set_input_files("#file", picture("JPEG"))
    desktop.says("cat.jpeg")
    with page.expect_response("**/samples/chelsea.jpg"):
        held[0].continue_()
    page.evaluate("new Promise(done => setTimeout(done, 500))")
    assert not desktop.sent
    desktop.says("cat.jpeg")


def test_the_next_object_waits_for_an_answer(desktop: User) -> None:
    page = desktop.page
    held: list[Route] = []
    desktop.open_sample()
    page.route("**/segment", lambda route: held.append(route))
    with page.expect_request("**/segment"):
        desktop.point(0.4, 0.5)
    page.press("#stage", "n")
    desktop.says("One moment")
    held[0].continue_()
    expect(desktop.objects()).to_have_count(1)
    page.press("#stage", "n")
    desktop.says("Click the next object")
