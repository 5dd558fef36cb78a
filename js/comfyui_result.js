// @ts-check
// What ComfyUI does with the result of a run: a chain that draws with it, a longer run, a form for another program.
import { app, api, host, rootGraph } from "./comfyui.js";
import { choose, made } from "./comfyui_build.js";
import { continuedInputs, executionIds } from "./graph.js";
import { samplesOf } from "./viewer.js";
import { t } from "./words.js";

/** @typedef {import("./train_panel.js").PanelState} PanelState */

const GAP = 80; // px
const STANDARD = {
  prompt: "", seed: 1, cfg: 7, width: 512, height: 512, steps: 20, sampler: "euler", scheduler: "simple",
};
/** @type {[number, number]} */
const TEXT_SIZE = [340, 140];

/**
 * Where what is wired to an input of a node comes from.
 * @param {ComfyNode} node
 * @param {string} name
 * @returns {?[ComfyNode, number]} node and output
 */
function sourceOf(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  const source = slot < 0 ? null : node.getInputNode?.(slot), link = node.getInputLink?.(slot);
  return source && link ? [source, link.origin_slot] : null;
}

/**
 * Adds a LoRA loader, prompts and a sampler on the model that was trained on, and draws a picture.
 * @param {ComfyNode} train
 * @param {PanelState} state
 */
async function useHere(train, state) {
  const { graph } = train, wires = ["model", "clip", "vae"].map((name) => sourceOf(train, name));
  const [model, clip, vae] = wires;
  if (!graph || !model || !clip || !vae) throw new Error(t("card.no_source"));
  await host.refreshLists();
  const { prompts } = await samplesOf(host, state.run), about = { ...STANDARD, ...prompts[0] };
  const [x, y] = [train.pos[0] + train.size[0] + GAP, train.pos[1]];
  const right = (/** @type {?ComfyNode} */ node) => (node ? node.pos[0] + node.size[0] + GAP : x);
  const below = (/** @type {?ComfyNode} */ node) => (node ? node.pos[1] + node.size[1] + GAP : y);
  const loader = made(graph, "LoraLoader", [x, y], [300, 130]);
  const latent = made(graph, "EmptyLatentImage", [x, below(loader)], [300, 110]);
  const positive = made(graph, "CLIPTextEncode", [right(loader), y], TEXT_SIZE);
  const negative = made(graph, "CLIPTextEncode", [right(loader), below(positive)], TEXT_SIZE);
  const sampler = made(graph, "KSampler", [right(positive), y], [300, 270]);
  const decode = made(graph, "VAEDecode", [right(positive), below(sampler)]);
  const picture = made(graph, "PreviewImage", [right(sampler), y], [360, 400]);
  if (!loader || !positive || !negative || !latent || !sampler || !decode || !picture) return;
  choose(loader, "lora_name", state.result.files?.[0]);
  choose(positive, "text", about.prompt || state.result.comfyui || "");
  for (const [name, value] of Object.entries({ width: about.width, height: about.height })) choose(latent, name, value);
  const values = { seed: about.seed, steps: about.steps, cfg: about.cfg };
  for (const [name, value] of Object.entries({ ...values, sampler_name: about.sampler, scheduler: about.scheduler })) {
    choose(sampler, name, value);
  }
  model[0].connect?.(model[1], loader, "model");
  clip[0].connect?.(clip[1], loader, "clip");
  for (const text of [positive, negative]) loader.connect?.(1, text, "clip");
  loader.connect?.(0, sampler, "model");
  positive.connect?.(0, sampler, "positive");
  negative.connect?.(0, sampler, "negative");
  latent.connect?.(0, sampler, "latent_image");
  sampler.connect?.(0, decode, "samples");
  vae[0].connect?.(vae[1], decode, "vae");
  decode.connect?.(0, picture, "images");
  app.canvas?.selectNode?.(loader);
  app.canvas?.centerOnNode(sampler);
  app.canvas?.setDirty(true, true);
  await app.queuePrompt?.(0, 1, executionIds(rootGraph(), picture).slice(0, 1)); // this picture; nothing is trained
}

/**
 * Queues what goes on with a run, with its own values but for those named here.
 * @param {PanelState} state
 * @param {Record<string, unknown>} [others]
 */
export async function queueMore(state, others = {}) {
  const prompt = await app.graphToPrompt(), entry = prompt.output[state.node];
  if (!entry?.inputs) throw new Error(state.node);
  entry.inputs = { ...continuedInputs(entry.inputs, state), ...others };
  await api.queuePrompt(0, prompt);
}

/**
 * @param {ComfyNode} train
 * @param {PanelState} state
 */
async function exportHere(train, state) {
  if (!train.graph) return;
  await host.refreshLists();
  const [file] = state.result.files ?? [], place = /** @type {[number, number]} */ ([
    train.pos[0] + train.size[0] + GAP, train.pos[1] + 480]);
  const node = made(train.graph, "LoraLoomConvertLora", place, [360, 0]);
  if (!node || !file) return;
  choose(node, "file", file);
  choose(node, "name", file.replace(/\.safetensors$/, ""));
  app.canvas?.selectNode?.(node);
  app.canvas?.centerOnNode(node);
  app.canvas?.setDirty(true, true);
}

/**
 * What can be done with the results of the runs of a node.
 * @param {ComfyNode} train
 * @returns {import("./run_card.js").ResultActions}
 */
export const actionsOf = (train) => ({
  useHere: (state) => useHere(train, state),
  trainLonger: async (state, steps) => {
    await queueMore(state, { steps });
    host.toast("info", t("card.longer_queued", { run: state.run, steps }));
  },
  exportHere: (state) => exportHere(train, state),
});
