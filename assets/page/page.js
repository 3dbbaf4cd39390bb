// Draws the live parts of the page. Values come from the server as data and reach the document through textContent,
// attributes and canvases only, never as markup; which values there are is the business of launcher/web.
(() => {
  "use strict";
  // A frame in somebody else's page may not be allowed to remember anything: the very word raises, and what Gradio was
  // drawing at that moment is missing from the page. Then there is a memory until the next reload.
  try { window.localStorage; } catch {
    const kept = new Map();
    const value = {
      getItem: (name) => kept.get(name) ?? null,
      setItem: (name, text) => { kept.set(name, String(text)); },
      removeItem: (name) => { kept.delete(name); },
    };
    Object.defineProperty(window, "localStorage", { value });
  }
  const COLOURS = ["#8b5cf6", "#06b6d4", "#f59e0b", "#f43f5e", "#10b981", "#3b82f6", "#d946ef", "#84cc16"];
  const colour = (rank) => COLOURS[rank % COLOURS.length];
  const all = (root, selector) => [...root.querySelectorAll(selector)];
  const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const RUN_KEY = matchMedia("(pointer: coarse)").matches ? "" : /Mac/.test(navigator.platform) ? " (⌘ Enter)" : " (Ctrl+Enter)";
  const show = (node, wanted) => { if (node.hidden === wanted) node.hidden = !wanted; };
  const address = (image) =>
    image.src || (image.path ? new URL("gradio_api/file=" + encodeURI(image.path).replace(/[?#]/g, encodeURIComponent), document.baseURI).href : "");

  function make(tag, className, parent) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (parent) parent.append(node);
    return node;
  }

  // As many children as there are items; existing nodes are kept, so that nothing flickers.
  function repeat(parent, items, build, fill) {
    while (parent.children.length > items.length) parent.lastElementChild.remove();
    items.forEach((item, index) => fill(parent.children[index] || build(parent), item));
  }

  // A picture is swapped once it is decoded; until then the one before it stays.
  function picture(node, image) {
    const source = image ? address(image) : "";
    if (node.dataset.wanted === source) return;
    node.dataset.wanted = source;
    if (!source) { node.removeAttribute("src"); show(node, false); return; }
    const next = new Image();
    next.src = source;
    const swap = () => {
      if (node.dataset.wanted !== source) return;
      node.src = source;
      node.alt = image.alt || "";
      show(node, true);
    };
    next.decode().then(swap, swap);
  }

  function strip(node, segments) {
    repeat(node, segments || [], (parent) => make("i", "", parent), (line, { rank, start, length, columns }) => {
      const sharing = segments.filter((other) => other.start === start && other.columns === columns);
      const place = sharing.findIndex((other) => other.rank === rank);
      const across = 100 / sharing.length;
      line.style.background = line.style.color = colour(rank);
      line.title = `device ${rank}`;
      const [along, size, side, thickness] = columns ? ["left", "width", "top", "height"] : ["top", "height", "left", "width"];
      line.style.cssText += `;${along}:${100 * start}%;${size}:${100 * length}%;` +
        `${side}:calc(var(--strip) * ${(place * across) / 100});${thickness}:calc(var(--strip) * ${across / 100})`;
    });
  }

  let notice = null;
  let ranks = 0;
  let redrawStage = () => {};
  let shown = [];  // the pictures on the stage

  const panels = {
    header(root, value) {
      const badge = root.querySelector(".df-badge");
      badge.dataset.state = value.state || "loading";
      set(badge.querySelector("b"), value.badge || "Starting");
      set(badge.querySelector("em"), value.brief || "Starting");
      for (const [name, text] of [["model", value.model], ["devices", value.devices]]) {
        const pill = root.querySelector(".df-" + name);
        set(pill, text || "");
        show(pill, Boolean(text));
      }
      document.body.dataset.engine = value.state || "loading";
      ranks = value.ranks || 0;
      document.body.classList.toggle("df-alone", Boolean(value.alone));
      root.querySelector(".df-theme").onclick = toggleTheme;
      notice = value.notice || null;
      redrawStage();
    },

    stage(root, value) {
      redrawStage = () => panels.stage(root, value);
      const idle = value.state === "idle";
      const words = idle && notice ? { ...notice, spin: document.body.dataset.engine !== "dead" } : value;
      const canvas = document.getElementById("canvas");
      root.querySelector(".df-stage").dataset.state = value.state || "idle";
      canvas.dataset.state = value.state || "idle";
      canvas.style.setProperty("--ratio", value.ratio || 1);
      canvas.dataset.view = value.view || "picture";

      picture(root.querySelector(".df-picture"), value.image);
      const sides = root.querySelector(".df-sides");
      show(sides, Boolean(value.sides));
      sides.toggleAttribute("data-wide", value.ratio > 1);
      all(sides, "figure").forEach((figure, index) => {
        picture(figure.querySelector("img"), value.sides ? value.sides[index] : null);
        set(figure.querySelector("figcaption"), value.sides ? value.sides[index].label : "");
      });

      // Before the first picture its edge says who is there.
      const everybody = [...Array(ranks).keys()].map((rank) => ({ rank, start: rank / ranks, length: 1 / ranks, columns: false }));
      strip(root.querySelector(".df-over > .df-strip"), idle ? everybody : value.strip);
      const labels = value.labels && value.labels.length ? value.labels : [value.image || value.progress ? value.label : "", ""];
      all(root, ".df-label").forEach((node, index) => { set(node, labels[index] || ""); show(node, Boolean(labels[index])); });

      const scale = root.querySelector(".df-heat");
      show(scale, Boolean(value.scale));
      if (value.scale) [value.scale.most, value.scale.border].forEach((text, index) => set(scale.querySelectorAll("span")[index + 1], text));

      const inset = root.querySelector(".df-inset");
      show(inset, Boolean(value.inset));
      if (value.inset) {
        picture(inset.querySelector("img"), value.inset.src ? { src: value.inset.src, alt: "" } : null);
        set(inset.querySelector("figcaption"), value.inset.label);
        strip(inset.querySelector(".df-strip"), value.inset.strip);
      }

      const progress = root.querySelector(".df-progress");
      show(progress, Boolean(value.progress));
      if (value.progress) {
        set(progress.querySelector("b"), value.progress.text);
        set(progress.querySelector("span"), value.progress.detail);
        progress.querySelector("i").style.width = `${100 * value.progress.share}%`;
        progress.querySelector("u").style.left = `${100 * value.progress.warm}%`;
        show(progress.querySelector("u"), value.progress.warm > 0);
        progress.setAttribute("aria-valuenow", Math.round(100 * value.progress.share));
        progress.setAttribute("aria-valuetext", value.progress.text);
      }

      const message = root.querySelector(".df-message");
      show(message, Boolean(words.title));
      set(message.querySelector("h2"), words.title || "");
      set(message.querySelector("p"), (words.text || "").replace(" (Ctrl+Enter)", RUN_KEY));
      show(message.querySelector(".df-spinner"), Boolean(words.spin));
      if (!idle) forgetLink();
      canvas.classList.toggle("df-covered", Boolean(words.title && value.image));
      revealSlider();
    },

    lanes(root, value) {
      set(root.querySelector("h2"), value.title || "");
      set(root.querySelector(".df-lanes-head span"), value.method || "");
      set(root.querySelector(".df-lanes-foot p"), value.foot || "");
      const lanes = value.lanes || [];
      const top = Math.max(1e-9, ...lanes.flatMap((lane) => (lane.bars || []).map(([compute, wait]) => compute + wait)));
      root.querySelector(".df-lanes").toggleAttribute("data-many", lanes.length > 2);
      root.querySelector(".df-lanes").toggleAttribute("data-crowd", lanes.length > 4);
      repeat(root.querySelector(".df-lanes-list"), lanes, buildLane, (node, lane) => {
        node.dataset.state = lane.state;
        node.style.setProperty("--device", colour(lane.rank));
        set(node.querySelector(".df-lane-name"), lane.name);
        set(node.querySelector(".df-lane-part"), lane.part || "");
        set(node.querySelector(".df-lane-ms"), lane.ms || "–");
        set(node.querySelector(".df-lane-status"), lane.status || "");
        set(node.querySelector(".df-lane-wait"), lane.wait || "");
        set(node.querySelector(".df-lane-work"), [lane.sent, lane.load].filter(Boolean).join(" · "));
        set(node.querySelector(".df-lane-memory"), lane.memory || "");
        set(node.querySelector(".df-lane-buffers"), lane.buffers || "");
        node.drawBars = () => bars(node.querySelector("canvas"), lane, value.steps || 1, value.phases || "", top);
        node.drawBars();
      });
      const drift = root.querySelector(".df-drift");
      const { values = [], text = "–", meaning = "", alt = "" } = value.drift || {};
      set(drift.querySelector("b"), text);
      set(drift.querySelector("p"), meaning);
      drift.querySelector("canvas").setAttribute("aria-label", alt);
      drift.drawBars = () => driftBars(drift.querySelector("canvas"), values, value.steps || 1, value.phases || "");
      drift.drawBars();
    },

    cards(root, value) {
      repeat(root.querySelector(".df-cards"), value.cards || [], buildCard, (node, card) => {
        node.dataset.state = card.state;
        node.dataset.method = card.method;
        set(node.querySelector(".df-card-name"), card.name);
        set(node.querySelector(".df-card-seconds"), card.seconds || "–");
        show(node.querySelector(".df-card-unit"), card.state === "done");
        set(node.querySelector(".df-card-note"), card.note || "");
        const badge = node.querySelector(".df-card-badge");
        show(badge, Boolean(card.badge));
        if (card.badge) { set(badge, card.badge.text); badge.dataset.tone = card.badge.tone; }
        repeat(node.querySelector(".df-card-track"), card.parts || [], (parent) => make("i", "", parent), (part, { name, share }) => {
          part.className = "df-part-" + name;
          part.style.width = `${100 * share}%`;
        });
        repeat(node.querySelector(".df-card-parts"), card.parts || [], (parent) => make("span", "", parent), (part, { name, text }) => {
          part.className = "df-part-" + name;
          set(part, text);
        });
      });
      set(root.querySelector(".df-story"), value.story || "");
    },

    gallery(root, value, trigger) {
      const tiles = value.tiles || [];
      nameGroups();
      root.querySelector(".df-gallery").setAttribute("aria-busy", String(!value.tiles));
      show(root.querySelector(".df-empty"), !tiles.length);
      repeat(root.querySelector(".df-tiles"), tiles, buildTile, (node, tile) => {
        picture(node.querySelector("img"), { src: tile.src, alt: "" });
        set(node.querySelector(".df-tile-seed"), tile.seed);
        set(node.querySelector(".df-tile-count"), tile.methods.length > 1 ? `×${tile.methods.length}` : "");
        node.title = [tile.prompt, tile.style && `Style: ${tile.style}`, tile.methods.join(", ")].filter(Boolean).join("\n");
        const count = tile.methods.length > 1 ? `, ${tile.methods.length} pictures` : "";
        node.setAttribute("aria-label", `Bring back: ${tile.prompt}, seed ${tile.seed}${count}`);
        node.dataset.id = tile.id;
        node.onclick = () => { trigger("select", { id: tile.id }); comeToStage(); };
      });
      markTile();
    },

    chips(root, value) {
      repeat(root.querySelector(".df-chips"), value.chips || [], (parent) => {
        const chip = make("button", "df-chip", parent);
        chip.type = "button";
        return chip;
      }, (chip, { label, prompt }) => {
        set(chip, label);
        chip.title = prompt;
        chip.onclick = () => write(prompt);
      });
    },

    why(root, value) {
      set(root.querySelector(".df-why"), value.text || "");
    },

    recover(root, value, trigger) {
      const chosen = root.querySelector("input");
      chosen.onchange = () => { offer(chosen.files, trigger); chosen.value = ""; };
      catchDrops(trigger);
    },

    links(root, value) {
      const download = root.querySelector(".df-download");
      const bundle = root.querySelector(".df-bundle");
      all(root, "a").forEach((link) => link.setAttribute("aria-disabled", String(!value.path)));
      if (value.path) {
        bundle.href = new URL("gradio_api/bundle.zip?" + new URLSearchParams(value.ids.map((id) => ["id", id])), document.baseURI).href;
        download.href = address({ path: value.path });
        download.download = value.name || "picture.png";
      } else {  // else the keyboard would still reach the picture before
        all(root, "a").forEach((link) => link.removeAttribute("href"));
      }
      const copy = root.querySelector(".df-copy");
      copy.disabled = !value.link;
      copy.onclick = () => copyLink(copy, value.link);
      shown = value.ids || [];
      markTile();
    },
  };

  // Gradio writes a title into a group of choices, and does not say that it is the group's.
  function nameGroups() {
    for (const group of document.querySelectorAll("fieldset:not([aria-label])")) {
      const title = group.querySelector("[data-testid='block-info']");
      if (title) group.setAttribute("aria-label", title.textContent.trim());
    }
  }

  function buildLane(parent) {
    const lane = make("article", "df-lane", parent);
    const head = make("div", "df-lane-row", lane);
    const who = make("span", "df-lane-who", head);
    make("b", "df-lane-name", who);
    make("span", "df-lane-part", who);
    const figure = make("span", "df-lane-figure", head);
    make("b", "df-lane-ms", figure);
    make("small", "", figure).textContent = "ms";
    make("canvas", "df-lane-bars", lane).setAttribute("aria-hidden", "true");
    const foot = make("div", "df-lane-row df-lane-foot", lane);
    make("span", "df-lane-status", foot);
    const detail = make("span", "df-lane-detail", foot);
    make("span", "df-lane-work", detail);
    make("span", "df-lane-memory", detail);
    make("span", "df-lane-buffers", detail);
    make("span", "df-lane-wait", foot);
    return lane;
  }

  // An empty canvas in device pixels, with the room for one step; null while it is not shown.
  function blank(canvas, steps) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return null;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const slot = width / steps;
    return { pen, height, slot, gap: slot > 4 ? 1.5 : slot > 2 ? 0.5 : 0 };
  }

  // One bar a step: steps that waited for fresh values in the colour of the text, stale ones in the accent's.
  function driftBars(canvas, values, steps, phases) {
    const sheet = blank(canvas, steps);
    if (!sheet) return;
    const { pen, height, slot, gap } = sheet;
    const style = getComputedStyle(canvas);
    const top = Math.max(1e-9, ...values.map((value) => value || 0));
    values.forEach((value, index) => {
      if (value === null) return;
      const tall = Math.max(1.5, (value / top) * height);
      pen.fillStyle = style.getPropertyValue(phases[index] === "d" ? "--accent" : "--faint");
      pen.fillRect(index * slot, height - tall, Math.max(slot - gap, 0.5), tall);
    });
  }

  function bars(canvas, lane, steps, phases, top) {
    const sheet = blank(canvas, steps);
    if (!sheet) return;
    const { pen, height, slot, gap } = sheet;
    const room = height - 4;
    const marks = getComputedStyle(canvas).getPropertyValue("--faint");
    (lane.bars || []).forEach(([compute, wait], index) => {
      const [left, across] = [index * slot, Math.max(slot - gap, 0.5)];
      const [solid, light] = [(compute / top) * room, (wait / top) * room];
      pen.fillStyle = colour(lane.rank);
      pen.globalAlpha = 1;
      pen.fillRect(left, room - solid, across, solid);
      pen.globalAlpha = 0.35;
      pen.fillRect(left, room - solid - light, across, light);
      pen.globalAlpha = 1;
      if (phases[index] === "S") { pen.fillStyle = marks; pen.fillRect(left, height - 2, across, 2); }
    });
  }

  function buildCard(parent) {
    const card = make("article", "df-card", parent);
    const head = make("div", "df-card-head", card);
    make("span", "df-card-name", head);
    make("span", "df-card-badge", head);
    const figure = make("div", "df-card-figure", card);
    make("b", "df-card-seconds", figure);
    make("small", "df-card-unit", figure).textContent = "s";
    make("div", "df-card-track", card);
    make("div", "df-card-parts", card);
    make("div", "df-card-note", card);
    return card;
  }

  function buildTile(parent) {
    const tile = make("button", "df-tile", parent);
    tile.type = "button";
    make("img", "", tile);
    make("span", "df-tile-seed", tile);
    make("span", "df-tile-count", tile);
    return tile;
  }

  // The slider lies on the stage and is uncovered when both of its pictures are there, so that no frame is blank.
  function revealSlider() {
    const canvas = document.getElementById("canvas");
    const slider = document.getElementById("slider");
    if (!canvas || !slider) return;
    const images = all(slider, "img");
    const names = all(canvas, ".df-label").map((node) => node.textContent);
    images.forEach((image, index) => { image.alt = names[index] || "picture"; });
    const ready = images.length >= 2 && images.every((image) => image.complete && image.naturalWidth);
    canvas.classList.toggle("df-sliding", canvas.dataset.view === "slider" && ready);
  }

  function markTile() {
    all(document, ".df-tile").forEach((tile) => {
      if (shown.includes(tile.dataset.id)) tile.setAttribute("aria-current", "true");
      else tile.removeAttribute("aria-current");
    });
  }

  // Where the page is longer than the screen, what was asked for would happen out of sight.
  function comeToStage() {
    const canvas = document.getElementById("canvas");
    const { top, bottom } = canvas.getBoundingClientRect();
    if (top < window.innerHeight * 0.7 && bottom > window.innerHeight * 0.3) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    canvas.scrollIntoView({ block: "center", behavior: still ? "auto" : "smooth" });
  }

  // Settings stand before the picture: only the beginning of the file travels.
  function offer(files, trigger) {
    if (!files.length) return;
    const reader = new FileReader();
    reader.onload = () => trigger("upload", { file: reader.result });
    reader.readAsDataURL(files[0].slice(0, 2 ** 20));
  }

  // A file may be dropped anywhere; without this the browser would leave the page for it.
  function catchDrops(trigger) {
    if (document.querySelector("body > .df-drop")) return;
    const veil = make("div", "df-drop", document.body);
    make("p", "", veil).textContent = "Drop the picture: its settings come back";
    show(veil, false);
    const holdsFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    const on = (name, act) => document.addEventListener(name, (event) => {
      if (!holdsFile(event)) return;
      event.preventDefault();
      event.stopPropagation();
      act(event);
    }, true);
    on("dragover", () => show(veil, true));
    on("dragleave", (event) => { if (!event.relatedTarget) show(veil, false); });
    on("drop", (event) => { show(veil, false); offer(event.dataTransfer.files, trigger); });
  }

  function write(text) {
    const box = document.querySelector("#prompt textarea");
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    box.focus();
  }

  // Once the link that led here has been used, a reload is to bring back what was made, not the link. What the host of
  // an embedded page says about itself ("__theme") stays.
  function forgetLink() {
    const url = new URL(window.location.href);
    [...url.searchParams.keys()].filter((name) => !name.startsWith("__")).forEach((name) => url.searchParams.delete(name));
    if (url.href !== window.location.href) history.replaceState(history.state, "", url);
  }

  async function copyLink(button, link) {
    const url = new URL(window.location.href);
    url.search = new URLSearchParams(link).toString();
    url.hash = "";
    try {
      await navigator.clipboard.writeText(url.href);
    } catch {  // no clipboard without https, except on localhost
      const box = make("textarea", "df-offscreen", document.body);
      box.value = url.href;
      box.select();
      document.execCommand("copy");
      box.remove();
    }
    button.textContent = "Link copied";
    setTimeout(() => { button.textContent = "Copy link"; }, 1600);
  }

  const THEME = "distrifusion-theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  function applyTheme() {
    const wanted = localStorage.getItem(THEME);
    document.body.classList.toggle("dark", wanted ? wanted === "dark" : system.matches);
    redrawBars();
  }

  function toggleTheme() {
    localStorage.setItem(THEME, document.body.classList.contains("dark") ? "light" : "dark");
    applyTheme();
  }

  function redrawBars() {
    all(document, ".df-lane, .df-drift").forEach((lane) => lane.drawBars && lane.drawBars());
  }

  function keys(event) {
    const button = (id) => document.getElementById(id);
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
      event.preventDefault();
      if (button("generate") && !button("generate").disabled) button("generate").click();
    } else if (event.key === "Escape" && event.target.getAttribute("aria-expanded") !== "true") {  // not for an open menu
      if (button("stop") && !button("stop").disabled) button("stop").click();
    }
  }

  function mount([name, root, props, watch, trigger]) {
    const draw = () => panels[name](root, props.value || {}, trigger);
    watch("value", draw);
    draw();
  }

  const early = window.distriPanels || [];
  window.distriPanels = { push: mount };
  early.forEach(mount);
  document.addEventListener("keydown", keys, true);
  document.addEventListener("click", (event) => { if (event.target.closest && event.target.closest("#generate")) comeToStage(); }, true);
  document.addEventListener("load", (event) => { if (event.target.closest && event.target.closest("#slider")) revealSlider(); }, true);
  system.addEventListener("change", applyTheme);
  window.addEventListener("resize", redrawBars);
  if (localStorage.getItem(THEME)) applyTheme();
})();
