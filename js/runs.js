// @ts-check
// The Runs tab: runs on disk with their pictures and figures; open, compare, resume, export, copy the trigger, delete
// and restore. Talks to /lora_loom/runs*.
import { route } from "./api.js";
import { copied } from "./clipboard.js";
import { Curves } from "./curves.js";
import { make, say, style } from "./dom.js";
import { fileSize } from "./figures.js";
import { viewSamples } from "./viewer.js";
import { language, said, t } from "./words.js";

/**
 * A run as the server lists it. `best`: step and lowest loss on held-out pictures; `picture`: step of the newest
 * sample; `saves`: steps of whole checkpoints; `best_save`: the step whose weights are kept as the best.
 * @typedef {object} Run
 * @property {string} id
 * @property {string} method
 * @property {string} base
 * @property {string} trigger
 * @property {number} step
 * @property {number} steps
 * @property {?[number, number]} best
 * @property {string} state
 * @property {?import("./words.js").Message} error
 * @property {number} changed
 * @property {number} size_bytes
 * @property {?number} picture
 * @property {number[]} saves
 * @property {?number} best_save
 * @property {string[]} results
 */

/** @typedef {{ id: string, name: string, time: number, size_bytes: number }} TrashedRun */

const BATCH = 40; // cards added at a time, so hundreds of runs open at once
const NEAR_END_PX = 400;
const POLL_MS = 5000; // while a run is going on and the tab is seen
const TOAST_MS = 6000;
const COLOURS = ["#4c8dff", "#ff8a3d", "#4bb36b", "#b06ad6", "#e0527a", "#2fb5b5", "#c9a227", "#8a93a6"];

const STYLE = `
.loom-runs { gap: 6px; padding: 8px; }
.loom-runs .tools input[type=text] { flex: 1 1 140px; }
.loom-runs button { padding: 2px 8px; }
.loom-runs .list { flex: 1; overflow-y: auto; min-height: 0; }
.loom-runs .card { display: grid; grid-template-columns: 88px 1fr; gap: 8px; padding: 7px; margin-bottom: 6px;
  border-radius: 6px; background: rgba(127, 127, 127, .12);
  content-visibility: auto; contain-intrinsic-size: auto 128px; }
.loom-runs .card.chosen { outline: 2px solid #4c8dff; outline-offset: -2px; }
.loom-runs .card > img, .loom-runs .card > .blank { width: 88px; height: 88px; object-fit: cover; object-position: left;
  border-radius: 4px; background: rgba(0, 0, 0, .25); }
.loom-runs .name { font-weight: 600; overflow-wrap: anywhere; display: flex; gap: 6px; align-items: flex-start; }
.loom-runs .facts { opacity: .8; overflow-wrap: anywhere; }
.loom-runs .state { border-radius: 8px; padding: 0 7px; margin-right: 5px; background: rgba(127, 127, 127, .35);
  white-space: nowrap; }
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

const date = (/** @type {number} */ seconds) =>
  new Date(seconds * 1000).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });

/**
 * What can be exported of a run, as [value, text]; the one that is chosen first comes first.
 * @param {Pick<Run, "saves" | "best_save" | "results">} run
 * @returns {[string, string][]}
 */
export function exportChoices({ saves, best_save: best, results }) {
  /** @type {[string, string][]} */
  const choices = [];
  if (results.length) choices.push(["result", t("runs.save_result")]);
  if (best !== null) choices.push(["best", t("runs.save_best", { step: best })]);
  for (const step of saves.filter((save) => save !== best).reverse()) {
    choices.push([String(step), t("runs.at_step", { step })]);
  }
  return choices;
}

/** An export choice as the server takes it: "result", "best" or a step. */
export const exportedSave = (/** @type {string} */ choice) => (/^\d+$/.test(choice) ? Number(choice) : choice);

/**
 * The runs whose name, base, trigger or state holds a text.
 * @param {Run[]} runs
 * @param {string} text
 */
export function filteredRuns(runs, text) {
  const wanted = text.trim().toLowerCase();
  return runs.filter((run) => {
    const texts = [run.id, run.base, run.trigger, t(`runs.state_${run.state}`)];
    return texts.some((part) => part.toLowerCase().includes(wanted));
  });
}

export class Runs {
  /** @param {import("./host.js").Host} host */
  constructor(host) {
    this.host = host;
    /** @type {Run[]} */
    this.runs = [];
    /** @type {Run[]} */
    this.filtered = [];
    /** @type {TrashedRun[]} */
    this.trashed = [];
    /** @type {Set<string>} */
    this.chosen = new Set();
    /** @type {Map<string, string>} run -> what its export takes */
    this.saves = new Map();
    this.local = false; // the server is this machine
    this.place = ""; // of the run folders
    this.answer = ""; // the last one, as text
    this.drawn = 0; // cards
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    style("loom-runs", STYLE);
    this.filter = make("input", { type: "text", placeholder: t("runs.filter") });
    this.compare = make("button", {
      textContent: t("runs.compare"), title: t("runs.compare_hint"), disabled: true, onclick: () => this.showCompared(),
    });
    const refresh = make("button", { textContent: t("runs.refresh"), onclick: () => this.load() });
    this.tools = make("div", { className: "tools" }, this.filter, refresh, this.compare);
    this.notice = make("div", { className: "notice" });
    this.list = make("div", { className: "list" });
    this.trash = make("details");
    this.root = make("div", { className: "loom loom-runs", lang: language });
    this.showList();
    this.filter.addEventListener("input", () => {
      this.list.scrollTop = 0;
      this.draw();
    });
    this.list.addEventListener("scroll", () => {
      const { scrollTop, clientHeight, scrollHeight } = this.list;
      if (scrollTop + clientHeight > scrollHeight - NEAR_END_PX) this.more();
    });
    host.onEvent("runs", () => this.seen() && this.load());
  }

  /** Puts the tab into `place`, and loads. */
  mount(/** @type {HTMLElement} */ place) {
    if (place.firstChild === this.root) return;
    place.style.height = "100%";
    place.replaceChildren(this.root);
    this.load();
  }

  rest() {
    clearTimeout(this.timer);
  }

  /**
   * @param {string} detail
   * @param {import("./host.js").Severity} [severity]
   */
  toast(detail, severity = "success") {
    this.host.toast(severity, detail, TOAST_MS);
  }

  /**
   * Runs what a button does; the sentence of an error goes where it is seen.
   * @param {() => Promise<void>} work
   */
  async act(work) {
    this.count(); // takes an older error away
    try {
      await work();
    } catch (error) {
      const { message } = /** @type {Error} */ (error);
      say(this.notice, message, true);
      this.toast(message, "warn");
    }
  }

  seen() {
    return this.root.isConnected && this.root.offsetParent !== null && !document.hidden;
  }

  async load() {
    this.rest();
    try {
      this.take(await this.host.fetchJson(route("runs")));
    } catch (error) {
      say(this.notice, /** @type {Error} */ (error).message, true);
    }
    this.wait();
  }

  take(/** @type {{ runs: Run[], trash: TrashedRun[], local: boolean, place: string }} */ list) {
    const answer = JSON.stringify(list);
    if (answer === this.answer) return this.count(); // nothing is drawn anew under the pointer
    this.answer = answer;
    this.runs = list.runs;
    this.trashed = list.trash;
    this.local = list.local;
    this.place = list.place;
    for (const id of this.chosen) if (!this.runs.some((run) => run.id === id)) this.chosen.delete(id);
    this.draw();
  }

  wait() {
    this.rest();
    if (!this.runs.some((run) => run.state === "running")) return;
    this.timer = setTimeout(() => (this.seen() ? this.load() : this.wait()), POLL_MS);
  }

  draw() {
    const scroll = this.list.scrollTop, cards = scroll ? Math.max(BATCH, this.drawn) : BATCH;
    this.filtered = filteredRuns(this.runs, this.filter.value);
    this.drawn = 0;
    this.list.replaceChildren();
    this.more(cards);
    this.list.scrollTop = scroll;
    this.count();
    this.compare.disabled = this.chosen.size < 2;
    this.drawTrash();
  }

  count() {
    if (!this.runs.length) say(this.notice, t("runs.none", { place: this.place }));
    else if (!this.filtered.length) say(this.notice, t("runs.nothing_fits", { text: this.filter.value }));
    else say(this.notice, t("runs.count", { shown: this.filtered.length, all: this.runs.length }));
  }

  more(count = BATCH) {
    const next = this.filtered.slice(this.drawn, this.drawn + count);
    this.drawn += next.length;
    this.list.append(...next.map((run) => this.card(run)));
  }

  card(/** @type {Run} */ run) {
    const tick = make("input", { type: "checkbox", checked: this.chosen.has(run.id), title: t("runs.select") });
    const name = make("label", { className: "name" }, tick, run.id);
    const facts = make("div", {}, name, ...this.facts(run), this.actions(run));
    const card = make("div", { className: "card" }, this.image(run), facts);
    card.classList.toggle("chosen", tick.checked);
    tick.addEventListener("change", () => {
      if (tick.checked) this.chosen.add(run.id);
      else this.chosen.delete(run.id);
      card.classList.toggle("chosen", tick.checked);
      this.compare.disabled = this.chosen.size < 2;
    });
    return card;
  }

  image(/** @type {Run} */ run) {
    const blank = make("div", { className: "blank" });
    if (run.picture === null) return blank;
    const src = this.picture(run);
    const image = make("img", { src, loading: "lazy", decoding: "async", draggable: false, alt: "" });
    image.onerror = () => image.replaceWith(blank);
    return this.enlarging(image, run);
  }

  /** A picture of a run that shows all its samples when it is clicked. */
  enlarging(/** @type {HTMLImageElement} */ image, /** @type {Run} */ run) {
    image.style.cursor = "zoom-in";
    image.title = t("panel.enlarge");
    image.addEventListener("click", () => viewSamples(this.host, run.id));
    return image;
  }

  /** The address of a run's newest sample. */
  picture(/** @type {Run} */ run, large = false) {
    const query = { id: run.id, step: Number(run.picture), of: Math.round(run.changed) };
    return this.host.imageUrl(route("runs/picture", large ? { ...query, large: 1 } : query));
  }

  facts(/** @type {Run} */ run) {
    const line = (/** @type {string} */ text, className = "facts") => make("div", { className, textContent: text });
    const state = make("span", { className: `state ${run.state}`, textContent: t(`runs.state_${run.state}`) });
    const figures = [t("runs.steps", { done: run.step, all: run.steps }), run.base].filter(Boolean);
    const lines = [make("div", { className: "facts" }, state, figures.join(" · "))];
    if (run.best) lines.push(line(t("runs.best", { loss: run.best[1].toPrecision(4), step: run.best[0] })));
    lines.push(line(`${date(run.changed)} · ${fileSize(run.size_bytes)}`));
    if (run.error) lines.push(line(said(run.error), "why"));
    return lines;
  }

  /**
   * @param {string} key of its text
   * @param {() => Promise<void>} work
   * @param {{ title?: string, disabled?: boolean }} [properties]
   */
  button(key, work, { title = "", disabled = false } = {}) {
    return make("button", { textContent: t(`runs.${key}`), title, disabled, onclick: () => this.act(work) });
  }

  actions(/** @type {Run} */ run) {
    const running = run.state === "running";
    const resume = this.button("resume", () => this.resume(run), {
      title: t("runs.resume_hint"), disabled: running || !run.saves.length,
    });
    const row = make("div", { className: "actions" }, this.folderButton(run), resume, ...this.exporter(run));
    if (run.trigger) row.append(this.button("trigger", () => this.copy(run.trigger), { title: run.trigger }));
    row.append(this.button("delete", () => this.delete(run), { title: t("runs.delete_hint"), disabled: running }));
    return row;
  }

  folderButton(/** @type {Run} */ run) {
    const path = `${this.place}/${run.id}`;
    if (!this.local) return this.button("copy_path", () => this.copy(path), { title: path });
    return this.button("open", () => this.host.postJson(route("runs/open"), { id: run.id }), { title: path });
  }

  /** The choice of weights and the button that exports them; nothing where a run has none. */
  exporter(/** @type {Run} */ run) {
    const choices = exportChoices(run);
    if (!choices.length) return [];
    const options = choices.map(([value, text]) => make("option", { value, textContent: text }));
    const select = make("select", { title: t("runs.export_hint") }, ...options);
    select.value = this.saves.get(run.id) ?? choices[0][0];
    if (select.selectedIndex < 0) select.selectedIndex = 0;
    select.addEventListener("change", () => this.saves.set(run.id, select.value));
    const title = t("runs.export_hint");
    return [select, this.button("export", () => this.export(run, select.value), { title })];
  }

  async copy(/** @type {string} */ text) {
    if (!await copied(text)) return say(this.notice, t("runs.not_copied", { text }), true);
    this.toast(t("runs.copied", { text }));
  }

  /**
   * @param {Run} run
   * @param {string} choice
   */
  async export(run, choice) {
    const { files } = await this.host.postJson(route("runs/export"), { id: run.id, save: exportedSave(choice) });
    this.toast(t("runs.exported", { files: files.join(", ") }));
    await this.host.refreshLists(); // the new file is in every loader's list at once
  }

  async delete(/** @type {Run} */ run) {
    await this.host.postJson(route("runs/delete"), { id: run.id });
    this.chosen.delete(run.id);
    this.toast(t("runs.deleted", { name: run.id }));
    await this.load();
  }

  async resume(/** @type {Run} */ run) {
    const { name, workflow } = await this.host.fetchJson(route("runs/resume", { id: run.id }));
    const title = await this.host.openRun({ name, method: run.method, workflow });
    if (title === null) this.toast(t("runs.resume_missing", { name }), "info");
    else this.toast(t("runs.resumed", { node: title || t("runs.resume_node"), name }));
  }

  drawTrash() {
    this.trash.hidden = !this.trashed.length;
    const rows = this.trashed.map((run) => make("div", {},
      make("span", { textContent: `${run.name} · ${date(run.time)} · ${fileSize(run.size_bytes)}` }),
      this.button("restore", () => this.restore(run))));
    const summary = make("summary", { textContent: t("runs.trash", { count: this.trashed.length }) });
    this.trash.replaceChildren(summary, ...rows);
  }

  async restore(/** @type {TrashedRun} */ run) {
    const { id } = await this.host.postJson(route("runs/restore"), { trash: run.id });
    this.toast(t("runs.restored", { name: id }));
    await this.load();
  }

  showList() {
    this.root.replaceChildren(this.tools, this.notice, this.list, this.trash);
  }

  async showCompared() {
    const runs = this.runs.filter((run) => this.chosen.has(run.id));
    const legend = make("div", { className: "legend" }), curves = new Curves(legend);
    const samples = make("div", { className: "samples" }, ...runs.filter((run) => run.picture !== null)
      .map((run) => this.sample(run)));
    const back = make("button", { textContent: t("runs.back"), onclick: () => {
      curves.dispose();
      this.showList();
    } });
    this.root.replaceChildren(make("div", { className: "tools" }, back),
      make("div", { className: "compare" }, curves.root, legend, samples));
    await this.act(async () => {
      const courses = await Promise.all(runs.map(({ id }) => this.host.fetchJson(route("runs/curve", { id }))));
      curves.show(courses.map((course, n) => ({ ...course, name: runs[n].id, colour: COLOURS[n % COLOURS.length] })));
    });
  }

  sample(/** @type {Run} */ run) {
    const caption = `${run.id} · ${t("runs.at_step", { step: run.picture })}`;
    const image = make("img", { src: this.picture(run, true), loading: "lazy", decoding: "async", alt: "" });
    return make("figure", {}, this.enlarging(image, run), make("figcaption", { textContent: caption }));
  }
}
