// Puts the views together: navigation, the address, and following a run under way.

const main = $("#view");
const nav = $("#views");

function drawNav(name) {
  replace(nav, [...views].filter(([, v]) => v.if()).map(([key, v]) => h("a", { href: `#${key}`, "aria-current": key === name ? "page" : null }, v.title)));
}

let drawing = 0;
async function draw(keep = false) {
  const { name, parameters } = route.now();
  const mine = ++drawing, at = scrollY;
  drawNav(name);
  tip.hide();
  const fresh = h("div", {});
  replace(main, fresh);
  try {
    await views.get(name).show(fresh, parameters);
  } catch (error) {
    if (mine === drawing) put(fresh, [h("div", { class: "note warn" }, `This view could not be shown: ${error.message}`)]);
    throw error;
  }
  if (mine === drawing) { scrollTo(0, keep ? at : 0); document.documentElement.dataset.ready = name; }
}

// A run under way: the server is asked for its state, and what changed is drawn again.
async function follow() {
  let known = data.state;
  for (;;) {
    await new Promise((wait) => setTimeout(wait, data.follow * 1000));
    try {
      const state = await store.ask("api/state");
      $("#live").textContent = `live · ${new Date().toLocaleTimeString()}`;
      if (JSON.stringify(state) === JSON.stringify(known)) continue;
      known = state;
      const now = await store.ask("api/overview");
      now.runs.forEach((run, i) => { Object.assign(data.runs[i], run); data.runs[i].index_done = false; });
      data.written = now.written;
      if (["overview", "curves"].includes(route.now().name)) await draw(true);
    } catch (error) {
      $("#live").textContent = `not followed: ${error.message}`;
    }
  }
}

theme.start();
addEventListener("hashchange", () => draw());
addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hide(); });
if (!data.runs.length && !location.hash) history.replaceState(null, "", "#evaluations");
draw();
if (data.follow) follow();
