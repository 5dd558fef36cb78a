// @ts-check
// What the panel of a run says in words: how far it is, how fast, and how to use what it made.
import { clock } from "./figures.js";
import { t } from "./words.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./train_panel.js").PanelState} PanelState */

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
