"""Pages of runs, open in a browser."""

import time
from collections.abc import Callable
from pathlib import Path


class Visit:
    """A page open in a browser, and what went wrong in it."""

    def __init__(self, browser, file: Path | str, address: str = "", **context):
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **context}).new_page()
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.file = file.as_uri() if isinstance(file, Path) else file
        self.page.goto(f"{self.file}{address}")
        self.page.locator("#trouble").wait_for(state="hidden")

    def found(self, text: str) -> None:
        """Wait until the page shows this number of groups."""
        self.page.get_by_text(text, exact=True).wait_for()

    def column(self, field: str) -> list[str]:
        return self.page.locator(f".tabulator-row .tabulator-cell[tabulator-field={field}]").all_inner_texts()

    def close(self) -> None:
        """Check that nothing went wrong and that nothing but the file itself was requested."""
        assert self.errors == []
        assert self.requests == [self.file]
        self.page.context.close()


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until it holds, because a browser does not react to an event immediately."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)
