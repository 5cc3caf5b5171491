// Evaluations item by item; two of one benchmark side by side, with what changed sides.

const right = (item) => item.score !== null && item.score >= 0.5;
const CHANGES = { all: "all items", gained: "wrong before, right after", lost: "right before, wrong after", moved: "score changed", right: "right (in the second)", wrong: "wrong (in the second)", unscored: "without a score" };

async function evaluations(main, parameters) {
  const all = data.evaluations;
  const b = Math.min(Number(parameters.b ?? all.length - 1), all.length - 1);
  const same = all.map((e, i) => i).filter((i) => all[i].benchmark === all[b].benchmark);
  const a = parameters.a === "" || parameters.a === "none" ? null : parameters.a !== undefined && same.includes(Number(parameters.a)) && Number(parameters.a) !== b ? Number(parameters.a) : (same.filter((i) => i !== b).pop() ?? null);
  const second = new Map((await store.items(b)).map((i) => [i.id, i])), first = a === null ? new Map() : new Map((await store.items(a)).map((i) => [i.id, i]));
  const go = (change) => route.go("evaluations", { a: a ?? "none", b, ...change });
  const pairs = [...new Set([...second.keys(), ...first.keys()])].map((id) => {
    const x = first.get(id) ?? null, y = second.get(id) ?? null;
    const other = Boolean(x && y && x.prompt !== y.prompt);
    return { id, x, y, other, item: y ?? x, moved: x && y && !other && x.score !== null && y.score !== null ? y.score - x.score : null };
  });
  const gained = pairs.filter((p) => p.moved !== null && !right(p.x) && right(p.y)), lost = pairs.filter((p) => p.moved !== null && right(p.x) && !right(p.y));
  const figures = (i, name) => { const p = all[i].summary["pass@1"] ?? {}; return h("section", { class: "card" }, h("div", { class: "muted small wrap" }, name, ": ", all[i].name), h("div", { class: "big" }, fixed(p.mean)), h("div", { class: "muted small" }, `pass@1 ${p.ci95 ? `[${fixed(p.ci95[0])}, ${fixed(p.ci95[1])}]` : ""} · ${all[i].summary.items?.asked ?? "?"} items · k = ${all[i].summary.k ?? "?"}`)); };
  put(main, [
    h("div", { class: "row", style: { marginBottom: "12px" } }, a === null ? null : h("label", { class: "field" }, "first", choice("First evaluation", [["none", "none"], ...same.filter((i) => i !== b).map((i) => [i, all[i].name])], a, (v) => go({ a: v }))),
      a === null && same.length > 1 && h("button", { type: "button", onclick: () => go({ a: same.filter((i) => i !== b).pop() }) }, "compare with another"),
      h("label", { class: "field" }, a === null ? "evaluation" : "second", choice("Second evaluation", all.map((e, i) => [i, e.name]), b, (v) => go({ a: "", b: v })))),
    data.troubles.map((t) => h("p", { class: "muted small wrap" }, t)),
    all[b].left_out ? h("div", { class: "note" }, `A sample: ${second.size} of ${second.size + all[b].left_out} items are in this file, those that changed sides first. All of them: sapo-vl view --serve 8700`) : null,
    h("div", { class: "cards" }, a === null ? null : figures(a, "first"), figures(b, a === null ? "evaluation" : "second"),
      a === null ? null : h("section", { class: "card" }, h("div", { class: "muted small" }, "changed sides"), h("div", { class: "big" }, h("span", { class: "up" }, `+${gained.length}`), " ", h("span", { class: "down" }, `−${lost.length}`)), h("div", { class: "muted small" }, `of ${pairs.filter((p) => p.moved !== null).length} items scored in both, at 0.5`, pairs.some((p) => p.other) ? `; ${pairs.filter((p) => p.other).length} had another prompt` : ""))),
    h("div", { class: "gap" })]);
  const state = { show: parameters.show ?? (gained.length + lost.length ? "moved" : "all"), task: "", text: "", limit: PAGE, id: parameters.item ?? null };
  const list = h("div", { class: "card list", role: "list", "aria-label": "Items" }), count = h("p", { class: "muted small", role: "status", style: { margin: "0 0 8px" } }), detail = h("div", { "aria-live": "polite" });
  const tasks = [...new Set(pairs.map((p) => p.item.task))].sort();
  const kinds = Object.entries(CHANGES).filter(([k]) => a !== null || !["gained", "lost", "moved"].includes(k));
  const set = (change) => { Object.assign(state, change, { limit: PAGE }); draw(); };
  const filters = h("div", { class: "filters" }, h("label", {}, "items", choice("Which items", kinds, state.show, (v) => { route.note({ show: v }); set({ show: v }); })), h("label", {}, "task", choice("Task", [["", "all tasks"], ...tasks.map((t) => [t, t])], "", (v) => set({ task: v }))),
    h("label", { class: "wide" }, "text in question, gold or response", h("input", { type: "search", "aria-label": "Text filter", oninput: (e) => set({ text: e.target.value }) })));
  const tests = { all: () => true, gained: (p) => gained.includes(p), lost: (p) => lost.includes(p), moved: (p) => p.moved !== null && p.moved !== 0, right: (p) => p.y && right(p.y), wrong: (p) => p.y && p.y.score !== null && !right(p.y), unscored: (p) => p.item.score === null };
  const said = (p) => [p.id, p.item.gold, JSON.stringify(p.item.messages), ...[p.x, p.y].filter(Boolean).flatMap((i) => i.responses.map((r) => r.text))].join("\n").toLowerCase();
  const badge = (item) => (item === null ? NOTHING : h("span", { class: `chip ${item.score === null ? "warn" : right(item) ? "good" : "bad"}` }, number(item.score, 2)));
  function draw() {
    const rows = pairs.filter((p) => tests[state.show](p) && (!state.task || p.item.task === state.task) && (!state.text || said(p).includes(state.text.toLowerCase())));
    count.textContent = `${rows.length} item${rows.length === 1 ? "" : "s"}`;
    replace(list, rows.slice(0, state.limit).map((p) => h("div", { role: "listitem" }, h("button", { type: "button", "data-key": p.id, "aria-current": p.id === state.id ? "true" : null, onclick: () => open(p) }, h("span", { class: "id" }, p.id), h("span", {}, a !== null && [badge(p.x), " → "], badge(p.y)), h("span", { class: "muted small" }, p.item.task), p.other ? h("span", { class: "chip warn" }, "another prompt") : null))),
      rows.length > state.limit && h("button", { type: "button", onclick: () => { state.limit += PAGE; draw(); } }, `show more (${rows.length - state.limit} left)`));
    const current = rows.find((p) => p.id === state.id) ?? rows[0];
    if (current) open(current); else replace(detail, h("p", { class: "muted" }, "No item fits."));
  }
  async function open(p) {
    state.id = p.id;
    route.note({ item: p.id });
    for (const button of list.querySelectorAll("button[data-key]")) { if (button.dataset.key === p.id) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current"); }
    const images = await store.pictures(b, p.item);
    if (state.id !== p.id) return;
    const figuresOf = images.map((image, i) => figure(image, `picture ${i + 1} of the item`));
    const gold = boxesIn(p.item.gold, p.item.box), best = (p.y ?? p.x).responses[0];
    const controls = h("div", {});
    if (gold && images[0]) {
      const told = toldUnits(p.item.box), said = best ? boxesIn(answerIn(best.text), p.item.box) : null, guess = guessUnit(gold, images[0]);
      const draw = (units) => drawBoxes(figuresOf[0], images[0], gold, said, units, p.item.box);
      put(controls, boxControls(told ?? { gold: guess, said: guess }, Boolean(told), draw));
      draw(told ?? { gold: guess, said: guess });
    }
    const asked = p.item.messages.map((m) => `${m.role}: ${typeof m.content === "string" ? m.content : m.content.map((c) => (c.type === "text" ? c.text : "<image>")).join("")}`).join("\n");
    replace(detail, h("section", { class: "card" }, h("div", { class: "problem" }, h("div", {}, h("div", { class: "figures" }, figuresOf.length ? figuresOf : h("div", { class: "missing" }, "no picture here")), controls), h("div", {}, h("div", { class: "row" }, h("h3", { class: "wrap" }, p.id), h("span", { class: "chip info" }, p.item.task), Object.entries(p.item.groups ?? {}).filter(([k]) => k !== "task").map(([k, v]) => h("span", { class: "chip" }, `${k} ${v}`)), p.item.skipped && h("span", { class: "chip warn" }, p.item.skipped)),
      h("div", { class: "muted small", style: { marginTop: "8px" } }, "question"), h("pre", { class: "text tall" }, asked), h("div", { class: "muted small", style: { marginTop: "8px" } }, "gold"), h("pre", { class: "text" }, p.item.gold), h("div", { class: "muted small", style: { marginTop: "8px" } }, `rule: ${p.item.rule}${p.item.other_rule ? `, beside it ${p.item.other_rule}` : ""}`)))),
      h("div", { class: a === null ? "" : "two", style: { marginTop: "14px" } }, [a === null ? null : ["first", p.x], [a === null ? "responses" : "second", p.y]].filter(Boolean).map(([name, item]) => h("div", {}, h("h3", {}, name, " ", badge(item)), item ? h("div", { class: "responses" }, item.responses.map((r, i) => answerCard(r, i))) : h("p", { class: "muted" }, "not asked")))));
  }
  main.append(h("div", { class: "split" }, h("div", {}, filters, count, list), detail));
  draw();
}

function answerCard(r, i) {
  const kind = r.score === null ? "warn" : r.score >= 0.5 ? "good" : "bad";
  return h("article", { class: "card response", "aria-label": `response ${i + 1}`, style: { borderTopColor: r.score === null ? "var(--line)" : rewardInk(r.score) } }, h("div", { class: "row" }, h("span", { class: `chip ${kind}` }, r.score === null ? r.status : number(r.score, 3)), h("span", { class: `chip ${r.finish === "stop" ? "" : "warn"}` }, r.finish), h("span", { class: "muted small" }, `${r.tokens} tokens`)),
    h("pre", { class: "text tall" }, r.text), h("div", { class: "muted small wrap foot" }, h("div", {}, "answer read: ", h("span", { class: "mono" }, r.answer === null ? "none" : r.answer)), r.reason && h("div", {}, `reason: ${r.reason}`), r.other && h("div", {}, `the other rule: ${number(r.other.score, 3)}${r.other.reason ? ` (${r.other.reason})` : ""}`)));
}

views.set("evaluations", { title: "Evaluations", show: evaluations, if: () => data.evaluations.length > 0 });
