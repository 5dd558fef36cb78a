// @ts-check
// The samples of a run on the whole page: a slider over the steps, a row for each prompt, two pictures side by side or
// under a line that is drawn across them, steps of this run or of another.
import { route } from "./api.js";
import { make, style } from "./dom.js";
import { language, t } from "./words.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {{ prompt: string, seed: number, cfg: number }} Prompt */

/**
 * What the server tells of a run's samples.
 * @typedef {object} Samples
 * @property {string} run
 * @property {[number, number][]} samples step (0: without the adapter), time of the sheet
 * @property {number} pictures on each sheet
 * @property {Prompt[]} prompts
 */

/** @typedef {"one" | "wipe" | "beside"} Mode */

const MODES = /** @type {Mode[]} */ (["one", "wipe", "beside"]);
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

const STYLE = `
.loom-viewer { position: fixed; inset: 0; z-index: 10000; height: auto; color: #eee; font-size: 14px; outline: none;
  background: #0e0f12; user-select: none; }
.loom-viewer button, .loom-viewer select { background: #2b2e35; color: #eee; border-color: #4a4f59; font-size: 13px;
  padding: 5px 12px; }
.loom-viewer button[aria-pressed=true] { background: #2563b8; border-color: #6ea8ff; }
.loom-viewer .top { display: flex; gap: 8px; align-items: center; padding: 12px 18px; }
.loom-viewer .top .name { flex: 1; font-size: 16px; font-weight: 600; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.loom-viewer .body { flex: 1; min-height: 0; display: flex; }
.loom-viewer .stage { flex: 1; min-width: 0; display: flex; gap: 14px; padding: 0 18px; }
.loom-viewer .half { position: relative; flex: 1; min-width: 0; display: flex; }
.loom-viewer .pane { flex: 1; min-width: 0; overflow: auto; display: flex; border-radius: 8px; background: #08090b; }
.loom-viewer .frame { position: relative; margin: auto; flex: none; }
.loom-viewer .frame img { display: block; width: 100%; height: 100%; object-fit: contain; image-rendering: auto; }
.loom-viewer .frame .over { position: absolute; inset: 0; }
.loom-viewer .frame .line { position: absolute; top: 0; bottom: 0; width: 3px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 5px #000; cursor: ew-resize; }
.loom-viewer .label { position: absolute; left: 10px; top: 10px; padding: 3px 10px; border-radius: 6px;
  background: rgba(0, 0, 0, .72); font-weight: 600; pointer-events: none; }
.loom-viewer .label.right { left: auto; right: 10px; }
.loom-viewer .prompts { width: 280px; overflow-y: auto; padding: 0 18px 0 0; display: flex; flex-direction: column;
  gap: 8px; user-select: text; }
.loom-viewer .prompts button { text-align: left; white-space: normal; padding: 9px 12px; line-height: 1.4;
  overflow-wrap: anywhere; }
.loom-viewer .prompts small { display: block; margin-top: 3px; color: #b8bfca; font-size: 12px; }
.loom-viewer .prompts small.other { color: #ffc069; }
.loom-viewer .steps { display: grid; grid-template-columns: auto 1fr auto; gap: 8px 14px; align-items: center;
  padding: 12px 18px 16px; }
.loom-viewer .steps input { width: 100%; accent-color: #4ea1ff; }
.loom-viewer .steps output { min-width: 110px; text-align: right; font-size: 15px; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.loom-viewer .hint { padding: 0 18px 12px; color: #a9b0bb; font-size: 12px; }
.loom-viewer [hidden] { display: none !important; }
`;

/**
 * The place in a list of samples that is nearest to a step.
 * @param {[number, number][]} samples
 * @param {number} step
 */
export function nearest(samples, step) {
  let best = 0;
  samples.forEach(([at], n) => { if (Math.abs(at - step) < Math.abs(samples[best][0] - step)) best = n; });
  return best;
}

/** A place in a list that stays inside of it. */
export const inside = (/** @type {number} */ n, /** @type {number} */ count) => Math.max(0, Math.min(count - 1, n));

/** How a picture was drawn, beside its prompt. */
const seedOf = (/** @type {Prompt} */ { seed, cfg }) => t("viewer.seed", { seed, cfg });

/** What a step is called. */
const stepName = (/** @type {number} */ step) => (step ? t("panel.sample_of", { step }) : t("viewer.before"));

/** One of the two things that are looked at: a run and the place in its samples. */
class Side {
  /** @param {Samples} samples */
  constructor(samples) {
    this.samples = samples;
    this.at = samples.samples.length - 1;
  }

  get step() {
    return this.samples.samples[this.at]?.[0] ?? 0;
  }

  get time() {
    return this.samples.samples[this.at]?.[1] ?? 0;
  }
}

export class Viewer {
  /**
   * @param {Host} host
   * @param {Samples} samples of which there is one at least
   */
  constructor(host, samples) {
    this.host = host;
    /** @type {Mode} */
    this.mode = "one";
    this.prompt = 0;
    this.zoom = 0;
    this.middle = [0.5, 0.5]; // of what is seen of a picture that is larger than its pane
    this.cut = 50; // per cent of the picture that the other one covers
    this.now = new Side(samples);
    this.other = new Side(samples);
    this.other.at = 0;
    /** @type {?Element} what had the focus */
    this.below = null;
    style("loom-viewer", STYLE);
    this.title = make("div", { className: "name" });
    this.modes = MODES.map((mode) => this.button(t(`viewer.${mode}`), () => this.set({ mode })));
    this.scale = this.button("", () => this.set({ zoom: 0 }), t("viewer.fit"));
    const top = make("div", { className: "top" }, this.title, ...this.modes,
      this.button("−", () => this.zoomBy(-1), t("viewer.smaller")), this.scale,
      this.button("+", () => this.zoomBy(1), t("viewer.larger")),
      this.button("✕", () => this.close(), t("viewer.close")));
    this.stage = make("div", { className: "stage" });
    this.prompts = make("div", { className: "prompts" });
    this.slider = this.range((at) => this.set({ at }));
    this.second = this.range((at) => this.set({ otherAt: at }));
    this.told = make("output");
    this.secondTold = make("output");
    this.runs = make("select", { title: t("viewer.other_run") });
    this.runs.addEventListener("change", () => this.chooseRun(this.runs.value));
    this.name = make("span");
    this.steps = make("div", { className: "steps" }, this.runs, this.second, this.secondTold,
      this.name, this.slider, this.told);
    this.root = make("div", { className: "loom loom-viewer", lang: language, tabIndex: -1 }, top,
      make("div", { className: "body" }, this.stage, this.prompts), this.steps,
      make("div", { className: "hint", textContent: t("viewer.hint") }));
    this.root.setAttribute("role", "dialog");
    this.root.setAttribute("aria-modal", "true");
    this.root.setAttribute("aria-label", t("viewer.title"));
    this.root.addEventListener("keydown", (event) => this.key(event));
    for (const event of ["wheel", "pointerdown", "paste", "keyup"]) {
      this.root.addEventListener(event, (e) => e.stopPropagation()); // not for the graph below
    }
    this.stage.addEventListener("pointermove", (event) => { if (event.buttons) this.drag(event); });
    this.stage.addEventListener("pointerdown", (event) => this.drag(event));
  }

  /**
   * @param {string} text
   * @param {() => void} onclick
   * @param {string} [title]
   */
  button(text, onclick, title = "") {
    return make("button", { textContent: text, onclick, title });
  }

  range(/** @type {(at: number) => void} */ choose) {
    const input = make("input", { type: "range", min: "0", step: "1" });
    input.addEventListener("input", () => choose(Number(input.value)));
    return input;
  }

  /**
   * Puts the viewer over the page.
   * @param {?number} [step] that is shown first; null: the newest
   */
  async open(step = null) {
    if (step !== null) this.now.at = nearest(this.now.samples.samples, step);
    this.below = document.activeElement;
    document.body.append(this.root);
    this.root.focus();
    this.draw();
    await this.listRuns();
  }

  /** Takes it away; the keys are again for what had them before. */
  close() {
    this.root.remove();
    if (this.below instanceof HTMLElement) this.below.focus();
  }

  /** Fills the list of runs that can stand beside this one: those with samples. */
  async listRuns() {
    const own = this.now.samples.run;
    /** @type {string[]} */
    let others = [];
    try {
      const { runs } = await this.host.fetchJson(route("runs"));
      const drawn = (/** @type {{ picture: ?number }} */ run) => run.picture !== null;
      others = runs.filter(drawn)
        .map((/** @type {{ id: string }} */ run) => run.id).filter((/** @type {string} */ id) => id !== own);
    } catch (error) {
      this.host.toast("warn", /** @type {Error} */ (error).message);
    }
    this.runs.replaceChildren(...[own, ...others].map((id) => make("option", { value: id, textContent: id })));
  }

  async chooseRun(/** @type {string} */ run) {
    try {
      const samples = await samplesOf(this.host, run);
      if (!samples.samples.length) return;
      const { step } = this.now, same = samples.run === this.now.samples.run;
      this.other = new Side(samples);
      this.other.at = same ? 0 : nearest(samples.samples, step);
      this.draw();
    } catch (error) {
      this.host.toast("warn", /** @type {Error} */ (error).message);
    }
  }

  /** Takes what is given, and draws. */
  set(/** @type {{ mode?: Mode, prompt?: number, zoom?: number, at?: number, otherAt?: number }} */ news) {
    const { mode = this.mode, prompt = this.prompt, zoom = this.zoom, at = this.now.at } = news;
    this.mode = mode;
    this.prompt = inside(prompt, this.now.samples.pictures);
    this.zoom = inside(zoom, ZOOMS.length);
    this.now.at = inside(at, this.now.samples.samples.length);
    this.other.at = inside(news.otherAt ?? this.other.at, this.other.samples.samples.length);
    this.draw();
  }

  zoomBy(/** @type {number} */ by) {
    this.set({ zoom: this.zoom + by });
  }

  key(/** @type {KeyboardEvent} */ event) {
    event.stopPropagation();
    if (event.target === this.runs && event.key !== "Escape") return;
    /** @type {Record<string, () => void>} */
    const keys = {
      Escape: () => this.close(),
      ArrowLeft: () => this.step(event, -1),
      ArrowRight: () => this.step(event, 1),
      ArrowUp: () => this.set({ prompt: this.prompt - 1 }),
      ArrowDown: () => this.set({ prompt: this.prompt + 1 }),
      "+": () => this.zoomBy(1),
      "-": () => this.zoomBy(-1),
      w: () => this.set({ mode: this.mode === "wipe" ? "one" : "wipe" }),
      b: () => this.set({ mode: this.mode === "beside" ? "one" : "beside" }),
    };
    const work = keys[event.key];
    if (!work || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    work();
  }

  /**
   * One sample on; with Shift that of the other side.
   * @param {KeyboardEvent} event
   * @param {number} by
   */
  step(event, by) {
    this.set(event.shiftKey ? { otherAt: this.other.at + by } : { at: this.now.at + by });
  }

  /** Moves the line of a wipe to the pointer. */
  drag(/** @type {PointerEvent} */ event) {
    const frame = this.stage.querySelector(".frame");
    if (this.mode !== "wipe" || !frame) return;
    const { left, width } = frame.getBoundingClientRect();
    this.cut = Math.max(0, Math.min(100, (100 * (event.clientX - left)) / width));
    this.cutAt();
  }

  cutAt() {
    const over = /** @type {?HTMLElement} */ (this.stage.querySelector(".over"));
    const line = /** @type {?HTMLElement} */ (this.stage.querySelector(".line"));
    if (over) over.style.clipPath = `inset(0 ${100 - this.cut}% 0 0)`;
    if (line) line.style.left = `${this.cut}%`;
  }

  draw() {
    const { samples } = this.now, two = this.mode !== "one";
    this.title.textContent = samples.run;
    this.modes.forEach((button, n) => button.setAttribute("aria-pressed", String(MODES[n] === this.mode)));
    this.scale.textContent = this.zoom ? `${100 * ZOOMS[this.zoom]} %` : t("viewer.fits");
    this.slider.max = String(samples.samples.length - 1);
    this.slider.value = String(this.now.at);
    this.told.textContent = stepName(this.now.step);
    this.second.max = String(this.other.samples.samples.length - 1);
    this.second.value = String(this.other.at);
    this.secondTold.textContent = stepName(this.other.step);
    this.runs.value = this.other.samples.run;
    this.name.textContent = two ? samples.run : "";
    for (const part of [this.runs, this.second, this.secondTold]) part.hidden = !two;
    this.drawPrompts();
    this.drawStage();
    this.lookAt(null);
  }

  /** Moves every pane but one to the same place of its picture. */
  lookAt(/** @type {?EventTarget} */ moved) {
    for (const pane of this.stage.querySelectorAll(".pane")) {
      if (pane === moved) continue;
      pane.scrollLeft = this.middle[0] * (pane.scrollWidth - pane.clientWidth);
      pane.scrollTop = this.middle[1] * (pane.scrollHeight - pane.clientHeight);
    }
  }

  /** Takes over where a pane was scrolled to. */
  scrolled(/** @type {HTMLElement} */ pane) {
    const width = pane.scrollWidth - pane.clientWidth, height = pane.scrollHeight - pane.clientHeight;
    if (width > 0) this.middle[0] = pane.scrollLeft / width;
    if (height > 0) this.middle[1] = pane.scrollTop / height;
    this.lookAt(pane);
  }

  drawPrompts() {
    const { pictures, prompts } = this.now.samples, two = this.mode !== "one";
    const other = (/** @type {number} */ n) => (two ? this.other.samples.prompts[n] : undefined);
    this.prompts.replaceChildren(...Array.from({ length: pictures }, (_, n) => {
      const about = prompts[n];
      const button = this.button(about?.prompt || t("viewer.picture", { n: n + 1 }), () => this.set({ prompt: n }));
      button.setAttribute("aria-pressed", String(n === this.prompt));
      if (about) button.append(make("small", { textContent: seedOf(about) }));
      const left = other(n);
      if (left && about && (left.prompt !== about.prompt || seedOf(left) !== seedOf(about))) {
        const text = `${this.other.samples.run}: ${left.prompt} · ${seedOf(left)}`;
        button.append(make("small", { className: "other", textContent: text }));
      }
      return button;
    }));
  }

  drawStage() {
    const two = this.other.samples.run !== this.now.samples.run && this.mode !== "one";
    const label = (/** @type {Side} */ side) => (two ? `${side.samples.run} · ` : "") + stepName(side.step);
    if (this.mode === "beside") {
      this.stage.replaceChildren(...[this.other, this.now].map((side) => this.pane(side, label(side))));
      return;
    }
    const pane = this.pane(this.now, label(this.now));
    this.stage.replaceChildren(pane);
    if (this.mode !== "wipe") return;
    const over = this.image(this.other);
    over.className = "over";
    pane.querySelector(".frame")?.append(over, make("div", { className: "line" }));
    pane.querySelector(".label")?.classList.add("right");
    pane.append(make("div", { className: "label", textContent: label(this.other) }));
    this.cutAt();
  }

  /**
   * @param {Side} side
   * @param {string} label
   */
  pane(side, label) {
    const frame = make("div", { className: "frame" }, this.image(side));
    const size = `${100 * ZOOMS[this.zoom]}%`;
    Object.assign(frame.style, { width: size, height: size });
    const scroll = make("div", { className: "pane" }, frame);
    scroll.addEventListener("scroll", () => this.scrolled(scroll));
    return make("div", { className: "half" }, scroll, make("div", { className: "label", textContent: label }));
  }

  image(/** @type {Side} */ { samples, step, time }) {
    const picture = inside(this.prompt, samples.pictures);
    const src = this.host.imageUrl(route("panel/sample", { run: samples.run, step, picture, v: time }));
    return make("img", { src, alt: stepName(step), draggable: false });
  }
}

/**
 * @param {Pick<Host, "fetchJson">} host
 * @param {string} run
 * @returns {Promise<Samples>}
 */
export const samplesOf = (host, run) => host.fetchJson(route("panel/samples", { run }));

/**
 * Shows the samples of a run on the whole page.
 * @param {Host} host
 * @param {string} run
 * @param {?number} [step] that is shown first; null: the newest
 * @param {Mode} [mode]
 * @returns {Promise<?Viewer>} null where there are none
 */
export async function viewSamples(host, run, step = null, mode = "one") {
  try {
    const samples = await samplesOf(host, run);
    if (!samples.samples.length) {
      host.toast("info", t("viewer.none"));
      return null;
    }
    const viewer = new Viewer(host, samples);
    viewer.mode = mode;
    await viewer.open(step);
    return viewer;
  } catch (error) {
    host.toast("warn", /** @type {Error} */ (error).message);
    return null;
  }
}
