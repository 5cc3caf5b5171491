// How log r is spread, step by step: a strip for each sign of the advantage. Columns are steps, rows the bins of log r.

const LOG_RATIO_EDGES = [-3, -1, -0.3, -0.1, -0.03, -0.01, -0.003, -0.001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3];

function heatStrip(title, steps, counts, sign, onclick) {
  const canvas = h("canvas", { height: 170, role: "img", "aria-label": `${title}. Rows are bins of log r from below -3 to above 3, columns are steps; darker is more tokens.` });
  const shares = counts.map((row) => { const all = row ? d3.sum(row) : 0; return all ? row.map((c) => c / all) : null; });
  const bins = LOG_RATIO_EDGES.length + 1;
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
    for (const [text, edge] of [["3", 15], ["0.1", 12], ["0.001", 8], ["−0.001", 7], ["−0.1", 3], ["−3", 0]]) {
      const gap = text === "0.001" ? -3 : text === "−0.001" ? 3 : 0;
      pen.fillText(text, LEFT - 5, (bins - 1 - edge) * tall + gap);
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
  canvas.addEventListener("pointermove", (event) => {
    const place = at(event);
    if (!place || !shares[place[0]]) return tip.hide();
    const [i, bin] = place;
    const low = bin ? LOG_RATIO_EDGES[bin - 1] : "−∞", high = bin < bins - 1 ? LOG_RATIO_EDGES[bin] : "∞";
    tip.show(event.clientX, event.clientY, h("b", {}, `step ${steps[i]}`), h("div", {}, `log r in [${low}, ${high}): ${counts[i][bin]} tokens, ${(100 * shares[i][bin]).toFixed(1)}%`));
  });
  canvas.addEventListener("pointerleave", () => tip.hide());
  canvas.addEventListener("click", (event) => { const place = at(event); if (place && onclick) { tip.hide(); onclick(steps[place[0]]); } });
  let last = 0;
  new ResizeObserver(() => { if (canvas.clientWidth !== last) { last = canvas.clientWidth; draw(); } }).observe(canvas);
  const redraw = () => (canvas.isConnected ? draw() : removeEventListener("themechange", redraw));
  addEventListener("themechange", redraw);
  return h("section", { class: "card chart", "aria-label": title }, h("div", { class: "chart-head" }, h("h3", {}, title)), canvas);
}
