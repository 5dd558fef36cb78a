// @ts-check
// Runs side by side on the whole page: what their settings differ in, what came of each, their curves on one chart, and
// their samples of one step beside one another.
import { route } from "./api.js";
import { Curves } from "./curves.js";
import { make, style } from "./dom.js";
import { fileSize, memory, short } from "./figures.js";
import { differing, sectionAndName, valueText } from "./run_settings.js";
import { extent } from "./scales.js";
import { inside, nearest, samplesOf, viewSamples } from "./viewer.js";
import { language, t } from "./words.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./runs.js").Run} Run */
/** @typedef {import("./viewer.js").Samples} Samples */
/** @typedef {import("./curves.js").Courses} Courses */
/** @typedef {{ seconds_per_step?: number, peak_bytes?: number }} RunPace */

/**
 * All that is shown of a run here.
 * @typedef {object} Compared
 * @property {Run} run
 * @property {string} colour
 * @property {import("./run_settings.js").RunSettings} settings
 * @property {RunPace} pace
 * @property {Courses} course
 * @property {Samples} samples
 */

export const COLOURS = ["#5b9bff", "#ff9a52", "#5cc47c", "#c48be6", "#f0718f", "#3fc4c4", "#d8b23a", "#9aa5b8"];

const STYLE = `
.loom-compare { position: fixed; inset: 0; z-index: 9990; height: auto; color: #e8e8ea; font-size: 13px; outline: none;
  background: #16181c; --loom-field: #2b2e35; --loom-line: #4a4f59; --loom-ink: #e8e8ea; }
.loom-compare .top { display: flex; gap: 10px; align-items: center; padding: 12px 18px; flex: none; }
.loom-compare .top h2 { flex: 1; margin: 0; font-size: 17px; font-weight: 600; }
.loom-compare .body { flex: 1; min-height: 0; display: grid; gap: 18px; padding: 0 18px 16px;
  grid-template-columns: minmax(380px, 5fr) minmax(320px, 6fr); }
.loom-compare .body > div { min-height: 0; min-width: 0; display: flex; flex-direction: column; gap: 12px; }
.loom-compare .chart { position: relative; height: 260px; flex: none; }
.loom-compare .chart canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.loom-compare .legend { font-size: 12px; }
.loom-compare .legend div { display: flex; gap: 6px; align-items: baseline; }
.loom-compare i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; flex: none;
  align-self: center; margin-right: 5px; }
.loom-compare .table { flex: 1; min-height: 120px; overflow: auto; user-select: text; }
.loom-compare table { border-collapse: collapse; width: 100%; }
.loom-compare th, .loom-compare td { padding: 4px 10px 4px 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; border-bottom: 1px solid rgba(255, 255, 255, .1); font-weight: 400; }
.loom-compare thead th { position: sticky; top: 0; background: #16181c; font-weight: 600; }
.loom-compare tbody th { color: #b8bfca; white-space: nowrap; }
.loom-compare tbody th small { color: #9aa3b0; }
.loom-compare .group th { padding-top: 14px; color: #e8e8ea; font-weight: 600; }
.loom-compare .steps { display: flex; gap: 12px; align-items: center; flex: none; }
.loom-compare .steps input { flex: 1; accent-color: #4ea1ff; }
.loom-compare .steps output { min-width: 110px; font-weight: 600; font-size: 15px; text-align: right;
  font-variant-numeric: tabular-nums; }
.loom-compare .samples { flex: 1; min-height: 0; overflow: auto; display: grid; gap: 8px; align-content: start;
  grid-template-columns: repeat(var(--runs), minmax(150px, 1fr)); }
.loom-compare .samples .prompt { grid-column: 1 / -1; margin-top: 6px; color: #c8ced8; overflow-wrap: anywhere; }
.loom-compare .samples figure { margin: 0; }
.loom-compare .samples img, .loom-compare .samples .blank { display: block; width: 100%; border-radius: 6px;
  background: #08090b; cursor: zoom-in; }
.loom-compare .samples .blank { aspect-ratio: 1; cursor: default; display: flex; align-items: center;
  justify-content: center; color: #9aa3b0; text-align: center; padding: 6px; box-sizing: border-box; }
.loom-compare figcaption { padding: 3px 0; display: flex; align-items: baseline; overflow-wrap: anywhere; }
.loom-compare figcaption.other { color: #ffc069; }
@media (max-width: 900px) {
  .loom-compare .body { grid-template-columns: 1fr; overflow-y: auto; }
  .loom-compare .table, .loom-compare .samples { flex: none; }
}
`;

/** What a run is called. */
export const titleOf = (/** @type {Pick<Run, "id" | "title">} */ run) => run.title || run.id;

/**
 * Every step at which one of the runs was sampled, in order; 0: without the adapter.
 * @param {Samples[]} all
 */
export function sampledSteps(all) {
  return [...new Set(all.flatMap(({ samples }) => samples.map(([step]) => step)))].sort((a, b) => a - b);
}

/**
 * What came of a run, as [name of the figure, text].
 * @param {Compared} compared
 * @returns {[string, string][]}
 */
export function outcome({ run, pace, course }) {
  const last = course.loss.at(-1);
  return [
    ["state", t(`runs.state_${run.state}`)],
    ["base", run.base_file || run.base || "–"],
    ["steps", t("runs.steps", { done: run.step, all: run.steps })],
    ["loss", last ? short(last[1]) : "–"],
    ["held_out", run.best ? `${short(run.best[1])} (${t("runs.at_step", { step: run.best[0] })})` : "–"],
    ["pace", pace.seconds_per_step ? t("panel.per_step", { n: short(pace.seconds_per_step) }) : "–"],
    ["memory", pace.peak_bytes ? `${memory(pace.peak_bytes)} GB` : "–"],
    ["size", fileSize(run.size_bytes)],
    ["note", run.note || "–"],
  ];
}

export class Compare {
  /**
   * @param {Host} host
   * @param {Compared[]} runs two or more
   */
  constructor(host, runs) {
    this.host = host;
    this.runs = runs;
    this.steps = sampledSteps(runs.map(({ samples }) => samples));
    this.at = this.steps.length - 1;
    style("loom-compare", STYLE);
    const close = make("button", { textContent: "✕", title: t("viewer.close"), onclick: () => this.close() });
    const heading = make("h2", { textContent: t("compare.title", { count: runs.length }) });
    this.legend = make("div", { className: "legend" });
    this.curves = new Curves(this.legend);
    this.slider = make("input", { type: "range", min: "0", step: "1", max: String(Math.max(0, this.at)) });
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.told = make("output");
    this.samples = make("div", { className: "samples" });
    this.samples.style.setProperty("--runs", String(runs.length));
    const walk = make("div", { className: "steps", hidden: this.steps.length < 2 }, this.slider, this.told);
    const left = make("div", {}, this.curves.root, this.legend, make("div", { className: "table" }, this.table()));
    this.root = make("div", { className: "loom loom-compare", lang: language, tabIndex: -1 },
      make("div", { className: "top" }, heading, close),
      make("div", { className: "body" }, left, make("div", {}, walk, this.samples)));
    this.root.setAttribute("role", "dialog");
    this.root.setAttribute("aria-modal", "true");
    this.root.setAttribute("aria-label", heading.textContent ?? "");
    this.root.addEventListener("keydown", (event) => this.key(event));
    for (const event of ["wheel", "pointerdown", "paste", "keyup"]) {
      this.root.addEventListener(event, (e) => e.stopPropagation()); // not for the graph below
    }
  }

  open() {
    document.body.append(this.root);
    this.root.focus();
    this.curves.show(this.runs.map(({ run, colour, course }) => ({ ...course, name: titleOf(run), colour })));
    this.show(this.at);
  }

  close() {
    this.curves.dispose();
    this.root.remove();
  }

  key(/** @type {KeyboardEvent} */ event) {
    event.stopPropagation();
    /** @type {Record<string, () => void>} */
    const keys = {
      Escape: () => this.close(), ArrowLeft: () => this.show(this.at - 1), ArrowRight: () => this.show(this.at + 1),
    };
    const work = keys[event.key];
    if (!work || event.ctrlKey || event.metaKey || event.target === this.slider && event.key !== "Escape") return;
    event.preventDefault();
    work();
  }

  /** Shows the samples of a step; a run that has none there shows its nearest one, and says so. */
  show(/** @type {number} */ at) {
    this.at = inside(at, this.steps.length);
    this.slider.value = String(this.at);
    const step = this.steps[this.at] ?? null;
    this.told.textContent = step === null ? "" : stepName(step);
    const [, rows] = extent(this.runs.map(({ samples }) => samples.pictures));
    this.samples.replaceChildren(...(step === null ? [this.none()] : []));
    for (let n = 0; n < rows && step !== null; n += 1) this.samples.append(...this.row(n, step));
  }

  none() {
    return make("div", { className: "prompt", textContent: t("compare.no_samples") });
  }

  /**
   * A prompt, and below it its picture of each run.
   * @param {number} number of the prompt
   * @param {number} step
   */
  row(number, step) {
    const prompts = this.runs.map(({ samples }) => samples.prompts[number]?.prompt ?? "");
    const same = new Set(prompts.filter(Boolean)).size < 2;
    const text = same ? prompts.find(Boolean) ?? t("viewer.picture", { n: number + 1 }) : t("compare.other_prompts");
    const heading = make("div", { className: "prompt", textContent: text });
    return [heading, ...this.runs.map((one, n) => this.figure(one, number, step, same ? "" : prompts[n]))];
  }

  /**
   * @param {Compared} one
   * @param {number} number
   * @param {number} step
   * @param {string} prompt where it is not the other runs'
   */
  figure({ run, colour, samples }, number, step, prompt) {
    const swatch = make("i");
    swatch.style.background = colour;
    if (number >= samples.pictures) {
      const blank = make("div", { className: "blank", textContent: t("compare.not_drawn") });
      return make("figure", {}, blank, make("figcaption", {}, swatch, titleOf(run)));
    }
    const [at, time] = samples.samples[nearest(samples.samples, step)];
    const src = this.host.imageUrl(route("panel/sample", { run: run.id, step: at, picture: number, v: time }));
    const image = make("img", { src, alt: "", draggable: false, title: t("panel.enlarge") });
    image.addEventListener("click", () => this.enlarge(run.id, at));
    const caption = [titleOf(run), at === step ? "" : stepName(at), prompt].filter(Boolean).join(" · ");
    return make("figure", {}, image,
      make("figcaption", { className: at === step ? "" : "other" }, swatch, make("span", { textContent: caption })));
  }

  /**
   * The samples of a run on the whole page, beside those of the other one where there are two.
   * @param {string} id
   * @param {number} step
   */
  async enlarge(id, step) {
    const others = this.runs.filter(({ run, samples }) => run.id !== id && samples.samples.length);
    const viewer = await viewSamples(this.host, id, step, others.length === 1 ? "beside" : "one");
    if (viewer && others.length === 1) await viewer.chooseRun(others[0].run.id);
  }

  table() {
    const rows = differing(this.runs.map(({ settings }) => settings));
    const heads = this.runs.map(({ run, colour }) => {
      const swatch = make("i");
      swatch.style.background = colour;
      return make("th", { title: run.id }, swatch, titleOf(run));
    });
    const outcomes = this.runs.map(outcome);
    const told = outcomes[0].map(([name], n) => line([make("th", { textContent: t(`compare.${name}`) })],
      outcomes.map((figures) => figures[n][1])));
    const settings = rows.map(({ path, values }) => line([settingCell(path)], values.map(valueText)));
    const title = t(rows.length ? "compare.settings" : "compare.same_settings");
    const group = make("tr", { className: "group" }, make("th", { colSpan: this.runs.length + 1, textContent: title }));
    return make("table", {}, make("thead", {}, make("tr", {}, make("th"), ...heads)),
      make("tbody", {}, ...told, group, ...settings));
  }
}

const stepName = (/** @type {number} */ step) => (step ? t("runs.at_step", { step }) : t("viewer.before"));

/**
 * @param {HTMLElement[]} head
 * @param {string[]} texts
 */
const line = (head, texts) => make("tr", {}, ...head, ...texts.map((textContent) => make("td", { textContent })));

/** The name of a setting, with its section in small. */
function settingCell(/** @type {string} */ path) {
  const [section, name] = sectionAndName(path);
  return make("th", { title: path }, ...(section ? [make("small", { textContent: `${section} ` })] : []), name);
}

/**
 * Asks for all that is compared, and shows it on the whole page.
 * @param {Host} host
 * @param {Run[]} runs
 */
export async function compareRuns(host, runs) {
  const asked = await Promise.all(runs.map(async (run, n) => {
    const [{ settings, pace }, course, samples] = await Promise.all([
      host.fetchJson(route("runs/settings", { id: run.id })), host.fetchJson(route("runs/curve", { id: run.id })),
      samplesOf(host, run.id),
    ]);
    return { run, settings, pace, course, samples, colour: COLOURS[n % COLOURS.length] };
  }));
  const compare = new Compare(host, asked);
  compare.open();
  return compare;
}
