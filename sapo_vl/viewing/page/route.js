// The address bar says what is shown: #view?name=value. Each view is a function of these names, in `views`.

const views = new Map(); // name -> {title, show(main, parameters), if: whether there is anything to show}

const route = {
  now() {
    const [name, query = ""] = location.hash.slice(1).split("?");
    return { name: views.has(name) ? name : "overview", parameters: Object.fromEntries(new URLSearchParams(query)) };
  },
  address(name, parameters = {}) {
    const given = Object.entries(parameters).filter(([, v]) => v !== null && v !== undefined && v !== "");
    return `#${name}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
  },
  go(name, parameters = {}) { location.hash = this.address(name, parameters); },
  // The same view, some names changed, without drawing all of it again.
  note(changes) {
    const { name, parameters } = this.now();
    history.replaceState(null, "", this.address(name, { ...parameters, ...changes }));
  },
};
