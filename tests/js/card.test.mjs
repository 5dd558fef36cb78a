// The card of a result and the viewer of samples: what they show, and what their buttons and keys ask for.
import assert from "node:assert/strict";
import test from "node:test";
import { fakeHost, openPage } from "./page.mjs";
import { RequestError } from "../../js/api.js";
import { RunCard, bestStep, leftBehind, longer, strengthOf } from "../../js/run_card.js";
import { Viewer, inside, nearest } from "../../js/viewer.js";

openPage();
const RESULT = { files: ["cat.safetensors"], sizes: { "cat.safetensors": 2_500_000 }, lora: true, comfyui: "zog" };
const STATE = {
  node: "3", kind: "", workflow: "w", session: "s", changes: 1, run: "cat", status: "finished", doing: null, step: 9,
  steps: 9, speed: null, left_s: null, memory: null, error: null, inputs: {}, probes: [], saves: [], messages: [],
  samples: [[0, 1], [9, 2]], result: RESULT, can_continue: false, live: true,
};
const actions = (done) => Object.fromEntries(["useHere", "trainLonger", "exportHere"].map((name) => [
  name, async (state, steps) => { done.push([name, state.run, steps]); },
]));
const buttonsOf = (element) => [
  ...(element.tagName === "BUTTON" ? [element] : []), ...(element.children ?? []).flatMap(buttonsOf),
];
const press = async (card, text) => {
  const button = buttonsOf(card.root).find((one) => one.textContent === text);
  for (const listener of button.listeners.click) await listener();
};
const settled = () => new Promise((done) => setImmediate(done));

test("the card stays when a run has ended and is not there while it goes on", () => {
  const card = new RunCard(fakeHost(), {});
  card.show(STATE, true);
  assert.deepEqual([card.root.hidden, card.heightPx()], [true, 0]);
  card.show(STATE, false);
  assert.ok(!card.root.hidden && card.heightPx() > 0);
  assert.ok(card.root.textContent.includes("cat.safetensors · 2.5 MB"));
  assert.ok(card.root.textContent.includes("zog"));
  card.show({ ...STATE, session: "next", result: {} }, true);
  assert.ok(card.root.hidden);
});

test("the strength that was measured is the one to start from, else the one it was trained at", () => {
  assert.deepEqual([{ ...RESULT, strength: 0.8 }, RESULT].map(strengthOf), ["0.8", "1.0"]);
});

test("each button does what it says with this run", async () => {
  const done = [], card = new RunCard(fakeHost(), actions(done));
  card.show(STATE, false);
  for (const text of ["card.use", "card.longer", "card.export"]) await press(card, text);
  assert.deepEqual(done, [["useHere", "cat", undefined], ["trainLonger", "cat", 14], ["exportHere", "cat", undefined]]);
});

test("a button that fails says why, and can be pressed again", async () => {
  const host = fakeHost(), card = new RunCard(host, { useHere: async () => { throw new Error("no model"); } });
  card.show(STATE, false);
  await press(card, "card.use");
  assert.deepEqual(host.toasts, [["warn", "panel.refused"]]);
  assert.equal(buttonsOf(card.root)[1].disabled, false);
});

test("a folder that the server cannot show is copied as a path", async () => {
  const host = fakeHost({
    "/lora_loom/runs/open": new RequestError("it is on the server", 403),
    "/lora_loom/runs": { runs: [], place: "output/lora_loom" },
  });
  const card = new RunCard(host, {}), copied = [];
  card.copy = async (text) => { copied.push(text); };
  card.show(STATE, false);
  await press(card, "card.folder");
  assert.deepEqual(copied, ["output/lora_loom/cat"]);
});

test("what a failed run left is listed only when that is asked for", async () => {
  const failed = { ...STATE, status: "failed", result: {}, messages: [{ code: "run.result_stays", text: "it stays" }] };
  assert.ok(leftBehind(failed) && !leftBehind({ ...failed, messages: [] }) && !leftBehind(STATE));
  const host = fakeHost({ "/lora_loom/runs/export": { files: ["models/loras/cat.safetensors"] } });
  const card = new RunCard(host, {});
  card.show(failed, false);
  assert.deepEqual(host.posted, []);
  assert.ok(card.root.textContent.includes("it stays"));
  await press(card, "card.keep");
  assert.deepEqual(host.posted, [["/lora_loom/runs/export", { id: "cat", save: "result" }]]);
  assert.ok(card.root.hidden);
  assert.equal(host.refreshed, 1);
});

test("the best step is that of the lowest loss on held-out pictures", () => {
  assert.equal(bestStep([]), null);
  assert.equal(bestStep([[2, 0.5, 0.1], [4, 0.3, 0.1], [6, null, 0.1], [8, 0.4, 0.1]]), 4);
  assert.deepEqual([longer(100), longer(1), longer(0)], [150, 2, 1]);
});

const SAMPLES = {
  run: "cat", samples: [[0, 1], [10, 2], [20, 3]], pictures: 2,
  prompts: [{ prompt: "a zog", seed: 7, cfg: 4 }, { prompt: "a dog", seed: 8, cfg: 4 }],
};
const sources = (element) => [
  ...(element.tagName === "IMG" ? [element.src] : []), ...(element.children ?? []).flatMap(sources),
];
const shown = (viewer) => sources(viewer.stage).map((src) => {
  const query = new URL(src).searchParams;
  return [query.get("run"), Number(query.get("step")), Number(query.get("picture"))];
});
const key = (viewer, name, others = {}) =>
  viewer.key({ key: name, stopPropagation() {}, preventDefault() {}, ...others });

test("arrows walk through steps and prompts and stop at the ends", () => {
  const viewer = new Viewer(fakeHost(), SAMPLES);
  viewer.draw();
  assert.deepEqual(shown(viewer), [["cat", 20, 0]]);
  key(viewer, "ArrowRight");
  assert.deepEqual(shown(viewer), [["cat", 20, 0]]);
  key(viewer, "ArrowLeft");
  key(viewer, "ArrowDown");
  assert.deepEqual(shown(viewer), [["cat", 10, 1]]);
  for (let n = 0; n < 5; n += 1) { key(viewer, "ArrowLeft"); key(viewer, "ArrowUp"); }
  assert.deepEqual(shown(viewer), [["cat", 0, 0]]);
});

test("a wipe lies over the picture without the LoRA, and A and B stand side by side", () => {
  const viewer = new Viewer(fakeHost(), SAMPLES);
  key(viewer, "w");
  assert.deepEqual(shown(viewer), [["cat", 20, 0], ["cat", 0, 0]]);
  assert.equal(viewer.stage.querySelector(".over").style.clipPath, "inset(0 50% 0 0)");
  key(viewer, "b");
  assert.deepEqual(shown(viewer), [["cat", 0, 0], ["cat", 20, 0]]);
  key(viewer, "ArrowRight", { shiftKey: true });
  assert.deepEqual(shown(viewer), [["cat", 10, 0], ["cat", 20, 0]]);
  key(viewer, "b");
  assert.deepEqual(shown(viewer), [["cat", 20, 0]]);
});

test("another run stands beside this one at the nearest step", async () => {
  const other = { ...SAMPLES, run: "dog", samples: [[0, 1], [7, 2], [19, 3], [40, 4]] };
  const host = fakeHost({ "/lora_loom/panel/samples": other }), viewer = new Viewer(host, SAMPLES);
  key(viewer, "b");
  await viewer.chooseRun("dog");
  assert.deepEqual(shown(viewer), [["dog", 19, 0], ["cat", 20, 0]]);
  const labels = viewer.stage.children.map((half) => half.querySelector(".label").textContent);
  assert.deepEqual(labels, ["dog · panel.sample_of", "cat · panel.sample_of"]);
  assert.deepEqual(viewer.prompts.children.map((row) => row.textContent), ["a zogviewer.seed", "a dogviewer.seed"]);
  const changed = { ...other, prompts: [{ ...other.prompts[0], prompt: "a cow" }, other.prompts[1]] };
  const differing = new Viewer(fakeHost({ "/lora_loom/panel/samples": changed }), SAMPLES);
  key(differing, "b");
  await differing.chooseRun("dog");
  assert.equal(differing.prompts.children[0].textContent, "a zogviewer.seeddog: a cow · viewer.seed");
});

test("Escape closes the viewer, and its keys reach nothing below it", async () => {
  const viewer = new Viewer(fakeHost({ "/lora_loom/runs": { runs: [] } }), SAMPLES);
  let stopped = 0;
  viewer.draw();
  key(viewer, "Escape", { stopPropagation: () => { stopped += 1; } });
  await settled();
  assert.deepEqual([viewer.root.removed, stopped], [true, 1]);
});

test("what was under the viewer has the keys again when it is closed", async () => {
  const viewer = new Viewer(fakeHost({ "/lora_loom/runs": { runs: [] } }), SAMPLES);
  const below = document.createElement("div");
  let focused = 0;
  below.focus = () => { focused += 1; };
  document.activeElement = below;
  await viewer.open();
  viewer.close();
  assert.equal(focused, 1);
});

test("prompt and seed of every picture are told", () => {
  const viewer = new Viewer(fakeHost(), SAMPLES);
  viewer.draw();
  assert.deepEqual(viewer.prompts.children.map((row) => row.textContent), ["a zogviewer.seed", "a dogviewer.seed"]);
});

test("a place in a list stays inside of it", () => {
  assert.deepEqual([inside(-1, 3), inside(1, 3), inside(9, 3)], [0, 1, 2]);
  assert.deepEqual([nearest([[0, 1], [10, 1]], 4), nearest([[0, 1], [10, 1]], 6)], [0, 1]);
});
