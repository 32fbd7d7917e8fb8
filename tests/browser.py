"""A headless Chromium, where one is installed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """The browser's executable: `CHROMIUM`, or one on the PATH. Skips the test where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(
            f"NOT TESTED in a browser: no Chromium is installed (none of {', '.join(_NAMES)} is on the PATH)"
        )
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of its own, which asks nobody but the pages it is sent to."""
    executable = find_chromium()
    # Its sandbox needs rights that containers rarely give; the only page that it sees is ours.
    arguments = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
