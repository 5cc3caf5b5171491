// Boxes of gold and answer, drawn on the picture.

const FOUR = /-?\d+(?:\.\d+)?/g;

// Boxes in a text: [[x1, y1, x2, y2], ...]; null where it is something else than numbers and brackets.
function boxesIn(text) {
  if (typeof text !== "string" || text.length > 4000) return null;
  const named = [...text.matchAll(/"bbox_2d"\s*:\s*\[([^\]]*)\]/g)].map((m) => m[1]);
  const bare = named.length ? null : text.trim();
  if (bare !== null && !/^[\s\d.,;()[\]-]+$/.test(bare)) return null;
  const numbers = (named.length ? named.join(" ") : bare).match(FOUR)?.map(Number) ?? [];
  if (!numbers.length || numbers.length % 4) return null;
  const found = d3.range(numbers.length / 4).map((i) => numbers.slice(4 * i, 4 * i + 4));
  return found.every(([a, b, c, d]) => a < c && b < d) ? found : null;
}

// The answer in a response, as the rules read it: the last <answer>, else the last \boxed{}, else all of it.
function answerIn(text) {
  const tagged = [...text.matchAll(/<answer>([\s\S]*?)<\/answer>/g)].pop();
  if (tagged) return tagged[1];
  const boxed = [...text.matchAll(/\\boxed\{([^{}]*)\}/g)].pop();
  return boxed ? boxed[1] : text;
}

const UNITS = { pixel: "pixels", "0-1000": "thousandths", "0-16": "sixteenths" };

// What four numbers are in. A guess, which the reader can change: rollouts do not say.
function guessUnit(boxes, image) {
  const largest = Math.max(...boxes.flat());
  if (largest <= 16 && Math.min(image.w, image.h) >= 32) return "0-16";
  return largest > Math.max(image.w, image.h) ? "0-1000" : "pixel";
}

function drawBoxes(holder, image, gold, said, unit) {
  const of = { pixel: [image.w, image.h], "0-1000": [1000, 1000], "0-16": [16, 16] }[unit];
  const picture = svg("svg", { viewBox: `0 0 ${of[0]} ${of[1]}`, preserveAspectRatio: "none", role: "img", "aria-label": `Boxes: gold ${JSON.stringify(gold ?? [])}, answer ${JSON.stringify(said ?? [])}` });
  for (const [boxes, kind] of [[gold, "gold"], [said, "said"]]) {
    for (const [a, b, c, d] of boxes ?? []) picture.append(svg("rect", { x: a, y: b, width: c - a, height: d - b, class: kind }));
  }
  $("svg", holder)?.remove();
  holder.append(picture);
}

function figure(image, alt) {
  if (!image) return h("div", { class: "missing" }, "picture not saved");
  const scale = Math.max(1, Math.min(5, Math.floor(260 / Math.max(image.w, image.h))));
  return h("div", { class: "figure" }, h("img", { src: image.src, alt, width: image.w * scale, height: image.h * scale, class: scale > 1 ? "pixels" : null, style: { maxWidth: "min(460px, 100%)" } }));
}
