"""The page of a report in a real browser: headless Chromium, driven by selenium.

Without Chromium and its driver (Debian: chromium, chromium-driver) the tests are skipped, unless JAXQ8_BROWSER=required is set,
as `.ci/run` does: then they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages import SCRIPT, SITES, plan, report

VARIABLE = "JAXQ8_BROWSER"
# Without a sandbox, because that needs rights which containers do not give; the page is our own. The others keep Chromium
# from the network.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
SHOWN = SITES + 1  # the sites of the plan, and a part of one


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        message = f"{' and '.join(missing)} not found; on Debian: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get(VARIABLE) == "required" else pytest.skip)(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    photos = [np.full((40, 60, 3), 50 * i, np.uint8) for i in range(3)]
    report().html(folder / "report.html", title=SCRIPT, images=photos, classes=["cat", "hen", "fox"])
    plan().html(folder / "plan.html")
    return folder


@pytest.fixture
def page(browser, files) -> Iterator[Any]:
    """The report, loaded anew at the width of a desktop; whatever a test does, nothing may be said on the console."""
    look(browser, 1280)
    browser.get("about:blank")
    browser.get((files / "report.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def look(browser: Any, width: int, **media: str) -> None:
    """Sets the width of the window, and the medium (``media=``) or the colours (``scheme=``)."""
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": media.get("scheme", "light")}]
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"media": media.get("media", ""), "features": features}
    )


def find(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def names(page: Any) -> list[str]:
    """The sites that are shown, in their order on the page."""
    return page.execute_script(
        "return [...document.querySelectorAll('#sites tbody:not([hidden])')].map((site) => site.dataset.name)"
    )


def data(page: Any, key: str) -> list[float]:
    script = "return [...document.querySelectorAll('#sites tbody')].map((site) => Number(site.dataset[arguments[0]]))"
    return page.execute_script(script, key)


def width_of(page: Any) -> tuple[int, int]:
    return tuple(page.execute_script("return [document.documentElement.scrollWidth, innerWidth]"))


def test_it_loads_alone_and_shows_names_as_text(page):
    assert page.title == SCRIPT
    assert find(page, "h1").text == SCRIPT
    assert len(names(page)) == SHOWN
    assert names(page)[1] == SCRIPT
    assert page.execute_script("return document.scripts.length") == 1
    assert page.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)") == []
    assert page.execute_script(
        "return [...document.images].every((i) => i.complete && i.naturalWidth === 60)"
    )
    assert find(page, ".photos .other").text == "another answer"


def test_the_policy_stops_other_scripts(page):
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.foreign = 1'; document.body.append(s)"
    )
    assert page.execute_script("return window.foreign") is None
    (entry,) = page.get_log("browser")
    assert "Content Security Policy" in entry["message"]


def test_columns_sort_both_ways(page):
    heads = {h.get_attribute("data-sort"): h for h in page.find_elements("css selector", "th button")}
    for key in ("error", "arithmetic", "bytes"):
        heads[key].click()
        found = data(page, key)
        assert found == sorted(found, reverse=True)
        assert len(set(found)) > SITES // 2
        assert find(page, f"th.k-{key}").get_attribute("aria-sort") == "descending"
        heads[key].click()
        assert data(page, key) == sorted(found)
        assert find(page, f"th.k-{key}").get_attribute("aria-sort") == "ascending"
    heads["name"].click()
    ordered = [n for n in names(page) if "layer_" in n]
    assert ordered.index("params/layer_9/kernel:conv") < ordered.index("params/layer_10/kernel:conv")
    assert len(page.find_elements("css selector", "th[aria-sort=none]")) == len(heads) - 1
    heads["order"].click()
    assert data(page, "order") == list(range(SHOWN))


def test_the_list_of_orders_sorts_too(page):
    find(page, "#sort option[value=error]").click()
    assert data(page, "error") == sorted(data(page, "error"), reverse=True)
    find(page, "#reverse").click()
    assert data(page, "error") == sorted(data(page, "error"))


def test_it_filters_by_text_and_group(page):
    find(page, "#filter").send_keys("LAYER_2")
    assert set(names(page)) == {f"params/layer_{i}/kernel:conv" for i in range(20, 29)}
    assert find(page, "#count").text == f"9 of {SHOWN} sites"
    find(page, "#filter").clear()
    find(page, "#filter").send_keys("switched off")  # the reason, which is in no name
    assert names(page) == ["params/gate/kernel:conv"]
    find(page, "#filter").send_keys(" nothing of the sort")
    assert names(page) == []
    find(page, "#filter").clear()
    find(page, "#group option[value='group:mixed']").click()
    assert names(page) == ["params/head/kernel:dot"]
    find(page, "#group option[value='region:2']").click()
    assert names(page)[0] == "params/layer_20/kernel:conv"
    assert len(names(page)) == 10


def test_a_click_opens_a_histogram_and_another_closes_it(page):
    details = find(page, "#details-7")
    assert not details.is_displayed()
    find(page, "#site-7 .open").click()
    assert find(page, "#site-7 .open").get_attribute("aria-expanded") == "true"
    drawing = find(page, "#details-7 svg.histogram")
    assert drawing.is_displayed()
    assert drawing.size["width"] > 200
    # The values reach from -4 to 4 and the codes from -3 to 3: the band is three quarters of the bins.
    widths = [find(drawing, part).rect["width"] for part in (".band", ".bins")]
    assert widths[0] / widths[1] == pytest.approx(0.75, abs=0.01)
    assert "clipped" in details.text
    find(page, "#site-7 td.k-error").click()
    assert not details.is_displayed()


def test_the_keyboard_is_enough(page):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page).send_keys(*keys).perform()

    find(page, "#all").click()
    assert all(d.is_displayed() for d in page.find_elements("css selector", "tr.details"))
    find(page, "#all").click()
    page.execute_script("document.querySelector('th.k-bytes button').focus()")
    press(Keys.ENTER)
    assert find(page, "th.k-bytes").get_attribute("aria-sort") == "descending"
    press(Keys.TAB, Keys.SPACE)  # the first site of the list
    first = page.execute_script("return document.activeElement.closest('tbody').dataset.name")
    assert first == names(page)[0]
    assert find(page, "#sites tbody tr.details").is_displayed()


def test_the_drawing_of_the_net_leads_to_a_site(page):
    find(page, "#filter").send_keys("nothing of the sort")
    page.execute_script("location.hash = document.querySelectorAll('.overview a')[12].getAttribute('href')")
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert find(page, "#details-12").is_displayed()
    assert len(names(page)) == SHOWN
    assert page.execute_script("return document.activeElement.closest('tbody').id") == "site-12"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("name", ["report", "plan"])
def test_nothing_is_wider_than_the_window(page, files, width, name):
    look(page, width)
    page.get((files / f"{name}.html").as_uri())
    find(page, "#all").click()
    scrolled, window = width_of(page)
    assert scrolled <= window == width


def test_it_has_dark_colours(page):
    script = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(script)
    look(page, 1280, scheme="dark")
    assert (light, page.execute_script(script)) == ("rgb(255, 255, 255)", "rgb(18, 22, 29)")


def test_in_print_the_controls_go_and_opened_sites_stay(page):
    find(page, "#site-3 .open").click()
    look(page, 700, media="print", scheme="dark")
    assert not find(page, ".tools").is_displayed()
    assert find(page, "#details-3").is_displayed()
    assert not find(page, "#details-4").is_displayed()
    assert (
        page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )


def test_without_scripts_everything_is_shown(page, files):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get((files / "report.html").as_uri())
        assert not find(page, ".tools").is_displayed()
        assert len(page.find_elements("css selector", "svg.histogram")) == SITES
        assert find(page, "#details-7").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
