// Where data comes from: the block in this file, or the server that sent this page.

const data = JSON.parse(document.getElementById("data").textContent);

const store = {
  served: Boolean(data.served),
  _steps: new Map(),
  _images: new Map(),

  async ask(path, parameters = {}) {
    const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`);
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    return answer.json();
  },

  // Rows of the index, as objects; in a served page they come bit by bit, oldest step first.
  index(run) {
    const r = data.runs[run];
    if (!r._index || r._index.length !== (r.index || []).length) {
      r._index = (r.index || []).map((row) => Object.fromEntries(data.index_names.map((name, i) => [name, row[i]])));
    }
    return r._index;
  },

  async moreIndex(run) {
    const r = data.runs[run];
    if (!this.served || r.index_done) return false;
    const part = await this.ask("api/index", { run, after: r.index_after ?? -1 });
    this.learn(r, part);
    r.index_after = part.after;
    r.index_done = part.done;
    return !part.done;
  },

  // Rows that came, each once, in the order of steps.
  learn(r, part) {
    const known = new Set((r.index || []).map((row) => row[0]));
    const step = data.index_names.indexOf("step");
    r.index = (r.index || []).concat(part.rows.filter((row) => !known.has(row[0]))).sort((a, b) => a[step] - b[step]);
    r.troubles = [...new Set([...(r.troubles || []), ...part.troubles])];
  },

  async step(run, step) {
    const r = data.runs[run];
    if (!this.served) return r.groups.filter((g) => g.step === step);
    const key = `${run}/${step}`;
    if (!this._steps.has(key)) {
      const found = await this.ask("api/step", { run, step });
      r.texts = { ...(r.texts || {}), ...found.texts };
      this._steps.set(key, found.groups);
      if (this._steps.size > 12) this._steps.delete(this._steps.keys().next().value);
    }
    return this._steps.get(key);
  },

  async group(run, row) {
    return (await this.step(run, row.step)).find((g) => g.key === row.key);
  },

  // Keys of the groups with this text in the prompt, the gold or a response.
  async search(run, text, step) {
    const wanted = text.toLowerCase();
    if (this.served) return new Set((await this.ask("api/search", { run, text, step: step ?? "" })).keys);
    const holds = (g) => [g.id, g.prompt, g.answer, ...g.responses.map((r) => r.text)].some((t) => String(t ?? "").toLowerCase().includes(wanted));
    return new Set(data.runs[run].groups.filter(holds).map((g) => g.key));
  },

  async image(run, name) {
    if (!this.served) return data.runs[run].images[name] ?? null;
    const key = `${run}/${name}`;
    if (!this._images.has(key)) this._images.set(key, this.ask("api/image", { run, name }).then((x) => x.image));
    return this._images.get(key);
  },

  async pictures(n, item) {
    if (this.served) return (await this.ask("api/pictures", { n, row: item.row, prompt: item.prompt })).pictures;
    const same = data.evaluations.filter((e) => e.benchmark === data.evaluations[n].benchmark);
    return same.map((e) => (e.pictures || {})[item.id]).find(Boolean) ?? [];
  },

  async items(n) {
    const evaluation = data.evaluations[n];
    if (!evaluation.items) evaluation.items = (await this.ask("api/items", { n })).items;
    return evaluation.items;
  },
};

// The steps with rollouts in this page.
const stepsOf = (run) => (store.served ? data.runs[run].saved_steps : data.runs[run].sample.steps);
const nearest = (steps, x) => steps.reduce((best, s) => (Math.abs(s - x) < Math.abs(best - x) ? s : best), steps[0]);
