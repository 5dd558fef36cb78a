// @ts-check
// The Runs tab: the queue, and the runs on disk with their pictures and figures; use, compare, resume, export, rename,
// note, star, delete and restore. Talks to /lora_loom/runs*.
import { route } from "./api.js";
import { copied } from "./clipboard.js";
import { compareRuns } from "./compare.js";
import { make, say, style } from "./dom.js";
import { fileSize } from "./figures.js";
import { viewMeasured } from "./measured.js";
import { QueueView } from "./queue.js";
import { RunEntry } from "./run_entry.js";
import { viewSamples } from "./viewer.js";
import { language, t } from "./words.js";

/**
 * A run as the server lists it. `best`: step and lowest loss on held-out pictures; `picture`: step of the newest
 * sample; `saves`: steps of whole checkpoints; `best_save`: the step whose weights are kept as the best. `base_file`:
 * the file of its base; `title`, `note`, `star`: what its user says of it; `spark`: its loss, where it has no sample.
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
 * @property {string} [base_file]
 * @property {string} [title]
 * @property {string} [note]
 * @property {boolean} [star]
 * @property {number[]} [spark]
 * @property {?number} [strength] to use its result at, where it was measured
 * @property {boolean} [measured] whether its pictures or concepts were measured
 */

/** @typedef {{ id: string, name: string, time: number, size_bytes: number }} TrashedRun */

const BATCH = 40; // cards added at a time, so hundreds of runs open at once
const NEAR_END_PX = 400;
const POLL_MS = 5000; // while a run is going on and the tab is seen
const TOAST_MS = 6000;

const STYLE = `
.loom-runs { gap: 6px; padding: 8px; }
.loom-runs .tools input[type=text] { flex: 1 1 140px; }
.loom-runs button { padding: 2px 8px; }
.loom-runs .tools [aria-pressed=true] { background: #8a6414; border-color: #c9962b; color: #fff; }
.loom-runs .list { flex: 1; overflow-y: auto; min-height: 0; }
.loom-runs [hidden] { display: none; }
.loom-runs details.trash { flex: none; max-height: 30%; overflow-y: auto; }
.loom-runs details.trash div { display: flex; gap: 8px; align-items: center; padding: 2px 0; }
.loom-runs details.trash span { flex: 1; overflow-wrap: anywhere; }
`;

const date = (/** @type {number} */ seconds) =>
  new Date(seconds * 1000).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });

/** An export choice as the server takes it: "result", "best" or a step. */
export const exportedSave = (/** @type {string} */ choice) => (/^\d+$/.test(choice) ? Number(choice) : choice);

/**
 * The runs whose name, base, trigger, state, title or note holds a text; with a star, where only those are wanted.
 * @param {Run[]} runs
 * @param {string} text
 * @param {boolean} [starred]
 */
export function filteredRuns(runs, text, starred = false) {
  const wanted = text.trim().toLowerCase();
  return runs.filter((run) => {
    const { id, title = "", note = "", base, base_file: file = "", trigger } = run;
    const texts = [id, title, note, base, file, trigger, t(`runs.state_${run.state}`)];
    return (!starred || run.star) && texts.some((part) => part.toLowerCase().includes(wanted));
  });
}

/**
 * What to write in a prompt to use files that lie where they are listed, as A1111 wants it.
 * @param {string[]} files
 * @param {Pick<Run, "trigger" | "method" | "strength">} run
 */
export function promptOf(files, { trigger, method, strength }) {
  const [stem] = files.map((name) => (name.split("/").at(-1) ?? "").replace(/\.safetensors$/, ""));
  if (method !== "embedding") return [`<lora:${stem}:${strength ?? 1}>`, trigger].filter(Boolean).join(", ");
  return stem;
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
    /** @type {Set<string>} runs whose menu is open */
    this.open = new Set();
    this.local = false; // the server is this machine
    this.place = ""; // of the run folders
    this.answer = ""; // the last one, as text
    this.drawn = 0; // cards
    this.onlyStarred = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    style("loom-runs", STYLE);
    this.filter = make("input", { type: "text", placeholder: t("runs.filter") });
    this.compare = make("button", {
      textContent: t("runs.compare"), title: t("runs.compare_hint"), disabled: true, onclick: () => this.showCompared(),
    });
    this.starred = make("button", { textContent: "★", title: t("runs.only_starred"), onclick: () => {
      this.onlyStarred = !this.onlyStarred;
      this.starred.setAttribute("aria-pressed", String(this.onlyStarred));
      this.draw();
    } });
    const refresh = make("button", { textContent: t("runs.refresh"), onclick: () => this.load() });
    this.tools = make("div", { className: "tools" }, this.filter, this.starred, refresh, this.compare);
    this.queue = new QueueView();
    this.waiting = 0; // rows of the queue
    this.notice = make("div", { className: "notice" });
    this.list = make("div", { className: "list" });
    this.trash = make("details", { className: "trash" });
    this.root = make("div", { className: "loom loom-runs", lang: language }, this.tools, this.queue.root, this.notice,
      this.list, this.trash);
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
   * @param {() => Promise<unknown>} work
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
      const { queue } = await this.host.fetchJson(route("runs/queue"));
      this.waiting = queue.length;
      this.queue.set(queue);
    } catch (error) {
      say(this.notice, /** @type {Error} */ (error).message, true);
    }
    this.wait();
  }

  take(/** @type {{ runs: Run[], trash: TrashedRun[], local: boolean, place: string }} */ list) {
    const answer = JSON.stringify(list);
    if (answer === this.answer) return this.count(); // nothing is drawn anew under the pointer
    if (this.list.querySelector(".name input[type=text], .note textarea")) return; // nor under what is being written
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
    if (!this.waiting && !this.runs.some((run) => run.state === "running")) return;
    this.timer = setTimeout(() => (this.seen() ? this.load() : this.wait()), POLL_MS);
  }

  draw() {
    const scroll = this.list.scrollTop, cards = scroll ? Math.max(BATCH, this.drawn) : BATCH;
    this.filtered = filteredRuns(this.runs, this.filter.value, this.onlyStarred);
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
    this.list.append(...next.map((run) => new RunEntry(run, this.acts()).root));
  }

  /** @returns {import("./run_entry.js").RunActs} */
  acts() {
    return {
      local: this.local, place: this.place, chosen: this.chosen, saves: this.saves, opened: this.open,
      act: (work) => this.act(work),
      choose: () => { this.compare.disabled = this.chosen.size < 2; },
      picture: (run) => this.picture(run),
      look: (run) => viewSamples(this.host, run.id),
      measured: (run) => viewMeasured(this.host, run.id),
      use: (run) => this.use(run),
      resume: (run) => this.resume(run),
      export: (run, save) => this.export(run, save),
      open: ({ id }) => this.host.postJson(route("runs/open"), { id }),
      copy: (text) => this.copy(text),
      delete: (run) => this.delete(run),
      remark: (run, remark) => this.remark(run, remark),
    };
  }

  /** The address of a run's newest sample. */
  picture(/** @type {Run} */ run) {
    const query = { id: run.id, step: Number(run.picture), of: Math.round(run.changed) };
    return this.host.imageUrl(route("runs/picture", query));
  }

  /** Takes a run to where pictures are made; where the page knows no such place, the prompt that calls it is copied. */
  async use(/** @type {Run} */ run) {
    if (this.host.useRun) return this.host.useRun(run);
    const { files } = await this.host.postJson(route("runs/export"), { id: run.id, save: "result" });
    await this.host.refreshLists();
    const prompt = promptOf(files, run);
    if (!this.host.usePrompt) return this.copy(prompt);
    this.host.usePrompt(prompt);
    this.toast(t("runs.used", { prompt }));
  }

  /**
   * @param {Run} run
   * @param {{ title?: string, note?: string, star?: boolean }} remark
   */
  async remark(run, remark) {
    Object.assign(run, await this.host.postJson(route("runs/remark"), { id: run.id, ...remark }));
    this.answer = ""; // the list that comes next is another one
    this.draw();
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
      make("button", { textContent: t("runs.restore"), onclick: () => this.act(() => this.restore(run)) })));
    const summary = make("summary", { textContent: t("runs.trash", { count: this.trashed.length }) });
    this.trash.replaceChildren(summary, ...rows);
  }

  async restore(/** @type {TrashedRun} */ run) {
    const { id } = await this.host.postJson(route("runs/restore"), { trash: run.id });
    this.toast(t("runs.restored", { name: id }));
    await this.load();
  }

  async showCompared() {
    const runs = this.runs.filter((run) => this.chosen.has(run.id));
    await this.act(async () => { await compareRuns(this.host, runs); });
  }
}
