"""A visitor of the page: a browser tab with an identity of its own, and the words for what people do with it."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path
from typing import Any

DESKTOP = (1440, 900)
PHONE = (390, 844)
DRAG = """([name, file, data]) => {
  const what = new DataTransfer();
  what.items.add(new File([Uint8Array.from(atob(data), (each) => each.charCodeAt(0))], file));
  document.body.dispatchEvent(new DragEvent(name, { dataTransfer: what, bubbles: true, cancelable: true }));
}"""

CUT = """() => [...document.querySelectorAll(".gradio-container *")].filter((node) => {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  const style = getComputedStyle(node);
  return own && node.checkVisibility() && style.overflowX === "hidden" && style.clipPath === "none"
    && node.scrollWidth > node.clientWidth + 1;
}).map((node) => node.textContent)"""

# The part of the page that has the focus, where it can be seen that something has it.
FOCUSED = """() => {
  const seen = (style) => style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2;
  const node = document.activeElement;
  const part = node.closest("#actions, #controls .block[id], #tools, #explain, #gallery");
  return part && [node, node.closest("label")].some((each) => each && seen(getComputedStyle(each))) ? part.id : "";
}"""

# Toasts go after ten seconds, and a slow machine may take longer than that to look.
TOASTS = """
window.toasts = [];
new MutationObserver((changes) => changes.forEach(({ addedNodes }) => addedNodes.forEach((node) => {
  const told = node.querySelectorAll ? [...node.querySelectorAll("[data-testid='toast-text']")] : [];
  window.toasts.push(...told.map((each) => each.innerText));
}))).observe(document, { childList: true, subtree: true });
"""


def find_chromium() -> str | None:
    """A chromium of the system; None if playwright's own has to do."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Visitor:
    """One tab. Collects console errors and requests to anywhere but the page's own server."""

    def __init__(
        self,
        browser: Any,
        url: str,
        *,
        size: tuple[int, int] = DESKTOP,
        path: str = "",
        dark: bool = False,
        context: Any = None,  # that of an earlier visitor, of whom nothing is left but the cache
        tab: bool = False,  # of that visitor's own, who is still there
    ) -> None:
        self.url = url
        touch = size == PHONE
        self.own = context is None or touch
        self.context = browser.new_context(has_touch=touch, is_mobile=touch) if self.own else context
        self.context.set_default_timeout(120_000)
        self.page = self.context.new_page()
        self.page.add_init_script(TOASTS)
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        if not self.own and not tab:
            self.context.clear_permissions()
            self.page.goto(url + "healthz")
            self.page.evaluate("localStorage.clear()")
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._notice)
        self.open(path)

    def _notice(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.strangers.append(request.url)

    def open(self, path: str = "") -> None:
        """Load the page, and wait until it has said what runs."""
        self.page.goto(self.url + path)
        self.wait_arrived()

    def wait_arrived(self) -> None:
        """Until the server has told this tab what it knows of its visitor."""
        self.page.wait_for_selector('.df-gallery[aria-busy="false"]')

    def wait_ticks(self, count: int = 2) -> None:
        """Until an idle page has asked that often what runs; with the second question the first is answered."""
        for _ in range(count):
            with self.page.expect_response(lambda response: "/queue/join" in response.url):
                pass

    def close(self) -> None:
        """Close the tab, and the browser window where it is this visitor's own."""
        self.page.close()
        if self.own:
            self.context.close()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text().strip()

    def write(self, prompt: str) -> None:
        self.page.fill("#prompt textarea", prompt)

    def choose(self, name: str) -> None:
        """A button under Run, Aspect ratio or the stage, by its words."""
        self.page.locator("#settings, #tools").get_by_text(name, exact=True).click()

    def advanced(self, field: str, value: str) -> str:
        """Write into a field of the Advanced part; returns what stood there."""
        opened = self.page.locator(f"#{field} input").is_visible()
        if not opened:
            self.page.get_by_text("Advanced", exact=True).click()
            # Gradio builds this part when it is first opened, and a moment later writes into its fields what the
            # server sent before, the model's size; nobody types that fast, but a test does.
            self.page.wait_for_function(
                "['width', 'height'].every(side => document.querySelector(`#${side} input`)?.value)"
            )
            self.wait_settled()
        before = self.page.input_value(f"#{field} input")
        for _ in range(5):  # whatever else was under way and wrote over it is done by then
            self.page.fill(f"#{field} input", value)
            if not opened:
                self.wait_settled()
            if self.page.input_value(f"#{field} input") == value:
                return before
        raise AssertionError(f"{field} does not keep {value}")

    def wait_settled(self) -> None:
        """Until the browser has nothing to do, ten times over: that takes longer where everything does."""
        self.page.evaluate(
            """async () => {
              for (let turn = 0; turn < 10; turn++) {
                await new Promise((done) => requestAnimationFrame(() => requestIdleCallback(done)));
                await new Promise((done) => setTimeout(done, 30));
              }
            }"""
        )

    def wait_advanced(self, field: str, value: str) -> None:
        """Until a field of the Advanced part, which is opened for that, holds `value`."""
        if not self.page.locator(f"#{field} input").is_visible():
            self.page.get_by_text("Advanced", exact=True).click()
        self.page.wait_for_function(
            "([id, value]) => document.querySelector(`#${id} input`)?.value === value", arg=[field, value]
        )

    def drop(self, path: Path) -> None:
        """Drag a file over the page and let go of it."""
        data = base64.b64encode(path.read_bytes()).decode()
        for name in ("dragover", "drop"):
            self.page.evaluate(DRAG, [name, path.name, data])

    def wait_prompt(self, prompt: str) -> None:
        """Until the prompt field holds `prompt`."""
        self.page.wait_for_function("text => document.querySelector('#prompt textarea')?.value === text", arg=prompt)

    def reload(self) -> None:
        self.page.reload()
        self.wait_arrived()

    def seed(self) -> str:
        return self.page.locator("#seed input").input_value()

    def generate(self, prompt: str, *, run: str = "DistriFusion") -> None:
        """Start a run and return when it is under way."""
        self.write(prompt)
        self.choose(run)
        self.press_generate()

    def press_generate(self) -> None:
        self.page.wait_for_function("!document.querySelector('#generate').disabled")
        self.page.click("#generate")
        self.page.wait_for_function("!document.querySelector('#stop').disabled")

    def wait_idle(self, *, seconds: float = 120) -> None:
        """Until the run is over: Generate can be pressed again and Stop cannot."""
        self.page.wait_for_function(
            "!document.querySelector('#generate').disabled && document.querySelector('#stop').disabled",
            timeout=1000 * seconds,
        )

    def state(self) -> str:
        """What the stage shows: idle, running, done, cancelled, failed..."""
        return str(self.page.get_attribute(".df-stage", "data-state"))

    def wait_state(self, *states: str, seconds: float = 120) -> None:
        wanted = ",".join(f'.df-stage[data-state="{state}"]' for state in states)
        self.page.wait_for_selector(wanted, state="attached", timeout=1000 * seconds)

    def step(self) -> int:
        """The step that the stage shows; 0 if it shows none."""
        found = re.search(r"Step (\d+) /", self.page.locator(".df-progress b").text_content() or "")
        return int(found[1]) if found else 0

    def wait_step(self, at_least: int) -> None:
        self.page.wait_for_function(
            "least => Number(document.querySelector('.df-progress b')?.textContent.match(/Step (\\d+)/)?.[1]) >= least",
            arg=at_least,
        )

    def toast(self) -> str:
        """The sentence of the newest toast, also when it is gone."""
        self.page.wait_for_function("window.toasts.length")
        return str(self.page.evaluate("window.toasts.at(-1)")).strip()

    def wait_toast(self, sentence: str) -> None:
        """Until a toast has held `sentence`."""
        self.page.wait_for_function("sentence => window.toasts.some((each) => each.includes(sentence))", arg=sentence)

    def picture(self) -> bytes:
        """The PNG behind the download button."""
        self.page.wait_for_selector('.df-download[aria-disabled="false"]')
        address = self.page.locator(".df-download").evaluate("link => link.href")
        return bytes(self.context.request.get(address).body())

    def stops(self) -> list[str]:
        """The parts of the page that the Tab key comes by, from the prompt on, to where Gradio's own begin."""
        self.page.focus("#prompt textarea")
        parts: list[str] = []
        while part := str(self.page.evaluate(FOCUSED)):
            parts += [part] if parts[-1:] != [part] else []
            self.page.keyboard.press("Tab")
        return parts

    def nameless(self) -> list[str]:
        """Roles of what can be operated, or groups what can be, and has no name to be read aloud."""
        wire = self.context.new_cdp_session(self.page)
        nodes = wire.send("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "link", "textbox", "spinbutton", "checkbox", "radio", "combobox", "progressbar", "region"}
        told = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
        fieldsets = self.page.locator("fieldset").all()
        groups = [("fieldset", each.get_attribute("aria-label")) for each in fieldsets if each.is_visible()]
        return [role for role, name in [*told, *groups] if not name and role in roles | {"fieldset"}]

    def cut(self) -> list[str]:
        """Words that do not fit where they stand."""
        return list(self.page.evaluate(CUT))

    def sideways(self) -> int:
        """By how many pixels the page can be scrolled sideways."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))
