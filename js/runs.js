// The Runs tab: runs on disk with their pictures and figures; open, compare, resume, export, copy the trigger, delete and restore. Talks to /lora_loom/runs*.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { language, said, t } from "./words.js";

const API = "/lora_loom/runs";
const BATCH = 40; // cards added at a time, so hundreds of runs open at once
const POLL_MS = 5000; // while a run is going on and the tab is seen
const TRAIN_NODES = { lora: "LoraLoomTrainLora", pivotal: "LoraLoomTrainLora", embedding: "LoraLoomTrainEmbedding" };
const COLOURS = ["#4c8dff", "#ff8a3d", "#4bb36b", "#b06ad6", "#e0527a", "#2fb5b5", "#c9a227", "#8a93a6"];

const STYLE = `
.loom-runs { display: flex; flex-direction: column; gap: 6px; height: 100%; box-sizing: border-box; padding: 8px;
  font: 12px/1.4 system-ui, sans-serif; color: var(--input-text, #ddd); }
.loom-runs .bar { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
.loom-runs input[type=text], .loom-runs select { background: var(--comfy-input-bg, #222); color: inherit; border: 1px solid var(--border-color, #444);
  border-radius: 4px; padding: 3px 5px; font: inherit; min-width: 0; }
.loom-runs .bar input[type=text] { flex: 1 1 140px; }
.loom-runs button { background: var(--comfy-input-bg, #333); color: inherit; border: 1px solid var(--border-color, #555); border-radius: 4px;
  padding: 2px 8px; cursor: pointer; font: inherit; }
.loom-runs button:disabled { opacity: .45; cursor: default; }
.loom-runs .said { min-height: 1.4em; overflow-wrap: anywhere; }
.loom-runs .said.bad { color: #ff7b6b; }
.loom-runs .list { flex: 1; overflow-y: auto; min-height: 0; }
.loom-runs .card { display: grid; grid-template-columns: 88px 1fr; gap: 8px; padding: 7px; margin-bottom: 6px; border-radius: 6px;
  background: rgba(127, 127, 127, .12);
  content-visibility: auto; contain-intrinsic-size: auto 128px; }
.loom-runs .card.chosen { outline: 2px solid #4c8dff; outline-offset: -2px; }
.loom-runs .card > img, .loom-runs .card > .blank { width: 88px; height: 88px; object-fit: cover; object-position: left;
  border-radius: 4px; background: rgba(0, 0, 0, .25); }
.loom-runs .name { font-weight: 600; overflow-wrap: anywhere; display: flex; gap: 6px; align-items: flex-start; }
.loom-runs .facts { opacity: .8; overflow-wrap: anywhere; }
.loom-runs .state { border-radius: 8px; padding: 0 7px; margin-right: 5px; background: rgba(127, 127, 127, .35); white-space: nowrap; }
.loom-runs .state.running { background: #2c6fd6; color: #fff; }
.loom-runs .state.finished { background: #2f7d46; color: #fff; }
.loom-runs .state.failed { background: #b3402f; color: #fff; }
.loom-runs .state.interrupted, .loom-runs .state.paused { background: #9a6b12; color: #fff; }
.loom-runs .why { color: #ff9d8f; overflow-wrap: anywhere; }
.loom-runs .actions { display: flex; flex-wrap: wrap; gap: 4px; margin-top: 4px; }
.loom-runs .actions select { max-width: 130px; }
.loom-runs .compare { flex: 1; min-height: 0; overflow-y: auto; display: flex; flex-direction: column; gap: 8px; }
.loom-runs .chart { position: relative; height: 260px; flex: none; }
.loom-runs .chart canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.loom-runs .legend div { display: flex; gap: 6px; align-items: baseline; }
.loom-runs .legend i { width: 12px; height: 12px; border-radius: 3px; flex: none; align-self: center; }
.loom-runs .samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px; }
.loom-runs .samples figure { margin: 0; }
.loom-runs .samples img { width: 100%; border-radius: 4px; }
.loom-runs details { flex: none; max-height: 30%; overflow-y: auto; }
.loom-runs details div { display: flex; gap: 8px; align-items: center; padding: 2px 0; }
.loom-runs details span { flex: 1; overflow-wrap: anywhere; }
`;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`);
const date = (seconds) => new Date(seconds * 1000).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });
const picture = (run, large = false) =>
  api.apiURL(`${API}/picture?id=${encodeURIComponent(run.id)}&step=${run.picture}${large ? "&large=1" : ""}&of=${Math.round(run.changed)}`);

async function ask(path, body) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
  let response, answer;
  try {
    response = await api.fetchApi(API + path, options);
    answer = await response.json();
  } catch {
    throw new Error(t("runs.unreachable"));
  }
  if (!response.ok) throw new Error(answer.error ? said(answer.error) : response.statusText);
  return answer;
}

// Every node of the open workflow, those inside of subgraphs too.
function* nodesOf(graph) {
  for (const node of graph?._nodes ?? graph?.nodes ?? []) {
    yield node;
    if (node.subgraph) yield* nodesOf(node.subgraph);
  }
}

// Loss curves of several runs over one another; the values at a step are read off under the pointer.
class Curves {
  constructor(legend) {
    this.legend = legend;
    this.lines = [];
    this.canvas = make("canvas");
    this.root = make("div", { className: "chart" }, this.canvas);
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(this.root);
    this.canvas.addEventListener("pointermove", (e) => this.draw(e.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.draw());
  }

  show(lines) {
    this.lines = lines;
    this.draw();
  }

  dispose() {
    this.sized.disconnect();
  }

  draw(pointer) {
    const width = this.root.clientWidth, height = this.root.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width || !height) return;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui, sans-serif";
    const values = this.lines.flatMap((l) => [...l.loss, ...l.held_out].map((p) => p[1])).sort((a, b) => a - b);
    if (!values.length) return this.read(null);
    const left = 52, right = width - 8, top = 8, bottom = height - 22;
    const last = Math.max(1, ...this.lines.flatMap((l) => [l.loss.at(-1)?.[0] ?? 0, l.held_out.at(-1)?.[0] ?? 0]));
    let low = values[0], high = values[Math.floor(0.99 * (values.length - 1))]; // the first steps of a curve would squeeze the rest
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    low -= room;
    high += room;
    const x = (step) => left + ((right - left) * step) / last;
    const y = (value) => bottom - ((bottom - top) * Math.min(1, (value - low) / (high - low)));
    const ink = getComputedStyle(this.root).color;
    pen.fillStyle = ink;
    pen.strokeStyle = "rgba(127,127,127,.3)";
    for (let n = 0; n <= 4; n++) {
      const level = bottom - ((bottom - top) * n) / 4;
      pen.beginPath();
      pen.moveTo(left, level);
      pen.lineTo(right, level);
      pen.stroke();
      pen.textAlign = "right";
      pen.fillText((low + ((high - low) * n) / 4).toPrecision(3), left - 5, level + 4);
      pen.textAlign = n === 4 ? "right" : n ? "center" : "left";
      pen.fillText(String(Math.round((last * n) / 4)), left + ((right - left) * n) / 4, height - 7);
    }
    for (const line of this.lines) {
      pen.strokeStyle = pen.fillStyle = line.colour;
      for (const [points, dash] of [[line.loss, []], [line.held_out, [5, 4]]]) {
        pen.setLineDash(dash);
        pen.lineWidth = dash.length ? 1.5 : 1.8;
        pen.beginPath();
        points.forEach(([step, value], n) => (n ? pen.lineTo(x(step), y(value)) : pen.moveTo(x(step), y(value))));
        pen.stroke();
        if (dash.length) for (const [step, value] of points) pen.fillRect(x(step) - 2, y(value) - 2, 4, 4);
      }
    }
    pen.setLineDash([]);
    const at = pointer === undefined || pointer < left || pointer > right ? null : Math.round(((pointer - left) / (right - left)) * last);
    if (at !== null) {
      pen.strokeStyle = ink;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(pointer, top);
      pen.lineTo(pointer, bottom);
      pen.stroke();
    }
    this.read(at);
  }

  read(step) {
    const near = (points) => points.reduce((best, p) => (best === null || Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best), null);
    const rows = this.lines.map((line) => {
      const swatch = make("i");
      swatch.style.background = line.colour;
      const loss = step === null || step > (line.loss.at(-1)?.[0] ?? 0) ? null : near(line.loss), held = loss && near(line.held_out);
      const figures = loss ? ` · ${loss[1].toPrecision(4)}${held ? ` · ${held[1].toPrecision(4)} (${t("runs.at_step", { step: held[0] })})` : ""}` : "";
      return make("div", {}, swatch, line.name + figures);
    });
    this.legend.replaceChildren(...rows, make("div", { className: "facts", textContent: step === null ? t("runs.loss") : t("runs.at_step", { step }) }));
  }
}

class Runs {
  constructor() {
    this.runs = [];
    this.fitting = [];
    this.trashed = [];
    this.chosen = new Set();
    this.saves = new Map(); // run -> what its export takes
    this.local = false;
    this.place = "";
    this.filter = make("input", { type: "text", placeholder: t("runs.filter") });
    this.compare = make("button", { textContent: t("runs.compare"), disabled: true, title: t("runs.compare_hint"), onclick: () => this.showCompared() });
    this.said = make("div", { className: "said" });
    this.list = make("div", { className: "list" });
    this.trash = make("details");
    this.bar = make("div", { className: "bar" }, this.filter, make("button", { textContent: t("runs.refresh"), onclick: () => this.load() }), this.compare);
    this.root = make("div", { className: "loom-runs", lang: language }, make("style", { textContent: STYLE }), this.bar, this.said, this.list, this.trash);
    this.filter.addEventListener("input", () => {
      this.list.scrollTop = 0;
      this.draw();
    });
    this.list.addEventListener("scroll", () => {
      if (this.list.scrollTop + this.list.clientHeight > this.list.scrollHeight - 400) this.more();
    });
  }

  say(text, bad = false) {
    this.said.textContent = text;
    this.said.classList.toggle("bad", bad);
  }

  toast(detail, severity = "success") {
    app.extensionManager?.toast?.add({ severity, summary: "LoRA Loom", detail, life: 6000 });
  }

  // Runs what a button does; the sentence of an error goes where it is seen.
  async act(work) {
    this.count(); // takes an older error away
    try {
      await work();
    } catch (error) {
      this.say(error.message, true);
      this.toast(error.message, "warn");
    }
  }

  shown() {
    return this.root.isConnected && this.root.offsetParent !== null && !document.hidden;
  }

  async load() {
    clearTimeout(this.timer);
    try {
      const answer = await ask(""), told = JSON.stringify(answer);
      if (told === this.told) { // nothing is drawn anew under the pointer
        this.count();
        return this.wait();
      }
      this.told = told;
      Object.assign(this, { runs: answer.runs, trashed: answer.trash, local: answer.local, place: answer.place });
      for (const id of this.chosen) if (!this.runs.some((r) => r.id === id)) this.chosen.delete(id);
      this.draw();
    } catch (error) {
      this.say(error.message, true);
    }
    this.wait();
  }

  wait() {
    clearTimeout(this.timer);
    if (this.runs.some((r) => r.state === "running")) {
      this.timer = setTimeout(() => (this.shown() ? this.load() : this.wait()), POLL_MS);
    }
  }

  draw() {
    const wanted = this.filter.value.trim().toLowerCase(), scroll = this.list.scrollTop, seen = Math.max(BATCH, this.drawn ?? 0);
    this.fitting = this.runs.filter((r) => [r.id, r.base, r.trigger, t(`runs.state_${r.state}`)].some((text) => text.toLowerCase().includes(wanted)));
    this.drawn = 0;
    this.list.replaceChildren();
    this.more(scroll ? seen : BATCH);
    this.list.scrollTop = scroll;
    this.count();
    this.compare.disabled = this.chosen.size < 2;
    this.drawTrash();
  }

  count() {
    if (!this.runs.length) this.say(t("runs.none", { place: this.place }));
    else if (!this.fitting.length) this.say(t("runs.nothing_fits", { text: this.filter.value }));
    else this.say(t("runs.count", { shown: this.fitting.length, all: this.runs.length }));
  }

  more(count = BATCH) {
    const next = this.fitting.slice(this.drawn, this.drawn + count);
    this.drawn += next.length;
    this.list.append(...next.map((run) => this.card(run)));
  }

  card(run) {
    const tick = make("input", { type: "checkbox", checked: this.chosen.has(run.id), title: t("runs.select") });
    const image = run.picture === null ? make("div", { className: "blank" })
      : make("img", { src: picture(run), loading: "lazy", decoding: "async", draggable: false, alt: "" });
    image.onerror = () => image.replaceWith(make("div", { className: "blank" }));
    const figures = [t("runs.steps", { done: run.step, all: run.steps }), ...(run.base ? [run.base] : [])];
    const best = run.best ? [t("runs.best", { loss: run.best[1].toPrecision(4), step: run.best[0] })] : [];
    const facts = make("div", {}, make("label", { className: "name" }, tick, run.id),
      make("div", { className: "facts" }, make("span", { className: `state ${run.state}`, textContent: t(`runs.state_${run.state}`) }), figures.join(" · ")),
      ...best.map((text) => make("div", { className: "facts", textContent: text })),
      make("div", { className: "facts", textContent: `${date(run.changed)} · ${size(run.size_bytes)}` }));
    if (run.said) facts.append(make("div", { className: "why", textContent: said(run.said) }));
    facts.append(this.actions(run));
    const card = make("div", { className: "card" }, image, facts);
    card.classList.toggle("chosen", tick.checked);
    tick.addEventListener("change", () => {
      if (tick.checked) this.chosen.add(run.id);
      else this.chosen.delete(run.id);
      card.classList.toggle("chosen", tick.checked);
      this.compare.disabled = this.chosen.size < 2;
    });
    return card;
  }

  actions(run) {
    const button = (key, work, hint = "", disabled = false) =>
      make("button", { textContent: t(`runs.${key}`), title: hint && t(`runs.${hint}`), disabled, onclick: () => this.act(work) });
    const path = `${this.place}/${run.id}`;
    const folder = this.local ? button("open", () => ask("/open", { id: run.id })) : button("copy_path", () => this.copy(path));
    folder.title = path;
    const resume = button("resume", () => this.resume(run), "resume_hint", !run.saves.length || run.state === "running");
    const row = make("div", { className: "actions" }, folder, resume);
    const choices = run.saves.filter((s) => s !== run.best_save).reverse().map((s) => [s, t("runs.at_step", { step: s })]);
    if (run.best_save !== null) choices.unshift(["best", t("runs.save_best", { step: run.best_save })]);
    if (run.results.length) choices.unshift(["result", t("runs.save_result")]);
    if (choices.length) {
      const select = make("select", { title: t("runs.export_hint") }, ...choices.map(([value, text]) => make("option", { value, textContent: text })));
      select.value = this.saves.get(run.id) ?? choices[0][0];
      if (select.selectedIndex < 0) select.selectedIndex = 0;
      select.addEventListener("change", () => this.saves.set(run.id, select.value));
      row.append(select, button("export", () => this.export(run, select.value), "export_hint"));
    }
    if (run.trigger) {
      const copy = button("trigger", () => this.copy(run.trigger));
      copy.title = run.trigger;
      row.append(copy);
    }
    row.append(button("delete", () => this.delete(run), "delete_hint", run.state === "running"));
    return row;
  }

  async copy(text) {
    try {
      await navigator.clipboard.writeText(text); // not there on pages without https
    } catch {
      const area = make("textarea", { value: text });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) return this.say(t("runs.not_copied", { text }), true);
    }
    this.toast(t("runs.copied", { text }));
  }

  async export(run, save) {
    const { files } = await ask("/export", { id: run.id, save: /^\d+$/.test(save) ? Number(save) : save });
    this.toast(t("runs.exported", { files: files.join(", ") }));
    await app.refreshComboInNodes?.(); // the new file is in every loader's list at once
  }

  async delete(run) {
    await ask("/delete", { id: run.id });
    this.chosen.delete(run.id);
    this.toast(t("runs.deleted", { name: run.id }));
    await this.load();
  }

  async resume(run) {
    const { name, workflow } = await ask(`/resume?id=${encodeURIComponent(run.id)}`);
    if (workflow) await app.loadGraphData(workflow, true, true, name);
    const kind = TRAIN_NODES[run.method];
    const found = [...nodesOf(app.rootGraph ?? app.graph)].filter((node) => node.comfyClass === kind);
    const own = found.filter((node) => name.startsWith(String(widget(node, "name")?.value)));
    const node = own.length === 1 ? own[0] : found.length === 1 ? found[0] : null;
    if (!node) return this.toast(t("runs.resume_missing", { name }), "info");
    for (const [key, value] of [["name", name], ["resume", "continue last"]]) {
      const target = widget(node, key);
      if (target) {
        target.value = value;
        target.callback?.(value);
      }
    }
    if (node.graph === app.canvas?.graph) app.canvas.centerOnNode(node);
    app.canvas?.setDirty(true, true);
    this.toast(t("runs.resumed", { node: node.title ?? t("runs.resume_node"), name }));
  }

  drawTrash() {
    this.trash.hidden = !this.trashed.length;
    const rows = this.trashed.map((run) => make("div", {}, make("span", { textContent: `${run.name} · ${date(run.time)} · ${size(run.size_bytes)}` }),
      make("button", { textContent: t("runs.restore"), onclick: () => this.act(() => this.restore(run)) })));
    this.trash.replaceChildren(make("summary", { textContent: t("runs.trash", { count: this.trashed.length }) }), ...rows);
  }

  async restore(run) {
    const { id } = await ask("/restore", { trash: run.id });
    this.toast(t("runs.restored", { name: id }));
    await this.load();
  }

  async showCompared() {
    const runs = this.runs.filter((r) => this.chosen.has(r.id));
    const legend = make("div", { className: "legend" }), curves = new Curves(legend);
    const samples = runs.filter((r) => r.picture !== null).map((run) =>
      make("figure", {}, make("img", { src: picture(run, true), loading: "lazy", decoding: "async", alt: "" }),
        make("figcaption", { textContent: `${run.id} · ${t("runs.at_step", { step: run.picture })}` })));
    const view = make("div", { className: "compare" }, curves.root, legend, make("div", { className: "samples" }, ...samples));
    const back = make("button", { textContent: t("runs.back"), onclick: () => {
      curves.dispose();
      this.root.replaceChildren(this.root.firstChild, this.bar, this.said, this.list, this.trash);
    } });
    this.root.replaceChildren(this.root.firstChild, make("div", { className: "bar" }, back), view);
    await this.act(async () => {
      const lines = await Promise.all(runs.map((run) => ask(`/curve?id=${encodeURIComponent(run.id)}`)));
      curves.show(lines.map((line, n) => ({ ...line, name: runs[n].id, colour: COLOURS[n % COLOURS.length] })));
    });
  }
}

function widget(node, name) {
  return node.widgets?.find((w) => w.name === name);
}

const tab = new Runs();
for (const event of ["execution_start", "execution_success", "execution_error", "execution_interrupted"]) {
  api.addEventListener(event, () => tab.shown() && tab.load());
}

app.registerExtension({
  name: "lora_loom.runs",
  setup() {
    app.extensionManager?.registerSidebarTab?.({
      id: "lora_loom_runs",
      icon: "pi pi-chart-line",
      title: "LoRA Loom",
      tooltip: t("runs.tooltip"),
      type: "custom",
      render(place) { // called again whenever the page lays itself out anew
        if (place.firstChild === tab.root) return;
        place.style.height = "100%";
        place.replaceChildren(tab.root);
        tab.load();
      },
      destroy() {
        clearTimeout(tab.timer);
      },
    });
  },
});
