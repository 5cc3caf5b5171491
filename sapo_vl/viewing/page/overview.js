// What ran and what came of it.

const MODES = { sampled: "Sampled", greedy: "Greedy", blank_image: "Blank images (control)" };
const runColour = (i) => `c${i % 10}`;

function overview(main) {
  if (data.runs.length > 1) main.append(h("div", { class: "card" }, h("h3", {}, "Runs"), comparedRuns()));
  data.runs.forEach((run, i) => {
    if (data.runs.length > 1) main.append(h("h2", {}, h("span", { class: "swatch", style: { background: `var(--${runColour(i)})` } }), ` ${run.name}`));
    main.append(notices(run), accuracyCards(run), h("div", { class: "gap" }), h("div", { class: "two" }, h("div", {}, tasksCard(run), h("div", { class: "gap" }), factsCard(run)), h("div", {}, timesCard(run), h("div", { class: "gap" }), settingsCard(run))));
  });
  if (!data.runs.length) main.append(h("p", { class: "muted" }, "No run here; the evaluations are in their own view."));
  main.append(h("p", { class: "muted small" }, `Page of ${data.written}.`));
}

// Accuracy of a mode, from the summary; of a run under way from its first measurement, and its last where there are two.
function level(run, when, mode) {
  const told = run.accuracy[when];
  if (told) return told[mode] ?? (mode === "sampled" && told.mean !== undefined ? told : null);
  const measured = run.phases.eval, at = when === "cold_start" ? 0 : (measured?.steps.length ?? 0) - 1;
  if (!measured || run.finished || (when === "final" && at < 1)) return null;
  const of = (task) => { const name = `eval/${mode}/${task}`; const mean = measured.series[name]?.[at]; return mean === undefined || mean === null ? null : { mean, ci95: measured.intervals[name]?.[at], n: null }; };
  const all = of("all");
  const tasks = Object.keys(measured.series).filter((n) => n.startsWith(`eval/${mode}/`)).map((n) => n.split("/")[2]).filter((t) => t !== "all");
  return all && { ...all, by_task: Object.fromEntries(tasks.map((t) => [t, of(t)]).filter((p) => p[1])) };
}
const interval = (l) => (l && l.ci95 ? `[${fixed(l.ci95[0])}, ${fixed(l.ci95[1])}]` : "");

function comparedRuns() {
  const rows = data.runs.map((run, i) => {
    const a = level(run, "cold_start", "sampled"), b = level(run, "final", "sampled"), blank = level(run, "final", "blank_image");
    return [[h("span", { class: "swatch", style: { background: `var(--${runColour(i)})` } }), " ", run.name], run.facts.loss ?? NOTHING, run.facts.seed ?? NOTHING, fixed(a?.mean), b ? `${fixed(b.mean)} ${interval(b)}` : NOTHING,
      a && b ? signed(b.mean - a.mean) : NOTHING, fixed(blank?.mean), seconds(run.wall_s.total ?? run.wall_s.train_stage)];
  });
  return table(["run", "loss", "seed", "sampled, before", "after", "change", "blank, after", "time"], rows, [2, 3, 4, 5, 6, 7]);
}

function notices(run) {
  const names = [...new Set([...run.notices, ...Object.keys(run.notices_by_step)])];
  const box = [];
  if (names.length) {
    box.push(h("div", { class: "note warn" }, h("b", {}, "Notices this run raised"), h("ul", { style: { margin: "4px 0 0" } }, names.map((name) => {
      const steps = run.notices_by_step[name] || [];
      const text = (data.notice_texts || {})[name];
      return h("li", {}, h("b", {}, name), steps.length ? ` in ${steps.length} steps, first at step ${steps[0]}, last at step ${steps[steps.length - 1]}` : "", text ? `: ${text}` : "");
    }))));
  }
  if (!run.finished) box.push(h("div", { class: "note" }, "This run has no summary.json: it is under way, or was stopped."));
  if (run.unread) box.push(h("div", { class: "note" }, "The last line of metrics.jsonl is still being written and is left out."));
  return box.length ? h("div", {}, box) : h("div", {}, run.finished ? h("p", { class: "muted small" }, "No notices.") : null);
}

function accuracyCards(run) {
  const cards = Object.entries(MODES).map(([mode, title]) => {
    const before = level(run, "cold_start", mode), after = level(run, "final", mode);
    if (!before && !after) return null;
    const change = before && after ? after.mean - before.mean : null;
    const kind = mode === "blank_image" || change === null ? "" : change < 0 ? "down" : "up";
    return h("section", { class: "card", "aria-label": title }, h("div", { class: "muted small" }, `${title}, held-out accuracy`),
      h("div", {}, h("span", { class: "big" }, fixed((after || before).mean)), change !== null && h("span", { class: `delta ${kind}` }, signed(change))),
      beforeAfter(before, after), h("div", { class: "muted small" }, `${before ? `before ${fixed(before.mean)} ${interval(before)}` : ""}${after ? ` · after ${interval(after)}` : ""}${(after || before).n ? ` · n = ${(after || before).n}` : ""}`));
  });
  const shown = cards.filter(Boolean);
  return shown.length ? h("div", { class: "cards" }, shown) : h("p", { class: "muted" }, "No accuracy was measured yet.");
}

// Two dots with their 95% intervals on a scale from 0 to 1.
function beforeAfter(before, after) {
  const at = (x) => 4 + 92 * x;
  const mark = (l, y, ink) => (l ? [l.ci95 && svg("line", { x1: at(l.ci95[0]), x2: at(l.ci95[1]), y1: y, y2: y, stroke: ink, "stroke-width": 0.6 }), svg("circle", { cx: at(l.mean), cy: y, r: 1.05, fill: ink })].filter(Boolean) : []);
  const picture = svg("svg", { viewBox: "0 0 100 10", width: "100%", role: "img", "aria-label": `95% intervals: before ${interval(before)}, after ${interval(after)}` },
    svg("line", { x1: 4, x2: 96, y1: 8.6, y2: 8.6, stroke: "var(--line)", "stroke-width": 0.6 }),
    ...[0, 0.25, 0.5, 0.75, 1].map((t) => svg("line", { x1: at(t), x2: at(t), y1: 8, y2: 9.2, stroke: "var(--faint)", "stroke-width": 0.4 })),
    ...mark(before, 2.2, "var(--faint)"), ...mark(after, 5.2, "var(--accent)"));
  return picture;
}

function tasksCard(run) {
  const before = level(run, "cold_start", "sampled")?.by_task ?? {}, after = level(run, "final", "sampled")?.by_task ?? {}, blank = level(run, "final", "blank_image")?.by_task ?? {};
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort();
  if (!names.length) return h("section", { class: "card" }, h("h3", {}, "By task"), h("p", { class: "muted" }, "Not measured yet."));
  return h("section", { class: "card" }, h("h3", {}, "By task, sampled"), table(["task", "before", "after", "change", "blank"], names.map((t) => [t, fixed(before[t]?.mean),
    after[t] ? [fixed(after[t].mean), h("div", { class: "muted small" }, interval(after[t]))] : NOTHING, before[t] && after[t] ? signed(after[t].mean - before[t].mean) : NOTHING, fixed(blank[t]?.mean)]), [1, 2, 3, 4]));
}

const WITHIN = ["rollout", "reward", "train", "sync", "eval", "checkpoint", "export"];
function timesCard(run) {
  const wall = run.wall_s, stages = ["data", "init", "cold_start", "rl"].filter((k) => wall[k] !== undefined), inner = WITHIN.filter((k) => wall[k] !== undefined);
  if (!stages.length && !inner.length) return h("section", { class: "card" }, h("h3", {}, "Time"), h("p", { class: "muted" }, "Known when the run has finished; seconds a step are among the curves."));
  const total = wall.total ?? wall.train_stage;
  return h("section", { class: "card" }, h("h3", {}, `Time${total !== undefined ? `: ${seconds(total)}` : ""}`), timeBar("by stage", stages, wall), timeBar("within training (one rank)", inner, wall));
}
function timeBar(title, names, wall) {
  if (!names.length) return null;
  const all = d3.sum(names, (k) => wall[k]) || 1;
  return h("div", {}, h("div", { class: "muted small", style: { marginTop: "8px" } }, title), h("div", { class: "bar", role: "img", "aria-label": names.map((k) => `${k} ${seconds(wall[k])}`).join(", ") }, names.map((k, i) => h("span", { title: `${k}: ${seconds(wall[k])}`, style: { flex: String(Math.max(wall[k], 0) / all), background: `var(--c${i})` } }))),
    h("div", { class: "legend" }, names.map((k, i) => h("span", {}, h("span", { class: "swatch", style: { background: `var(--c${i})` } }), `${k} ${seconds(wall[k])}`))));
}

function factsCard(run) {
  const facts = Object.entries(run.facts).filter(([k]) => k !== "commit");
  const lines = [["folder", run.path], ["commit", run.facts.commit ?? "not recorded in this folder"], ...facts, ...Object.entries(run.scoring).filter(([, v]) => v).map(([k, v]) => [`scoring: ${k}`, v]),
    ...Object.entries(run.memory).map(([k, v]) => [k.replaceAll("_", " "), number(v, 3)])];
  const versions = Object.entries(run.versions);
  return h("section", { class: "card" }, h("h3", {}, "What ran"), h("dl", { class: "facts", style: { marginTop: "8px" } }, lines.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v === null ? NOTHING : v)]), versions.length ? [h("dt", {}, "versions"), h("dd", {}, versions.map(([k, v]) => `${k} ${v}`).join(", "))] : null));
}

function settingsCard(run) {
  const rows = run.settings.map(([key, value, base]) => [h("span", { class: "mono wrap" }, key), h("span", { class: "mono wrap" }, value), h("span", { class: "mono muted wrap" }, base ?? NOTHING)]);
  return h("section", { class: "card" }, h("h3", {}, `Settings that differ from the defaults (${rows.length})`), rows.length ? table(["key", "this run", "default"], rows) : h("p", { class: "muted" }, "None, or the defaults are not known here."));
}

views.set("overview", { title: "Overview", show: overview, if: () => true });
