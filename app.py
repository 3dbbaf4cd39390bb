"""The page: one prompt, one picture on all devices, and what each device does meanwhile. Functions, then Blocks, then
wiring, then the entry point; making the picture is the launcher's business, what the panels say that of launcher.web.
"""

import os
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from launcher import start
from launcher.client import Client
from launcher.journal import data_folder
from launcher.schema import Record, Refused, Update
from launcher.web import cards, endpoints, gallery, header, lanes, settings, skeletons, stage
from launcher.web.take import Take, by_method

if TYPE_CHECKING:
    import gradio as gr

CONTROLS = tuple(settings.DEFAULTS)
GRACE_S = 15.0  # a page that reloads is back within this time; then its waiting baselines are dropped
NO_RUN: dict[str, Any] = {"ids": [], "busy": False, "takes": {}}
# Not a secret: Gradio scrambles what it keeps in the browser, and a new key at every start would lose the visitor.
STORAGE = {"storage_key": "distrifusion-live", "secret": "distrifusion-live"}
VIEWS = {"Slider": "slider", "Side by side": "sides", "Difference": "difference"}

Values = dict[str, Any]


class Page:
    """What the page does: one method an event. The components are attributes, made by `build`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._watchers: Counter[str] = Counter()

    # --- running

    def prepare(self, browser: Values, *values: Any) -> Values:
        """Checks the controls and submits the pictures of a run. What is wrong becomes a toast, and nothing starts."""
        status = self.client.status()
        try:
            request, configs = settings.plan(dict(zip(CONTROLS, values, strict=True)), status)
        except ValueError as error:
            raise self.toast(error) from None
        comparison, ids = secrets.token_hex(8), list[str]()
        try:
            for config in configs:
                ids.append(
                    self.client.submit(request, config, visitor=browser["visitor"], comparison=comparison)
                )
        except (ValueError, Refused) as error:
            for id in ids:
                self.client.cancel(id)
            raise self.toast(error) from None
        return {
            self.run: {"ids": ids, "busy": True, "takes": {}},
            self.browser: browser | {"ids": ids},
            self.controls["seed"]: request.seed,
            **self.buttons("starting"),
        }

    def follow(self, run: Values, browser: Values) -> Iterator[Values]:
        """Shows a run until its last picture is done, stopped or failed. Closed with the tab, unless it ended."""
        ids, finished = tuple(run["ids"]), False
        self._watchers.update(ids)
        try:
            yield from self._frames(run, browser["visitor"])
            finished = True
        finally:
            self._watchers.subtract(ids)
            if not finished:
                threading.Timer(GRACE_S, self._abandon, [ids]).start()

    def _frames(self, run: Values, visitor: str) -> Iterator[Values]:
        if not run["busy"]:
            yield {self.run: run}
            return
        takes: dict[str, Take] = {}
        last: Update | None = None
        shown = ""
        for index, id in enumerate(run["ids"]):
            methods = [self._method(other) for other in run["ids"][index:]]
            first = next(iter(takes.values()), None)
            for last in self.client.updates(id):
                frame = {
                    self.top: header.header(self.client.status()),
                    self.stage: stage.live(last, first),
                    self.cards: cards.cards(takes, running=methods[0], waiting=methods[1:]),
                }
                if last.lanes:
                    frame[self.lanes] = lanes.live(last)
                if last.state != shown:
                    shown = last.state
                    frame |= self.buttons(shown)
                if not last.final:
                    yield frame
            take = Take.of(last) if last else None
            if take is None:
                break
            takes[take.method] = take
            yield {self.gallery: self.tiles(visitor), self.links: self.link(takes)}
        yield self.ending(takes, last) | {self.gallery: self.tiles(visitor)}

    def ending(self, takes: dict[str, Take], last: Update | None = None) -> Values:
        """The last frame of a run, also of one from the history."""
        stopped = last if last and last.state != "done" else None
        results = cards.cards(takes)
        if stopped and takes:
            results["story"] = f"{stopped.message} {results['story']}"
        frame = {
            self.run: {"ids": [take.id for take in takes.values()], "busy": False, "takes": takes},
            self.top: header.header(self.client.status()),
            self.cards: results,
            self.links: self.link(takes),
            **self.buttons("idle"),
        }
        if last and last.lanes:
            frame[self.lanes] = lanes.live(last)
        if stopped and not takes:
            return frame | {self.stage: stage.ended(stopped)}
        pair = next((pair for pair in stage.PAIRS if all(side in takes for side in pair)), None)
        return frame | self.look_at(takes, pair, "slider")

    def look_at(self, takes: dict[str, Take], pair: tuple[str, str] | None, view: str) -> Values:
        """The stage with two pictures of a run in one of the views, or with its only one."""
        compared = stage.compare(takes, pair, view) if pair else None
        ready = compared is not None
        frame: Values = {self.view: gr.update(interactive=ready)}
        if not compared or not pair:
            only = next(iter(takes.values()), None)
            return frame | {self.pair: gr.update(interactive=False), self.stage: stage.done(only) if only else stage.IDLE}
        frame |= {self.pair: gr.update(interactive=True, value=stage.pair_name(pair)), self.stage: compared}
        if view == "slider":
            frame[self.slider] = tuple(takes[side].picture for side in pair)
        return frame

    def look(self, run: Values, pair: str, view: str) -> Values:
        """Another pair, or another way to look at it."""
        if run["busy"] or not run["takes"]:
            return {self.run: run}
        wanted = next(each for each in stage.PAIRS if stage.pair_name(each) == pair)
        if missing := [side for side in wanted if side not in run["takes"]]:
            raise self.toast(f"{stage.side_name(missing[0])} was not part of this run; choose it under Run and generate again")
        return self.look_at(run["takes"], wanted, VIEWS[view])

    def stop(self, run: Values) -> None:
        """Stops everything of this run; what it shows last comes from `follow`."""
        for id in reversed(run["ids"]):
            self.client.cancel(id)

    def _abandon(self, ids: tuple[str, ...]) -> None:
        """The tab is gone: the picture at work is finished for the history, waiting baselines are dropped."""
        for id in ids[1:]:
            if not self._watchers[id] and next(self.client.updates(id)).state == "queued":
                self.client.cancel(id)

    def _method(self, id: str) -> str:
        return str(next(self.client.updates(id)).config["parallelism"])

    # --- coming and coming back

    def load(self, browser: Values, request: "gr.Request") -> Values:
        """A visitor arrives: with a link, with a running request, with an earlier picture, or for the first time."""
        visitor = browser.get("visitor") or secrets.token_hex(16)
        ids = [id for id in browser.get("ids", []) if isinstance(id, str)]
        running = self.client.running(visitor=visitor)
        values, complaints = settings.from_link(dict(request.query_params))
        for complaint in complaints:
            gr.Warning(complaint, title="Link")
        status = self.client.status()
        frame: Values = {
            self.browser: {"visitor": visitor, "ids": ids},
            self.run: NO_RUN,
            self.top: header.header(status),
            self.stage: stage.IDLE,
            self.lanes: lanes.resting(status),
            self.cards: cards.cards({}),
            self.gallery: self.tiles(visitor),
            **self.readiness(header.mood(status)),
        }
        records = [record for record in self.client.history(visitor=visitor, limit=100) if record.id in ids]
        if running:
            ids = ids if set(ids) & set(running) else running
            main = next(self.client.updates(ids[0]))
            methods = [self._method(id) for id in ids]
            values = settings.of_picture(main.request, main.config, methods) | values
            frame |= {self.run: {"ids": ids, "busy": True, "takes": {}}, **self.buttons(main.state)}
        elif records and not values:
            frame |= self.bring_back(records)
        return frame | self.fill(values)

    def recall(self, run: Values, browser: Values, event: "gr.EventData") -> Values:
        """A picture of the gallery: it and all its settings come back."""
        if run["busy"]:
            raise self.toast("A picture is being made; stop it or wait, then look at others")
        records = self.client.history(visitor=browser["visitor"], limit=100)
        for group in gallery.runs(records):
            if any(record.id == event._data.get("id") for record in group):
                return self.bring_back(group)
        raise self.toast("This picture is no longer in the history")

    def bring_back(self, records: list[Record]) -> Values:
        """Pictures and settings of one run from the history."""
        takes = by_method(sorted(records, key=lambda record: record.finished))
        if not takes:
            return {}
        main = next(iter(takes.values()))
        return self.ending(takes) | self.fill(settings.of_picture(main.request, main.config, list(takes)))

    def fill(self, values: Values) -> Values:
        """Updates of the controls that `values` names."""
        frame = {self.controls[name]: value for name, value in values.items()}
        model = self.client.status().model
        if model and ("width" in values or "height" in values):
            frame[self.aspect] = settings.ratio_of(values.get("width"), values.get("height"), model)
        return frame

    def tick(self, run: Values, mood: str) -> Values:
        """Every two seconds: the badge, and what depends on the group being ready. Also how a page notices that the
        server is gone.
        """
        status = self.client.status()
        now = header.mood(status)
        frame: Values = {self.top: header.header(status), self.mood: now}
        if now != mood and not run["busy"]:
            frame |= self.readiness(now)
        return frame

    def readiness(self, mood: str) -> Values:
        """The Generate button, the examples and the sizes, by what the group can do."""
        words = {"loading": "Loading model…", "lost": "Restarting…", "dead": "Not available"}
        frame: Values = {self.mood: mood, self.generate: gr.update(value=words.get(mood, "Generate"), interactive=mood not in words)}
        model = self.client.status().model
        if model:
            frame[self.chips] = {"chips": settings.examples(model)}
        return frame

    def resize(self, ratio: str) -> Values:
        """Width and height for an aspect ratio."""
        model = self.client.status().model
        width, height = settings.size_of(ratio, model) if model else (None, None)
        return {self.controls["width"]: width, self.controls["height"]: height}

    def buttons(self, state: str) -> Values:
        """Generate and Stop, by what a run is doing."""
        if state in ("idle", "done", "cancelled", "failed"):
            return {
                self.generate: gr.update(value="Generate", interactive=True),
                self.stop_button: gr.update(value="Stop", interactive=False),
            }
        waiting = state == "queued"
        return {
            self.generate: gr.update(value="Waiting…" if waiting else "Generating…", interactive=False),
            self.stop_button: gr.update(value="Leave" if waiting else "Stop", interactive=True),
        }

    def tiles(self, visitor: str) -> Values:
        """The visitor's gallery."""
        return {"tiles": gallery.tiles(self.client.history(visitor=visitor, limit=3 * gallery.SIZE))}

    def link(self, takes: dict[str, Take]) -> Values:
        """Where the main picture can be downloaded, and the link that makes it again."""
        if not takes:
            return {}
        main = next(iter(takes.values()))
        values = settings.of_picture(main.request, main.config, list(takes))
        return {"path": main.picture, "name": f"{main.request['seed']}.png", "link": settings.to_link(values)}

    def toast(self, problem: Exception | str) -> "gr.Error":
        """One clear sentence for the visitor. Toasts render markup, so what users typed is escaped."""
        return endpoints.refusal(problem)


def build(client: Client) -> "gr.Blocks":
    """The page's components and wiring."""
    global gr
    import gradio as gr  # two seconds and 100 MB, which only rank 0 needs

    page = Page(client)
    alone = client.status().ranks == 1
    with gr.Blocks(title=skeletons.TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        page.browser = gr.BrowserState({"visitor": "", "ids": []}, **STORAGE)
        page.run, page.mood, timer = gr.State(NO_RUN), gr.State("loading"), gr.Timer(2)
        page.top = panel("header", header.header(client.status()), skeletons.HEADER)
        with gr.Row(elem_id="bench"):
            with gr.Column(elem_id="controls"):
                prompt = gr.Textbox(label="Prompt", lines=3, max_lines=8, autofocus=True, elem_id="prompt", placeholder="What should the devices draw?")
                with gr.Row(elem_id="actions"):
                    page.generate = gr.Button("Loading model…", variant="primary", interactive=False, elem_id="generate")
                    page.stop_button = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
                page.chips = panel("chips", {}, skeletons.CHIPS)
                with gr.Column(elem_id="settings"):
                    run = gr.Radio(list(settings.RUNS), label="Run", elem_id="run", interactive=not alone, info=RUN_ALONE if alone else RUN_INFO)
                    page.aspect = gr.Radio(list(settings.RATIOS), value="1:1", label="Aspect ratio", elem_id="aspect")
                    with gr.Row(elem_id="seed-row"):
                        seed = gr.Number(label="Seed", precision=0, elem_id="seed")
                        random_seed = gr.Checkbox(label="New random seed each time", elem_id="random-seed")
                with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                    advanced = advanced_controls()
            with gr.Column(elem_id="work"):
                with gr.Row(elem_id="show"):
                    with gr.Column(elem_id="canvas"):
                        page.stage = panel("stage", stage.IDLE, skeletons.STAGE)
                        page.slider = gr.ImageSlider(type="filepath", format="png", elem_id="slider", show_label=False, container=False, interactive=False, buttons=["fullscreen"])
                    page.lanes = panel("lanes", lanes.resting(client.status()), skeletons.LANES)
                with gr.Row(elem_id="tools"):
                    names = [stage.pair_name(pair) for pair in stage.PAIRS]
                    page.pair = gr.Radio(names, value=names[0], show_label=False, container=False, interactive=False, elem_id="pair", label="Which two pictures")
                    page.view = gr.Radio(list(VIEWS), value="Slider", show_label=False, container=False, interactive=False, elem_id="view", label="How to look at them")
                    page.links = panel("links", {}, skeletons.LINKS)
                page.cards = panel("cards", cards.cards({}), skeletons.CARDS)
                page.gallery = panel("gallery", {}, skeletons.GALLERY)
        page.controls = {"prompt": prompt, "run": run, "seed": seed, "random_seed": random_seed, **advanced}
        wire(page, demo, timer)
    return demo
