// @ts-check
// The panel of a run: chart, samples, messages and buttons. The server's state is asked for when the page opens and
// when an event was missed.
import { RequestError, route } from "./api.js";
import { Chart } from "./chart.js";
import { make, style } from "./dom.js";
import { memory } from "./figures.js";
import { viewMeasured } from "./measured.js";
import { askRun, refused } from "./panel_asks.js";
import { PanelSamples } from "./panel_samples.js";
import { STYLE } from "./panel_style.js";
import { headline, speedOf, usage } from "./panel_words.js";
import { PlanView } from "./plan.js";
import { continued, lastStep } from "./series.js";
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
 * @property {number} [strength] to use its LoRA at, where it was measured
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
const SILENCE_MS = 2500, BETWEEN_ASKS_MS = 400; // of the server
const LONG_TOAST_MS = 15000;
const IDLE_HEIGHT = 54, PLAN_HEIGHT = 190, FOLDED_HEIGHT = 20, EMPTY_HEIGHT = 130; // px
const HEIGHT = 300, GAP = 6; // px, without samples
/** What an event tells too; a snapshot that was made before the newest event is older in these. */
const HEART = /** @type {const} */ (["status", "doing", "step", "steps", "speed", "left_s", "memory", "run"]);

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
    this.chart.onPalette = () => { if (this.state) this.showLegend(this.state); };
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
    this.samples = new PanelSamples(host);
    this.samples.root.style.minHeight = `${settings.sampleHeight()}px`;
    this.messages = make("div", { className: "messages" });
    this.plan = new PlanView();
    const head = make("div", { className: "head" }, this.status, this.now, this.doing, this.line);
    this.root = make("div", { className: "loom loom-panel idle", lang: language }, head,
      this.plan.root, make("div", { className: "bar" }, this.progress), this.controls, this.error, this.chart.root,
      this.legend, this.samples.root, this.messages);
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
    for (const part of [this.samples.strip, this.messages]) {
      part.tabIndex = 0;
      part.dataset.captureWheel = "true"; // Nodes 2.0: the wheel scrolls here once it was clicked
      part.addEventListener("wheel", (event) => !event.ctrlKey && event.stopPropagation());
    }
    for (const part of [this.samples.root, this.messages, this.error, this.controls]) {
      part.addEventListener("pointerdown", (event) => event.stopPropagation());
    }
  }

  rearrange() {
    this.samples.root.style.minHeight = `${this.settings.sampleHeight()}px`;
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
    if (this.plan.set(plan, this.seat.kinds?.())) this.grow();
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
    this.samples.restart();
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
    if (this.state.live && news.changes >= this.newestChanges) this.announce(this.state); // with its files or its error
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
    if (status === "failed") this.host.toast("error", this.said(error), LONG_TOAST_MS);
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
    this.samples.show(state.run, state.samples);
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
    this.doing.textContent = this.active() ? this.said(state.doing) : "";
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
    this.error.hidden = !this.said(state.error);
    this.error.textContent = this.said(state.error);
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
    const { palette } = this.chart;
    /** @type {[string, string][]} */
    const parts = []; // lines are named at their ends
    if (state.saves.length) parts.push(["saves", palette.save]);
    if (state.samples.length) parts.push(["samples", palette.sample]);
    const measured = state.probes.length ? state.run : "";
    this.once("legend", [parts, measured], () => {
      this.legend.replaceChildren(...parts.map(([name, colour]) => {
        const entry = make("span", { className: name, textContent: t(`panel.${name}`) });
        entry.style.setProperty("--c", colour);
        return entry;
      }), ...(measured ? [this.measuredButton(measured)] : []));
    });
  }

  /** Opens what a run has measured of its pictures and concepts. */
  measuredButton(/** @type {string} */ run) {
    const onclick = () => viewMeasured(this.host, run).catch((error) => refused(this.host, error));
    return make("button", { textContent: t("runs.measured"), title: t("runs.measured_hint"), onclick });
  }

  /** A message with settings by the names they have around this panel. */
  said(/** @type {?Message | undefined} */ message) {
    return said(message, this.seat.kinds?.());
  }

  showMessages(/** @type {Message[]} */ messages) {
    this.once("messages", [messages.length, messages.at(-1)], () => {
      this.messages.replaceChildren(...messages.map((message) => make("div", { textContent: this.said(message) })));
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
