// @ts-check
// A run in the list: picture or curve, what it is, one main button, and a menu with the rest.
import { make, style } from "./dom.js";
import { fileSize } from "./figures.js";
import { extent, linearScale } from "./scales.js";
import { language, said, t } from "./words.js";

/** @typedef {import("./runs.js").Run} Run */

/**
 * What the list does with a run.
 * @typedef {object} RunActs
 * @property {boolean} local the server is this machine
 * @property {string} place of the run folders
 * @property {Set<string>} chosen runs to compare
 * @property {Set<string>} opened runs whose menu is open
 * @property {Map<string, string>} saves run -> what its export takes
 * @property {(work: () => Promise<unknown>) => Promise<void>} act does it, and says what goes wrong
 * @property {() => void} choose after a tick
 * @property {(run: Run) => string} picture address of its newest sample
 * @property {(run: Run) => Promise<unknown>} look at its samples
 * @property {(run: Run) => Promise<unknown>} measured what it measured of its pictures and concepts
 * @property {(run: Run) => Promise<void>} use
 * @property {(run: Run) => Promise<void>} resume
 * @property {(run: Run, save: string) => Promise<void>} export
 * @property {(run: Run) => Promise<unknown>} open its folder
 * @property {(text: string) => Promise<void>} copy
 * @property {(run: Run) => Promise<void>} delete
 * @property {(run: Run, remark: { title?: string, note?: string, star?: boolean }) => Promise<void>} remark
 */

const WIDTH = 88; // px of the picture
const LONGEST_TITLE = 120, LONGEST_NOTE = 4000;

const STYLE = `
.loom-runs .card { position: relative; display: grid; grid-template-columns: ${WIDTH}px 1fr; gap: 8px; padding: 7px;
  margin-bottom: 6px; border-radius: 6px; background: rgba(127, 127, 127, .12);
  content-visibility: auto; contain-intrinsic-size: auto 128px; }
.loom-runs .card.chosen { outline: 2px solid #4c8dff; outline-offset: -2px; }
.loom-runs .card > img, .loom-runs .card > .blank { width: ${WIDTH}px; height: ${WIDTH}px; object-fit: cover;
  object-position: left; border-radius: 4px; background: rgba(0, 0, 0, .25); }
.loom-runs .card > .blank { display: flex; align-items: center; justify-content: center; text-align: center;
  font-size: 11px; opacity: .8; }
.loom-runs .card > .blank svg { width: 100%; height: 100%; }
.loom-runs .name { font-weight: 600; overflow-wrap: anywhere; display: flex; gap: 6px; align-items: flex-start; }
.loom-runs .name > span { flex: 1; }
.loom-runs .name .star { border: 0; background: none; padding: 0 2px; font-size: 15px; line-height: 1; opacity: .6; }
.loom-runs .name .star[aria-pressed=true] { color: #e6b422; opacity: 1; }
.loom-runs .name input[type=text], .loom-runs textarea { flex: 1; width: 100%; box-sizing: border-box; }
.loom-runs .facts { opacity: .85; overflow-wrap: anywhere; }
.loom-runs .note { margin: 3px 0; padding-left: 7px; border-left: 2px solid rgba(127, 127, 127, .6);
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 5.6em; overflow-y: auto; user-select: text; }
.loom-runs .state { border-radius: 8px; padding: 0 7px; margin-right: 5px; background: rgba(127, 127, 127, .35);
  white-space: nowrap; }
.loom-runs .state.running { background: #2563b8; color: #fff; }
.loom-runs .state.finished { background: #2b7a3d; color: #fff; }
.loom-runs .state.failed { background: #b3352b; color: #fff; }
.loom-runs .state.interrupted, .loom-runs .state.paused { background: #8a6414; color: #fff; }
.loom-runs .why { color: var(--loom-bad); overflow-wrap: anywhere; }
.loom-runs .actions { display: flex; gap: 4px; margin-top: 5px; }
.loom-runs .actions .main { background: #2b7a3d; border-color: #3fa65a; color: #fff; font-weight: 600; }
.loom-runs .menu { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 4px; padding-top: 6px;
  border-top: 1px solid rgba(127, 127, 127, .3); }
.loom-runs .menu select { max-width: 150px; }
.loom-runs .menu .weights { display: flex; gap: 4px; flex: 1 1 100%; }
`;

/** When a run changed, as the reader writes it. */
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

/**
 * The one button that a run has beside its menu: what it made is used, else it goes on; neither while it is trained.
 * @param {Pick<Run, "state" | "results" | "saves">} run
 * @returns {"use" | "resume" | null}
 */
export function mainAct({ state, results, saves }) {
  if (state === "running") return null;
  if (results.length && state !== "failed") return "use";
  return saves.length ? "resume" : null;
}

/**
 * The points of a small curve in a square, as SVG wants them.
 * @param {number[]} losses
 * @param {number} side
 */
export function sparkPoints(losses, side) {
  const [low, high] = extent(losses);
  const x = linearScale(0, Math.max(1, losses.length - 1), 5, side - 5);
  const y = linearScale(low, high > low ? high : low + 1, side - 12, 12);
  return losses.map((loss, n) => `${x(n).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
}

/** What stands where a run has no picture: its loss in small, or that there is nothing to see. */
function placeholder(/** @type {number[]} */ losses) {
  if (losses.length < 2) return make("div", { className: "blank", textContent: t("runs.no_samples") });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${WIDTH}`);
  line.setAttribute("points", sparkPoints(losses, WIDTH));
  for (const [name, value] of Object.entries({ fill: "none", stroke: "#5b9bff", "stroke-width": "2" })) {
    line.setAttribute(name, value);
  }
  svg.append(line);
  const blank = make("div", { className: "blank", title: t("runs.spark") });
  blank.append(svg);
  return blank;
}

export class RunEntry {
  /**
   * @param {Run} run
   * @param {RunActs} acts
   */
  constructor(run, acts) {
    this.run = run;
    this.acts = acts;
    style("loom-run-entry", STYLE);
    this.name = make("div", { className: "name" });
    this.note = make("div", { className: "note" });
    this.more = make("button", { textContent: "⋯", title: t("runs.more"), onclick: () => this.toggle() });
    this.more.setAttribute("aria-expanded", "false");
    const facts = make("div", {}, this.name, ...this.facts(), this.note, this.actions());
    this.root = make("div", { className: "card" }, this.image(), facts);
    this.root.classList.toggle("chosen", acts.chosen.has(run.id));
    /** @type {?HTMLElement} */
    this.menu = null;
    this.drawName();
    this.drawNote();
    if (acts.opened.has(run.id)) this.toggle();
  }

  image() {
    const { run, acts } = this;
    if (run.picture === null) return placeholder(run.spark ?? []);
    const image = make("img", { src: acts.picture(run), loading: "lazy", decoding: "async", alt: "" });
    image.draggable = false;
    image.onerror = () => image.replaceWith(placeholder([]));
    image.style.cursor = "zoom-in";
    image.title = t("panel.enlarge");
    image.addEventListener("click", () => acts.look(run));
    return image;
  }

  drawName() {
    const { run, acts } = this;
    const tick = make("input", { type: "checkbox", checked: acts.chosen.has(run.id), title: t("runs.select") });
    tick.addEventListener("change", () => {
      if (tick.checked) acts.chosen.add(run.id);
      else acts.chosen.delete(run.id);
      this.root.classList.toggle("chosen", tick.checked);
      acts.choose();
    });
    const star = make("button", { className: "star", textContent: run.star ? "★" : "☆", title: t("runs.star") });
    star.setAttribute("aria-pressed", String(Boolean(run.star)));
    star.addEventListener("click", () => acts.act(() => acts.remark(run, { star: !run.star })));
    this.name.replaceChildren(tick, make("span", { textContent: run.title || run.id, title: run.id }), star);
  }

  drawNote() {
    this.note.hidden = !this.run.note;
    this.note.textContent = this.run.note ?? "";
  }

  facts() {
    const { run } = this;
    const line = (/** @type {string} */ text, className = "facts") => make("div", { className, textContent: text });
    const state = make("span", { className: `state ${run.state}`, textContent: t(`runs.state_${run.state}`) });
    const lines = [make("div", { className: "facts" }, state, t("runs.steps", { done: run.step, all: run.steps }))];
    const base = [...new Set([run.base_file, run.base])].filter(Boolean).join(" · ");
    if (run.title) lines.push(line(run.id));
    if (base) lines.push(line(base, "facts base"));
    if (run.best) lines.push(line(t("runs.best", { loss: run.best[1].toPrecision(4), step: run.best[0] })));
    lines.push(line(`${date(run.changed)} · ${fileSize(run.size_bytes)}`));
    if (run.error) lines.push(line(said(run.error), "why"));
    return lines;
  }

  actions() {
    const { run, acts } = this, main = mainAct(run);
    const row = make("div", { className: "actions" });
    if (main) {
      const button = this.button(main, () => acts[main](run), { title: t(`runs.${main}_hint`) });
      button.className = "main";
      row.append(button);
    }
    row.append(this.more);
    return row;
  }

  /** Opens or closes the menu, which is made when it is first asked for. */
  toggle() {
    const open = this.menu === null;
    if (this.menu) this.menu.remove();
    this.menu = open ? this.entries() : null;
    if (this.menu) this.root.append(this.menu);
    this.more.setAttribute("aria-expanded", String(open));
    if (open) this.acts.opened.add(this.run.id);
    else this.acts.opened.delete(this.run.id);
  }

  entries() {
    const { run, acts } = this, running = run.state === "running";
    const menu = make("div", { className: "menu" });
    if (run.picture !== null) menu.append(this.button("look", () => acts.look(run)));
    const title = t("runs.measured_hint");
    if (run.measured) menu.append(this.button("measured", () => acts.measured(run), { title }));
    if (mainAct(run) !== "resume") {
      const cannot = running || !run.saves.length;
      menu.append(this.button("resume", () => acts.resume(run), { title: t("runs.resume_hint"), disabled: cannot }));
    }
    menu.append(this.button("rename", async () => this.rename()),
      this.button("write_note", async () => this.writeNote()));
    if (run.trigger) menu.append(this.button("trigger", () => acts.copy(run.trigger), { title: run.trigger }));
    const path = `${acts.place}/${run.id}`;
    menu.append(acts.local ? this.button("open", () => acts.open(run), { title: path })
      : this.button("copy_path", () => acts.copy(path), { title: path }));
    menu.append(this.button("delete", () => acts.delete(run), { title: t("runs.delete_hint"), disabled: running }));
    menu.append(...this.exporter());
    return menu;
  }

  /** The choice of weights and the button that exports them; nothing where a run has none. */
  exporter() {
    const { run, acts } = this, choices = exportChoices(run);
    if (!choices.length) return [];
    const options = choices.map(([value, text]) => make("option", { value, textContent: text }));
    const select = make("select", { title: t("runs.export_hint") }, ...options);
    select.value = acts.saves.get(run.id) ?? choices[0][0];
    if (select.selectedIndex < 0) select.selectedIndex = 0;
    select.addEventListener("change", () => acts.saves.set(run.id, select.value));
    const button = this.button("export", () => acts.export(run, select.value), { title: t("runs.export_hint") });
    return [make("div", { className: "weights" }, select, button)];
  }

  /** A field in the place of the title: Enter and leaving it keep what stands there, Escape does not. */
  rename() {
    const value = this.run.title || this.run.id;
    const input = make("input", { type: "text", value, maxLength: LONGEST_TITLE });
    this.edited(input, () => this.drawName(), (title) => ({ title: title === this.run.id ? "" : title }));
    this.name.replaceChildren(input);
    input.focus();
    input.select?.();
  }

  writeNote() {
    const input = make("textarea", { value: this.run.note ?? "", rows: 3, maxLength: LONGEST_NOTE });
    input.placeholder = t("runs.note_here");
    this.edited(input, () => this.drawNote(), (note) => ({ note }));
    this.note.hidden = false;
    this.note.replaceChildren(input);
    input.focus();
  }

  /**
   * @param {HTMLInputElement | HTMLTextAreaElement} input
   * @param {() => void} redraw
   * @param {(text: string) => { title?: string, note?: string }} remarkOf
   */
  edited(input, redraw, remarkOf) {
    let over = false;
    const before = input.value;
    const end = (/** @type {boolean} */ keep) => {
      if (over) return;
      over = true;
      redraw();
      if (keep && input.value !== before) this.acts.act(() => this.acts.remark(this.run, remarkOf(input.value)));
    };
    input.addEventListener("blur", () => end(true));
    input.addEventListener("keydown", (/** @type {Event} */ event) => {
      const { key, shiftKey } = /** @type {KeyboardEvent} */ (event);
      event.stopPropagation(); // not for the graph
      if (key === "Escape") end(false);
      else if (key === "Enter" && !shiftKey) end(true);
      else return;
      event.preventDefault();
    });
  }

  /**
   * @param {string} key of its text
   * @param {() => Promise<unknown>} work
   * @param {{ title?: string, disabled?: boolean }} [properties]
   */
  button(key, work, { title = "", disabled = false } = {}) {
    return make("button", { textContent: t(`runs.${key}`), title, disabled, onclick: () => this.acts.act(work) });
  }
}
