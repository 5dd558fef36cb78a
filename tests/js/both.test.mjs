// What *Use it here* puts into the graph for the two LoRAs of Wan 2.2: two samplers, one after the other.
import assert from "node:assert/strict";
import test from "node:test";
import { standInForComfyUI } from "./comfyui_modules.mjs";
import { openPage } from "./page.mjs";

const SAMPLE = {
  prompt: "zog walks", steps: 7, seed: 5, cfg: 3.5, width: 64, height: 48, sampler: "euler", scheduler: "simple",
};
const HOST = `
  const answer = { ok: true, status: 200, json: async () => ({ prompts: [${JSON.stringify(SAMPLE)}] }) };
  export const api = { addEventListener() {}, getSetting: () => "en", fetchApi: async () => answer };
  export const app = { registerExtension() {}, refreshComboInNodes: async () => {}, canvas: null };
`;
standInForComfyUI(HOST);
openPage();

const WIDGETS = {
  CLIPTextEncode: ["text"], LoraLoaderModelOnly: ["lora_name", "strength_model"],
  EmptyHunyuanLatentVideo: ["width", "height", "length"],
  KSamplerAdvanced: [
    "add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step",
    "return_with_leftover_noise",
  ],
  VAEDecode: [], SaveAnimatedWEBP: ["fps"],
};
class FakeNode {
  constructor(kind) {
    Object.assign(this, { type: kind, comfyClass: kind, pos: [0, 0], size: [200, 100], from: {} });
    this.widgets = (WIDGETS[kind] ?? []).map((name) => ({ name, value: null }));
  }
  setSize(size) { this.size = size; }
  connect(slot, node, name) { node.from[name] = [this, slot]; }
  value(name) { return this.widgets.find((widget) => widget.name === name).value; }
}
const wired = (names) => {
  const node = new FakeNode("LoraLoomTrainBothExperts");
  const sources = names.map((name) => new FakeNode(`loader of ${name}`));
  node.inputs = names.map((name) => ({ name }));
  node.getInputNode = (slot) => sources[slot];
  node.getInputLink = () => ({ origin_slot: 0 });
  const nodes = [];
  node.graph = { _nodes: nodes, nodes, add: (one) => { one.graph = node.graph; nodes.push(one); } };
  return [node, nodes, sources];
};
const STATE = {
  run: "walk",
  result: { files: ["walk_low_noise.safetensors", "walk_high_noise.safetensors"], comfyui: "zog", strength: 0.75 },
};
const TOLD = ["add_noise", "start_at_step", "end_at_step", "return_with_leftover_noise", "steps", "noise_seed"];

test("the expert for high noise begins, the one for low noise goes on with its own LoRA", async () => {
  window.LiteGraph = { createNode: (kind) => new FakeNode(kind) };
  const { useBoth } = await import("../../js/comfyui_result.js");
  const [train, nodes, sources] = wired(["model_high", "model_low", "clip", "vae"]);
  await useBoth(train, STATE);
  const [high, low] = nodes.filter((node) => node.type === "KSamplerAdvanced");
  const told = (node) => TOLD.map((name) => node.value(name));
  assert.deepEqual(told(high), ["enable", 0, 4, "enable", 7, 5]);
  assert.deepEqual(told(low), ["disable", 4, 7, "disable", 7, 5]);
  assert.equal(low.from.latent_image[0], high);
  const loras = [high, low].map((node) => node.from.model[0]);
  assert.deepEqual(loras.map((node) => [node.value("lora_name"), node.value("strength_model")]),
    [["walk_high_noise.safetensors", 0.75], ["walk_low_noise.safetensors", 0.75]]);
  assert.deepEqual(loras.map((node) => node.from.model[0]), sources.slice(0, 2));
  assert.equal(high.from.positive[0].value("text"), "zog walks");
  const film = nodes.find((node) => node.type === "SaveAnimatedWEBP");
  assert.equal(film.from.images[0].from.samples[0], low);
  assert.equal(film.from.images[0].from.vae[0], sources[3]);
});

test("without one of the two models nothing is put into the graph", async () => {
  const { useBoth } = await import("../../js/comfyui_result.js");
  const [train, nodes] = wired(["model_high", "clip", "vae"]);
  await assert.rejects(useBoth(train, STATE));
  assert.deepEqual(nodes, []);
});
