"""Static markup of the live panels, and how page.js takes hold of them. Nothing is ever put into these strings: values
reach the page as data, because Gradio's templates would run what users type.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "page"

TITLE = "DistriFusion Live"
SUBTITLE = "One SDXL picture, all your devices. Same prompt, same seed: compare speed and quality."


@cache
def head() -> str:
    """What the page's <head> carries: style sheet and scripts. Gradio's own css= loses @media and @container."""
    stream, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("stream.js", "page.js"))
    style = (ASSETS / "style.css").read_text(encoding="utf-8")
    return f"<style>{style}</style><script>{stream}</script><script>{script}</script>"


def logo() -> str:
    """The logo as inline SVG."""
    return (ASSETS / "logo.svg").read_text(encoding="utf-8")


def explanation() -> str:
    """The panel "What am I looking at?", with its drawing."""
    return (ASSETS / "explain.html").read_text(encoding="utf-8")


def on_load(panel: str) -> str:
    """The js_on_load of a panel: hands the element to page.js, which may be there already or come later."""
    return f"(window.distriPanels ??= []).push(['{panel}', element, props, watch, trigger]);"


HEADER = f"""
<header class="df-header">
  <div class="df-brand">{logo()}<div><h1>{TITLE}</h1><p>{SUBTITLE}</p></div></div>
  <div class="df-pills">
    <span class="df-pill df-badge" role="status"><i></i><b></b><em></em></span>
    <span class="df-pill df-model"></span>
    <span class="df-pill df-devices"></span>
    <button type="button" class="df-pill df-theme" aria-label="Switch between light and dark" title="Light or dark">
      <svg viewBox="0 0 20 20" aria-hidden="true"><path d="M10 2a8 8 0 1 0 0 16zM10 2a8 8 0 0 1 0 16" fill="none"
      stroke="currentColor" stroke-width="1.6"/><path d="M10 2a8 8 0 0 1 0 16z" fill="currentColor"/></svg>
    </button>
  </div>
</header>"""

STAGE = """
<div class="df-stage">
  <div class="df-frame">
    <img class="df-picture" alt="" hidden>
  </div>
  <div class="df-sides" hidden>
    <figure><img alt=""><figcaption></figcaption></figure><figure><img alt=""><figcaption></figcaption></figure>
  </div>
  <div class="df-over">
    <div class="df-strip"></div>
  </div>
  <div class="df-words">
    <span class="df-label" hidden></span><span class="df-label df-label-right" hidden></span>
    <figure class="df-inset" hidden><img alt=""><div class="df-strip"></div><figcaption></figcaption></figure>
    <div class="df-heat" hidden><span>equal</span><i></i><span></span><u></u><span></span></div>
    <div class="df-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-label="Progress" hidden>
      <b></b><span></span><div class="df-track"><i></i><u></u></div>
    </div>
  </div>
  <div class="df-message" role="status"><div class="df-spinner"></div><h2></h2><p></p></div>
</div>"""

LANES = """
<section class="df-lanes" aria-label="Latency of every device">
  <div class="df-lanes-head"><h2></h2><span></span></div>
  <div class="df-lanes-list"></div>
  <div class="df-drift">
    <h3>Activations moved</h3><b></b>
    <canvas role="img"></canvas>
    <p></p>
  </div>
  <div class="df-lanes-foot">
    <span class="df-key"><i class="df-key-compute"></i>compute</span>
    <span class="df-key"><i class="df-key-wait"></i>waiting</span>
    <span class="df-key"><i class="df-key-sync"></i>warm-up step</span>
    <span class="df-key df-key-drift"><i class="df-key-stale"></i>stale step</span>
    <p></p>
  </div>
</section>"""

CARDS = """<div class="df-cards" role="group" aria-label="Results"></div><p class="df-story" role="status"></p>"""

GALLERY = """
<section class="df-gallery" aria-label="This session" aria-busy="true"><h2>This session</h2><div class="df-tiles"></div>
<p class="df-empty">Your pictures appear here. A click brings one back with all its settings.</p></section>"""

CHIPS = """<div class="df-chips" role="group" aria-label="Example prompts"></div>"""

WHY = """<p class="df-why" role="status"></p>"""

RECOVER = """
<div class="df-recover">
  <label class="df-button"><input type="file" accept="image/png,.png" aria-describedby="df-recover-how">
    <svg viewBox="0 0 20 20" aria-hidden="true"><path d="M3 12.5V17h14v-4.5M10 13V3M6 7l4-4 4 4" fill="none"
    stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"/></svg>
    Settings from a picture</label>
  <span id="df-recover-how">or drop it here</span>
</div>"""

LINKS = """
<div class="df-links">
<a class="df-button df-download" download aria-disabled="true" aria-label="Download PNG"
title="The picture"><i></i>PNG</a>
<a class="df-button df-bundle" download aria-disabled="true" aria-label="Download ZIP of all pictures and the report"
title="All pictures and the report"><i></i>ZIP</a>
<button type="button" class="df-button df-copy" disabled title="A link that makes it again">Copy link</button></div>"""
