// Every token of a response, coloured by a number. Masked tokens are dimmed and have no say in the scale.

const LOGP = "log-prob";
const QUANTITIES = {
  ratio: ["ratio r = π/π_old", "around 1", (x) => Math.log(x)], gate: ["gate f'(r)", "from 0 to 1"], logp_old: ["log-prob then (π_old)", LOGP], logp_new: ["log-prob now (π)", LOGP], change: ["log-prob now − then", "around 0"], entropy: ["entropy (nats)", "from 0"], gap: ["engine gap (engine − trainer)", "around 0"],
};

function bytesOf(base64) { return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer; }
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}
function unpack(tokens) {
  const halves = (name) => { const view = new DataView(bytesOf(tokens[name])); return d3.range(view.byteLength / 2).map((i) => half(view.getUint16(2 * i, true))); };
  const view = new DataView(bytesOf(tokens.ids)), ratio = new DataView(bytesOf(tokens.ratio));
  const ids = d3.range(view.byteLength / 4).map((i) => view.getInt32(4 * i, true));
  const found = { update: tokens.update, ids, mask: [...new Uint8Array(bytesOf(tokens.mask))], ratio: ids.map((_, i) => ratio.getFloat32(4 * i, true)), gate: halves("gate"), logp_old: halves("logp_old"), logp_new: halves("logp_new"), entropy: halves("entropy"), gap: halves("gap") };
  found.change = found.logp_new.map((x, i) => x - found.logp_old[i]);
  return found;
}

// {of(value): colour, low, high}: diverging around 1 or 0, else one-sided. Light colours in both themes, under dark text.
function tokenScale(quantity, values) {
  const [, kind, through = (x) => x] = QUANTITIES[quantity];
  const known = values.filter(Number.isFinite).map(through).filter(Number.isFinite);
  if (kind.startsWith("around")) {
    const reach = Math.max(1e-6, d3.max(known, Math.abs) || 0);
    const back = quantity === "ratio" ? Math.exp : (x) => x;
    const ramp = d3.scaleLinear().domain([-reach, 0, reach]).range(["#f79a6b", "#f4f4f2", "#7fa9f5"]).clamp(true).interpolate(d3.interpolateRgb);
    return { of: (v) => ramp(through(v)), low: back(-reach), middle: back(0), high: back(reach), ramp: ["#f79a6b", "#f4f4f2", "#7fa9f5"] };
  }
  if (quantity === "gate") {
    const low = Math.min(0.999, d3.min(known) ?? 0);
    const ramp = d3.scaleLinear().domain([low, 1]).range(["#c9a3f0", "#f4f4f2"]).clamp(true);
    return { of: ramp, low, high: 1, ramp: ["#c9a3f0", "#f4f4f2"] };
  }
  let [low, high] = d3.extent(known);
  if (quantity === "entropy") low = 0;
  if (low === undefined || low === high) { low = (low ?? 0) - 0.5; high = (high ?? 0) + 0.5; }
  const inks = kind === LOGP ? ["#f2a65a", "#f4f4f2"] : ["#f4f4f2", "#62c3a5"];
  return { of: d3.scaleLinear().domain([low, high]).range(inks).clamp(true), low, high, ramp: inks };
}

async function tokensView(main, parameters) {
  const run = Number(parameters.run ?? data.runs.findIndex((_, i) => store.index(i).some((r) => r.tokens))) || 0;
  let row = store.index(run).find((r) => r.key === parameters.group);
  if (!row && store.served && parameters.step) { store.learn(data.runs[run], await store.ask("api/index", { run, step: parameters.step })); row = store.index(run).find((r) => r.key === parameters.group); }
  row = row ?? store.index(run).find((r) => r.tokens && r.spread > 0) ?? store.index(run).find((r) => r.tokens);
  if (!row) {
    main.append(h("p", { class: "muted" }, store.served ? "Choose a response with the button “tokens” among the rollouts." : "This run saved no numbers of single tokens (log.save_tokens)."));
    return;
  }
  const group = await store.group(run, row);
  const i = Math.min(Number(parameters.response ?? 0) || 0, group.responses.length - 1), response = group.responses[i];
  const to = (j) => route.go("tokens", { ...parameters, run, step: group.step, group: group.key, response: j });
  const pick = h("div", { class: "row", role: "group", "aria-label": "Responses of the group" }, h("a", { href: route.address("rollouts", { run, step: group.step, group: group.key }) }, "← the group"),
    h("button", { type: "button", "aria-label": "Response before", disabled: i === 0, onclick: () => to(i - 1) }, "‹"), group.responses.map((r, j) => h("button", { type: "button", "aria-current": j === i ? "true" : null, "aria-label": `Response ${j + 1}, reward ${number(r.reward, 2)}`, style: { borderTop: `4px solid ${rewardInk(r.reward)}` }, onclick: () => to(j) }, String(j + 1))),
    h("button", { type: "button", "aria-label": "Next response", disabled: i === group.responses.length - 1, onclick: () => to(i + 1) }, "›"));
  const { card, show } = await problemCard(run, group, null);
  show(response);
  main.append(pick, h("div", { class: "gap" }), card, h("div", { class: "gap" }));
  if (!response.tokens) { main.append(h("p", { class: "muted" }, "The numbers of this response's tokens were not saved (log.save_tokens, log.save_tokens_mb).")); return; }
  const tokens = unpack(response.tokens), texts = data.runs[run].texts || {};
  const sign = response.advantage > 0 ? ["good", "A > 0: pushed up"] : response.advantage < 0 ? ["bad", "A < 0: pushed down"] : ["", "A = 0: teaches nothing"];
  const body = h("div", { class: "tokens", role: "group", "aria-label": "Tokens" }), legend = h("div", {}), facts = h("div", { class: "muted small" });
  let quantity = parameters.by in QUANTITIES ? parameters.by : "gate";
  const shown = (id) => (texts[id] === undefined ? `⟨${id}⟩ ` : texts[id] === "" ? `⟨${id}⟩` : texts[id].replace(/\n/g, "↵\n"));
  const explain = (k, x, y) => tip.show(x, y, h("div", {}, h("b", {}, `token ${k + 1} of ${tokens.ids.length}: `), h("span", { class: "mono" }, JSON.stringify(texts[tokens.ids[k]] ?? "")), ` id ${tokens.ids[k]}`), !tokens.mask[k] && h("div", { class: "muted" }, "masked: not in the loss"),
    h("table", {}, Object.entries(QUANTITIES).map(([name, [label]]) => h("tr", {}, h("td", { style: { fontWeight: name === quantity ? "650" : null } }, label), h("td", { class: "num" }, name === "ratio" ? number(tokens[name][k], 6) : number(tokens[name][k], 4)))), h("tr", {}, h("td", {}, "advantage"), h("td", { class: "num" }, response.advantage === null ? NOTHING : signed(response.advantage, 3)))));
  function draw() {
    const values = tokens[quantity], counted = values.filter((_, k) => tokens.mask[k]), scale = tokenScale(quantity, counted);
    replace(body, tokens.ids.map((id, k) => {
      const known = Number.isFinite(values[k]), masked = !tokens.mask[k];
      return h("span", { class: `tok${masked ? " masked" : known ? "" : " unknown"}`, tabindex: 0, style: { background: known && !masked ? scale.of(values[k]) : null, borderBottomColor: masked ? null : response.advantage > 0 ? "var(--good)" : response.advantage < 0 ? "var(--bad)" : null }, "aria-label": `token ${k + 1}, ${texts[id] ?? id}, ${QUANTITIES[quantity][0]} ${number(values[k], 4)}${masked ? ", masked" : ""}`,
        onpointerenter: (e) => explain(k, e.clientX, e.clientY), onpointerleave: () => tip.hide(), onfocus: (e) => { const b = e.target.getBoundingClientRect(); explain(k, b.left, b.bottom - 8); }, onblur: () => tip.hide() }, shown(id));
    }));
    replace(legend, h("div", { class: "scale", role: "img", "aria-label": `colours from ${number(scale.low)} to ${number(scale.high)}`, style: { background: `linear-gradient(90deg, ${scale.ramp.join(", ")})` } }), h("div", { class: "ends" }, h("span", {}, number(scale.low)), scale.middle !== undefined && h("span", {}, number(scale.middle)), h("span", {}, number(scale.high))));
    const real = counted.filter(Number.isFinite), unknown = counted.length - real.length;
    facts.textContent = `${tokens.ids.length} tokens, ${counted.length} in the loss${unknown ? `, ${unknown} without this number` : ""}${real.length ? ` · mean ${number(d3.mean(real))}, from ${number(d3.min(real))} to ${number(d3.max(real))}` : ""} · ${tokens.update ? `update ${tokens.update} of the step` : "took part in no update"}`;
  }
  main.append(h("section", { class: "card" }, h("div", { class: "row" }, h("span", { class: "score" }, number(response.reward, 3)), h("span", { class: `chip ${sign[0]}` }, `${sign[1]} (${response.advantage === null ? NOTHING : signed(response.advantage, 2)})`), h("span", { class: "chip" }, response.finish),
    h("label", { class: "field" }, "colour by", choice("Colour tokens by", Object.entries(QUANTITIES).map(([k, v]) => [k, v[0]]), quantity, (v) => { quantity = v; route.note({ by: v }); draw(); }))), h("div", { class: "gap" }), body, h("div", { class: "gap" }), legend, facts,
    h("p", { class: "muted small", style: { marginBottom: "0" } }, "The line under a token is the sign of the advantage: green up, red down. Faint tokens with dots are masked; grey ones have no such number. Numbers are of the response's own update.")));
  draw();
}

views.set("tokens", { title: "Tokens", show: tokensView, if: () => data.runs.some((r, i) => (store.served ? stepsOf(i).length : store.index(i).some((row) => row.tokens))) });
