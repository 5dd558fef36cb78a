// @ts-check
// What a run has made, on a page where pictures are made too: files, trigger, and the prompt that uses them.
import { make, style } from "./dom.js";
import { promptFor } from "./train_panel.js";
import { t } from "./words.js";

const STYLE = `
.loom-result { display: flex; flex-direction: column; gap: 4px; padding: 8px 10px; border-radius: 6px;
  border-left: 4px solid #62c370; background: rgba(98, 195, 112, .14); user-select: text; overflow-wrap: anywhere; }
.loom-result[hidden] { display: none; }
.loom-result code { font: 12px/1.4 ui-monospace, monospace; }
`;

export class ResultCard {
  /** @param {Pick<import("./host.js").Host, "usePrompt">} host */
  constructor(host) {
    this.host = host;
    this.drawn = "";
    style("loom-result", STYLE);
    this.root = make("div", { className: "loom-result", hidden: true });
  }

  /**
   * Shows the result of a run; nothing where there is none.
   * @param {?Pick<import("./train_panel.js").PanelState, "result" | "inputs">} state
   */
  show(state) {
    const result = state?.result ?? {}, key = JSON.stringify(result);
    if (key === this.drawn) return;
    this.drawn = key;
    this.root.hidden = !state || !result.files?.length;
    this.root.replaceChildren(...(state && !this.root.hidden ? this.parts(state) : []));
  }

  parts(/** @type {Pick<import("./train_panel.js").PanelState, "result" | "inputs">} */ { result, inputs }) {
    const prompt = promptFor({ result, inputs }), { usePrompt } = this.host;
    const parts = [make("div", { textContent: t("panel.made", { files: (result.files ?? []).join(", ") }) })];
    if (result.trigger) parts.push(make("div", { textContent: t("panel.trigger", { trigger: result.trigger }) }));
    parts.push(make("div", {}, make("code", { textContent: prompt })));
    if (usePrompt) {
      const button = make("button", { textContent: t("panel.use_prompt"), onclick: () => usePrompt(prompt) });
      parts.push(make("div", { className: "buttons" }, button));
    }
    return parts;
  }
}
