// @ts-check
// The panel of a run: chart, samples, messages and buttons. The server's state is asked for when the page opens and
// when an event was missed.
import { RequestError, route } from "./api.js";
import { COLOURS, Chart } from "./chart.js";
import { make, style } from "./dom.js";
import { clock, memory } from "./figures.js";
import { PlanView } from "./plan.js";
import { continued, lastStep } from "./series.js";
import { viewSamples } from "./viewer.js";
import { language, said, t } from "./words.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./words.js").Message} Message */
/** @typedef {import("./series.js").Row} Row */
/** @typedef {"preparing" | "training" | "paused" | "stopped" | "finished" | "cancelled"} Course */
/** @typedef {Course | "failed" | "interrupted"} Status */
/** @typedef {[number, number]} SampleMark step (0: without the adapter), time of the picture */

/**
 * What the server tells of a run four times a second. `changes` counts what an event does not carry.
 * @typedef {object} PanelEvent
 * @property {string} node
 * @property {string} kind
 * @property {string} workflow
 * @property {string} session
 * @property {number} changes
 * @property {string} run
 * @property {Status} status
 * @property {?Message} doing
 * @property {number} step
 * @property {number} steps
 * @property {?number} speed steps a second
 * @property {?number} left_s
 * @property {?{ of: string, used: number, total: number }} memory bytes
 * @property {Row[]} rows
 */

/**
 * What a run has made: files, their sizes in bytes, and how to call them (`lora`: whether one is a LoRA); or what a try
 * has found: lines, a picture, settings to take over.
 * @typedef {object} Result
 * @property {string[]} [files]
 * @property {Record<string, number>} [sizes]
 * @property {string} [trigger]
 * @property {string | boolean} [lora]
 * @property {string} [comfyui]
 * @property {string} [a1111]
 * @property {Message[]} [lines]
 * @property {string} [picture] what the server's route `picture` calls it
 * @property {Record<string, unknown>} [settings] by config path
 */

/**
 * What else the server knows of a run.
 * @typedef {object} PanelDetails
 * @property {?Message} error
 * @property {Record<string, unknown>} inputs
 * @property {import("./scales.js").Probe[]} probes
 * @property {number[]} saves
 * @property {SampleMark[]} samples
 * @property {Message[]} messages
 * @property {Result} result
 * @property {boolean} can_continue
 */

/** @typedef {PanelEvent & PanelDetails} PanelAnswer */
/** @typedef {Omit<PanelAnswer, "rows"> & { live: boolean }} PanelState `live`: this page saw it go on */

const ACTIVE = ["preparing", "training"];
const BUTTONS = ["stop", "save", "sample", "pause"];
const RATE_SEARCH = ["LoraLoomFindLearningRate", "find-lr"]; // has a rising learning rate, and can be stopped only
const MOST_ROWS = 30000;
const SILENCE_MS = 2500, CHECK_MS = 1000, BETWEEN_ASKS_MS = 400; // of the server
const IDLE_CHECKS = 4; // where a panel polls and nothing runs, it asks at every fourth time
const ASKED_MS = 4000, LONG_TOAST_MS = 15000;
const STRIP = 60; // small samples
const SMALL_PX = 128, LARGE_PX = 1024; // sides of a sample
const IDLE_HEIGHT = 34, PLAN_HEIGHT = 190, FOLDED_HEIGHT = 20, EMPTY_HEIGHT = 130; // px
const HEIGHT = 300, GAP = 6; // px, without samples
const THUMBS = 58; // px, below the newest sample
/** What an event tells too; a snapshot that was made before the newest event is older in these. */
const HEART = /** @type {const} */ (["status", "doing", "step", "steps", "speed", "left_s", "memory", "run"]);

const STYLE = `
.loom-panel { gap: 5px; width: 100%; padding: 6px; overflow: hidden; line-height: 1.35; }
.loom-panel > * { flex: none; }
.loom-panel.idle > :not(.head):not(.loom-plan) { display: none; }
.loom-panel.empty > .chart, .loom-panel.empty > .legend { display: none; }
.loom-panel [hidden], .loom-plan.during { display: none !important; }
.loom-panel .head { display: flex; flex-wrap: wrap; gap: 3px 10px; align-items: center; }
.loom-panel .now { font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; }
.loom-panel .doing { font-size: 13px; font-weight: 600; }
.loom-panel .line { flex: 1 1 100%; font-size: 11.5px; opacity: .85; overflow-wrap: anywhere; }
.loom-panel.idle .line, .loom-panel.idle .now { display: none; }
.loom-panel .status { padding: 1px 8px; border-radius: 9px; background: rgba(127, 127, 127, .25); font-weight: 600; }
.loom-panel .status.training { background: #2563b8; color: #fff; }
.loom-panel .status.finished, .loom-panel .status.stopped { background: #2b7a3d; color: #fff; }
.loom-panel .status.failed { background: #b3352b; color: #fff; }
.loom-panel .status.paused, .loom-panel .status.cancelled, .loom-panel .status.interrupted { background: #8a6414;
  color: #fff; }
.loom-panel .bar { height: 4px; border-radius: 2px; background: rgba(127, 127, 127, .25); overflow: hidden; }
.loom-panel .bar > div { height: 100%; background: #4ea1ff; }
.loom-panel .buttons { display: flex; flex-wrap: wrap; gap: 4px; }
.loom-panel .error { padding: 6px 8px; border-radius: 5px; border-left: 4px solid #ff5f56;
  background: rgba(255, 95, 86, .16); user-select: text; white-space: pre-wrap; overflow-wrap: anywhere; }
.loom-panel .chart { position: relative; flex: 1 1 130px; min-height: 120px; max-height: 220px; }
.loom-panel .chart canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; }
.loom-panel .chart .readout { position: absolute; left: 0; right: 0; bottom: -2px; text-align: center; font-size: 11px;
  opacity: .8; pointer-events: none; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  transform: translateY(100%); }
.loom-panel .legend { display: flex; flex-wrap: wrap; gap: 2px 10px; font-size: 12px; margin-top: 14px; }
.loom-panel .legend span::before { content: ""; display: inline-block; width: 10px; height: 3px; margin-right: 4px;
  vertical-align: middle; background: var(--c); }
.loom-panel .pictures { display: flex; flex-direction: column; gap: 6px; flex: 1 0 auto; }
.loom-panel .newest { flex: 1; min-height: 0; width: 100%; padding: 0; border: 0; border-radius: 6px; cursor: zoom-in;
  background: rgba(0, 0, 0, .28); }
.loom-panel .newest img { display: block; width: 100%; height: 100%; object-fit: contain; }
.loom-panel .small { display: flex; gap: 6px; flex: none; height: ${THUMBS}px; }
.loom-panel .strip { flex: 1; display: flex; gap: 6px; overflow-x: auto; align-items: flex-start; }
.loom-panel .pictures figure { position: relative; margin: 0; flex: none; width: 56px; text-align: center;
  cursor: pointer; }
.loom-panel .pictures figure.chosen img { outline: 2px solid #4ea1ff; outline-offset: -2px; }
.loom-panel .pictures figure img { width: 56px; height: 56px; object-fit: cover; object-position: left;
  border-radius: 4px; background: rgba(0, 0, 0, .25); }
.loom-panel .pictures figcaption { position: absolute; left: 0; right: 0; bottom: 0; padding: 1px 2px; font-size: 11px;
  color: #fff; background: rgba(0, 0, 0, .62); border-radius: 0 0 4px 4px; }
.loom-panel .messages { max-height: 64px; overflow-y: auto; font-size: 12px; user-select: text;
  overflow-wrap: anywhere; }
.loom-panel .messages div + div { border-top: 1px solid rgba(127, 127, 127, .2); }
`;

/**
 * Asks something of the run in a node, and says what comes of it.
 * @param {Host} host
 * @param {string} what stop, save, sample or pause
 * @param {string} node
 */
export async function askRun(host, what, node) {
  try {
    await host.postJson(route(what), { node });
    host.toast("info", t(`panel.asked_${what}`), ASKED_MS);
  } catch (error) {
    refused(host, /** @type {Error} */ (error));
  }
}

/**
 * Says why something could not be done: in the server's words where it has answered.
 * @param {Host} host
 * @param {Error} error
 */
function refused(host, error) {
  if (error instanceof RequestError && error.status) host.toast("warn", error.message, ASKED_MS);
  else host.toast("error", t("panel.refused", { why: error.message }));
}

/**
 * The first prompt the samples were drawn with; empty where there are none.
 * @param {Record<string, unknown>} inputs
 */
const samplePrompt = (inputs) => String(inputs.sample_prompt ?? "").split("\n")[0].trim();

/**
 * What to write in an A1111 prompt to use what a run made.
 * @param {Pick<PanelState, "result" | "inputs">} state
 */
export function promptFor({ result, inputs }) {
  return [result.comfyui ? "" : samplePrompt(inputs), result.a1111].filter(Boolean).join(", ");
}

/**
 * How to use what a run made, in lines.
 * @param {Pick<PanelState, "result" | "inputs">} state
 * @param {Host["program"]} [program] on a page that is not ComfyUI's, ComfyUI is not spoken of
 */
export function usage({ result, inputs }, program = "comfyui") {
  const files = result.files ?? [];
  const example = result.comfyui ? "" : samplePrompt(inputs); // it has no word of its own
  const prompt = result.comfyui || example;
  const lines = [t("panel.made", { files: files.join(", ") })];
  if (result.trigger) lines.push(t("panel.trigger", result));
  const wanted = promptFor({ result, inputs });
  if (program === "page") return [...lines, t("panel.prompt", { prompt: wanted })];
  lines.push(result.lora ? t("panel.in_comfyui_lora", { file: files[0], prompt }) : `ComfyUI: ${prompt}`);
  lines.push(`A1111: ${wanted}`);
  return lines;
}

/**
 * The speed of a run, where it is known.
 * @param {Pick<PanelState, "speed">} state
 */
export function speedOf({ speed }) {
  if (!speed || speed < 0) return [];
  if (speed >= 1) return [t("panel.per_second", { n: speed.toFixed(1) })];
  return [t("panel.per_step", { n: (1 / speed).toFixed(1) })];
}

/**
 * What matters most of a run: its step, and how long it still takes.
 * @param {Pick<PanelState, "status" | "step" | "steps" | "left_s">} state
 */
export function headline({ status, step, steps, left_s: left }) {
  if (!steps) return "";
  const parts = [t("panel.step", { step, steps })];
  if (status === "training" && left !== null) parts.push(t("panel.left", { time: clock(left) }));
  return parts.join(" · ");
}

export class TrainPanel {
  /**
   * @param {Host} host
   * @param {import("./host.js").Seat} seat
   * @param {import("./settings.js").Settings} settings
   */
  constructor(host, seat, settings) {
    this.host = host;
    this.seat = seat;
    this.settings = settings;
    /** @type {?PanelState} */
    this.state = null;
    /** @type {Row[]} */
    this.rows = [];
    /** @type {?number} step of the sample shown large; null: the newest */
    this.chosen = null;
    /** @type {?import("./host.js").Field} */
    this.marked = null;
    /** @type {(state: PanelState) => void} called with each state that is shown */
    this.onShow = () => {};
    this.newestChanges = 0; // of the newest event of this session
    this.heard = 0; // when the server was heard of, in ms
    this.asking = this.askAgain = false;
    this.announced = this.listed = ""; // the end and the files of a run that were told of
    /** @type {Record<string, string>} what stands in each part, so that nothing is drawn twice */
    this.drawn = {};
    this.chart = new Chart(settings);
    style("loom-panel", STYLE);
    this.status = make("span", { className: "status", textContent: t("panel.idle") });
    this.now = make("span", { className: "now" });
    this.doing = make("span", { className: "doing" });
    this.line = make("span", { className: "line" });
    this.progress = make("div");
    this.buttons = Object.fromEntries(BUTTONS.map((name) => [name, this.button(name, () => this.ask(name))]));
    this.continueButton = this.button("go_on", () => this.goOn());
    this.controls = make("div", { className: "buttons" }, ...Object.values(this.buttons), this.continueButton);
    this.error = make("div", { className: "error", hidden: true });
    this.legend = make("div", { className: "legend" });
    this.newest = make("img", { draggable: false });
    const enlarge = make("button", { className: "newest", title: t("panel.enlarge"), onclick: () => this.enlarge() });
    enlarge.append(this.newest);
    this.before = make("div");
    this.strip = make("div", { className: "strip" });
    this.pictures = make("div", { className: "pictures", hidden: true }, enlarge,
      make("div", { className: "small" }, this.before, this.strip));
    this.pictures.style.minHeight = `${settings.sampleHeight()}px`;
    this.messages = make("div", { className: "messages" });
    this.plan = new PlanView();
    const head = make("div", { className: "head" }, this.status, this.now, this.doing, this.line);
    this.root = make("div", { className: "loom loom-panel idle", lang: language }, head,
      this.plan.root, make("div", { className: "bar" }, this.progress), this.controls, this.error, this.chart.root,
      this.legend, this.pictures, this.messages);
    this.offered = BUTTONS;
    this.suit(seat.kind);
    this.keepPointer();
    this.endSettings = settings.onChange(() => this.rearrange());
  }

  /** Puts something of the place into the panel, above the chart. */
  place(/** @type {HTMLElement} */ part) {
    this.chart.root.before(part);
  }

  /**
   * @param {string} name of its text
   * @param {() => Promise<void>} work
   */
  button(name, work) {
    return make("button", { textContent: t(`panel.${name}`), title: t(`panel.${name}_tip`), onclick: work });
  }

  /** Offers what a run of this kind has: its buttons, and a chart for its learning rate. */
  suit(/** @type {string} */ kind) {
    this.chart.risingRate = RATE_SEARCH.includes(kind);
    this.offered = this.chart.risingRate ? ["stop"] : BUTTONS;
    for (const name of BUTTONS) this.buttons[name].hidden = !this.offered.includes(name);
  }

  /** Keeps wheel and pointer from the graph where the panel has its own use for them. */
  keepPointer() {
    for (const part of [this.strip, this.messages]) {
      part.tabIndex = 0;
      part.dataset.captureWheel = "true"; // Nodes 2.0: the wheel scrolls here once it was clicked
      part.addEventListener("wheel", (event) => !event.ctrlKey && event.stopPropagation());
    }
    for (const part of [this.pictures, this.messages, this.error, this.controls]) {
      part.addEventListener("pointerdown", (event) => event.stopPropagation());
    }
  }

  rearrange() {
    this.pictures.style.minHeight = `${this.settings.sampleHeight()}px`;
    this.chart.changed();
    if (this.state) this.grow();
  }

  dispose() {
    this.endSettings();
    this.chart.dispose();
    this.unmark();
  }

  active() {
    return this.state !== null && ACTIVE.includes(this.state.status);
  }

  /** Takes what the next run will do; null where that shows only when the graph runs. */
  setPlan(/** @type {?import("./plan.js").Plan} */ plan) {
    if (this.plan.set(plan)) this.grow();
  }

  /** Whether a run is going on that nothing was heard of for long. */
  silent() {
    return this.active() && performance.now() - this.heard > SILENCE_MS;
  }

  /** The height the panel needs, in px. */
  minHeight() {
    const planned = !this.plan.root.hidden;
    if (!this.state) return planned ? IDLE_HEIGHT + PLAN_HEIGHT : IDLE_HEIGHT;
    const folded = planned ? FOLDED_HEIGHT : 0;
    if (this.root.classList.contains("empty")) return EMPTY_HEIGHT + folded;
    const samples = this.state.samples.length ? this.settings.sampleHeight() + GAP : 0;
    return HEIGHT + folded + samples + (this.seat.extraHeightPx?.() ?? 0);
  }

  last() {
    return lastStep(this.rows);
  }

  /** Says what has to be done before a run can begin; empty: nothing. */
  awaiting(/** @type {string} */ text) {
    if (this.active()) return; // which tells of itself
    if (this.state) this.doing.textContent = text;
    else this.status.textContent = text || t("panel.idle");
  }

  /** Takes an event: small news, and how much it does not tell. */
  take(/** @type {PanelEvent} */ event) {
    this.heard = performance.now();
    const before = this.state?.session === event.session ? this.state : null;
    const gap = event.rows.length > 0 && event.rows[0][0] > this.last() + 1;
    const missed = !before || event.changes !== before.changes || gap;
    if (!before) this.restart();
    const { rows, changes, ...news } = event;
    if (before) news.step = Math.max(news.step, before.step); // a step never goes back
    this.newestChanges = changes;
    const blank = {
      probes: [], saves: [], samples: [], messages: [], result: {}, inputs: {}, error: null, can_continue: false,
      changes: NaN, // as no event has it: the state was not asked for yet
    };
    this.state = { ...blank, ...before, ...news, live: true };
    if (!missed) this.add(rows);
    this.show(this.state);
    if (missed || before.status !== event.status) this.refresh();
  }

  restart() {
    this.rows = this.chart.rows = []; // nothing of another run
    this.chosen = null;
    this.newestChanges = 0;
    this.chart.view = null;
    this.chart.changed();
    this.unmark();
  }

  add(/** @type {Row[]} */ rows) {
    this.rows = continued(this.rows, rows, MOST_ROWS);
    this.chart.rows = this.rows;
    this.chart.changed();
  }

  /** Asks for the whole state, with the rows that are not here yet. One question at a time. */
  async refresh() {
    if (this.asking) {
      this.askAgain = true;
      return;
    }
    this.asking = true;
    try {
      const answer = await this.answer();
      if (answer) this.set(answer);
      this.heard = performance.now();
    } catch {
      if (this.active()) this.line.textContent = t("panel.server_gone");
    }
    await new Promise((done) => setTimeout(done, BETWEEN_ASKS_MS));
    this.asking = false;
    if (!this.askAgain) return;
    this.askAgain = false;
    this.refresh();
  }

  /** @returns {Promise<?PanelAnswer>} the first there is of the ids this panel may run under */
  async answer() {
    const workflow = this.seat.workflow(), session = this.state?.session ?? "", after = this.last();
    for (const node of this.seat.ids()) {
      try {
        const { panel } = await this.host.fetchJson(route("panel", { node, workflow, session, after }));
        if (panel) return panel;
      } catch (error) {
        if (!(error instanceof RequestError && error.status)) throw error; // nobody answered
      }
    }
    return null;
  }

  set(/** @type {PanelAnswer} */ answer) {
    if (!this.suits(answer.kind)) return; // another node had this id then
    const { rows, ...news } = answer;
    const before = this.state?.session === news.session ? this.state : null;
    if (this.state && !before) this.restart();
    this.state = { ...this.upToDate(news, before), live: before?.live || ACTIVE.includes(news.status) };
    this.add(rows);
    this.show(this.state);
    if (this.state.live) this.announce(this.state);
  }

  /**
   * A snapshot without what events have told better since it was made.
   * @param {Omit<PanelAnswer, "rows">} news
   * @param {?PanelState} before of the same session
   */
  upToDate(news, before) {
    if (!before) return news;
    const step = Math.max(news.step, before.step);
    if (news.changes >= this.newestChanges) return { ...news, step };
    return { ...news, ...Object.fromEntries(HEART.map((name) => [name, before[name]])), step };
  }

  /** Whether a run of this kind belongs here. */
  suits(/** @type {string} */ kind) {
    return !kind || !this.seat.kind || kind === this.seat.kind;
  }

  /** What happens once, in the page that saw the run: lists of the loaders, and a toast. */
  announce(/** @type {PanelState} */ { status, result, inputs, error, session }) {
    const files = JSON.stringify(result.files) + status, end = `${session} ${status}`;
    if (result.files && files !== this.listed) {
      this.listed = files;
      this.host.refreshLists().catch(() => {}); // it tells of its errors itself
    }
    if (this.announced === end || ACTIVE.includes(status)) return;
    this.announced = end;
    if (status === "failed") this.host.toast("error", said(error), LONG_TOAST_MS);
    else if (result.files?.length) this.host.toast("success", this.usage({ result, inputs }), LONG_TOAST_MS);
  }

  usage(/** @type {Pick<PanelState, "result" | "inputs">} */ state) {
    return usage(state, this.host.program).join("\n");
  }

  show(/** @type {PanelState} */ state) {
    const failedAtOnce = !this.rows.length && !state.probes.length && !this.active();
    this.root.classList.toggle("empty", failedAtOnce);
    this.plan.first(false);
    this.plan.root.classList.toggle("during", this.active());
    this.colour();
    this.suit(state.kind || this.seat.kind);
    this.showHead(state);
    this.showButtons(state);
    this.showError(state);
    this.chart.probes = state.probes;
    this.chart.saves = state.saves;
    this.chart.samples = state.samples.map(([step]) => step);
    this.chart.changed();
    this.showLegend(state);
    this.showSamples(state);
    this.showMessages(state.messages);
    this.onShow(state);
    this.root.classList.remove("idle");
    this.once("height", this.minHeight(), () => this.grow());
  }

  /** In the colours the host wants; left out, they are those of the page. */
  colour() {
    this.root.dataset.theme = this.host.theme?.() ?? "";
  }

  showHead(/** @type {PanelState} */ state) {
    this.status.className = `status ${state.status}`;
    this.status.textContent = t(`panel.${state.status}`);
    this.now.textContent = headline(state);
    this.doing.textContent = this.active() ? said(state.doing) : "";
    this.line.textContent = this.facts(state);
    this.progress.style.width = `${state.steps ? (100 * state.step) / state.steps : 0}%`;
  }

  showButtons(/** @type {PanelState} */ state) {
    for (const name of this.offered) {
      this.buttons[name].disabled = state.status !== "training";
      this.buttons[name].hidden = !this.active();
    }
    this.continueButton.hidden = !state.can_continue || this.active();
    this.controls.hidden = !state.can_continue && !this.active();
  }

  showError(/** @type {PanelState} */ state) {
    this.error.hidden = !said(state.error);
    this.error.textContent = said(state.error);
    if (state.status === "failed") this.mark(state.error);
    else this.unmark();
  }

  /** The small facts of a run in one line. */
  facts(/** @type {PanelState} */ state) {
    const parts = state.status === "training" ? speedOf(state) : [];
    if (state.memory && this.active()) {
      const { of, used, total } = state.memory;
      parts.push(t("panel.memory", { of, used: memory(used), total: memory(total) }));
    }
    if (state.run) parts.push(state.run);
    return parts.join(" · ");
  }

  /**
   * Calls `draw` where `content` is not what the part shows already.
   * @param {string} part
   * @param {unknown} content
   * @param {() => void} draw
   */
  once(part, content, draw) {
    const key = JSON.stringify(content);
    if (this.drawn[part] === key) return;
    this.drawn[part] = key;
    draw();
  }

  showLegend(/** @type {PanelState} */ state) {
    const parts = [["loss", COLOURS.raw], ["smoothed", COLOURS.smooth], ["rate", COLOURS.rate]];
    if (state.probes.length) parts.push(["held_out", COLOURS.held_out], ["trained", COLOURS.trained]);
    if (state.saves.length) parts.push(["saves", COLOURS.save]);
    if (state.samples.length) parts.push(["samples", COLOURS.sample]);
    this.once("legend", parts, () => this.legend.replaceChildren(...parts.map(([name, colour]) => {
      const entry = make("span", { textContent: t(`panel.${name}`) });
      entry.style.setProperty("--c", colour);
      return entry;
    })));
  }

  showSamples(/** @type {PanelState} */ state) {
    this.once("samples", [state.run, state.samples, this.chosen], () => {
      this.pictures.hidden = !state.samples.length;
      if (state.samples.length) this.drawSamples(state);
    });
  }

  drawSamples(/** @type {PanelState} */ state) {
    const { run, samples } = state, newest = samples[samples.length - 1];
    const large = samples.find(([step]) => step === this.chosen) ?? newest;
    this.newest.src = this.picture(run, large, LARGE_PX);
    this.newest.title = large[0] ? t("panel.sample_of", { step: large[0] }) : t("panel.before");
    const small = (/** @type {SampleMark} */ sample) => {
      const [step] = sample;
      const image = make("img", { src: this.picture(run, sample, SMALL_PX), draggable: false });
      const caption = make("figcaption", { textContent: step ? String(step) : t("panel.before") });
      const choose = () => {
        this.chosen = sample === newest ? null : step;
        this.showSamples(state);
      };
      return make("figure", { className: sample === large ? "chosen" : "", onclick: choose }, image, caption);
    };
    this.before.replaceChildren(...samples.filter(([step]) => !step).map(small)); // stays in sight beside the newest
    this.strip.replaceChildren(...samples.filter(([step]) => step).slice(-STRIP).map(small));
    if (this.chosen === null) this.strip.scrollLeft = this.strip.scrollWidth;
  }

  /** The samples on the whole page, beginning with the one that is shown. */
  async enlarge() {
    if (this.state?.run) await viewSamples(this.host, this.state.run, this.chosen);
  }

  /**
   * The address of a sample picture.
   * @param {string} run
   * @param {SampleMark} sample
   * @param {number} size px of its longer side
   */
  picture(run, [step, time], size) {
    return this.host.imageUrl(route("panel/sample", { run, step, size, v: time }));
  }

  showMessages(/** @type {Message[]} */ messages) {
    this.once("messages", [messages.length, messages.at(-1)], () => {
      this.messages.replaceChildren(...messages.map((message) => make("div", { textContent: said(message) })));
      this.messages.scrollTop = this.messages.scrollHeight;
    });
  }

  mark(/** @type {?Message} */ error) {
    if (!this.marked && error) this.marked = this.seat.mark(error);
  }

  unmark() {
    if (this.marked) this.seat.unmark(this.marked);
    this.marked = null;
  }

  grow() {
    this.seat.grow(this.root, this.minHeight());
  }

  async ask(/** @type {string} */ what) {
    if (this.state) await askRun(this.host, what, this.state.node);
  }

  /** Continues the run with the values it was started with. */
  async goOn() {
    if (!this.state) return;
    this.continueButton.disabled = true;
    try {
      await this.seat.goOn(this.state);
    } catch (error) {
      refused(this.host, /** @type {Error} */ (error));
    }
    this.continueButton.disabled = false;
  }
}

/**
 * Keeps the panels of a page up to date: by events, and by questions where these may be lost or the host has none.
 * @param {Host} host
 * @param {() => Iterable<TrainPanel>} panels of the open workflow
 * @param {(id: string) => TrainPanel | undefined} panelOf the node that runs under an id
 * @returns {{ refreshAll: () => void, end: () => void }} what asks for every panel now, and what ends the watch
 */
export function watchPanels(host, panels, panelOf) {
  const visible = () => document.visibilityState === "visible";
  const refreshAll = () => [...panels()].forEach((panel) => panel.refresh());
  const whenSeen = () => visible() && refreshAll();
  const ends = [host.onEvent("reconnected", refreshAll), host.onEvent("panel", (/** @type {PanelEvent} */ event) => {
    const panel = panelOf(event.node), workflow = panel?.seat.workflow();
    if (!panel?.suits(event.kind)) return;
    const foreign = event.workflow !== workflow;
    if (!foreign || panel.state?.session === event.session) panel.take(event);
  })];
  document.addEventListener("visibilitychange", whenSeen);
  let checks = 0;
  const timer = setInterval(() => { // an event may be lost, and a tab that does not read can hold up those of all
    if (!visible()) return;
    checks += 1;
    for (const panel of panels()) {
      const due = host.pollMs && (panel.active() || checks % IDLE_CHECKS === 0);
      if (due || panel.silent()) panel.refresh();
    }
  }, host.pollMs || CHECK_MS);
  const end = () => {
    clearInterval(timer);
    document.removeEventListener("visibilitychange", whenSeen);
    ends.forEach((stop) => stop());
  };
  return { refreshAll, end };
}
