// What stands behind the names of widgets before and after a plan is known.
import assert from "node:assert/strict";
import fs from "node:fs";
import test from "node:test";
import { standInForComfyUI } from "./comfyui_modules.mjs";
import { openPage } from "./page.mjs";

standInForComfyUI(`
  export const api = { addEventListener() {}, getSetting: () => "en" };
  export const app = { registerExtension() {} };
`);
openPage();
globalThis.fetch = async (url) => ({ ok: true, json: async () => JSON.parse(fs.readFileSync(url, "utf8")) });

const node = (comfyClass, values) => {
  const drawn = { times: 0 };
  const widgets = Object.entries(values).map(([name, value]) => ({ name, value }));
  return { comfyClass, widgets, drawn, setDirtyCanvas() { drawn.times += 1; } };
};
const labels = ({ widgets }) => widgets.map(({ name, label }) => label ?? name);

test("a zero that is no amount says what it stands for before any plan is known", async () => {
  const { label } = await import("../../js/comfyui_plans.js");
  const train = node("LoraLoomTrainLora", { rank: 0, alpha: 0, epochs: 0, sample_every: 0, seed: 0, batch_size: 1 });
  label(train, null);
  assert.deepEqual(labels(train),
    ["rank (auto)", "alpha (= rank)", "epochs (by steps)", "sample_every (off)", "seed", "batch_size"]);
  const times = train.drawn.times;
  label(train, null);
  assert.equal(train.drawn.times, times, "nothing changed, nothing is drawn anew");
  train.widgets[0].value = 8;
  label(train, null);
  assert.equal(labels(train)[0], "rank");
});

test("a plan says the value itself, and what you set stands as it is", async () => {
  const { label } = await import("../../js/comfyui_plans.js");
  const train = node("LoraLoomTrainLora", { rank: 0, steps: 500, sample_every: 0, learning_rate: 0 });
  label(train, null);
  label(train, { rows: [
    { path: "adapter.rank", value: 16, source: "preset" }, { path: "steps", value: 500, source: "you" },
    { path: "samples.every", value: 0, source: "you" }, { path: "optimizer.lr", value: 0.0001, source: "preset" },
  ] });
  assert.deepEqual(labels(train), ["rank (16)", "steps", "sample_every (off)", "learning_rate (1e-4)"]);
});

test("a node without such widgets is left alone", async () => {
  const { label } = await import("../../js/comfyui_plans.js");
  const other = node("KSampler", { seed: 0, cfg: 0 });
  label(other, null);
  assert.deepEqual([labels(other), other.drawn.times], [["seed", "cfg"], 0]);
});
