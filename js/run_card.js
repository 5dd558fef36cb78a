// @ts-check
// What a run has made, in its panel: file, size, trigger, strength, best step, and what to do with it next.
import { RequestError, route } from "./api.js";
import { copied } from "./clipboard.js";
import { make, style } from "./dom.js";
import { fileSize } from "./figures.js";
import { said, t } from "./words.js";
import { viewSamples } from "./viewer.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./train_panel.js").PanelState} PanelState */

/**
 * What a page can do with a result; a button stands for each that is there.
 * @typedef {object} ResultActions
 * @property {(state: PanelState) => Promise<void>} [useHere] puts its loader and prompt to where pictures are made
 * @property {(state: PanelState, steps: number) => Promise<void>} [trainLonger]
 * @property {(state: PanelState) => Promise<void>} [exportHere] makes ready to write it for another program
 */

const LONGER = 1.5; // times the steps
const HEIGHT = 152; // px
const STRENGTH = 1; // what a file was trained at

const STYLE = `
.loom-card { display: flex; flex-direction: column; gap: 5px; padding: 10px 12px; border-radius: 8px; font-size: 12.5px;
  border-left: 4px solid #3fa65a; background: rgba(63, 166, 90, .15); user-select: text; overflow-wrap: anywhere; }
.loom-card.bad { border-color: #d9534a; background: rgba(217, 83, 74, .14); }
.loom-card[hidden] { display: none !important; }
.loom-card .file { font-size: 14px; font-weight: 600; }
.loom-card .facts { display: flex; flex-wrap: wrap; gap: 3px 14px; align-items: center; }
.loom-card .facts button { padding: 1px 8px; font-weight: 600; }
.loom-card .actions { display: flex; flex-wrap: wrap; gap: 5px; margin-top: 2px; }
.loom-card .actions button { padding: 5px 10px; }
.loom-card .actions button.main { background: #2b7a3d; border-color: #3fa65a; color: #fff; font-weight: 600; }
`;

/**
 * The step with the lowest loss on held-out pictures; null where none were measured.
 * @param {import("./scales.js").Probe[]} probes
 */
export function bestStep(probes) {
  /** @type {?number} */
  let best = null;
  let lowest = Infinity;
  for (const [step, heldOut] of probes) {
    if (heldOut !== null && heldOut < lowest) [best, lowest] = [step, heldOut];
  }
  return best;
}

/** How many steps a run gets that goes on: half as many again. */
export const longer = (/** @type {number} */ steps) => Math.max(steps + 1, Math.round(steps * LONGER));

/** The strength to start from: the one that was measured, else what a file was trained at. */
export const strengthOf = (/** @type {PanelState["result"]} */ { strength }) => (strength ?? STRENGTH).toFixed(1);

/** Whether a run failed and left a file in its folder that no loader lists. */
export function leftBehind(/** @type {Pick<PanelState, "status" | "messages">} */ { status, messages }) {
  return status === "failed" && messages.some(({ code }) => code === "run.result_stays");
}

export class RunCard {
  /**
   * @param {Host} host
   * @param {ResultActions} actions
   */
  constructor(host, actions) {
    this.host = host;
    this.actions = actions;
    this.drawn = "";
    this.kept = ""; // the run whose file was kept although it failed
    style("loom-card", STYLE);
    this.root = make("div", { className: "loom-card", hidden: true });
    this.root.addEventListener("pointerdown", (event) => event.stopPropagation()); // not for the graph
  }

  /** px that the card needs in its panel. */
  heightPx() {
    return this.root.hidden ? 0 : HEIGHT;
  }

  /**
   * Shows what has come of a run; nothing while it goes on.
   * @param {PanelState} state
   * @param {boolean} active whether the run goes on
   */
  show(state, active) {
    const { result, status, run, probes, samples, session } = state;
    const kind = !active && result.files?.length ? "made" : leftBehind(state) && this.kept !== session ? "left" : "";
    const key = JSON.stringify([kind, result, status, run, bestStep(probes), samples.length, session]);
    if (key === this.drawn) return;
    this.drawn = key;
    this.root.hidden = !kind;
    this.root.className = kind === "left" ? "loom-card bad" : "loom-card";
    if (kind === "made") this.root.replaceChildren(...this.made(state));
    else if (kind === "left") this.root.replaceChildren(...this.left(state));
    else this.root.replaceChildren();
  }

  /** @param {PanelState} state */
  made(state) {
    const { result, probes, samples, steps, step } = state, { useHere, trainLonger, exportHere } = this.actions;
    const sizes = result.sizes ?? {}, best = bestStep(probes);
    const files = (result.files ?? []).map((name) => (name in sizes ? `${name} · ${fileSize(sizes[name])}` : name));
    const facts = [];
    const word = result.comfyui || result.trigger;
    if (word) {
      const copy = this.button(word, () => this.copy(word), "card.copy");
      facts.push(make("span", {}, `${t("card.trigger")} `, copy));
    }
    if (result.lora) facts.push(make("span", { textContent: t("card.strength", { strength: strengthOf(result) }) }));
    const length = best === null ? t("card.steps", { step }) : t("card.best", { step: best });
    facts.push(make("span", { textContent: length }));
    const buttons = [];
    if (useHere && result.lora) {
      const main = this.button(t("card.use"), () => useHere(state), "card.use_tip");
      main.className = "main";
      buttons.push(main);
    }
    if (samples.length > 1) {
      const compare = () => viewSamples(this.host, state.run, null, "beside");
      buttons.push(this.button(t("card.compare"), compare, "card.compare_tip"));
    }
    const more = longer(Math.max(steps, step));
    if (trainLonger) {
      const work = () => trainLonger(state, more);
      buttons.push(this.button(t("card.longer"), work, "card.longer_tip", { steps: more }));
    }
    buttons.push(this.button(t("card.folder"), () => this.open(state.run), "card.folder_tip"));
    if (exportHere && result.lora) {
      buttons.push(this.button(t("card.export"), () => exportHere(state), "card.export_tip"));
    }
    return [make("div", { className: "file", textContent: files.join(", ") }),
      make("div", { className: "facts" }, ...facts), make("div", { className: "actions" }, ...buttons)];
  }

  /** @param {PanelState} state */
  left(state) {
    const stays = state.messages.find(({ code }) => code === "run.result_stays");
    return [make("div", { textContent: said(stays) }), make("div", { className: "actions" },
      this.button(t("card.keep"), () => this.keep(state), "card.keep_tip"),
      this.button(t("card.folder"), () => this.open(state.run), "card.folder_tip"))];
  }

  /**
   * A button that says what went wrong.
   * @param {string} text
   * @param {() => unknown} work
   * @param {string} tip
   * @param {Record<string, unknown>} [values]
   */
  button(text, work, tip, values = {}) {
    const button = make("button", { textContent: text, title: t(tip, values) });
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await work();
      } catch (error) {
        this.host.toast("warn", t("panel.refused", { why: /** @type {Error} */ (error).message }));
      }
      button.disabled = false;
    });
    return button;
  }

  async copy(/** @type {string} */ text) {
    const done = await copied(text);
    this.host.toast(done ? "success" : "info", t(done ? "runs.copied" : "runs.not_copied", { text }));
  }

  /** Shows the folder of a run where the browser runs beside the server; elsewhere its path is copied. */
  async open(/** @type {string} */ run) {
    try {
      await this.host.postJson(route("runs/open"), { id: run });
    } catch (error) {
      if (!(error instanceof RequestError) || !error.status) throw error;
      const { place } = await this.host.fetchJson(route("runs"));
      await this.copy(`${place}/${run}`);
    }
  }

  /** Puts the file of a failed run into the loaders' lists, as its user wants it all the same. */
  async keep(/** @type {PanelState} */ state) {
    const { files } = await this.host.postJson(route("runs/export"), { id: state.run, save: "result" });
    this.kept = state.session;
    this.show(state, false);
    this.host.toast("success", t("runs.exported", { files: files.join(", ") }));
    await this.host.refreshLists();
  }
}
