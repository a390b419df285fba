import shutil

import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program, "There is no chromium: apt-get install chromium."
    with sync_playwright() as playwright:
        # Run by root, as tests in a container are, it starts only without its sandbox.
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
