"""The page: Gradio components, their wiring, and the entry point. What an event does is decided in launcher.web, how a
picture is made in the launcher.
"""

import html
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from launcher import limits, rank, start
from launcher.auto import Auto
from launcher.client import Client
from launcher.journal import data_folder
from launcher.png import PICTURES
from launcher.schema import Refused, Status
from launcher.web import cards, endpoints, gradio_inside, header, lanes, manual, routes, settings, skeletons, stage
from launcher.web.visit import NO_RUN, VIEWS, Frame, Props, Visits

if TYPE_CHECKING:
    import gradio as gr

Page = dict[str, Any]  # the components by name

# Not a secret: Gradio scrambles what it keeps in the browser, and a new key at every start would lose the visitor.
STORAGE: dict[str, Any] = {"storage_key": "distrifusion-live", "secret": "distrifusion-live"}
TICK_S = 2.0
PRIVATE: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "DejaVu Sans", "sans-serif")
# Runs in the browser: what a visitor has set and not used yet is kept there, for the next time the page is loaded.
KEEP = f"""(who, ...values) =>
  ({{ ...who, draft: Object.fromEntries({json.dumps([*settings.DEFAULTS])}.map((name, at) => [name, values[at]])) }})"""
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


# --- functions


def refusal(problem: Exception) -> "gr.Error":
    """One sentence for the caller, without a traceback."""
    sentence = str(problem).partition("\n")[0]
    return gr.Error(sentence[:1].upper() + sentence[1:], print_exception=False)


def toast(problem: Exception) -> "gr.Error":
    """The same on the page: in the words of its labels, and escaped, because toasts render markup."""
    name, space, rest = str(problem).partition(" ")
    return refusal(ValueError(html.escape(settings.LABELS.get(name, name) + space + rest)))


def updates(page: Page, frame: Frame) -> Page:
    """A frame by component instead of by name."""
    return {page[name]: gr.update(**value) if isinstance(value, Props) else value for name, value in frame.items()}


def answering(page: Page, event: Callable[..., Frame]) -> Callable[..., Page]:
    """An event of `Visits` as Gradio wants it: components instead of names, refusals as toasts."""

    def handler(*inputs: Any) -> Page:
        try:
            return updates(page, event(*inputs))
        except (ValueError, Refused) as problem:
            raise toast(problem) from None

    return handler


# --- Blocks


def build(client: Client) -> "gr.Blocks":
    """The page over `client`."""
    global gr
    import gradio as gr  # two seconds and 100 MB, which only rank 0 needs

    options: dict[str, Any] = {"fill_width": True, "analytics_enabled": False, "delete_cache": (3600, 3600)}
    with gradio_inside.blocks_of_few_words()(title=skeletons.TITLE, **options) as demo:
        page: Page = {
            "browser": gr.BrowserState({"visitor": "", "ids": []}, **STORAGE),
            "current": gr.State(NO_RUN),
            "mood": gr.State(""),
            "timer": gr.Timer(TICK_S),
            "top": panel("header", header.header(client.status()), skeletons.HEADER),
        }
        with gr.Row(elem_id="bench"):
            with gr.Column(elem_id="controls"):
                page |= controls(client.status())
            with gr.Column(elem_id="work"):
                page |= work(client)
        auto, rate = Auto(client), limits.Rate.here()
        wire(page, demo, Visits(client, auto, rate))
        publish(client, auto, rate)
    demo.queue(max_size=20)
    gradio_inside.wake_by_events(demo._queue)
    return demo


def panel(name: str, value: Frame, skeleton: str) -> "gr.HTML":
    """A live part of the page: static markup, values as data, drawn by page.js."""
    return gr.HTML(
        value, html_template=skeleton, js_on_load=skeletons.on_load(name), elem_id=name, apply_default_css=False
    )


def controls(status: Status) -> Page:
    """The left column. With one device there is nothing to compare, and it says so."""
    page: Page = {}
    alone = status.ranks == 1
    page["prompt"] = gr.Textbox(
        label="Prompt",
        placeholder="What should the devices draw?",
        lines=3,
        max_lines=8,
        autofocus=True,
        elem_id="prompt",
    )
    with gr.Row(elem_id="actions"):
        page["generate"] = gr.Button("Loading model…", variant="primary", interactive=False, elem_id="generate")
        page["stop"] = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
    page["why"] = panel("why", {}, skeletons.WHY)
    page["chips"] = panel("chips", {"chips": settings.examples(status)}, skeletons.CHIPS)
    with gr.Column(elem_id="settings"):
        page["run"] = gr.Radio(
            list(settings.RUNS),
            value="DistriFusion" if alone else settings.DEFAULTS["run"],
            label="Run",
            info=settings.INFO["alone" if alone else "run"],
            interactive=not alone,
            elem_id="run",
        )
        page["aspect"] = gr.Radio(list(settings.RATIOS), value="1:1", label="Aspect ratio", elem_id="aspect")
        page["style"] = choice("style")
        page["seed"] = gr.Number(settings.DEFAULTS["seed"], label="Seed", precision=0, elem_id="seed")
        page["random_seed"] = gr.Checkbox(True, label="New random seed each time", elem_id="random-seed")
        page["recover"] = panel("recover", {}, skeletons.RECOVER)
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        page["negative_prompt"] = gr.Textbox(label="Negative prompt", info=settings.INFO["negative_prompt"], lines=2)
        with gr.Row():
            page["width"], page["height"] = number("width"), number("height")
        with gr.Row():
            page["steps"], page["guidance_scale"] = number("steps"), number("guidance_scale", precision=None)
        page["scheduler"] = choice("scheduler")
        page["parallelism"] = choice("parallelism")
        page["ranks"] = choice("ranks", settings.rank_choices(status.ranks))
        page["mode"] = choice("mode")
        page["warmup_steps"] = number("warmup_steps")
        page["auto_warmup"] = check("auto_warmup")
        page["split_batch"] = choice("split_batch")
        page["split_scheme"] = choice("split_scheme")
        page["metadata"] = check("metadata")
    return page


def number(name: str, *, precision: int | None = 0) -> "gr.Number":
    """A number field. Its limits are checked where the request is made, so that one sentence says what is wrong."""
    return gr.Number(
        settings.DEFAULTS[name],
        label=settings.LABELS[name],
        info=settings.INFO[name],
        precision=precision,
        min_width=120,
        elem_id=name.replace("_", "-"),
    )


def check(name: str) -> "gr.Checkbox":
    """A switch."""
    return gr.Checkbox(
        settings.DEFAULTS[name],
        label=settings.LABELS[name],
        info=settings.INFO[name],
        elem_id=name.replace("_", "-"),
    )


def choice(name: str, values: tuple[str, ...] = ()) -> "gr.Dropdown":
    """A menu."""
    return gr.Dropdown(
        [(settings.WORDS.get(value, value), value) for value in values or settings.CHOICES[name]],
        value=settings.DEFAULTS[name],
        label=settings.LABELS[name],
        info=settings.INFO[name],
        elem_id=name.replace("_", "-"),
    )


def work(client: Client) -> Page:
    """The stage, the lanes and what is under them."""
    page: Page = {}
    with gr.Row(elem_id="show"):
        with gr.Column(elem_id="canvas"):
            page["stage"] = panel("stage", stage.IDLE, skeletons.STAGE)
            page["slider"] = gr.ImageSlider(
                type="filepath", format="png", show_label=False, container=False, interactive=False,
                buttons=[], elem_id="slider",
            )  # fmt: skip
        page["lanes"] = panel("lanes", lanes.resting(client.status(), header.mood(client.status())), skeletons.LANES)
    with gr.Row(elem_id="tools"):
        page["pair"] = switch([stage.pair_name(pair) for pair in stage.pairs()], "pair", "Which two pictures")
        page["view"] = switch(list(VIEWS), "view", "How to look at them")
        page["links"] = panel("links", {}, skeletons.LINKS)
    page["cards"] = panel("cards", cards.cards({}), skeletons.CARDS)
    gr.HTML(skeletons.explanation(), elem_id="explain", apply_default_css=False)
    page["gallery"] = panel("gallery", {}, skeletons.GALLERY)
    return page


def switch(names: list[str], elem_id: str, label: str) -> "gr.Radio":
    """A row of tabs."""
    return gr.Radio(names, value=names[0], label=label, container=False, interactive=False, elem_id=elem_id)


# --- wiring


def wire(page: Page, demo: "gr.Blocks", visits: Visits) -> None:
    """Which event does what. Nothing here is part of the API."""
    current, browser = page["current"], page["browser"]
    values = [page[name] for name in settings.DEFAULTS]
    size = [page[name] for name in ("width", "height", "aspect")]
    outputs = [component for name, component in page.items() if name != "timer"]
    quiet = PRIVATE | {"show_progress_on": [page["stage"]]}  # else every message touches every output in the browser

    def begin(request: "gr.Request", who: Frame, *inputs: Any) -> Page:
        values = dict(zip(settings.DEFAULTS, inputs, strict=True))
        return answering(page, visits.start)(who, values, address(request))

    def arrive(who: Frame, request: "gr.Request") -> Page:
        frame, complaints = visits.arrive(who, dict(request.query_params))
        for complaint in complaints:
            gr.Warning(complaint, title="Link")
        return updates(page, frame)

    def follow(run: Frame, who: Frame) -> Iterator[Page]:
        for frame in visits.follow(run, who):
            yield updates(page, frame)

    def recall(run: Frame, who: Frame, event: "gr.EventData") -> Page:
        return answering(page, visits.recall)(run, who, str(event._data.get("id")))

    def recover(event: "gr.EventData") -> Page:
        try:
            frame, notes = visits.recover(str(event._data.get("file")))
        except ValueError as problem:
            raise toast(problem) from None
        gr.Info("The settings of this picture are in the controls.")
        if notes:
            gr.Warning(html.escape(" ".join(notes)))
        return updates(page, frame)

    started = gr.on(
        [page["generate"].click, page["prompt"].submit],
        begin,
        [browser, *values],
        outputs,
        api_name="start",
        **quiet,
    )
    opened = demo.load(arrive, [browser], outputs, api_name="open", **quiet)
    for event in (started, opened):
        followed = event.success(follow, [current, browser], outputs, api_name="follow", **quiet)
        followed.failure(answering(page, visits.give_up), [current], outputs, api_name="give_up", **quiet)
    page["stop"].click(visits.stop, [current], None, api_name="stop", **quiet)
    page["timer"].tick(
        answering(page, visits.tick),
        [current, page["mood"], *size],
        [page[name] for name in ("top", "mood", "generate", "chips", "style", "lanes")] + size,
        api_name="tick",
        **quiet,
    )
    resized = page["aspect"].input(
        answering(page, visits.resize), [page["aspect"]], [page["width"], page["height"]], api_name="resize", **quiet
    )
    for name in ("width", "height"):
        page[name].input(
            answering(page, visits.proportion), [page["width"], page["height"]], [page["aspect"]],
            api_name=f"proportion_{name}", trigger_mode="always_last", **quiet,
        )  # fmt: skip
    for name in ("pair", "view"):
        page[name].input(
            answering(page, visits.look),
            [current, page["pair"], page["view"]],
            [page[name] for name in ("stage", "slider", "pair", "view")],
            api_name=name,
            **quiet,
        )
    recovered = page["recover"].upload(recover, None, outputs, api_name="recover", **quiet)
    recalled = page["gallery"].select(recall, [current, browser], outputs, api_name="recall", **quiet)
    for set_by in (*(each.input for each in values), *(event.success for event in (resized, recovered, recalled))):
        set_by(None, [browser, *values], [browser], js=KEEP, api_name="keep", **quiet)


def publish(client: Client, auto: Auto, rate: limits.Rate) -> None:
    """The API: three typed functions. They are generators, because only those are closed when a caller goes away;
    their return hints name what each yields, as Gradio reads them.
    """

    def generate(  # type: ignore[misc]
        request: "gr.Request",
        prompt: str,
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        steps: int = 30,
        guidance_scale: float = 5.0,
        seed: int | None = None,
        scheduler: str = "ddim",
        parallelism: str = "auto",
        ranks: int | None = None,
        mode: str = "corrected_async_gn",
        warmup_steps: int | str = 4,
        warmup_threshold: float = 0.1,
        extrapolation: float | list[float] = 0.5,
        extrapolation_memory: float | list[float] = 0.5,
        split_scheme: str = "row",
        split_batch: bool | None = None,
        picard_window: int | None = None,
        picard_tolerance: float = 0.1,
        metadata: bool = True,
        image: str | None = None,
        strength: float = 0.6,
    ) -> tuple[dict, dict]:
        """Make one picture. Streams (null, progress) and ends with (picture file, report). parallelism auto: method,
        ranks and split_batch, as far as they are not given, as is fastest; the report says why. Else ranks null: all;
        split_batch null: true.
        """
        yield from answered(endpoints.generate(client, auto, dict(locals()), partial(rate.take, address(request))))

    def compare(  # type: ignore[misc]
        request: "gr.Request",
        prompt: str,
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        steps: int = 30,
        guidance_scale: float = 5.0,
        seed: int | None = None,
        scheduler: str = "ddim",
        parallelism: str = "auto",
        ranks: int | None = None,
        mode: str = "corrected_async_gn",
        warmup_steps: int | str = 4,
        warmup_threshold: float = 0.1,
        extrapolation: float | list[float] = 0.5,
        extrapolation_memory: float | list[float] = 0.5,
        split_scheme: str = "row",
        split_batch: bool | None = None,
        metadata: bool = True,
        image: str | None = None,
        strength: float = 0.6,
    ) -> tuple[dict, dict, dict, dict]:
        """Make the same picture by one device, by naive patches and by DistriFusion. Streams progress and ends with
        (one device, naive, DistriFusion, report with PSNR). The third is made of patches. parallelism auto: on as many
        ranks as is fastest; patch: on `ranks`, null for all, split_batch null: off below 4 ranks.
        """
        yield from answered(endpoints.compare(client, auto, dict(locals()), partial(rate.take, address(request))))

    def status() -> dict:
        """What runs: state, ranks, device, model, queue, restarts."""
        return endpoints.status(client)

    for function in (generate, compare):
        gr.api(manual.described(function), api_name=function.__name__, concurrency_limit=8)
    gr.api(status, api_name="status", concurrency_limit=None)


def address(request: "gr.Request") -> str:
    """Whose pictures count together."""
    return limits.address(request.client.host, request.headers.get("x-forwarded-for", ""))


def answered(answers: Iterator[Any]) -> Iterator[Any]:
    """The answers, with problems as Gradio errors, which reach the caller with their sentence."""
    try:
        yield from answers
    except (ValueError, Refused, endpoints.NotMade) as problem:
        raise refusal(problem) from None


# --- entry point


def serve(client: Client, options: start.Options) -> None:
    """Open the page's port and return."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    demo = build(client)
    server, *_ = demo.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=options.auth,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        ssr_mode=False,
        mcp_server=options.mcp,
        run_history=False,
        enable_monitoring=False,  # Gradio's own; ours is /metrics
        app_kwargs={"routes": routes.routes(client, options.auth), "middleware": [routes.small_bodies()]},
        allowed_paths=[str(data_folder() / PICTURES)],  # beside it lie everybody's prompts, on a Space also tokens
        favicon_path=skeletons.ASSETS / "logo.svg",
        footer_links=["api", "gradio", "settings"],
        theme=gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO),
        head=skeletons.head(),
    )
    routes.publish_bundle(server, client)
    if demo.mcp_server_obj is not None:
        gradio_inside.unwrap_answers(demo.mcp_server_obj)


def main() -> None:
    """`python app.py` starts the group; in a rank of the group this is the rank."""
    options = start.parse(sys.argv[1:])
    if start.in_group():
        rank.main(options, serve=serve, page_modules=("gradio",))
    else:
        start.main(options, script=__file__)


if __name__ == "__main__":
    main()
