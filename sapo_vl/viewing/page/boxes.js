// Boxes of gold and answer, drawn on the picture.

const FOUR = /-?\d+(?:\.\d+)?/g;

// Boxes in a text: [[x1, y1, x2, y2], ...]; null where it is something else than numbers and brackets. `box`: what the
// problem says of its boxes.
function boxesIn(text, box = null) {
  if (typeof text !== "string" || text.length > 4000) return null;
  const named = [...text.matchAll(/"bbox_2d"\s*:\s*\[([^\]]*)\]/g)].map((m) => m[1]);
  const bare = named.length ? null : text.trim();
  if (bare !== null && !/^[\s\d.,;()[\]-]+$/.test(bare)) return null;
  const numbers = (named.length ? named.join(" ") : bare).match(FOUR)?.map(Number) ?? [];
  if (!numbers.length || numbers.length % 4) return null;
  const found = d3.range(numbers.length / 4).map((i) => numbers.slice(4 * i, 4 * i + 4));
  return found.every(([a, b, c, d]) => (box?.inclusive ? a <= c && b <= d : a < c && b < d)) ? found : null;
}

// The answer in a response, as the rules read it: the last <answer>, else the last \boxed{}, else all of it.
function answerIn(text) {
  const tagged = [...text.matchAll(/<answer>([\s\S]*?)<\/answer>/g)].pop();
  if (tagged) return tagged[1];
  const boxed = [...text.matchAll(/\\boxed\{([^{}]*)\}/g)].pop();
  return boxed ? boxed[1] : text;
}

const UNITS = { pixel: "pixels", "0-1000": "thousandths", "0-1": "shares of 1", lattice: "sixteenths" };

// What the numbers of gold and answer are in, by the rules of the reward `box`: {gold, said}, each a key of UNITS; null
// where the problem does not say, which makes it a guess. `box` is that part of the problem's meta.
function toldUnits(box) {
  if (box?.lattice > 0) return { gold: "lattice", said: "lattice" };
  const said = box?.coords;
  if (!(said in UNITS)) return null;
  const gold = box.gold_coords ?? (box.size ? "pixel" : said);
  return gold in UNITS ? { gold, said } : null;
}

function guessUnit(boxes, image) {
  const largest = Math.max(...boxes.flat());
  if (largest <= 1) return "0-1";
  if (largest <= 16 && Math.min(image.w, image.h) >= 32) return "lattice";
  return largest > Math.max(image.w, image.h) ? "0-1000" : "pixel";
}

// [width, height] of the whole picture in a unit. Pixels are those of the picture that `box.size` tells of, if it does.
function extent(unit, image, box) {
  if (unit === "lattice") return [box?.lattice ?? 16, box?.lattice ?? 16];
  if (unit === "pixel") return Array.isArray(box?.size) && box.size.length === 2 ? box.size : [image.w, image.h];
  return unit === "0-1" ? [1, 1] : [1000, 1000];
}

// Drawn in pixels of the picture. units: {gold, said}, see toldUnits.
function drawBoxes(holder, image, gold, said, units, box) {
  const picture = svg("svg", { viewBox: `0 0 ${image.w} ${image.h}`, preserveAspectRatio: "none", role: "img", "aria-label": `Boxes: gold ${JSON.stringify(gold ?? [])}, answer ${JSON.stringify(said ?? [])}` });
  const more = box?.inclusive ? 1 : 0; // then the last column and row are inside
  for (const [boxes, kind] of [[gold, "gold"], [said, "said"]]) {
    const [columns, rows] = extent(units[kind], image, box), x = image.w / columns, y = image.h / rows;
    for (const [a, b, c, d] of boxes ?? []) {
      const wide = (c + more - a) * x, high = (d + more - b) * y;
      // The light line under it keeps a box apart from an object of its own colour.
      picture.append(svg("path", { d: `M${a * x} ${b * y}h${wide}v${high}h${-wide}z`, class: "halo" }), svg("rect", { x: a * x, y: b * y, width: wide, height: high, class: kind }));
    }
  }
  $("svg", holder)?.remove();
  holder.append(picture);
}

// The legend of the boxes, and what they are in: told by the problem, or guessed, which the reader can change.
function boxControls(units, told, onchange) {
  const key = (kind, text) => h("span", {}, h("span", { class: `swatch box-${kind}` }), text);
  const legend = h("div", { class: "legend" }, key("gold", "gold"), key("said", "answer in focus"));
  if (!told) return [legend, h("label", { class: "field small" }, "unit (a guess)", choice("Unit of the boxes", Object.entries(UNITS), units.gold, (unit) => onchange({ gold: unit, said: unit })))];
  const same = units.gold === units.said;
  return [legend, h("div", { class: "muted small" }, same ? `boxes in ${unitText(units.gold)}` : `gold in ${unitText(units.gold)}, answer in ${unitText(units.said)}`)];
}
const unitText = (unit) => (unit === "lattice" ? "steps of a lattice" : UNITS[unit]);

function figure(image, alt) {
  if (!image) return h("div", { class: "missing" }, "picture not saved");
  const scale = Math.max(1, Math.min(5, Math.floor(260 / Math.max(image.w, image.h))));
  return h("div", { class: "figure" }, h("img", { src: image.src, alt, width: image.w * scale, height: image.h * scale, class: scale > 1 ? "pixels" : null, style: { maxWidth: "min(460px, 100%)" } }));
}
