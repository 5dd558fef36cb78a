// @ts-check
// Captions by a model in ComfyUI: what the editor's node gets is queued with Caption Pictures behind it, in the host's
// own queue, and nothing else of the graph.
import { captionPrompt } from "./caption_prompt.js";
import { api, app, rootGraph } from "./comfyui.js";
import { executionIds } from "./graph.js";
import { said, t } from "./words.js";

/** @typedef {import("./caption_prompt.js").Prompt} Prompt */

/**
 * @param {ComfyNode} node the editor's
 * @param {import("./dataset_editor.js").Editor} editor
 * @param {import("./caption_form.js").CaptionOrder} order
 * @param {import("./caption_form.js").Choice} choice
 */
export async function queueCaptions(node, editor, order, choice) {
  const graph = await app.graphToPrompt(), [id] = executionIds(rootGraph(), node);
  const output = /** @type {Prompt} */ (graph.output), dataset = output[id]?.inputs?.dataset;
  if (!Array.isArray(dataset)) throw new Error(t("captioning.no_dataset"));
  const prompt = captionPrompt(output, /** @type {[string, number]} */ (dataset), order, choice);
  const ends = ["execution_error", "execution_interrupted", "execution_success"];
  const answer = await api.queuePrompt(0, { ...graph, output: prompt });
  const number = answer?.prompt_id;
  const hear = (/** @type {CustomEvent} */ { type, detail }) => {
    if (number && detail?.prompt_id !== number) return;
    for (const end of ends) api.removeEventListener(end, hear);
    const text = type === "execution_error" ? said({ text: detail?.exception_message ?? "" }) : t("captioning.ended");
    editor.form.failed(text);
  };
  for (const end of ends) api.addEventListener(end, hear);
}
