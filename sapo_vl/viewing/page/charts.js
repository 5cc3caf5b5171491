// One chart of lines over steps, drawn with D3. Colours are CSS variables, so that a change of theme needs no redraw.
//
// spec: {title, label, series: [{name, color: a CSS variable, dash, points: [[step, value or null]], band: [[step, low,
// high]], whiskers: [[step, low, high]], raw: what points are smoothed from, of: what the legend switches}], log: start
// logarithmic, off: what the legend starts without, onclick(step)}

const DASHES = [null, "6 3", "2 3", "9 3 2 3"];
const TALL = 190, EDGE = { top: 8, right: 10, bottom: 24, left: 50 };

function lineChart(spec) {
  const state = { log: Boolean(spec.log), hidden: new Set(spec.off), at: null, tapped: null };
  const values = spec.series.flatMap((s) => [...s.points.map((p) => p[1]), ...(s.band || []).flatMap((b) => [b[1], b[2]])]).filter((v) => v !== null);
  const positive = values.filter((v) => v > 0);
  const canLog = positive.length > 0 && positive.length >= values.length / 2;
  const head = h("div", { class: "chart-head" }, h("h3", {}, spec.title));
  const holder = h("div", {});
  const legend = h("div", { class: "legend" });
  const card = h("section", { class: "card chart", "aria-label": spec.title }, head, holder, legend);
  if (canLog) {
    const button = toggle("log", state.log, () => { state.log = !state.log; button.setAttribute("aria-pressed", String(state.log)); draw(); },
      { "aria-label": `Logarithmic axis of ${spec.title}` });
    head.append(button);
  } else state.log = false;
  const switches = [...new Set(spec.series.map((s) => s.of))];
  if (switches.length > 1) {
    switches.forEach((name) => {
      const mine = spec.series.filter((s) => s.of === name), s = mine[0];
      const button = toggle([h("i", { class: s.dash ? (s.dash.startsWith("2") ? "dotted" : "dashed") : null, style: { color: mine.length > 1 ? "var(--faint)" : `var(--${s.color})` } }), name], !state.hidden.has(name), () => {
        state.hidden[state.hidden.has(name) ? "delete" : "add"](name);
        button.setAttribute("aria-pressed", String(!state.hidden.has(name)));
        draw();
      });
      legend.append(button);
    });
  }

  function draw() {
    const width = Math.max(240, holder.clientWidth || 380);
    const shown = spec.series.filter((s) => !state.hidden.has(s.of));
    const usable = (v) => v !== null && (!state.log || v > 0);
    const all = shown.flatMap((s) => [...s.points.map((p) => p[1]), ...(s.band || []).flatMap((b) => [b[1], b[2]]), ...(s.whiskers || []).flatMap((b) => [b[1], b[2]])]).filter(usable);
    const steps = [...new Set(spec.series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
    const x = d3.scaleLinear().domain(steps.length > 1 ? [steps[0], steps[steps.length - 1]] : [steps[0] - 1, steps[0] + 1]).range([EDGE.left, width - EDGE.right]);
    const raws = shown.flatMap((s) => (s.raw || []).map((p) => p[1])).filter(usable).sort(d3.ascending);
    let [low, high] = all.length ? d3.extent([...all, ...(raws.length ? [d3.quantile(raws, 0.01), d3.quantile(raws, 0.99)] : [])]) : [0, 1];
    if (low === high) { const pad = Math.abs(low) * 0.1 || 0.5; [low, high] = state.log ? [low / 2, high * 2] : [low - pad, high + pad]; }
    const y = (state.log ? d3.scaleLog() : d3.scaleLinear()).domain([low, high]).range([TALL - EDGE.bottom, EDGE.top]);
    if (!state.log) y.nice(5);
    const root = d3.create("svg:svg").attr("viewBox", `0 0 ${width} ${TALL}`).attr("height", TALL).attr("role", "img").attr("tabindex", 0)
      .attr("aria-label", `${spec.title}: ${describe(shown)}. Arrow keys read values, Enter opens the rollouts of a step.`);
    const yTicks = state.log ? logTicks(low, high) : y.ticks(5);
    // As many digits as tell them apart.
    const digits = [3, 4, 5].find((d) => new Set(yTicks.map((t) => number(t, d))).size === yTicks.length) ?? 6;
    const whole = x.ticks(Math.min(7, width / 70)).filter(Number.isInteger);
    const clip = `clip${++lineChart.count}`;
    root.append("clipPath").attr("id", clip).append("rect").attr("x", EDGE.left).attr("y", 0).attr("width", Math.max(1, width - EDGE.left)).attr("height", TALL - EDGE.bottom + 3);
    root.append("g").selectAll("line").data(yTicks).enter().append("line").attr("class", "gridline").attr("x1", EDGE.left).attr("x2", width - EDGE.right).attr("y1", y).attr("y2", y);
    root.append("g").attr("class", "axis").attr("transform", `translate(0,${TALL - EDGE.bottom})`).call(d3.axisBottom(x).tickValues(steps.length > 1 ? whole : steps).tickFormat(d3.format("d")).tickSizeOuter(0));
    root.append("g").attr("class", "axis left").attr("transform", `translate(${EDGE.left},0)`).call(d3.axisLeft(y).tickValues(yTicks).tickFormat((v) => number(v, digits)).tickSize(0).tickPadding(6)).call((g) => g.select(".domain").remove());
    const plot = root.append("g").attr("class", "plot").attr("clip-path", `url(#${clip})`);
    const line = d3.line().defined((p) => usable(p[1])).x((p) => x(p[0])).y((p) => y(p[1]));
    const area = d3.area().defined((b) => usable(b[1]) && usable(b[2])).x((b) => x(b[0])).y0((b) => y(b[1])).y1((b) => y(b[2]));
    for (const s of shown) {
      const ink = `var(--${s.color})`;
      if (s.band) plot.append("path").attr("d", area(s.band)).style("fill", ink).attr("opacity", 0.18);
      for (const [step, a, b] of s.whiskers || []) if (usable(a) && usable(b)) plot.append("line").attr("x1", x(step)).attr("x2", x(step)).attr("y1", y(a)).attr("y2", y(b)).style("stroke", ink).attr("opacity", 0.55).attr("stroke-width", 1.5);
      if (s.raw) plot.append("path").attr("d", line(s.raw)).attr("fill", "none").style("stroke", ink).attr("opacity", 0.22).attr("stroke-width", 1);
      plot.append("path").attr("d", line(s.points)).attr("fill", "none").style("stroke", ink).attr("stroke-width", 1.7).attr("stroke-dasharray", s.dash ?? null).attr("stroke-linejoin", "round");
      if (s.points.filter((p) => usable(p[1])).length <= 40) plot.append("g").selectAll("circle").data(s.points.filter((p) => usable(p[1]))).enter().append("circle").attr("cx", (p) => x(p[0])).attr("cy", (p) => y(p[1])).attr("r", 2.6).style("fill", ink);
    }
    const rule = root.append("line").attr("y1", EDGE.top).attr("y2", TALL - EDGE.bottom).style("stroke", "var(--faint)").attr("visibility", "hidden");
    root.append("rect").attr("class", "plot").attr("x", EDGE.left).attr("y", 0).attr("width", Math.max(1, width - EDGE.left - EDGE.right)).attr("height", TALL).attr("fill", "transparent");
    const node = root.node();
    const read = (step, px, py) => {
      state.at = step;
      rule.attr("x1", x(step)).attr("x2", x(step)).attr("visibility", "visible");
      tip.show(px, py, valuesAt(shown, step), spec.onclick && h("div", { class: "muted small" }, spec.clickHint || "click: rollouts of this step"));
    };
    const leave = () => { rule.attr("visibility", "hidden"); tip.hide(); };
    const look = (event) => {
      const box = node.getBoundingClientRect();
      read(nearest(steps, x.invert((event.clientX - box.left) * (width / box.width))), event.clientX, event.clientY);
    };
    node.addEventListener("pointermove", look);
    node.addEventListener("pointerdown", look); // a tap does not move
    node.addEventListener("pointerleave", leave);
    node.addEventListener("blur", leave);
    // A finger reads a value first, and goes on with a second tap at the same step.
    node.addEventListener("click", (event) => {
      if (!spec.onclick || state.at === null) return;
      if (event.pointerType === "touch" && state.tapped !== state.at) { state.tapped = state.at; read(state.at, event.clientX, event.clientY); return; }
      leave();
      spec.onclick(state.at);
    });
    node.addEventListener("keydown", (event) => {
      const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (turn) {
        const i = state.at === null ? 0 : Math.min(steps.length - 1, Math.max(0, steps.indexOf(state.at) + turn));
        const box = node.getBoundingClientRect();
        read(steps[i], box.left + x(steps[i]) * (box.width / width), box.top + 20);
        event.preventDefault();
      } else if (event.key === "Enter" && spec.onclick && state.at !== null) { leave(); spec.onclick(state.at); }
    });
    replace(holder, node);
  }
  let last = 0;
  new ResizeObserver(() => { if (holder.clientWidth !== last) { last = holder.clientWidth; draw(); } }).observe(holder);
  return card;
}

lineChart.count = 0;

// Powers of ten; where there are fewer than three, 2 and 5 of each, too; else whatever is even.
function logTicks(low, high) {
  const of = (digits) => d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1).flatMap((e) => digits.map((d) => Number(`${d}e${e}`))).filter((t) => t >= low && t <= high);
  const tens = of([1]);
  if (tens.length > 6) return tens.filter((_, i) => i % Math.ceil(tens.length / 6) === 0);
  if (tens.length > 2) return tens;
  return of([1, 2, 5]).length > 1 ? of([1, 2, 5]) : d3.ticks(low, high, 3);
}

function valuesAt(series, step) {
  const rows = series.map((s) => {
    const point = s.points.find((p) => p[0] === step);
    const between = (s.band || s.whiskers || []).find((b) => b[0] === step);
    return point && h("tr", {}, h("td", {}, h("span", { class: "swatch", style: { background: `var(--${s.color})` } }), " ", s.name), h("td", { class: "num" }, number(point[1]), between && between[1] !== null && ` [${number(between[1], 3)}, ${number(between[2], 3)}]`));
  });
  return [h("b", {}, `step ${step}`), h("table", {}, rows)];
}

function describe(series) {
  return series.map((s) => {
    const known = s.points.filter((p) => p[1] !== null);
    return known.length ? `${s.name} from ${number(known[0][1])} to ${number(known[known.length - 1][1])}` : `${s.name} without values`;
  }).join("; ");
}
