// How a quantity is spread, step by step: a strip for each sign of the advantage. Columns are steps, rows its bins.

// Edges of the bins, and [text, index of the edge] of those that are written beside the strip.
const HISTOGRAMS = {
  "log_ratio": { of: "log r", unit: "tokens", edges: [-3, -1, -0.3, -0.1, -0.03, -0.01, -0.003, -0.001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3], marks: [["3", 15], ["0.1", 12], ["0.001", 8, -3], ["−0.001", 7, 3], ["−0.1", 3], ["−3", 0]] },
  "sequence": { of: "Var_i", unit: "responses", edges: [1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 3], marks: [["3", 12], ["0.1", 9], ["0.02", 7], ["0.001", 4], ["1e-6", 0]], line: 7 },
};

// kind: {of, unit, edges, marks, line: index of an edge that is drawn as a line}
function heatStrip(title, kind, steps, counts, sign, onclick) {
  const { edges, marks } = kind;
  const canvas = h("canvas", { height: 170, role: "img", tabindex: 0, "aria-label": `${title}. Rows are bins of ${kind.of} from below ${edges[0]} to above ${edges[edges.length - 1]}, columns are steps; darker is more ${kind.unit}. Arrow keys read values, Enter opens the rollouts of a step.` });
  const shares = counts.map((row) => { const all = row ? d3.sum(row) : 0; return all ? row.map((c) => c / all) : null; });
  const bins = edges.length + 1;
  const LEFT = 46, BOTTOM = 20;
  function draw() {
    const width = canvas.clientWidth || 380, height = 170, scale = devicePixelRatio || 1;
    canvas.width = width * scale; canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.clearRect(0, 0, width, height);
    const ink = d3.interpolateRgb(colour("card"), colour(sign));
    const tall = (height - BOTTOM) / bins, columns = Math.min(steps.length, Math.floor(width - LEFT));
    const edge = (i) => LEFT + Math.round((i * (width - LEFT)) / columns);
    for (let i = 0; i < columns; i++) {
      const rows = shares.slice(Math.floor((i * steps.length) / columns), Math.floor(((i + 1) * steps.length) / columns)).filter(Boolean);
      for (let bin = 0; bin < bins && rows.length; bin++) {
        const share = d3.mean(rows, (row) => row[bin]);
        if (!share) continue;
        pen.fillStyle = ink(0.1 + 0.9 * Math.max(0, 1 + Math.log10(share) / 3.5));
        const top = Math.round((bins - 1 - bin) * tall);
        pen.fillRect(edge(i), top, edge(i + 1) - edge(i), Math.round((bins - bin) * tall) - top);
      }
    }
    pen.fillStyle = colour("soft"); pen.font = "11px sans-serif"; pen.textAlign = "right"; pen.textBaseline = "middle";
    for (const [text, edge, gap = 0] of marks) pen.fillText(text, LEFT - 5, (bins - 1 - edge) * tall + gap);
    if (kind.line !== undefined) {
      pen.strokeStyle = colour("soft"); pen.setLineDash([4, 3]); pen.beginPath();
      const y = Math.round((bins - 1 - kind.line) * tall) + 0.5;
      pen.moveTo(LEFT, y); pen.lineTo(width, y); pen.stroke(); pen.setLineDash([]);
    }
    pen.textBaseline = "alphabetic"; pen.textAlign = "left"; pen.fillText(String(steps[0]), LEFT, height - 5);
    pen.textAlign = "right"; pen.fillText(String(steps[steps.length - 1]), width, height - 5);
    pen.textAlign = "center"; pen.fillText("step", LEFT + (width - LEFT) / 2, height - 5);
  }
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const i = Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT)) * steps.length);
    const bin = bins - 1 - Math.floor(((event.clientY - box.top) / (170 - BOTTOM)) * bins);
    return i >= 0 && i < steps.length && bin >= 0 && bin < bins ? [i, bin] : null;
  };
  const read = ([i, bin], x, y) => {
    if (!shares[i]) return tip.hide();
    const low = bin ? edges[bin - 1] : edges[0] < 0 ? "−∞" : 0, high = bin < bins - 1 ? edges[bin] : "∞";
    tip.show(x, y, h("b", {}, `step ${steps[i]}`), h("div", {}, `${kind.of} in [${low}, ${high}): ${counts[i][bin]} ${kind.unit}, ${(100 * shares[i][bin]).toFixed(1)}%`), onclick && h("div", { class: "muted small" }, "click: rollouts of this step"));
  };
  canvas.addEventListener("pointermove", (event) => { const place = at(event); if (place) read(place, event.clientX, event.clientY); else tip.hide(); });
  let cell = null; // where the arrow keys are: [step, bin]
  const fullest = (i) => (counts[i] ? counts[i].indexOf(d3.max(counts[i])) : 0);
  const within = (x, many) => Math.min(many - 1, Math.max(0, x));
  canvas.addEventListener("keydown", (event) => {
    const turn = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (turn) {
      cell = cell ? [within(cell[0] + turn[0], steps.length), within(cell[1] + turn[1], bins)] : [0, fullest(0)];
      const box = canvas.getBoundingClientRect();
      read(cell, box.left + LEFT + ((cell[0] + 0.5) / steps.length) * (box.width - LEFT), box.top + (bins - 0.5 - cell[1]) * ((170 - BOTTOM) / bins));
      event.preventDefault();
    } else if (event.key === "Enter" && onclick && cell) { tip.hide(); onclick(steps[cell[0]]); }
  });
  canvas.addEventListener("blur", () => tip.hide());
  canvas.addEventListener("pointerleave", () => tip.hide());
  canvas.addEventListener("click", (event) => { const place = at(event); if (place && onclick) { tip.hide(); onclick(steps[place[0]]); } });
  let last = 0;
  new ResizeObserver(() => { if (canvas.clientWidth !== last) { last = canvas.clientWidth; draw(); } }).observe(canvas);
  const redraw = () => (canvas.isConnected ? draw() : removeEventListener("themechange", redraw));
  addEventListener("themechange", redraw);
  return h("section", { class: "card chart", "aria-label": title }, h("div", { class: "chart-head" }, h("h3", {}, title)), canvas);
}
