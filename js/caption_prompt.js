// @ts-check
// What ComfyUI is asked to run when captions are to be written.

/** @typedef {Record<string, { class_type: string, inputs: Record<string, any> }>} Prompt */

const CAPTIONS = "loom_captions", LOADER = "loom_captions_clip"; // ids of nodes that no graph has
const WIRED = "the model at clip"; // as nodes/caption_pictures.py calls it
const THRESHOLD = 0.35, MAX_TOKENS = 200;

/**
 * A prompt of a node's dataset and what it needs, with Caption Pictures on it.
 * @param {Prompt} output the whole graph as it would be queued
 * @param {[string, number]} dataset where the dataset comes from
 * @param {import("./caption_form.js").CaptionOrder} order
 * @param {import("./caption_form.js").Choice} choice
 * @returns {Prompt}
 */
export function captionPrompt(output, dataset, order, choice) {
  /** @type {Prompt} */
  const prompt = {};
  const take = (/** @type {string} */ id) => {
    if (id in prompt || !output[id]) return;
    prompt[id] = output[id];
    for (const value of Object.values(output[id].inputs)) if (Array.isArray(value)) take(String(value[0]));
  };
  take(String(dataset[0]));
  /** @type {Record<string, any>} */
  const inputs = { dataset, ...order, instruction: "", threshold: THRESHOLD, max_tokens: MAX_TOKENS };
  if (choice.kind === "clip") {
    const loaded = { clip_name: choice.id, type: "stable_diffusion", device: "default" };
    prompt[LOADER] = { class_type: "CLIPLoader", inputs: loaded };
    Object.assign(inputs, { captioner: WIRED, clip: [LOADER, 0] });
  }
  prompt[CAPTIONS] = { class_type: "LoraLoomCaptionPictures", inputs };
  return prompt;
}
