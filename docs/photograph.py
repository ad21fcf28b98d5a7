"""Takes a picture of a page that `Report.html` or `Plan.html` wrote, as a browser shows it.

    python examples/report_page.py --save report.html
    python docs/photograph.py report.html docs/pictures/report.png --open 4 --height 1150

It drives Chromium, which with its driver must be installed (on Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from selenium import webdriver

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def main() -> None:
    """Reads the command line and writes the picture."""
    parser = argparse.ArgumentParser(description="Take a picture of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path, help="a .png")
    parser.add_argument("--width", type=int, default=1280, help="of the window; 390 is that of a phone")
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--dark", action="store_true", help="in the dark colours")
    parser.add_argument("--open", type=int, metavar="N", help="with the N-th site opened")
    options = parser.parse_args()
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if None in programs.values():
        raise SystemExit(
            "chromium and chromedriver are needed; on Debian: apt-get install chromium chromium-driver"
        )
    settings = webdriver.ChromeOptions()
    settings.binary_location = programs["chromium"]
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            settings.add_argument(flag)
        browser = webdriver.Chrome(settings, webdriver.ChromeService(programs["chromedriver"]))
        try:
            photograph(browser, options)
        finally:
            browser.quit()


def photograph(browser: webdriver.Chrome, options: argparse.Namespace) -> None:
    """Opens the page in a window of the wanted size and colours, and writes the picture."""
    size = {
        "width": options.width, "height": options.height, "deviceScaleFactor": 1, "mobile": options.width < 600
    }  # fmt: skip
    colours = {"name": "prefers-color-scheme", "value": "dark" if options.dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colours]})
    browser.get(options.page.resolve().as_uri())
    if options.open:
        browser.find_element("css selector", f"#site-{options.open - 1} .open").click()
        browser.execute_script("scrollTo(0, 0); document.activeElement.blur()")
    browser.get_screenshot_as_file(str(options.picture))


if __name__ == "__main__":
    main()
