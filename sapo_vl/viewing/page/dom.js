"use strict";
// Elements and numbers. Text only ever becomes a text node: nothing in this page parses what a model wrote.

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  put(element, children);
  return element;
}

function put(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

function replace(element, ...children) {
  element.replaceChildren();
  put(element, children);
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const $ = (selector, root = document) => root.querySelector(selector);
const NOTHING = "–";

function number(x, digits = 4) {
  if (x === null || x === undefined || Number.isNaN(x)) return NOTHING;
  if (Number.isInteger(x)) return Math.abs(x) < 1e7 ? String(x) : x.toExponential(2);
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return x.toExponential(2);
  return String(Number(x.toPrecision(digits)));
}
const fixed = (x, places = 3) => (x === null || x === undefined ? NOTHING : x.toFixed(places));
const signed = (x, places = 3) => (x === null || x === undefined ? NOTHING : (x < 0 ? "−" : "+") + Math.abs(x).toFixed(places));

function seconds(s) {
  if (s === null || s === undefined) return NOTHING;
  if (s < 90) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  return s < 5400 ? `${Math.floor(s / 60)} min ${Math.round(s % 60)} s` : `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
}

// A select with a label of its own. options: [value, text] pairs.
function choice(label, options, value, onchange, extra = {}) {
  const select = h("select", { "aria-label": label, ...extra, onchange: () => onchange(select.value) });
  for (const [v, text] of options) select.append(h("option", { value: v, selected: String(v) === String(value) }, text));
  return select;
}

function toggle(text, pressed, onclick, attributes = {}) {
  return h("button", { type: "button", "aria-pressed": String(pressed), onclick, ...attributes }, text);
}

function table(head, rows, numeric = []) {
  const cell = (tag, x, i) => h(tag, { class: numeric.includes(i) ? "num" : null, scope: tag === "th" ? "col" : null }, x);
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, head.map((x, i) => cell("th", x, i)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((x, i) => cell("td", x, i)))))));
}

const tip = {
  show(x, y, ...children) {
    const box = $("#tip");
    replace(box, ...children);
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    box.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 6))}px`;
    box.style.top = `${y + 16 + height > innerHeight ? Math.max(4, y - height - 12) : y + 16}px`;
  },
  hide() { $("#tip").hidden = true; },
};
