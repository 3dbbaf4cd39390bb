"""What happens on the page: every event as a method that answers with a frame, a dictionary from the names of panels
and controls to what they show next. Components and events belong to app.py, which turns frames into Gradio updates.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from launcher.auto import Auto
from launcher.client import Client
from launcher.journal import REMEMBERED
from launcher.limits import Rate
from launcher.schema import Record, Refused, Update
from launcher.web import cards, gallery, header, lanes, recover, settings, stage
from launcher.web.take import Take, by_method

Frame = dict[str, Any]
GRACE_S = 15.0  # a page that reloads is back within this time; after it, baselines nobody watches are dropped
WAITING: Frame = {"text": "Auto picks the method and the number of devices that are fastest, as measured or expected."}
# `resting`: the lanes show no picture, but what the group does.
NO_RUN: Frame = {"ids": [], "busy": False, "takes": {}, "resting": True}
VIEWS = {"Slider": "slider", "Side by side": "sides", "Difference": "difference"}


class Props(dict[str, Any]):
    """Properties of a component, where it is not only the value that changes."""


class Visits:
    """The events of every visitor. What a visitor has on the page travels in `run` (the
    current run) and `browser` (who this is), not in here."""

    def __init__(self, client: Client, auto: Auto | None = None, rate: Rate | None = None) -> None:
        self.client = client
        self.auto = auto or Auto(client)
        self.rate = rate or Rate.here()
        self._watchers: Counter[str] = Counter()  # pages that follow a picture now
        self._lock = threading.Lock()

    # --- a run: one picture, or the same picture by two or three methods

    def start(self, browser: Frame, values: Mapping[str, Any], address: str = "") -> Frame:
        """Submit the pictures that the controls ask for, for somebody at `address`. Raises ValueError or Refused, and
        nothing is started then.
        """
        planned = settings.plan(values, self.client.status(), self.auto)
        request, configs = planned.request, planned.configs
        self.rate.take(address, len(configs))
        visitor, comparison, ids = _visitor(browser), secrets.token_hex(8), list[str]()
        try:
            for config in configs:
                plan = planned.plan if not ids else None
                ids.append(self.client.submit(request, config, visitor=visitor, comparison=comparison, plan=plan))
        except (ValueError, Refused):
            for id in ids:
                self.client.cancel(id)
            raise
        self._look_after(ids)  # a tab may go before it begins to follow
        run = {"ids": ids, "busy": True, "takes": {}, "resting": False}
        return {
            "current": run,
            "browser": {"visitor": visitor, "ids": ids, "draft": dict(values) | {"seed": request.seed}},
            "seed": request.seed,
            "links": {},
            "why": why(planned.plan),
            **buttons("starting"),
            **tools(usable=False),
        }

    def follow(self, run: Frame, browser: Frame) -> Iterator[Frame]:
        """What a run shows until its last picture is done, stopped or failed. Closed early if the tab is."""
        ids, ended = tuple(run["ids"]), False
        self._watch(ids, 1)
        try:
            yield from self._frames(run, browser["visitor"])
            ended = True
        finally:
            self._watch(ids, -1)
            if not ended:
                self._look_after(ids)

    def _watch(self, ids: Iterable[str], change: int) -> None:
        with self._lock:
            for id in ids:
                self._watchers[id] += change
                if not self._watchers[id]:
                    del self._watchers[id]

    def _frames(self, run: Frame, visitor: str) -> Iterator[Frame]:
        if not run["busy"]:
            yield {"current": run}
            return
        methods = {id: str(self._now(id).config["parallelism"]) for id in run["ids"]}
        takes: dict[str, Take] = {}
        first: Take | None = None
        update: Update | None = None
        shown, drawn = "", Frame()
        for index, id in enumerate(run["ids"]):
            waiting = [methods[other] for other in run["ids"][index + 1 :]]
            for update in self.client.updates(id):
                if update.final:
                    break
                frame = {
                    "top": self._top(run),
                    "stage": stage.live(update, first),
                    "cards": cards.cards(takes, running=methods[id], waiting=waiting),
                }
                if update.lanes:
                    frame["lanes"] = lanes.live(update)
                elif update.state != shown and first is None:
                    frame["lanes"] = self._resting({"queued": "", "lost": "lost"}.get(update.state, "starting"))
                if update.state != shown:
                    shown = update.state
                    frame |= buttons(shown)
                yield frame
            take = Take.of(update) if update else None
            if update is None or take is None:
                for other in run["ids"][index + 1 :]:
                    self.client.cancel(other)
                break
            takes[take.method] = take
            if first is None:
                first, drawn = take, lanes.live(update) if update.lanes else {}
            yield {"stage": stage.done(first), "gallery": self._gallery(visitor), "links": links(takes)}
        # The lanes of the first picture stay, because that is the one whose devices worked together.
        kept = {"lanes": drawn} if drawn else {}
        yield self._ending(takes, update) | kept | {"gallery": self._gallery(visitor)}

    def stop(self, run: Frame) -> None:
        """Stop everything of a run, what waits before what works; `follow` shows the end of it."""
        for id in reversed(run["ids"]):
            self.client.cancel(id)

    def give_up(self, run: Frame) -> Frame:
        """`follow` itself failed: the page must not look busy for ever. What runs goes on, and a reload finds it."""
        stuck = {"state": "failed", "title": "The page lost track of this picture", "text": "Reload to find it again."}
        return {"current": run | {"busy": False}, "stage": stuck, **buttons("idle")}

    def _ending(self, takes: dict[str, Take], last: Update | None = None) -> Frame:
        """The last frame of a run, also of one from the history."""
        stopped = last if last and last.state != "done" else None
        results = cards.cards(takes)
        if stopped and takes:
            results["story"] = f"{stopped.message} {results['story']}"
        frame = {
            "current": {
                "ids": [take.id for take in takes.values()],
                "busy": False,
                "takes": takes,
                "resting": not takes and not (last and last.lanes),
            },
            "top": header.header(self.client.status()),
            "cards": results,
            "links": links(takes),
            "why": why(next((take.report.get("plan") for take in takes.values()), None)) if takes else self._waiting(),
            **buttons("idle"),
        }
        if last and last.lanes:
            frame["lanes"] = lanes.live(last)
        elif not takes:
            frame["lanes"] = self._resting()
        if stopped and not takes:
            return frame | {"stage": stage.ended(stopped)} | tools(usable=False)
        main = next(iter(takes), "")  # the picture that was asked for is to be seen
        pairs = stage.pairs(main)
        pair = next((pair for pair in pairs if main in pair and all(side in takes for side in pair)), None)
        return frame | _look(takes, pair, "slider")

    def look(self, run: Frame, pair: str, view: str) -> Frame:
        """Another pair of a finished run, or another way to look at it."""
        if run["busy"]:
            raise ValueError("A picture is being made; stop it or wait, then look at others")
        pairs = stage.pairs(next(iter(run["takes"]), ""))
        wanted = next((each for each in pairs if stage.pair_name(each) == pair), pairs[0])
        for side in wanted:
            if side not in run["takes"]:
                raise ValueError(
                    f"{stage.side_name(side)} was not part of this run; add it under Run and generate again"
                )
        return _look(run["takes"], wanted, VIEWS[view])

    def _look_after(self, ids: Sequence[str]) -> None:
        """See to it, in a while, that baselines do not run for nobody."""
        timer = threading.Timer(GRACE_S, self._abandon, [tuple(ids)])
        timer.daemon = True
        timer.start()

    def _abandon(self, ids: tuple[str, ...]) -> None:
        """The tab is gone: the picture at work is finished for the history, waiting baselines are dropped."""
        for id in ids[1:]:
            if not self._watchers[id] and self._now(id).state == "queued":
                self.client.cancel(id)

    def _top(self, run: Frame) -> Frame:
        own = sum(self._now(id).state == "queued" for id in run["ids"]) if run["busy"] else 0
        return header.header(self.client.status(), own=own)

    def _now(self, id: str) -> Update:
        return next(self.client.updates(id))

    # --- coming, and coming back

    def arrive(self, browser: Frame, query: Mapping[str, str]) -> tuple[Frame, list[str]]:
        """A visitor opens the page: with a link, during a run, after one, or for the first time. Also returns what
        was wrong with the link.
        """
        visitor = _visitor(browser)
        running, records = self.client.running(visitor=visitor), self.client.history(visitor=visitor, limit=100)
        known = {*running, *(record.id for record in records)}
        ids = [id for id in browser.get("ids") or [] if id in known]
        status = self.client.status()
        linked, complaints = settings.from_link(query, status.ranks)
        values = linked or settings.from_draft(browser.get("draft"), status.ranks)
        frame: Frame = {
            "browser": {"visitor": visitor, "ids": ids} | ({"draft": browser["draft"]} if browser.get("draft") else {}),
            "current": NO_RUN,
            "top": header.header(status),
            "stage": stage.IDLE,
            "lanes": self._resting(),
            "cards": cards.cards({}),
            "gallery": self._gallery(visitor),
            "why": self._waiting(),
            **self._readiness(header.mood(status)),
            "aspect": "1:1",
            **self.resize("1:1"),
        }
        if running:
            ids = ids if set(ids) & set(running) else running
            main = self._now(ids[0])
            methods = [str(self._now(id).config["parallelism"]) for id in ids]
            values = settings.of_picture(main.request, main.config, methods) | {"random_seed": True} | values
            frame |= {"current": NO_RUN | {"ids": ids, "busy": True, "resting": False}, **buttons(main.state)}
        elif not linked:
            last = sorted((one for one in records if one.id in ids), key=lambda one: -ids.index(one.id))
            frame |= self._bring_back(last) | {"random_seed": True}
            frame["current"] = frame["current"] | {"resting": True}
        return frame | self._fill(values), complaints

    def recall(self, run: Frame, browser: Frame, id: str) -> Frame:
        """A picture of the gallery comes back, with all its settings. Raises ValueError if it cannot."""
        if run["busy"]:
            raise ValueError("A picture is being made; stop it or wait, then look at others")
        for group in gallery.runs(self._pictures(browser["visitor"])):
            if any(record.id == id for record in group):
                frame = self._bring_back(group)
                return frame | {"current": frame["current"] | {"resting": True}}
        raise ValueError("This picture is no longer in the history")

    def recover(self, file: str) -> tuple[Frame, list[str]]:
        """The settings of a dropped picture, the beginning of its file as a data URI; also returns what will be
        different. Raises ValueError if there are none. What runs and what is shown stay.
        """
        values, notes = recover.controls(recover.decode(file), self.client.status())
        return self._fill(values), notes

    def _bring_back(self, records: Sequence[Record]) -> Frame:
        run = [*reversed(records)]  # oldest first: the one that was asked for before its baselines
        if takes := by_method(run):
            main = next(iter(takes.values()))
            values = settings.of_picture(main.request, main.config, list(takes), plan=main.report.get("plan"))
            return self._ending(takes) | {"lanes": self._resting()} | self._fill(values)
        if not run:
            return {}
        methods = [str(record.config["parallelism"]) for record in run]  # stopped, or failed: the settings are kept
        return self._fill(settings.of_picture(run[0].request, run[0].config, methods))

    def _fill(self, values: Mapping[str, Any]) -> Frame:
        frame: Frame = dict(values)
        status = self.client.status()
        model = status.model
        if frame.get("ranks", "auto") not in settings.rank_choices(status.ranks):  # made by a larger group
            frame["ranks"] = "auto"
        if "style" in frame:
            frame["style"] = Props(value=frame["style"], info=settings.style_info(status))
        if model and ("width" in values or "height" in values):
            frame["aspect"] = settings.ratio_of(values.get("width"), values.get("height"), model)
        return frame

    def _gallery(self, visitor: str) -> Frame:
        return {"tiles": gallery.tiles(self._pictures(visitor))}

    def _pictures(self, visitor: str) -> list[Record]:
        """A visitor's newest records with a picture. What was stopped or failed takes no place in the gallery."""
        records = self.client.history(visitor=visitor, limit=REMEMBERED)
        return [record for record in records if record.picture][: 3 * gallery.SIZE]

    # --- between runs

    def tick(self, run: Frame, mood: str, width: int | None, height: int | None, aspect: str | None) -> Frame:
        """Every two seconds: the badge, and what depends on the group being ready."""
        status = self.client.status()
        now = header.mood(status)
        frame: Frame = {"top": self._top(run)}
        if now == "ready":
            self.auto.learn()
        if now == mood:
            return frame
        if run["busy"]:  # its own frames say what the buttons and the lanes show
            return frame | {"mood": "busy", "chips": {"chips": settings.examples(status)}}
        frame |= self._readiness(now)
        if mood in ("loading", "lost"):
            frame |= self._missing_size(width, height, aspect)
        if run["resting"]:  # else the lanes of a picture stay
            frame["lanes"] = lanes.resting(status, now)
        return frame

    def _resting(self, state: str = "") -> Frame:
        status = self.client.status()
        return lanes.resting(status, state or header.mood(status))

    def _waiting(self) -> Frame:
        return WAITING if self.client.status().ranks > 1 else {}

    def _missing_size(self, width: int | None, height: int | None, aspect: str | None) -> Frame:
        """What is still empty of width and height, once the model is known. A visitor's own size stays."""
        model = self.client.status().model
        if model is None:
            return {}
        if width is None and height is None:
            return self.resize(aspect or "1:1")
        sides = {"width": width, "height": height}
        missing = {name: model.default_size for name, side in sides.items() if side is None}
        return missing | {"aspect": settings.ratio_of(**(sides | missing), model=model)}

    def _readiness(self, mood: str) -> Frame:
        words = {"loading": "Loading model…", "lost": "Restarting…", "dead": "Not available"}
        usable = mood not in words
        frame: Frame = {"mood": mood, "generate": Props(value=words.get(mood, "Generate"), interactive=usable)}
        status = self.client.status()
        info = Props(info=settings.style_info(status))
        return frame | {"chips": {"chips": settings.examples(status)}, "style": info}

    def proportion(self, width: int | None, height: int | None) -> Frame:
        """The aspect ratio that a size of the visitor's own has; none, if it is none of those offered."""
        model = self.client.status().model
        return {"aspect": settings.ratio_of(width, height, model) if model else None}

    def resize(self, ratio: str) -> Frame:
        """Width and height for an aspect ratio."""
        model = self.client.status().model
        width, height = settings.size_of(ratio, model) if model else (None, None)
        return {"width": width, "height": height}


def _visitor(browser: Mapping[str, Any]) -> str:
    """Who this is: a random name that only the visitor's browser keeps; a new one for who has none yet."""
    return str(browser.get("visitor") or secrets.token_hex(16))


def _look(takes: dict[str, Take], pair: tuple[str, str] | None, view: str) -> Frame:
    """The stage with two pictures of a run in one of the views, or with the only one there is."""
    compared = stage.compare(takes, pair, view) if pair else None
    if pair is None or compared is None:
        only = next(iter(takes.values()), None)
        return {"stage": stage.done(only) if only else stage.IDLE} | tools(usable=False)
    frame = {"stage": compared, **tools(usable=True)}
    frame["pair"] |= {
        "choices": [stage.pair_name(each) for each in stage.pairs(next(iter(takes)))],
        "value": stage.pair_name(pair),
    }
    frame["view"]["value"] = next(name for name, each in VIEWS.items() if each == view)
    if view == "slider":
        frame["slider"] = tuple(takes[side].picture for side in pair)
    return frame


def tools(*, usable: bool) -> Frame:
    """The two switches under the stage."""
    return {"pair": Props(interactive=usable), "view": Props(interactive=usable)}


def buttons(state: str) -> Frame:
    """Generate and Stop, by what a run is doing; "idle" stands for none."""
    if state == "idle":
        return {
            "generate": Props(value="Generate", interactive=True),
            "stop": Props(value="Stop", interactive=False),
        }
    waiting = state == "queued"
    return {
        "generate": Props(value="Waiting…" if waiting else "Generating…", interactive=False),
        "stop": Props(value="Leave" if waiting else "Stop", interactive=True),
    }


def why(plan: Mapping[str, Any] | None) -> Frame:
    """The line that says why the picture is made as it is; empty if somebody chose."""
    return {"text": str((plan or {}).get("sentence", ""))}


def links(takes: Mapping[str, Take]) -> Frame:
    """Where the main picture and the zip of all can be downloaded, and the link that makes it again."""
    if not takes:
        return {}
    main = next(iter(takes.values()))
    values = settings.of_picture(main.request, main.config, list(takes))
    return {
        "path": main.picture,
        "name": f"{main.request['seed']}.png",
        "ids": [take.id for take in takes.values()],
        "link": settings.to_link(values),
    }
