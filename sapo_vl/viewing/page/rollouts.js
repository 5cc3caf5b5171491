// Groups of a step, or of all steps: find one, look at it, follow its problem over the steps.

const SORTS = {
  order: ["as saved", () => 0], spread: ["rewards disagree most", (r) => -(r.spread ?? -1)], low: ["lowest mean reward", (r) => r.mean ?? 9e9], high: ["highest mean reward", (r) => -(r.mean ?? -9e9)], truncated: ["most truncated", (r) => -r.truncated],
};
const STATES = { all: "all", learns: "teaches (not dead)", dead: "dead: no advantage", truncated: "has truncated", unscored: "has unscored", tokens: "has token numbers" };
const PAGE = 100;

function sampleNote(run) {
  const s = data.runs[run].sample;
  if (store.served || !s) return null;
  const some = s.tokens && s.tokens < s.responses ? ` Numbers of single tokens were saved of ${s.tokens.toLocaleString("en")} of them (log.save_tokens_mb).` : "";
  const cut = (s.cut ? ` ${s.cut} texts are cut at 20,000 characters.` : "") + some;
  if (s.whole) return h("p", { class: "muted small" }, `All ${s.responses} saved responses of this run are in this file (steps ${s.steps.join(", ") || "none"}).${cut}`);
  return h("div", { class: "note" }, `A sample: ${s.responses.toLocaleString("en")} of ${s.responses_saved.toLocaleString("en")} saved responses, in ${s.groups.toLocaleString("en")} groups spread evenly over ${s.steps.length} of ${s.steps_saved} saved steps, as many as ${s.budget_mb} MB hold.${cut} All of them: sapo-vl view --serve 8700 ${data.runs[run].path}`);
}

async function rollouts(main, parameters) {
  const run = Math.min(Number(parameters.run ?? 0) || 0, data.runs.length - 1);
  const steps = stepsOf(run);
  if (!steps.length) {
    if (data.runs.length > 1) main.append(runChoice(run));
    main.append(h("p", { class: "muted" }, "This run has saved no rollouts (log.save_rollouts_every)."));
    return;
  }
  const state = { step: parameters.step === "all" ? "all" : nearest(steps, Number(parameters.step ?? steps[steps.length - 1])), key: parameters.group ?? null, task: parameters.task ?? "", state: parameters.state ?? "all", sort: parameters.sort ?? "order", low: parameters.low ?? "", high: parameters.high ?? "", text: parameters.text ?? "", limit: PAGE };
  const filters = h("div", { class: "filters" }), list = h("div", { class: "card list", role: "list", "aria-label": "Groups" }), count = h("p", { class: "muted small", role: "status", style: { margin: "0 0 8px" } }), detail = h("div", { "aria-live": "polite" });
  put(main, [sampleNote(run), (data.runs[run].troubles || []).map((t) => h("div", { class: "note warn wrap" }, t)), h("div", { class: "split" }, h("div", {}, filters, count, list), detail)]);
  let found = null, searched = "";

  const set = (change) => { Object.assign(state, change, { limit: PAGE }); route.note({ ...change }); update(); };
  const turn = (by) => { const i = steps.indexOf(state.step); set({ step: steps[Math.max(0, Math.min(steps.length - 1, (i < 0 ? 0 : i) + by))], key: null }); controls(); };
  const labelled = (text, ...inner) => h("label", {}, text, ...inner);
  function controls() {
    const tasks = [...new Set(store.index(run).map((r) => r.task))].sort();
    replace(filters, data.runs.length > 1 && h("div", { class: "wide" }, runChoice(run)),
      h("div", { class: "wide row" }, h("button", { type: "button", "aria-label": "Step before", onclick: () => turn(-1), disabled: state.step === steps[0] }, "‹"),
        choice("Step", [["all", `all ${steps.length} steps`], ...steps.map((s) => [s, `step ${s}`])], state.step, (v) => { set({ step: v === "all" ? "all" : Number(v), key: null }); controls(); }),
        h("button", { type: "button", "aria-label": "Next step", onclick: () => turn(1), disabled: state.step === steps[steps.length - 1] }, "›")),
      labelled("task", choice("Task", [["", "all tasks"], ...tasks.map((t) => [t, t])], state.task, (v) => set({ task: v }))),
      labelled("groups", choice("State of the group", Object.entries(STATES), state.state, (v) => set({ state: v }))),
      labelled("sort by", choice("Sort", Object.entries(SORTS).map(([k, v]) => [k, v[0]]), state.sort, (v) => set({ sort: v }))),
      labelled("mean reward", h("span", { class: "pair" }, h("input", { type: "number", step: "0.1", placeholder: "from", value: state.low, "aria-label": "Mean reward from", oninput: (e) => set({ low: e.target.value }) }), h("input", { type: "number", step: "0.1", placeholder: "to", value: state.high, "aria-label": "Mean reward to", oninput: (e) => set({ high: e.target.value }) }))),
      h("label", { class: "wide" }, "text in prompt, gold or response", h("input", { type: "search", value: state.text, "aria-label": "Text filter", oninput: (e) => set({ text: e.target.value }) })));
  }
  function matches(r) {
    if (state.step !== "all" && r.step !== state.step) return false;
    if (state.task && r.task !== state.task) return false;
    if (state.state === "learns" && r.dead) return false;
    if (["dead", "truncated", "tokens"].includes(state.state) && !r[state.state]) return false;
    if (state.state === "unscored" && !r.unscored) return false;
    if (state.low !== "" && !(r.mean >= Number(state.low))) return false;
    if (state.high !== "" && !(r.mean <= Number(state.high))) return false;
    return !found || found.has(r.key);
  }
  let turnOf = 0;
  async function update() {
    const mine = ++turnOf;
    const asked = state.text && `${state.step} ${state.text}`;
    if (asked !== searched) {
      searched = asked;
      found = state.text ? await store.search(run, state.text, state.step === "all" ? null : state.step) : null;
      if (mine !== turnOf) return;
    }
    await needed();
    if (mine !== turnOf || !list.isConnected) return;
    const key = SORTS[state.sort][1];
    const rows = store.index(run).filter(matches).map((r, i) => [r, i]).sort((a, b) => key(a[0]) - key(b[0]) || a[1] - b[1]).map((p) => p[0]);
    const partly = store.served && state.step === "all" && !data.runs[run].index_done;
    count.textContent = `${rows.length} group${rows.length === 1 ? "" : "s"}${partly ? " so far; reading on" : ""}`;
    replace(list, rows.slice(0, state.limit).map((r) => h("div", { role: "listitem" }, h("button", { type: "button", "data-key": r.key, "aria-current": r.key === state.key ? "true" : null, onclick: () => open(r) },
      h("span", { class: "id" }, r.id), h("span", { class: "num small" }, `${number(r.mean, 2)} ± ${number(r.spread, 2)}`),
      h("span", {}, rewardCells(r.rewards)), h("span", { class: "row small muted", style: { gap: "4px", justifyContent: "flex-end" } }, state.step === "all" && `step ${r.step}`, r.dead ? h("span", { class: "chip" }, "dead") : null, r.truncated ? h("span", { class: "chip warn" }, `${r.truncated} cut`) : null, r.unscored ? h("span", { class: "chip bad" }, `${r.unscored} unscored`) : null)))),
      rows.length > state.limit && h("button", { type: "button", onclick: () => { state.limit += PAGE; update(); } }, `show more (${rows.length - state.limit} left)`));
    const current = rows.find((r) => r.key === state.key) ?? (state.key ? store.index(run).find((r) => r.key === state.key) : rows[0]);
    if (current && current.key !== shownKey) open(current);
    else if (!current) { shownKey = null; replace(detail, h("p", { class: "muted" }, "No group fits.")); }
    if (partly && (await store.moreIndex(run)) !== undefined && list.isConnected && mine === turnOf) { controlsOnce(); update(); }
  }
  // A served page knows a step's groups when it has read that step.
  async function needed() {
    if (!store.served || state.step === "all") return;
    const r = data.runs[run];
    if (!(r.index || []).some((row) => row[1] === state.step)) {
      store.learn(r, await store.ask("api/index", { run, step: state.step }));
      controlsOnce();
    }
  }
  let tasksKnown = 0;
  function controlsOnce() { const n = new Set(store.index(run).map((r) => r.task)).size; if (n !== tasksKnown && document.activeElement?.type !== "search") { tasksKnown = n; controls(); } }

  let shownKey = null;
  async function open(row) {
    shownKey = state.key = row.key;
    route.note({ run, step: state.step, group: row.key });
    for (const b of list.querySelectorAll("button[data-key]")) { if (b.dataset.key === row.key) b.setAttribute("aria-current", "true"); else b.removeAttribute("aria-current"); }
    const group = await store.group(run, row);
    if (shownKey !== row.key || !group) return;
    const same = store.index(run).filter((r) => r.id === row.id);
    const overTime = same.length > 1 && h("div", { class: "row small" }, h("span", { class: "muted" }, "the same problem at"), same.map((r) => h("button", { type: "button", "aria-current": r.key === row.key ? "true" : null, onclick: () => { if (state.step !== "all") { state.step = r.step; controls(); } state.key = r.key; update(); } }, `step ${r.step}: ${number(r.mean, 2)}`)));
    const { card, show } = await problemCard(run, group, row.dead ? h("span", { class: "chip" }, "dead group") : null);
    if (shownKey !== row.key) return;
    const grid = h("div", { class: "responses" });
    const arrange = (order) => replace(grid, inOrder(group.responses, order).map(([i, r]) => responseCard(r, i, () => route.go("tokens", { run, step: group.step, group: group.key, response: i }), () => show(r))));
    arrange("sampled");
    show(inOrder(group.responses, "high")[0]?.[1]);
    replace(detail, overTime && h("div", { class: "card", style: { marginBottom: "14px" } }, overTime), card,
      h("div", { class: "row", style: { marginTop: "14px" } }, h("h3", {}, `${group.responses.length} responses`), h("span", { class: "muted small" }, `mean reward ${number(row.mean, 3)}, standard deviation ${number(row.spread, 3)}`), h("label", { class: "field" }, "order", choice("Order of the responses", Object.entries(ORDERS), "sampled", arrange))), grid);
  }
  controls();
  await update();
}

function runChoice(run) {
  return choice("Run", data.runs.map((r, i) => [i, r.name]), run, (v) => route.go("rollouts", { run: v }));
}

views.set("rollouts", { title: "Rollouts", show: rollouts, if: () => data.runs.some((_, i) => stepsOf(i).length) });
