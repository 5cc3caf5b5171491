// The run as curves, in groups. Several runs lie over each other; runs that differ in their seed only can be a band.

// phase, title, patterns ("*" = one part of a name), whether the axis may start logarithmic
const GROUPS = [
  ["Is it learning?", [
    ["train", "Mean reward", ["reward/mean", "reward/task/*"]],
    ["train", "Reward by part", ["reward/part/*", "reward/part/*/*"]],
    ["train", "Accuracy of rollouts", ["accuracy/mean", "accuracy/*"]],
    ["eval", "Held-out accuracy, all tasks (95% intervals)", ["eval/sampled/all", "eval/greedy/all", "eval/blank_image/all"]],
    ["eval", "Held-out accuracy by task, sampled", ["eval/sampled/*"], { without: ["eval/sampled/all"] }],
    ["eval", "Benchmarks", ["eval/*/pass@1", "eval/*/pass@1/official"]],
  ]],
  ["What is sampled", [
    ["train", "Entropy (nats a token)", ["entropy/mean"]],
    ["train", "Response length (tokens)", ["length/mean", "length/q50", "length/q95", "length/max"]],
    ["train", "Truncated, dead groups, unscorable (shares)", ["length/truncated_share", "groups/dead_share", "unscorable/share"]],
    ["train", "Responses without a score, by reason", ["score/unscorable", "score/error", "score/timeout", "score/crash", "finish/failed"], { nonzero: true }],
    ["train", "Reasons by reward", ["failed/*/unscorable", "failed/*/error", "failed/*/timeout", "failed/*/crash"], { nonzero: true }],
  ]],
  ["The gate: how far an update is from the policy that sampled", [
    ["train", "Mean gate f'(r) by sign of the advantage", ["gate/mean", "gate/pos/mean", "gate/neg/mean"]],
    ["train", "Mean |r − 1|", ["ratio/mean_abs_dev", "ratio/pos/mean_abs_dev", "ratio/neg/mean_abs_dev"], { log: true }],
    ["train", "Largest ratio", ["ratio/max"], { log: true }],
    ["train", "log r, A > 0: quantiles", ["log_ratio/pos/q01", "log_ratio/pos/q05", "log_ratio/pos/q50", "log_ratio/pos/q95", "log_ratio/pos/q99"]],
    ["train", "log r, A < 0: quantiles", ["log_ratio/neg/q01", "log_ratio/neg/q05", "log_ratio/neg/q50", "log_ratio/neg/q95", "log_ratio/neg/q99"]],
    ["train", "KL(old, new), two estimators", ["kl/old_new_k1", "kl/old_new_k3"], { log: true }],
    ["train", "Engine gap |log-prob, engine − trainer|", ["mismatch/gap_mean", "mismatch/gap_max"], { log: true }],
    ["train", "Expert flips", ["routing/flip", "routing/drift"]],
  ]],
  ["By response: Var_i and D_i", [
    ["train", "Var_i of log r", ["sequence/var/mean", "sequence/pos/var/mean", "sequence/neg/var/mean", "sequence/var/max"], { log: true }],
    ["train", "D_i", ["sequence/d/mean", "sequence/pos/d/mean", "sequence/neg/d/mean"], { log: true }],
    ["train", "Largest D_i over its bound", ["sequence/d_over_bound/max"]],
    ["train", "Share of responses with Var_i < 0.02", ["sequence/var/small_share"]],
  ]],
  ["Optimisation and speed", [
    ["train", "Gradient norm before clipping", ["grad_norm", "grad_norm/max"], { log: true }],
    ["train", "Loss", ["loss"]],
    ["train", "Learning rate", ["lr"]],
    ["train", "Tokens that were not sampled: entropy change", ["negative_tokens/pos/entropy", "negative_tokens/neg/entropy"]],
    ["train", "Seconds a step", ["seconds/step", "seconds/rollout", "seconds/reward", "seconds/train", "seconds/sync"]],
    ["train", "Tokens a second", ["tokens_per_s/sampled", "tokens_per_s/all"]],
    ["sft", "Cold start: loss and pass rate", ["loss", "pass_rate"]],
  ]],
];

const fits = (pattern, name) => new RegExp(`^${pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&").replaceAll("*", "[^/]+")}$`).test(name);

// Runs as the curves show them: each for itself, or all of one kind as their mean and range.
function curveRuns(banded) {
  const single = data.runs.map((run, i) => ({ name: run.name, runs: [i], color: runColour(i) }));
  if (!banded) return single;
  const kinds = d3.nest().key((i) => data.runs[i].kind).entries(d3.range(data.runs.length));
  return kinds.map(({ values }, k) => ({ name: values.length > 1 ? `${data.runs[values[0]].facts.loss ?? data.runs[values[0]].name}, ${values.length} seeds` : data.runs[values[0]].name, runs: values, color: runColour(k) }));
}

function smooth(points, width) {
  if (width < 2) return points;
  const half = Math.floor(width / 2);
  return points.map(([step, value], i) => {
    if (value === null) return [step, null];
    const near = points.slice(Math.max(0, i - half), i + half + 1).map((p) => p[1]).filter((v) => v !== null);
    return [step, d3.mean(near)];
  });
}

function smoothBand(band, width) {
  const low = smooth(band.map((b) => [b[0], b[1]]), width), high = smooth(band.map((b) => [b[0], b[2]]), width);
  return band.map((b, i) => [b[0], low[i][1], high[i][1]]);
}

// One series of one or several runs: {points, band, whiskers}.
function seriesOf(phase, name, runs) {
  const of = runs.map((i) => data.runs[i].phases[phase]).filter((p) => p && p.series[name]);
  if (!of.length) return null;
  if (of.length === 1) {
    const p = of[0];
    const between = p.intervals[name];
    return { points: p.steps.map((s, i) => [s, p.series[name][i]]).filter((q) => phase === "train" || q[1] !== null), whiskers: between ? p.steps.map((s, i) => between[i] && [s, ...between[i]]).filter(Boolean) : null };
  }
  const by = new Map();
  for (const p of of) p.steps.forEach((s, i) => { const v = p.series[name][i]; if (v !== null) by.set(s, [...(by.get(s) || []), v]); });
  const steps = [...by.keys()].sort((a, b) => a - b);
  return { points: steps.map((s) => [s, d3.mean(by.get(s))]), band: steps.map((s) => [s, d3.min(by.get(s)), d3.max(by.get(s))]) };
}

function chartOf([phase, title, patterns, options = {}], curves, width, open) {
  const names = [];
  for (const pattern of patterns) {
    const found = new Set();
    for (const run of data.runs) for (const name of Object.keys(run.phases[phase]?.series ?? {})) if (fits(pattern, name)) found.add(name);
    for (const name of [...found].sort()) if (!names.includes(name) && !(options.without || []).includes(name)) names.push(name);
  }
  const kept = names.filter((name) => data.runs.some((run) => (run.phases[phase]?.series[name] || []).some((v) => v !== null && (!options.nonzero || v !== 0))));
  if (!kept.length) return null;
  const common = kept.length > 1 ? kept[0].split("/").slice(0, -1).filter((part, i) => kept.every((n) => n.split("/")[i] === part)).length : 0;
  const short = (name) => name.split("/").slice(common).join("/") || name;
  const signs = kept.some((n) => n.includes("/pos/")) && kept.some((n) => n.includes("/neg/"));
  const ink = (name, j) => (signs ? (name.includes("/pos/") ? "pos" : name.includes("/neg/") ? "neg" : "c7") : `c${j % 10}`);
  const series = [];
  for (const curve of curves) {
    kept.forEach((name, j) => {
      const found = seriesOf(phase, name, curve.runs);
      if (!found) return;
      const several = curves.length > 1;
      const points = phase === "train" ? smooth(found.points, width) : found.points;
      series.push({ of: short(name), name: several ? `${curve.name}${kept.length > 1 ? `: ${short(name)}` : ""}` : short(name), color: several ? curve.color : ink(name, j), dash: several ? DASHES[j % DASHES.length] : null,
        points, raw: several || points === found.points || found.band ? null : found.points, band: found.band && smoothBand(found.band, phase === "train" ? width : 1), whiskers: several ? null : found.whiskers });
    });
  }
  const off = curves.length > 1 ? kept.slice(1).map(short) : []; // all of them at once would be a thicket
  return lineChart({ title, series, off, log: options.log, onclick: open, clickHint: phase === "train" ? "click: rollouts of the nearest saved step" : null });
}

function curves(main, parameters) {
  const seeds = data.runs.length > 1 && new Set(data.runs.map((r) => r.kind)).size < data.runs.length;
  const state = { banded: seeds && parameters.band !== "0", width: Number(parameters.smooth ?? (Math.max(...data.runs.map((r) => r.phases.train?.steps.length ?? 0)) > 60 ? 9 : 1)) };
  const body = h("div", {});
  const head = h("div", { class: "row" });
  main.append(head, body);
  const open = (run) => (stepsOf(run).length ? (step) => route.go("rollouts", { run, step: nearest(stepsOf(run), step) }) : null);
  function draw() {
    const shown = curveRuns(state.banded);
    replace(head, data.runs.length > 1 && shown.map((c) => h("span", { class: "field" }, h("span", { class: "swatch", style: { background: `var(--${c.color})` } }), h("span", {}, c.name))),
      h("label", { class: "field" }, "smooth over", choice("Smooth over steps", [[1, "1 step"], [9, "9 steps"], [25, "25 steps"], [75, "75 steps"]], state.width, (v) => { state.width = Number(v); route.note({ smooth: v }); draw(); })),
      seeds && toggle("seeds as a band", state.banded, () => { state.banded = !state.banded; route.note({ band: state.banded ? "1" : "0" }); draw(); }));
    const blocks = GROUPS.map(([title, charts]) => {
      const drawn = charts.map((chart) => chartOf(chart, shown, state.width, chart[0] === "train" ? open(shown[0].runs[0]) : null)).filter(Boolean);
      if (title.startsWith("The gate")) drawn.splice(1, 0, ...strips("log_ratio", "log r of tokens", (sign) => `log_ratio/${sign}/hist`, open));
      if (title.startsWith("By response")) drawn.splice(1, 0, ...strips("sequence", "Var_i of responses", (sign) => `sequence/${sign}/var/hist`, open));
      return drawn.length ? [h("h2", {}, title), h("div", { class: "grid" }, drawn)] : null;
    }).filter(Boolean);
    const thinned = data.runs.map((r) => r.phases.train?.every ?? 1).some((e) => e > 1);
    replace(body, thinned && h("p", { class: "muted small" }, "Curves of over 2,000 steps show every second, third, ... step."), blocks, anyMetric(shown, state.width, open));
    if (!blocks.length) body.append(h("p", { class: "muted" }, "metrics.jsonl has no lines yet."));
  }
  draw();
}

// For each run two, by the sign of the advantage.
function strips(kind, what, metric, open) {
  const drawn = [];
  data.runs.slice(0, 4).forEach((run, i) => {
    for (const [sign, text] of [["pos", "A > 0"], ["neg", "A < 0"]]) {
      const train = run.phases.train, counts = train?.counts[metric(sign)];
      if (counts && counts.some(Boolean)) drawn.push(heatStrip(`${what} with ${text}${data.runs.length > 1 ? `, ${run.name}` : ""}`, HISTOGRAMS[kind], train.steps, counts, sign, open(i)));
    }
  });
  return drawn;
}

// Whatever else metrics.jsonl has, one at a time.
function anyMetric(shown, width, open) {
  const names = [...new Set(data.runs.flatMap((r) => Object.keys(r.phases.train?.series ?? {})))].sort();
  if (!names.length) return null;
  const place = h("div", { class: "grid" });
  const draw = (name) => replace(place, chartOf(["train", name, [name]], shown, width, open(0)));
  draw(names[0]);
  return [h("h2", {}, "Any other metric"), h("div", { class: "row", style: { marginBottom: "10px" } }, choice("Metric", names.map((n) => [n, n]), names[0], draw)), place];
}

views.set("curves", { title: "Curves", show: curves, if: () => data.runs.length > 0 });
