"""The API documents: they need no other host, have both themes, and their defaults are answered."""

import pytest
from playwright.sync_api import Browser, expect

from services.gateway import openapi
from tests.browser.conftest import DESKTOP, User, picture
from tests.e2e.conftest import Service

pytestmark = pytest.mark.browser


def test_try_it_out_answers_200(desktop: User, service: Service) -> None:
    page = desktop.page
    others = []
    page.on(
        "request",
        lambda r: (
            others.append(r.url) if not r.url.startswith((service.url, "data:", "blob:")) else None
        ),
    )
    page.goto(f"{service.url}/docs")
    for path in openapi.document()["paths"]:  # in the page's order: /index before /search
        block = page.locator(".opblock", has=page.locator(f'[data-path="{path}"]'))
        block.locator(".opblock-summary-control").click()
        for chooser in block.locator("input[type=file]").all():
            chooser.set_input_files([picture("PNG")])
        block.get_by_role("button", name="Execute").click()
        expect(block.locator("tbody .response-col_status").first).to_contain_text("200")
    assert not others


def test_labels_are_sent_one_by_one_and_empty_fields_are_not(
    desktop: User, service: Service
) -> None:
    page = desktop.page
    page.goto(f"{service.url}/docs#/classification/Classify")
    page.locator("input[type=file]").set_input_files([picture("PNG")])
    with page.expect_response("**/classify") as answered:
        page.get_by_role("button", name="Execute").click()
    labels = {result["label"] for result in answered.value.json()["results"]}
    assert labels == set(openapi.EXAMPLES["Classify"]["labels"])


@pytest.mark.parametrize(("scheme", "inverted"), [("light", False), ("dark", True)])
def test_the_documents_have_a_dark_theme(
    browser: Browser, service: Service, scheme: str, inverted: bool
) -> None:
    with browser.new_context(**{**DESKTOP, "color_scheme": scheme}) as context:
        page = context.new_page()
        page.goto(f"{service.url}/docs")
        expect(page.locator(".opblock").first).to_be_visible()
        style = page.evaluate("getComputedStyle(document.documentElement).filter")
        assert (style != "none") is inverted
