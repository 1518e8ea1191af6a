"""A folder as a job: its photographs one after another, what is done, and one data set of all."""

import json
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import User, picture
from tests.browser.test_access import found as axe

pytestmark = pytest.mark.browser
NAMES = ["a.jpg", "b.jpg", "c.jpg", "deep/d.jpg", "f.jpg", "g.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with six photographs, and one file that is none."""
    within = tmp_path / "cats"
    (within / "deep").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (within / name).write_bytes(picture("JPEG", (200 + number, 150))["buffer"])
    (within / "e.jpg").write_bytes(b"\xff\xd8\xff broken")
    (within / "notes.txt").write_text("no photograph")
    return within


def opened(user: User, folder: Path) -> User:
    user.page.set_input_files("#job-folder", folder)
    user.says("a.jpg, 200 × 150")
    user.size = (200, 150)
    return user


def label(user: User, name: str = "") -> None:
    user.segment()
    if name:
        user.page.fill("#called", name)
        user.page.press("#called", "Enter")


def saved(page: Page, kind: str) -> str:
    with page.expect_download() as download:
        page.click(f"#job-{kind}")
    return Path(download.value.path()).read_text()


def test_a_folder_is_gone_through_and_a_broken_file_is_named(user: User, folder: Path) -> None:
    page, count = opened(user, folder).page, user.page.locator("#job-count")
    expect(count).to_have_text("0 of 7 done, 7 left")
    expect(page.locator("#job-list b")).to_have_text([*NAMES[:4], "e.jpg", *NAMES[4:]])
    assert not axe(user)
    page.click("#done")
    user.says("b.jpg, 201 × 150")
    expect(count).to_have_text("1 of 7 done, 6 left")
    expect(page.locator("#place")).to_have_text("2 of 7")
    for name in NAMES[2:4]:
        page.click("#following")
        user.says(name.rpartition("/")[2])
    page.keyboard.press(".")
    user.says("Skipped, because this browser cannot read them: e.jpg.")
    user.says("f.jpg")
    expect(count).to_have_text("1 of 7 done, 5 left, 1 cannot be read")
    page.keyboard.press(",")
    user.says("d.jpg")
    page.locator("#job-list button", has_text="g.jpg").click()
    user.says("g.jpg")
    page.keyboard.press(".")
    user.says("There is no next photograph.")
    for name in ("b.jpg", "c.jpg", "d.jpg", "f.jpg"):
        page.keyboard.press("x")
        user.says(name)
    page.keyboard.press("x")
    user.says("All photographs are done")
    page.keyboard.press("x")
    user.says("f.jpg is not done.")


def test_labels_are_there_when_the_folder_is_chosen_again(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    page.keyboard.press("x")
    desktop.says("b.jpg")
    label(desktop, "kitty")
    page.wait_for_timeout(300)  # until it is written
    page.reload()
    desktop.says("b.jpg, 201 × 150.")
    desktop.says("The objects of last time are here again.")
    expect(page.locator("#place")).to_have_text("“cats”: 1 of 7 done")
    with page.expect_file_chooser() as chooser:
        page.click("#choose-again")
    chooser.value.set_files(folder)
    expect(page.locator("#place")).to_have_text("2 of 7")
    expect(page.locator("#job-list li").first).to_have_text("✓ a.jpg1 object")
    page.keyboard.press(",")
    desktop.says("a.jpg")
    expect(desktop.objects()).to_contain_text("tom")
    page.set_input_files("#file", picture("PNG"))  # belongs to no folder
    desktop.says("cat.png")
    expect(page.locator("#done")).to_be_hidden()


def test_all_labels_are_saved_as_one_data_set_with_a_split(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    for name in NAMES[1:5]:
        page.keyboard.press(".")
        desktop.says(name.rpartition("/")[2])
        if name != "f.jpg":
            label(desktop, "" if name == "c.jpg" else "tom")
    page.keyboard.press("x")  # f.jpg has no object
    desktop.says("g.jpg")
    page.click("#job-coco")
    expect(page.locator("#really-text")).to_have_text("One object has no name. What is it?")
    page.get_by_role("button", name="Cancel").click()
    page.uncheck("#split")
    page.click("#job-coco")
    page.fill("#really-word", "kitty")
    with page.expect_download() as download:
        page.press("#really-word", "Enter")
    whole = json.loads(Path(download.value.path()).read_text())
    assert [image["file_name"] for image in whole["images"]] == NAMES[:5]
    assert [image["width"] for image in whole["images"]] == [200, 201, 202, 203, 204]
    assert [kind["name"] for kind in whole["categories"]] == ["tom", "kitty"]
    assert [(one["image_id"], one["category_id"]) for one in whole["annotations"]] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 1),
    ]
    page.check("#split")
    with page.expect_download() as download:
        page.click("#job-coco")
    assert download.value.suggested_filename == "cats.coco.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        assert archive.infolist()[0].create_system == 3  # or unzip misreads letters like ä
        parts = {name: json.loads(archive.read(name)) for name in archive.namelist()}
    assert set(parts) == {"cats.train.coco.json", "cats.val.coco.json"}
    names = [image["file_name"] for part in parts.values() for image in part["images"]]
    assert sorted(names) == NAMES[:5]
    assert all(part["categories"] == whole["categories"] for part in parts.values())
    page.uncheck("#split")
    table = saved(page, "csv")
    assert [line.split(",")[:2] for line in table.splitlines()[1:]] == [
        ["a.jpg", "tom"],
        ["b.jpg", "tom"],
        ["c.jpg", "kitty"],
        ["deep/d.jpg", "tom"],
    ]


def test_labels_become_the_metadata_of_a_collection(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    page.click("#job-collection")
    desktop.fails("There is nothing to save yet")
    for name in ("tom", "kitty"):
        label(desktop, name)
        page.keyboard.press("x")
        desktop.says("b.jpg" if name == "tom" else "c.jpg")
    page.keyboard.press("x")  # without an object
    desktop.says("d.jpg")
    page.click("#job-collection")
    expect(page.locator("#really-word")).to_have_value("cats")
    page.fill("#really-word", "labelled")
    page.press("#really-word", "Enter")
    desktop.says("3 of 3 photographs were added to labelled.")
    page.get_by_text("Only some photographs").click()
    page.fill("#where", "label=kitty")
    page.fill("#query", "a cat")
    page.press("#query", "Enter")
    expect(page.locator("#hits li")).to_have_count(1)
    page.get_by_label("Open b.jpg").click()
    desktop.says("b.jpg, 201 × 150")


def test_a_file_that_could_not_be_read_once_is_not_left_out(desktop: User, folder: Path) -> None:
    page = opened(desktop, folder).page
    page.keyboard.press(".")
    desktop.says("b.jpg")
    label(desktop, "tom")
    page.keyboard.press(",")
    desktop.says("a.jpg")
    page.evaluate("""() => {
      const real = createImageBitmap;
      window.createImageBitmap = async () => { createImageBitmap = real; throw new Error(); };
    }""")
    page.keyboard.press(".")
    desktop.says("Skipped, because this browser cannot read them: b.jpg.")
    page.keyboard.press(",")
    desktop.says("b.jpg, 201 × 150")
    expect(page.locator("#job-count")).to_have_text("0 of 7 done, 7 left")
    page.uncheck("#split")
    table = saved(page, "csv")
    assert table.splitlines()[1].startswith("b.jpg,tom,")


def test_two_pages_with_the_same_folder_say_so_and_show_the_same(
    desktop: User, folder: Path
) -> None:
    opened(desktop, folder)
    page = desktop.page.context.new_page()
    page.goto(desktop.page.url)
    page.set_input_files("#job-folder", folder)
    for each in (page, desktop.page):
        expect(each.locator("#status")).to_contain_text("“cats” is open in another page too")
    page.click("#done")
    expect(desktop.page.locator("#job-count")).to_have_text("1 of 7 done, 6 left")
    page.close()


def test_photographs_that_have_changed_keep_labels_that_may_fit(
    desktop: User, folder: Path
) -> None:
    page = opened(desktop, folder).page
    for name in NAMES[:3]:
        label(desktop, "tom")
        page.keyboard.press("x")
        desktop.says(NAMES[NAMES.index(name) + 1].rpartition("/")[2])
    (folder / "a.jpg").write_bytes(picture("PNG", (200, 150))["buffer"])
    (folder / "b.jpg").write_bytes(picture("JPEG", (99, 77))["buffer"])
    page.set_input_files("#job-folder", folder)
    page.get_by_role("button", name="They have changed").click()
    desktop.says("1 photograph has changed after labelling. The labels are kept")
    desktop.says("1 photograph has another size than at labelling.")
    expect(page.locator("#job-list li").nth(0)).to_have_text("✓ a.jpg1 object")
    expect(page.locator("#job-list li").nth(1)).to_have_text("b.jpg")
    expect(page.locator("#job-list li").nth(2)).to_have_text("✓ c.jpg1 object")


def test_a_photograph_that_has_changed_twice_keeps_its_last_labels(
    desktop: User, folder: Path
) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    for size, name in ((20_000, "kitty"), (10_000, "")):
        page.wait_for_timeout(300)  # until it is written
        (folder / "a.jpg").write_bytes(picture("JPEG", (200, 150))["buffer"].ljust(size, b"\0"))
        page.set_input_files("#job-folder", folder)
        page.get_by_role("button", name="They have changed").click()
        expect(desktop.objects()).to_have_attribute("aria-pressed", "false")  # opened anew
        if name:
            desktop.objects().dispatch_event("click")
            page.fill("#called", name)
            page.press("#called", "Enter")
    expect(desktop.objects()).to_contain_text("kitty")


@pytest.mark.parametrize("answer", ["Use the labels", "Begin anew"])
def test_a_folder_that_was_renamed_has_its_labels_if_the_user_wants_them(
    desktop: User, folder: Path, answer: str
) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    page.set_input_files("#job-folder", folder.rename(folder.with_name("kittens")))
    expect(page.locator("#really-text")).to_contain_text(
        "labelled 1 of these photographs in “cats”"
    )
    page.get_by_role("button", name=answer).click()
    desktop.says("a.jpg, 200 × 150")
    kept = answer == "Use the labels"
    text = "a.jpg1 object" if kept else "a.jpg"
    expect(page.locator("#job-list li").first).to_have_text(text)
    expect(desktop.objects()).to_have_count(int(kept))


def test_all_folders_are_named_in_which_photographs_were_labelled(
    desktop: User, folder: Path
) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    (folder / "b.jpg").rename(folder / "deep" / "b.jpg")
    page.set_input_files("#job-folder", folder / "deep")
    desktop.says("b.jpg, 201 × 150")
    label(desktop, "kitty")
    (folder / "deep" / "b.jpg").rename(folder / "b.jpg")
    page.set_input_files("#job-folder", folder.rename(folder.with_name("kittens")))
    expect(page.locator("#really-text")).to_have_text(
        "You have labelled 2 of these photographs in “cats”, in “deep”."
    )
    page.get_by_role("button", name="Use the labels").click()
    desktop.says("2 photographs have the labels of last time.")


@pytest.mark.parametrize("answer", ["Use the labels", "Begin anew"])
def test_a_photograph_that_was_renamed_has_its_labels_if_the_user_wants_them(
    desktop: User, folder: Path, answer: str
) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    page.keyboard.press("x")
    desktop.says("b.jpg")
    (folder / "a.jpg").rename(folder / "z.jpg")
    page.set_input_files("#job-folder", folder)
    expect(page.locator("#really-text")).to_have_text(
        "You have labelled 1 of these photographs as “a.jpg”."
    )
    page.get_by_role("button", name=answer).click()
    expect(page.locator("#place")).to_have_text("1 of 7")
    page.reload()
    page.set_input_files("#job-folder", folder)
    expect(page.locator("#place")).to_have_text("1 of 7")  # it asks once
    text = "✓ z.jpg1 object" if answer == "Use the labels" else "z.jpg"
    expect(page.locator("#job-list li").last).to_have_text(text)


@pytest.mark.parametrize("answer", ["It is another folder", "They have changed"])
def test_another_folder_of_the_same_name_is_asked_about(
    desktop: User, folder: Path, tmp_path: Path, answer: str
) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    (tmp_path / "other" / "cats").mkdir(parents=True)
    other = tmp_path / "other" / "cats"
    (other / "a.jpg").write_bytes(picture("PNG", (200, 150))["buffer"])
    page.set_input_files("#job-folder", other)
    page.get_by_role("button", name=answer).click()
    desktop.says("a.jpg, 200 × 150")
    expect(desktop.objects()).to_have_count(int(answer == "They have changed"))
    second = desktop.page.context.new_page()
    second.goto(desktop.page.url)
    second.set_input_files("#job-folder", folder)
    expect(second.locator("#status")).to_contain_text("a.jpg, 200 × 150")
    second.wait_for_timeout(300)
    expect(page.locator("#status")).not_to_contain_text("is open in another page")
    second.close()


def test_another_folder_of_the_same_name_is_asked_about_when_some_of_it_is_labelled(
    desktop: User, folder: Path, tmp_path: Path
) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    other = tmp_path / "other" / "cats"
    other.mkdir(parents=True)
    for name in ("a.jpg", "z.jpg"):
        (other / name).write_bytes(picture("PNG", (200, 150))["buffer"])
    (other / "a.jpg").rename(tmp_path / "a.jpg")
    page.set_input_files("#job-folder", other)
    desktop.says("z.jpg, 200 × 150")
    page.keyboard.press("x")
    desktop.says("All photographs are done")
    (tmp_path / "a.jpg").rename(other / "a.jpg")
    page.set_input_files("#job-folder", other)
    page.get_by_role("button", name="It is another folder").click()
    desktop.says("z.jpg, 200 × 150")
    page.keyboard.press(",")
    desktop.says("a.jpg, 200 × 150")
    expect(desktop.objects()).to_have_count(0)
    page.reload()
    page.set_input_files("#job-folder", other)
    expect(page.locator("#place")).to_have_text("1 of 2")  # the answer is remembered
    expect(desktop.objects()).to_have_count(0)


def test_labels_that_were_removed_from_a_changed_photograph_are_not_offered_again(
    desktop: User, folder: Path
) -> None:
    page = opened(desktop, folder).page
    label(desktop, "tom")
    page.wait_for_timeout(300)  # until it is written
    (folder / "a.jpg").write_bytes(picture("PNG", (200, 150))["buffer"])
    page.set_input_files("#job-folder", folder)
    page.get_by_role("button", name="They have changed").click()
    desktop.says("The objects of last time are here again.")
    desktop.objects().dispatch_event("click")
    page.press("#stage", "Delete")
    expect(page.locator("#job-list li").first).to_have_text("a.jpg")
    page.set_input_files("#job-folder", folder)
    expect(page.locator("#status")).to_have_text("a.jpg, 200 × 150. Click a thing to cut it out.")
    expect(desktop.objects()).to_have_count(0)


@pytest.mark.parametrize("dropped", [True, False])
def test_a_folder_that_is_dropped_or_several_files_are_a_job(
    desktop: User, folder: Path, dropped: bool
) -> None:
    if dropped:
        session = desktop.page.context.new_cdp_session(desktop.page)
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 400, "y": 300, "data": data}
            session.send("Input.dispatchDragEvent", event)
    else:
        desktop.page.set_input_files("#file", [folder / "a.jpg", folder / "b.jpg"])
    desktop.says("a.jpg, 200 × 150")
    expect(desktop.page.locator("#job-name")).to_have_text("cats" if dropped else "photographs")


def test_a_browser_that_keeps_nothing_still_has_the_labels_of_a_folder(
    desktop: User, folder: Path
) -> None:
    forbidden = "indexedDB.open = () => { throw new DOMException('', 'SecurityError'); };"
    desktop.page.context.add_init_script(forbidden)
    desktop.page.reload()
    desktop.begin()
    page = opened(desktop, folder).page
    label(desktop, "tom")
    desktop.says("cannot keep your work")
    page.keyboard.press("x")
    desktop.says("b.jpg")
    page.keyboard.press(",")
    desktop.says("The objects of last time are here again.")
    expect(page.locator("#job-list li").first).to_have_text("✓ a.jpg1 object")
