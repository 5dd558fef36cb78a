// @ts-check
// What ComfyUI does with the result of a run: a chain that draws with it, a longer run, a form for another program.
import { route } from "./api.js";
import { app, api, host, rootGraph } from "./comfyui.js";
import { choose, made } from "./comfyui_build.js";
import { allNodes, continuedInputs, executionIds, widgetOf } from "./graph.js";
import { samplesOf } from "./viewer.js";
import { t } from "./words.js";

/** @typedef {import("./train_panel.js").PanelState} PanelState */
/** @typedef {import("./runs.js").Run} Run */

const CHECKPOINT = "CheckpointLoaderSimple", TOY = "LoraLoomLoadToyModel", LOADERS = [CHECKPOINT, TOY];
const BOTH = "LoraLoomTrainBothExperts", EXPERTS = ["high", "low"];
const FILM = { length: 33, fps: 16 }; // of a film to see what both experts have learnt
const FILE_WIDGETS = ["ckpt_name", "unet_name"]; // of loaders of a model
const GAP = 80, MOST_NODES = 60; // px between nodes; nodes that a model goes through, at most
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
  if (slot < 0) return null;
  const source = node.getInputNode?.(slot), link = node.getInputLink?.(slot);
  return source && link ? [source, link.origin_slot] : null;
}

/**
 * What is drawn with: where MODEL, CLIP and VAE come from.
 * @typedef {{ model: [ComfyNode, number], clip: [ComfyNode, number], vae: [ComfyNode, number] }} Sources
 */

/** What the model of a train node is wired to; null where something is missing. */
function sourcesOf(/** @type {ComfyNode} */ train) {
  const [model, clip, vae] = ["model", "clip", "vae"].map((name) => sourceOf(train, name));
  return model && clip && vae ? { model, clip, vae } : null;
}

/**
 * Adds prompts and a sampler on a model, behind a loader of the LoRA where there is one, and draws a picture.
 * @param {ComfyGraph} graph
 * @param {Sources} sources
 * @param {[number, number]} place of the first node
 * @param {{ run: string, file: ?string, text: string, strength?: number }} made what a run has made; without a file
 * its word is a prompt's
 */
async function drawWith(graph, { model, clip, vae }, [x, y], { run, file, text, strength = 1 }) {
  const { prompts } = await samplesOf(host, run), about = { ...STANDARD, ...prompts[0] };
  const right = (/** @type {?ComfyNode} */ node) => (node ? node.pos[0] + node.size[0] + GAP : x);
  const below = (/** @type {?ComfyNode} */ node) => (node ? node.pos[1] + node.size[1] + GAP : y);
  const loader = file === null ? null : made(graph, "LoraLoader", [x, y], [300, 130]);
  const latent = made(graph, "EmptyLatentImage", [x, below(loader)], [300, 110]);
  const positive = made(graph, "CLIPTextEncode", [right(latent), y], TEXT_SIZE);
  const negative = made(graph, "CLIPTextEncode", [right(latent), below(positive)], TEXT_SIZE);
  const sampler = made(graph, "KSampler", [right(positive), y], [300, 270]);
  const decode = made(graph, "VAEDecode", [right(positive), below(sampler)]);
  const picture = made(graph, "PreviewImage", [right(sampler), y], [360, 400]);
  if (!positive || !negative || !latent || !sampler || !decode || !picture) return;
  choose(positive, "text", about.prompt || text);
  for (const [name, value] of Object.entries({ width: about.width, height: about.height })) choose(latent, name, value);
  const values = { seed: about.seed, steps: about.steps, cfg: about.cfg };
  for (const [name, value] of Object.entries({ ...values, sampler_name: about.sampler, scheduler: about.scheduler })) {
    choose(sampler, name, value);
  }
  if (loader) {
    choose(loader, "lora_name", file);
    for (const name of ["strength_model", "strength_clip"]) choose(loader, name, strength);
    model[0].connect?.(model[1], loader, "model");
    clip[0].connect?.(clip[1], loader, "clip");
  }
  const [patched, encoder] = loader ? /** @type {[ComfyNode, number][]} */ ([[loader, 0], [loader, 1]]) : [model, clip];
  for (const node of [positive, negative]) encoder[0].connect?.(encoder[1], node, "clip");
  patched[0].connect?.(patched[1], sampler, "model");
  positive.connect?.(0, sampler, "positive");
  negative.connect?.(0, sampler, "negative");
  latent.connect?.(0, sampler, "latent_image");
  sampler.connect?.(0, decode, "samples");
  vae[0].connect?.(vae[1], decode, "vae");
  decode.connect?.(0, picture, "images");
  app.canvas?.selectNode?.(loader ?? positive);
  app.canvas?.centerOnNode(sampler);
  app.canvas?.setDirty(true, true);
  await app.queuePrompt?.(0, 1, executionIds(rootGraph(), picture).slice(0, 1)); // this picture; nothing is trained
}

/**
 * Films with both LoRAs of a run: the expert for high noise takes the first half of the steps, the one for low noise
 * goes on from what it leaves, as in ComfyUI's own workflow for Wan 2.2.
 * @param {ComfyNode} train
 * @param {PanelState} state
 */
export async function useBoth(train, state) {
  const { graph } = train, { files = [], comfyui = "", strength = 1 } = state.result;
  const [clip, vae, ...models] = ["clip", "vae", "model_high", "model_low"].map((name) => sourceOf(train, name));
  const loras = EXPERTS.map((expert) => files.find((file) => file.includes(`${expert}_noise`)));
  const lacks = models.includes(null) || loras.includes(undefined);
  if (!graph || !clip || !vae || lacks) throw new Error(t("card.no_source"));
  await host.refreshLists();
  const { prompts } = await samplesOf(host, state.run), about = { ...STANDARD, ...prompts[0] };
  const [x, y] = [train.pos[0] + train.size[0] + GAP, train.pos[1]], half = Math.ceil(about.steps / 2);
  /** @type {(kind: string, column: number, row: number, values: Record<string, unknown>) => ComfyNode} */
  const put = (kind, column, row, values) => {
    const node = made(graph, kind, [x + column * (TEXT_SIZE[0] + GAP), y + row * 400], TEXT_SIZE);
    if (!node) throw new Error(kind);
    for (const [name, value] of Object.entries(values)) choose(node, name, value);
    return node;
  };
  const texts = [about.prompt || comfyui, ""].map((text, row) => put("CLIPTextEncode", 0, row, { text }));
  const { width, height, seed, cfg, steps } = about;
  const empty = put("EmptyHunyuanLatentVideo", 0, 2, { width, height, length: FILM.length });
  const samplers = models.map((model, row) => {
    const loader = put("LoraLoaderModelOnly", 1, row, { lora_name: loras[row], strength_model: strength });
    const sampler = put("KSamplerAdvanced", 2, row, {
      add_noise: row ? "disable" : "enable", noise_seed: seed, steps, cfg, sampler_name: about.sampler,
      scheduler: about.scheduler, start_at_step: row * half, end_at_step: row ? steps : half,
      return_with_leftover_noise: row ? "disable" : "enable",
    });
    const [source, slot] = /** @type {[ComfyNode, number]} */ (model);
    source.connect?.(slot, loader, "model");
    loader.connect?.(0, sampler, "model");
    texts.forEach((text, n) => text.connect?.(0, sampler, ["positive", "negative"][n]));
    return sampler;
  });
  const decode = put("VAEDecode", 3, 0, {}), film = put("SaveAnimatedWEBP", 3, 1, { fps: FILM.fps });
  for (const text of texts) clip[0].connect?.(clip[1], text, "clip");
  empty.connect?.(0, samplers[0], "latent_image");
  samplers[0].connect?.(0, samplers[1], "latent_image");
  samplers[1].connect?.(0, decode, "samples");
  vae[0].connect?.(vae[1], decode, "vae");
  decode.connect?.(0, film, "images");
  app.canvas?.centerOnNode(samplers[0]);
  app.canvas?.setDirty(true, true);
  await app.queuePrompt?.(0, 1, executionIds(rootGraph(), film).slice(0, 1)); // this film; nothing is trained
}

/**
 * Draws with the result of a run, beside the node that has trained it.
 * @param {ComfyNode} train
 * @param {PanelState} state
 */
async function useHere(train, state) {
  if (train.comfyClass === BOTH) return useBoth(train, state);
  const { graph } = train, sources = sourcesOf(train), { files = [], comfyui = "", strength } = state.result;
  if (!graph || !sources) throw new Error(t("card.no_source"));
  await host.refreshLists();
  const place = /** @type {[number, number]} */ ([train.pos[0] + train.size[0] + GAP, train.pos[1]]);
  const text = comfyui, file = files[0] ?? null;
  await drawWith(graph, sources, place, { run: state.run, file, text, strength });
}

/** A file without its folders, which Windows writes otherwise. */
const fileName = (/** @type {string} */ path) => path.split(/[\\/]/).at(-1);

/**
 * Where a LoRA of a run is listed: its own file, else one that is written now.
 * @param {Run} run
 * @param {string[]} listed
 */
async function listedFile(run, listed) {
  const [file = ""] = run.results;
  const there = listed.find((name) => fileName(name) === file);
  if (there) return there;
  const { files } = await host.postJson(route("runs/export"), { id: run.id, save: "result" });
  await host.refreshLists();
  return /** @type {string} */ (files[0].split("/").at(-1));
}

/** The file that a node loads a model from; what loads none has undefined. */
const fileOf = (/** @type {ComfyNode} */ node) => (node.comfyClass === TOY ? "toy"
  : fileName(String(FILE_WIDGETS.map((name) => widgetOf(node, name)?.value).find(Boolean) ?? "")) || undefined);

/** The file of the model that is wired to a train node, through whatever hands a model on. */
function baseOf(/** @type {ComfyNode} */ train) {
  /** @type {?ComfyNode | undefined} */
  let node = train;
  for (let steps = 0; node && steps < MOST_NODES; steps += 1) {
    const file = fileOf(node);
    if (file) return file;
    node = sourceOf(node, "model")?.[0];
  }
  return undefined;
}

/**
 * The model to draw with: that of a train node or a loader of the open graph with the run's own base, else a new loader
 * of it. Another base is never taken in its place.
 * @param {ComfyGraph} graph
 * @param {Run} run
 * @returns {[Sources, ComfyNode]} with the node beside which there is room
 */
function sourcesFor(graph, run) {
  const nodes = [...allNodes(graph)].filter((node) => node.graph === graph), file = run.base_file;
  const outermost = nodes.reduce((/** @type {?ComfyNode} */ far, node) =>
    (!far || node.pos[0] + node.size[0] > far.pos[0] + far.size[0] ? node : far), null);
  for (const node of nodes) {
    const wired = sourcesOf(node);
    if (wired && (!file || baseOf(node) === file)) return [wired, outermost ?? node];
  }
  const loaders = nodes.filter(({ comfyClass = "" }) => LOADERS.includes(comfyClass));
  const loader = loaders.find((node) => !file || fileOf(node) === file) ?? baseLoader(graph, run, outermost);
  if (!loader) throw new Error(file ? t("card.base_not_open", { file }) : t("card.no_source"));
  return [{ model: [loader, 0], clip: [loader, 1], vae: [loader, 2] }, outermost ?? loader];
}

/**
 * A new loader of a run's base; null where no loader of whole checkpoints lists it, as of a model in parts.
 * @param {ComfyGraph} graph
 * @param {Run} run
 * @param {?ComfyNode} beside
 */
function baseLoader(graph, run, beside) {
  /** @type {[number, number]} */
  const place = beside ? [beside.pos[0], beside.pos[1] + beside.size[1] + GAP] : [0, 0];
  if (run.base_file === "toy") return made(graph, TOY, place);
  const node = made(graph, CHECKPOINT, place), names = node && widgetOf(node, "ckpt_name")?.options?.values;
  const own = names?.find((name) => fileName(name) === run.base_file);
  if (node && own) choose(node, "ckpt_name", own);
  else if (node) graph.remove?.(node);
  return own ? node : null;
}

/**
 * Draws with what a run of the list has made, in the open graph.
 * @param {Run} run
 */
export async function useRun(run) {
  const graph = app.canvas?.graph ?? rootGraph();
  if (!graph) return;
  await host.refreshLists();
  const [sources, beside] = sourcesFor(graph, run);
  const place = /** @type {[number, number]} */ ([beside.pos[0] + beside.size[0] + GAP, beside.pos[1]]);
  const about = { run: run.id, text: run.trigger, strength: run.strength ?? undefined };
  if (run.method === "embedding") return drawWith(graph, sources, place, { ...about, file: null });
  const loader = window.LiteGraph?.createNode?.("LoraLoader");
  const listed = (loader && widgetOf(loader, "lora_name")?.options?.values) ?? [];
  return drawWith(graph, sources, place, { ...about, file: await listedFile(run, listed) });
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
