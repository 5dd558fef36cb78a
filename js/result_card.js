// @ts-check
// What a run has made: files, trigger, and the prompt that uses them; or what a try has found, in words and a picture.
import { route } from "./api.js";
import { make, style } from "./dom.js";
import { promptFor } from "./panel_words.js";
import { nameOf, said, t } from "./words.js";

const STYLE = `
.loom-result { display: flex; flex-direction: column; gap: 4px; padding: 8px 10px; border-radius: 6px;
  border-left: 4px solid #62c370; background: rgba(98, 195, 112, .14); user-select: text; overflow-wrap: anywhere; }
.loom-result[hidden] { display: none; }
.loom-result img { max-width: 100%; max-height: 480px; object-fit: contain; align-self: flex-start; }
.loom-result code { font: 12px/1.4 ui-monospace, monospace; }
`;

/** @typedef {import("./train_panel.js").PanelState} PanelState */

export class ResultCard {
  /** @param {Pick<import("./host.js").Host, "usePrompt" | "takeOver" | "imageUrl">} host */
  constructor(host) {
    this.host = host;
    this.drawn = "";
    style("loom-result", STYLE);
    this.root = make("div", { className: "loom-result", hidden: true });
  }

  /**
   * Shows the result of a run; nothing where there is none.
   * @param {?Pick<PanelState, "result" | "inputs">} state
   */
  show(state) {
    const result = state?.result ?? {}, key = JSON.stringify(result);
    if (key === this.drawn) return;
    this.drawn = key;
    this.root.hidden = !state || !(result.files?.length || result.lines?.length);
    this.root.replaceChildren(...(state && !this.root.hidden ? this.parts(state) : []));
  }

  parts(/** @type {Pick<PanelState, "result" | "inputs">} */ state) {
    const { lines = [], picture, settings = {} } = state.result, { takeOver } = this.host;
    const parts = state.result.files?.length ? this.files(state) : [];
    for (const line of lines) parts.push(make("div", { textContent: said(line) }));
    if (picture) parts.push(make("img", { src: this.host.imageUrl(route("picture", { id: picture })), alt: "" }));
    if (takeOver && Object.keys(settings).length) {
      const texts = Object.entries(settings).map(([path, value]) => `${nameOf(path)} = ${value}`);
      parts.push(this.button(t("panel.take_over", { settings: texts.join(", ") }), () => takeOver(settings)));
    }
    return parts;
  }

  files(/** @type {Pick<PanelState, "result" | "inputs">} */ { result, inputs }) {
    const prompt = promptFor({ result, inputs }), { usePrompt } = this.host;
    const parts = [make("div", { textContent: t("panel.made", { files: (result.files ?? []).join(", ") }) })];
    if (result.trigger) parts.push(make("div", { textContent: t("panel.trigger", { trigger: result.trigger }) }));
    parts.push(make("div", {}, make("code", { textContent: prompt })));
    if (usePrompt) parts.push(this.button(t("panel.use_prompt"), () => usePrompt(prompt)));
    return parts;
  }

  /**
   * @param {string} textContent
   * @param {() => void} onclick
   */
  button(textContent, onclick) {
    return make("div", { className: "buttons" }, make("button", { textContent, onclick }));
  }
}
