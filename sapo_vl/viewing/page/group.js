// One group: pictures, prompt, gold, and all its responses side by side.

const rewardInk = (reward) => (reward === null || reward === undefined ? "var(--line)" : d3.interpolateRgb(colour("bad"), colour("good"))(Math.max(0, Math.min(1, reward))));

function rewardCells(rewards) {
  return h("span", { class: "cells", role: "img", "aria-label": `rewards ${rewards.map((r) => number(r, 2)).join(", ")}` }, rewards.slice(0, 16).map((r) => h("i", { style: { background: rewardInk(r), opacity: r === null ? 0.5 : 0.35 + 0.65 * Math.abs(2 * Math.max(0, Math.min(1, r)) - 1) } })), rewards.length > 16 && ` +${rewards.length - 16}`);
}

// The problem: its pictures with boxes, its prompt, its gold. `said()` gives the boxes to draw beside the gold's.
async function problemCard(run, group, extra) {
  const images = await Promise.all(group.images.map((name) => store.image(run, name)));
  const figures = images.map((image, i) => figure(image, `picture ${i + 1} of the problem`));
  const gold = boxesIn(group.answer, group.box);
  let said = null;
  const told = toldUnits(group.box);
  let units = told;
  const draw = () => { if (gold && images[0]) drawBoxes(figures[0], images[0], gold, said, units, group.box); };
  const controls = h("div", {});
  if (gold && images[0]) {
    if (!units) { const unit = guessUnit(gold, images[0]); units = { gold: unit, said: unit }; }
    put(controls, boxControls(units, Boolean(told), (chosen) => { units = chosen; draw(); }));
    draw();
  }
  const card = h("section", { class: "card" }, h("div", { class: "problem" },
    h("div", {}, h("div", { class: "figures" }, figures.length ? figures : h("div", { class: "missing" }, "text alone")), controls),
    h("div", {}, h("div", { class: "row" }, h("h3", { class: "wrap" }, group.id), h("span", { class: "chip info" }, group.task), h("span", { class: "chip" }, `step ${group.step}`), extra),
      h("div", { class: "muted small", style: { marginTop: "8px" } }, "prompt"), h("pre", { class: "text tall" }, group.prompt), h("div", { class: "muted small", style: { marginTop: "8px" } }, "gold"), h("pre", { class: "text" }, group.answer))));
  return { card, show: (response) => { said = response ? boxesIn(answerIn(response.text), group.box) : null; draw(); } };
}

const ORDERS = { sampled: "as sampled", high: "highest reward", low: "lowest reward", long: "longest" };
function inOrder(responses, order) {
  const rows = responses.map((r, i) => [i, r]);
  const key = { high: (r) => -(r.reward ?? -1e9), low: (r) => r.reward ?? 1e9, long: (r) => -(r.n ?? 0) }[order];
  return key ? rows.sort((a, b) => key(a[1]) - key(b[1])) : rows;
}

function responseCard(r, i, open, focus) {
  const ok = r.score_status === "scored";
  const parts = Object.entries(r.parts || {});
  return h("article", { class: "card response", "aria-label": `response ${i + 1}`, style: { borderTopColor: rewardInk(r.reward) }, onpointerenter: focus, onfocusin: focus },
    h("div", { class: "row" }, h("span", { class: "score" }, number(r.reward, 3)), h("span", { class: `chip ${r.advantage > 0 ? "good" : r.advantage < 0 ? "bad" : ""}`, title: "advantage" }, `A ${r.advantage === null ? NOTHING : signed(r.advantage, 2)}`),
      h("span", { class: `chip ${r.finish === "stop" ? "" : "warn"}`, title: "how it ended" }, r.finish), !ok && h("span", { class: "chip bad" }, r.score_status)),
    h("pre", { class: "text tall" }, r.text === "" ? h("span", { class: "muted" }, "(empty)") : r.text),
    h("div", { class: "foot muted small" }, r.score_detail && h("div", { class: "wrap" }, `reason: ${r.score_detail}`), parts.length ? h("div", { class: "wrap" }, parts.map(([k, v]) => `${k} ${number(v, 3)}`).join(" · ")) : null,
      h("div", { class: "row" }, h("span", {}, `${r.n ?? "?"} tokens · mean log-prob ${number(r.mean_logprob, 3)} · version ${r.weight_version ?? "?"}`), r.tokens && h("button", { type: "button", onclick: open, "aria-label": `Tokens of response ${i + 1}` }, "tokens"))));
}
