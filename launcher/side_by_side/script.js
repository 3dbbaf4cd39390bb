// The page of folders side by side: the filter, and the large view in which pictures flip at the same place. Without this
// script the page still shows every picture. Texts are moved as text, never as markup.

"use strict";
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const rows = all(".row:not(.head, .made, .figures)").map((row) => ({
  row,
  number: find(".caption b", row).textContent,
  caption: find(".caption span", row).textContent,
  cells: all(".cell", row),
}));

// --- the filter: every word must be in the caption

const count = find(".count");
const total = count.textContent;
find(".filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { row, caption } of rows) {
    const fits = words.every((word) => caption.toLowerCase().includes(word));
    row.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown === rows.length ? total : `${shown} of ${total}`;
  find(".nothing").hidden = shown > 0;
});

// --- the large view

const large = find(".large");
const pan = find(".pan");
const stack = find(".stack");
const tabs = all(".tabs button");
const ZOOM = 3;
let at = 0; // row
let folder = 0;
let layers = []; // what the stack holds for each folder

function open(row, column) {
  at = row;
  const { number, caption, cells } = rows[at];
  const thumbnails = cells.map((cell) => find("img", cell));
  const first = thumbnails[column] ?? thumbnails.find(Boolean);
  stack.style.setProperty("--ratio", first ? first.getAttribute("width") / first.getAttribute("height") : 1);
  layers = thumbnails.map((thumbnail) => {
    const layer = document.createElement(thumbnail ? "img" : "p");
    if (thumbnail) [layer.src, layer.alt] = [thumbnail.src, thumbnail.alt];
    else layer.textContent = "no picture";
    return layer;
  });
  stack.replaceChildren(...layers);
  const told = find(".large-caption");
  told.replaceChildren(Object.assign(document.createElement("b"), { textContent: number }), caption);
  if (!large.open) large.showModal();
  flip(column);
  pan.focus({ preventScroll: true });
}

function flip(column) {
  folder = (column + tabs.length) % tabs.length;
  tabs.forEach((tab, index) => tab.setAttribute("aria-pressed", String(index === folder)));
  layers.forEach((layer, index) => {
    layer.classList.toggle("shown", index === folder);
    layer.hidden = layer.tagName === "P" && index !== folder;
    layer.ariaHidden = String(index !== folder);
  });
  tabs[folder].scrollIntoView({ block: "nearest", inline: "nearest" });
}

function zoom(on, x = 0.5, y = 0.5) {
  // x and y: the point of the picture that is to stay in the middle, from 0 to 1.
  stack.style.setProperty("--zoom", on ? ZOOM : 1);
  pan.toggleAttribute("data-zoomed", on);
  find(".zoom").setAttribute("aria-pressed", String(on));
  pan.scrollTo(stack.offsetWidth * x - pan.clientWidth / 2, stack.offsetHeight * y - pan.clientHeight / 2);
}

function walk(step) {
  // To the next row that the filter shows.
  for (let next = at + step; next >= 0 && next < rows.length; next += step) {
    if (!rows[next].row.hidden) return open(next, folder);
  }
}

const zoomed = () => pan.hasAttribute("data-zoomed");
rows.forEach(({ cells }, row) =>
  cells.forEach((cell, column) => find("button", cell)?.addEventListener("click", () => open(row, column))),
);
tabs.forEach((tab, index) => tab.addEventListener("click", () => flip(index)));
find(".back").addEventListener("click", () => walk(-1));
find(".on").addEventListener("click", () => walk(1));
find(".close").addEventListener("click", () => large.close());
find(".zoom").addEventListener("click", () => zoom(!zoomed()));
stack.addEventListener("click", (event) => {
  const box = stack.getBoundingClientRect();
  zoom(!zoomed(), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
});
large.addEventListener("close", () => {
  zoom(false);
  stack.replaceChildren();
  const { row, cells } = rows[at];
  row.scrollIntoView({ block: "nearest" });
  (find("button", cells[folder]) ?? find("button", row))?.focus();
});

const KEYS = {
  ArrowLeft: () => flip(folder - 1),
  ArrowRight: () => flip(folder + 1),
  ArrowUp: () => walk(-1),
  ArrowDown: () => walk(1),
  z: () => zoom(!zoomed()),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key];
  if (large.open && act) {
    event.preventDefault();
    act();
  } else if (!large.open && event.key === "/" && document.activeElement !== find(".filter")) {
    event.preventDefault();
    find(".filter").focus();
  }
});
