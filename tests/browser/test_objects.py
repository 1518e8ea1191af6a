"""The list of objects: groups, parts, what is shown alone, and what is saved."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask as coco_mask

from tests.browser.conftest import User, picture
from tests.browser.test_access import found as axe

pytestmark = pytest.mark.browser
WIDTH, HEIGHT = 451, 300
BOXES = {  # left, top, right, bottom, and the name
    1: (10, 10, 210, 210, "wall"),
    2: (240, 20, 440, 180, "wall"),
    3: (30, 30, 90, 90, "clock"),  # inside the first wall
    4: (240, 200, 300, 280, ""),
    5: (320, 200, 340, 220, "wall"),
    6: (370, 200, 380, 210, ""),  # a crumb
}


def inside(box: tuple[Any, ...]) -> Any:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    left, top, right, bottom, _ = box
    mask[top:bottom, left:right] = 1
    return mask


def found(number: int, box: tuple[Any, ...]) -> dict[str, Any]:
    mask = inside(box)
    rle = {"height": HEIGHT, "width": WIDTH, "counts": coco_mask.encode(mask)["counts"].decode()}
    named = {"label": box[4], "label_score": 0.5} if box[4] else {}
    return {
        "id": number,
        "mask": {"rle": rle, "area": int(mask.sum()), "predicted_iou": 0.9} | named,
    }


ANSWER = {"found": [found(*one) for one in BOXES.items()], "withdrawn": [], "progress": 1}


def find(user: User) -> User:
    """Show objects that the service is said to have found."""
    user.page.route("**/everything", lambda route: route.fulfill(body=json.dumps(ANSWER) + "\n"))
    user.page.set_input_files("#file", picture("JPEG", (WIDTH, HEIGHT)))
    user.says("cat.jpeg")
    user.turn_to("Objects")
    user.page.click("#everything")
    user.says("5 objects")
    return user


@pytest.fixture
def everything(user: User) -> User:
    return find(user)


def names(user: User) -> list[str]:
    texts = user.page.locator("#objects .pick").all_inner_texts()
    return [re.sub(r"\s+", " ", text) for text in texts]


def button(user: User, name: str) -> Any:
    """Return a button of a line, which a pointer makes visible."""
    found = user.page.get_by_role("button", name=name, exact=True)
    if not user.touch:
        user.page.locator("#objects .line", has=found).hover()
    return found


def saved(user: User, kind: str, folder: Path, called: str = "") -> Path:
    """``called``: for the objects without a name."""
    with user.page.expect_download() as download:
        user.page.click(f"[data-take={kind}]")
        if called:
            user.page.fill("#really-word", called)
            user.page.press("#really-word", "Enter")
    file = folder / download.value.suggested_filename
    user.says(f"Saved: {file.name}.")
    download.value.save_as(file)
    return file


def test_objects_are_grouped_by_name_and_parts_are_inside_their_whole(everything: User) -> None:
    user = everything
    assert names(user) == ["wall × 3", "unnamed 3.5 %"]
    expect(user.page.locator("#saved")).to_have_text("Save 4 objects")
    button(user, "wall: 3 of them").click()
    assert names(user)[:4] == ["wall × 3", "wall 1 29.6 %", "wall 2 23.7 %", "wall 3 0.3 %"]
    button(user, "wall 1: 1 parts").click()
    assert names(user)[2] == "clock 2.7 %"
    expect(user.page.locator("#saved")).to_have_text("Save 5 objects")
    assert not axe(user)


def test_one_is_shown_alone_all_are_hidden_and_small_ones_left_out(everything: User) -> None:
    user, page = everything, everything.page
    button(user, "show only wall").click()
    expect(page.locator("#saved")).to_have_text("Save 3 objects")
    button(user, "show all").click()
    expect(page.locator("#saved")).to_have_text("Save 4 objects")
    page.click("#show-all")
    expect(page.locator("#show-all")).to_have_text("Show all")
    expect(page.locator("#saved")).to_have_text("Save 0 objects")
    page.click("[data-take=svg]")
    user.fails("There is no object to save")
    page.click("#show-all")
    page.get_by_text("Filter and colours").click()
    page.fill("#smallest", "2")
    expect(page.locator("#smallest-shown")).to_have_text("1.0 %")
    expect(page.locator("#saved")).to_have_text("Save 3 objects")
    assert names(user)[0] == "wall × 2"
    page.fill("#smallest", "0")
    expect(page.locator("#smallest-shown")).to_have_text("any size")
    assert names(user) == ["wall × 3", "unnamed × 2"]


def test_what_is_chosen_is_saved_as_outlines_and_for_training(
    everything: User, tmp_path: Path
) -> None:
    user, page = everything, everything.page
    button(user, "wall: 3 of them").click()
    page.get_by_label("choose wall 2").check()
    page.get_by_label("choose unnamed").check()
    expect(page.get_by_label("choose wall", exact=True)).to_be_checked(indeterminate=True)
    expect(page.locator("#saved")).to_have_text("Save the chosen 2 objects")
    page.click("[data-take=yolo]")
    expect(page.locator("#really-text")).to_have_text("One object has no name. What is it?")
    page.get_by_role("button", name="Cancel").click()
    archive = saved(user, "yolo", tmp_path, called="a door")
    assert archive.name == "cat.yolo.zip"
    with zipfile.ZipFile(archive) as whole:
        assert whole.namelist() == ["images/cat.jpeg", "labels/cat.txt", "data.yaml"]
        content = {name: whole.read(name) for name in whole.namelist()}
    assert content["images/cat.jpeg"] == picture("JPEG", (WIDTH, HEIGHT))["buffer"]
    rows = [line.split() for line in content["labels/cat.txt"].decode().splitlines()]
    assert [row[0] for row in rows] == ["0", "1"]
    about = yaml.safe_load(content["data.yaml"])
    assert about == {"train": "images", "val": "images", "names": {0: "wall", 1: "a door"}}
    for row, box in zip(rows, (BOXES[2], BOXES[4]), strict=True):
        corners = np.array(row[1:], float).reshape(-1, 2) * [WIDTH, HEIGHT]
        assert len(corners) <= 8
        np.testing.assert_allclose([*corners.min(axis=0), *corners.max(axis=0)], box[:4], atol=1.1)
    svg = saved(user, "svg", tmp_path)
    assert svg.read_text().count("<path") == 2
    coco = saved(user, "coco", tmp_path)
    content = json.loads(coco.read_text())
    assert [one["name"] for one in content["categories"]] == ["wall", "a door"]
    assert [one["area"] for one in content["annotations"]] == [200 * 160, 60 * 80]
    table = saved(user, "csv", tmp_path)
    assert table.read_text().splitlines() == [
        "file,name,score,area,x,y,width,height",
        "cat.jpeg,wall,0.5,32000,240,20,200,160",
        "cat.jpeg,a door,,4800,240,200,60,80",
    ]
    mask = saved(user, "mask", tmp_path)
    white = np.asarray(Image.open(mask).convert("L")) == 255
    np.testing.assert_array_equal(white, (inside(BOXES[2]) | inside(BOXES[4])) > 0)


def test_an_object_has_a_name_that_stays(user: User, tmp_path: Path) -> None:
    page, name = user.page, user.page.locator("#called")
    user.open_sample()
    user.segment()
    name.fill('my "cat"')
    name.press("Enter")
    expect(user.objects()).to_contain_text('my "cat"')
    user.point(0.6, 0.6)  # the next click refines it
    user.says("of the photograph")
    expect(name).to_have_value('my "cat"')
    user.turn_to("Objects")
    assert names(user)[0].startswith('my "cat"')
    table = saved(user, "csv", tmp_path)
    assert table.read_text().splitlines()[1].startswith('chelsea.jpg,"my ""cat""",,')
    for formula in () if user.touch else ("=1+1", "-x", "@sum"):
        name.fill(formula)
        name.press("Enter")
        table = saved(user, "csv", tmp_path)
        assert table.read_text().splitlines()[1].startswith(f"chelsea.jpg,'{formula},,")
        page.click("#undo")
    page.click("#undo")
    expect(name).to_have_value('my "cat"')
    page.click("#undo")
    expect(name).to_have_value("")


def test_a_table_is_plain_utf8_without_formulas_and_the_help_says_so(
    desktop: User, tmp_path: Path
) -> None:
    page = desktop.page
    page.set_input_files("#file", picture("JPEG") | {"name": "-käse.jpg"})
    desktop.says("-käse.jpg")
    desktop.segment()
    desktop.turn_to("Objects")
    lines = saved(desktop, "csv", tmp_path, called="Käse").read_bytes().splitlines()
    assert lines[0].startswith(b"file,name,")
    assert lines[1].startswith("'-käse.jpg,Käse,".encode())
    page.press("#stage", "?")
    expect(page.get_by_text("has an apostrophe before it")).to_be_visible()


def test_names_are_given_in_the_list_and_have_one_colour_each(everything: User) -> None:
    user, page = everything, everything.page
    button(user, "rename unnamed").click()
    word = page.locator("#really-word")
    word.fill("lamp")
    word.press("Enter")
    picks = page.locator("#objects .pick")
    expect(picks).to_have_text(["wall× 3", "lamp3.5 %"])
    button(user, "rename wall").click()
    word.fill("lamp")
    word.press("Enter")
    expect(picks.first).to_have_text("lamp× 4")
    button(user, "lamp 1: 1 parts").click()
    dots = page.locator("#objects .pick:not([aria-expanded]) i")
    colours = dots.evaluate_all("all => all.map(dot => dot.style.background)")
    assert len(colours) == 5
    assert len(set(colours)) == 2  # the clock has another one
    page.click("#undo")
    assert names(user)[0] == "wall × 3"
    offered = page.locator("#used option").evaluate_all("all => all.map(one => one.value)")
    assert offered[0] == "lamp"
    assert "wall" in offered


def test_an_object_is_renamed_on_the_photograph(desktop: User) -> None:
    page, word = desktop.page, desktop.page.locator("#really-word")
    desktop.open_sample()
    desktop.segment()
    page.keyboard.press("F2")
    page.keyboard.type("tom")
    page.keyboard.press("Enter")
    expect(desktop.objects()).to_contain_text("tom")
    page.keyboard.press("n")
    page.keyboard.press("h")  # else each click is about the mask
    left, top = desktop.place(0.4, 0.5)
    page.dblclick("#stage", position={"x": left, "y": top})
    expect(page.locator("#really-text")).to_have_text("New name for “tom”:")
    row = page.locator("#really form").bounding_box()
    assert row
    assert row["height"] < 60  # one line
    word.fill("kitty")
    word.press("Enter")
    expect(desktop.objects()).to_contain_text("kitty")


def test_a_line_under_the_pointer_has_room_for_its_name(desktop: User) -> None:
    line = find(desktop).page.locator("#objects .line", has_text="unnamed")
    name = line.locator("b")
    desktop.page.mouse.move(0, 0)
    before = name.evaluate("name => name.offsetHeight")
    line.hover()
    expect(line.get_by_role("button", name="remove unnamed")).to_be_visible()
    assert name.evaluate("name => name.offsetHeight") == before  # still one line


def test_a_name_typed_while_an_answer_is_on_its_way_stays(desktop: User) -> None:
    page = desktop.page
    desktop.open_sample()
    desktop.segment()
    waiting: list[Any] = []
    page.route("**/segment", lambda route: waiting.append(route))
    desktop.point(0.6, 0.6)
    while not waiting:
        page.wait_for_timeout(20)
    page.fill("#called", "tom")
    page.press("#called", "Enter")
    waiting.pop().continue_()
    desktop.says("of the photograph")
    expect(desktop.objects()).to_contain_text("tom")
    expect(page.locator("#called")).to_have_value("tom")


def test_what_is_found_is_added_and_what_was_made_stays(desktop: User) -> None:
    desktop.open_sample()
    desktop.segment()
    desktop.find("a cat")
    desktop.says("found.")
    count = desktop.objects().count()
    assert count >= 2
    desktop.find("a cat")  # in place of what the same words found
    desktop.says("found.")
    expect(desktop.objects()).to_have_count(count)
    answer = json.dumps(ANSWER) + "\n"
    desktop.page.route("**/everything", lambda route: route.fulfill(body=answer))
    desktop.ask("everything")
    expect(desktop.page.locator("#really-text")).to_contain_text("that you clicked, named or found")
    desktop.page.get_by_role("button", name="Keep").click()
    desktop.says("objects in")
    assert "object 1" in " ".join(names(desktop))
    desktop.page.click("#everything")
    desktop.page.get_by_role("button", name="Replace").click()
    expect(desktop.page.locator("#objects")).not_to_contain_text("object 1")


def test_pointing_at_a_line_or_the_photograph_shows_one(desktop: User) -> None:
    lit = find(desktop).page.locator("#objects .line.lit b")
    desktop.page.get_by_text("unnamed").hover()
    expect(lit).to_have_text(["unnamed"])
    desktop.page.get_by_label("wall: 3 of them").click()
    desktop.page.get_by_text("wall 2").hover()
    expect(lit).to_have_text(["wall", "wall 2"])


DARKNESS = """([x, y]) => import("/playground/work.js").then(({layers: {painted}}) => {
  const at = [x / 451 * painted.width, y / 300 * painted.height].map(Math.round);
  return painted.getContext("2d").getImageData(...at, 1, 1).data[3];
})"""


def test_parts_are_drawn_with_their_whole(everything: User) -> None:
    user, page = everything, everything.page
    edge, beside = [30, 60], [225, 100]  # of the clock, and between the walls
    user.says("1 of them parts of others")
    page.mouse.move(0, 0)  # away from the lines
    assert page.evaluate(DARKNESS, beside) == 0
    assert 0 < page.evaluate(DARKNESS, edge) < 150  # the wall is filled, and its clock not seen
    button(user, "wall: 3 of them").click()
    page.get_by_role("button", name="wall 1").and_(page.locator(".pick")).click()
    assert page.evaluate(DARKNESS, edge) > 150
    expect(page.locator("#saved")).to_have_text("Save object")


def test_a_thing_is_one_find_and_its_sizes_are_a_choice_at_it(user: User) -> None:
    """The first wall has a clock as its other size; the second one is another thing."""
    page, masks = user.page, [found(*one)["mask"] | {"label_score": 0.95} for one in BOXES.items()]
    result = {"masks": [masks[0], masks[2], masks[1]], "things": [0, 0, 1]}
    answer = {"results": [result], "image": {"key": "0" * 64}}
    page.route("**/segment", lambda route: route.fulfill(json=answer))
    user.find("a wall")
    user.says("2 found.")
    expect(user.objects()).to_have_text([re.compile("2 sizes$"), re.compile("likely$")])
    assert min(page.evaluate(DARKNESS, place) for place in ([150, 150], [340, 100])) > 0
    user.objects().first.click()
    sizes = page.locator("#choices label")
    expect(sizes).to_have_text(["larger", "smaller"])
    sizes.nth(1).click()
    expect(user.objects().first).to_contain_text("2 sizes")
    assert page.evaluate(DARKNESS, [150, 150]) == 0
    assert page.evaluate(DARKNESS, [60, 60]) > 0
    assert not axe(user)
    user.find("a wall")  # what nobody has touched is found again
    user.says("2 found.")
    expect(user.objects()).to_have_count(2)
    assert page.evaluate(DARKNESS, [150, 150]) == 0


def test_more_like_this_adds_nothing_that_is_there(desktop: User) -> None:
    page = desktop.page
    page.set_input_files("#file", picture("JPEG", (WIDTH, HEIGHT)))
    desktop.says("cat.jpeg")
    nearly = (12, 10, 210, 210, "")  # the first wall, seen again
    answers = [[BOXES[1]], [nearly, BOXES[4]], [nearly]]

    def reply(route: Any) -> None:
        masks = [found(1, box)["mask"] | {"label_score": 0.9} for box in answers.pop(0)]
        result = {"masks": masks, "things": list(range(len(masks)))}
        route.fulfill(json={"results": [result], "image": {"key": "0" * 64}})

    page.route("**/segment", reply)
    desktop.find("a wall")
    desktop.says("1 found.")
    for says, count in (("1 found.", 2), ("Nothing more was found", 1)):
        desktop.objects().first.click()
        page.press("#stage", "m")
        desktop.says(says)
        expect(desktop.objects().locator("b")).to_contain_text(["wall"] * count)


def test_a_cup_is_found_once(desktop: User) -> None:
    desktop.open_sample("Cup of coffee")
    with desktop.page.expect_response("**/segment") as answered:
        desktop.find("a cup")
    (result,) = answered.value.json()["results"]
    things = len(set(result["things"]))
    assert things < len(result["masks"])
    desktop.says(f"{things} found.")
    expect(desktop.objects()).to_have_count(things)
    expect(desktop.objects().first).to_contain_text("sizes")


def test_what_was_chosen_is_forgotten_with_its_objects(everything: User) -> None:
    user, page = everything, everything.page
    page.get_by_label("choose unnamed").check()
    expect(page.locator("#saved")).to_have_text("Save the chosen object")
    page.click("#everything")
    expect(page.locator("#saved")).to_have_text("Save 4 objects")
    expect(page.get_by_label("choose unnamed")).not_to_be_checked()
    user.says("5 objects")


def test_a_line_is_shown_after_the_arrow_keys_have_moved_the_cross(desktop: User) -> None:
    page = find(desktop).page
    lit = page.locator("#objects .line.lit b")
    for _ in range(2):
        page.press("#stage", "ArrowLeft")
    expect(lit).not_to_have_count(0)
    page.get_by_text("unnamed").hover()
    expect(lit).to_have_text(["unnamed"])


def test_the_focus_stays_on_a_line_that_is_used(desktop: User) -> None:
    page = find(desktop).page
    line = page.locator("#objects .line", has_text="unnamed")
    for number, name in ((0, "unnamed"), (2, "show only unnamed"), (3, "hide unnamed")):
        button = line.get_by_role("button").nth(number)
        expect(button).to_have_accessible_name(re.compile(name))
        button.press("Enter")
        expect(button).to_be_focused()
    line.get_by_role("button").last.press("Enter")  # it is removed
    expect(line).to_have_count(0)
    assert page.evaluate("document.activeElement.closest('#objects') !== null")
