// Takes the pictures of the help pages and the README on a real page: node help_pictures.mjs <address> <folder> [picture…]
// Trains the toy twice for it. Prints one line of JSON with what it could not take.
import fs from "node:fs";
import path from "node:path";
import { opened } from "../host/browser/comfy.mjs";

const [address, out, ...wanted] = process.argv.slice(2);
const { page, end } = await opened(address, out, "nodes2", "help");
const tall = (height) => page.setViewportSize({ width: 1500, height });
await tall(1180);
const seen = { failed: {} };
const file = (name) => path.join(out, name);
const LOADER = { type: "LoraLoomLoadToyModel", at: [0, 0] };
const FOLDER = { type: "LoraLoomLoadFolder", at: [0, 300], values: { folder: "toy: mascot" } };
const BASE = [["model", "model"], ["clip", "clip"], ["vae", "vae"]];
const FIRST = { name: "loomy", steps: 400, rank: 16, targets: "conv", batch_size: 4, learning_rate: 0.002, sample_every: 80, save_every: 100, sample_cfg: 4,
  sample_prompt: "a TOK emoji wearing a crown\na dog face" };

/** Puts these nodes on an empty graph: name -> {type, at, values, size}; wires: [from, output, to, input]. */
const graph = (nodes, wires) => page.evaluate(async ([all, lines]) => {
  const app = window.app, made = {};
  app.graph.clear();
  app.graph.state.lastNodeId = window.loomIds ??= 100; // the page keeps what widgets of a number were called and held
  window.loomIds += 100;
  for (const [name, { type, at, values, size }] of Object.entries(all)) {
    const node = window.LiteGraph.createNode(type);
    node.pos = at;
    app.graph.add(node);
    if (size) node.setSize(size);
    for (const [widget, value] of Object.entries(values ?? {})) {
      const one = node.widgets.find((w) => w.name === widget);
      one.value = value;
      one.callback?.(value, app.canvas, node);
    }
    made[name] = node;
  }
  for (const [from, output, to, input] of lines) made[from].connect(made[from].findOutputSlot(output), made[to], made[to].inputs.findIndex((i) => i.name === input));
  window.loomNodes = made;
  await new Promise((done) => setTimeout(done, 800));
}, [nodes, wires]);

const look = (name, left = 420, top = 90, scale = 1) => page.evaluate(async ([of, x, y, s]) => {
  const node = window.loomNodes[of], view = window.app.canvas.ds;
  view.scale = s;
  view.offset = [-node.pos[0] + x / s, -node.pos[1] + y / s];
  window.app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 800));
}, [name, left, top, scale]);

const run = async (seconds = 900) => { // and wait until the queue is empty
  const waiting = () => page.evaluate(async () => {
    const queue = await (await fetch("/queue")).json();
    return queue.queue_running.length + queue.queue_pending.length;
  });
  await page.evaluate(() => window.app.queuePrompt(0, 1));
  const end = Date.now() + seconds * 1000;
  do await page.waitForTimeout(2000); while (await waiting() && Date.now() < end);
  await page.waitForTimeout(2500);
};
const panel = (body, seconds) => page.waitForFunction((text) => {
  const p = window.loomNodes.train?.loomPanel;
  return p && new Function("p", `return ${text}`)(p);
}, body, { timeout: seconds * 1000, polling: 200 });
const node = async (name) => page.locator(`[data-node-id="${await page.evaluate((of) => window.loomNodes[of].id, name)}"]`).first();
const nodeShot = async (name, picture) => { await look(name); await (await node(name)).screenshot({ path: file(picture) }); };
const pictures = (selector) => page.waitForFunction((s) => {
  const images = [...document.querySelectorAll(s)];
  return images.length > 0 && images.every((i) => i.complete && i.naturalWidth > 0);
}, selector, { timeout: 60000 });
const training = (values, settings = {}) => [
  { model: LOADER, folder: FOLDER, train: { type: "LoraLoomTrainLora", at: [900, 0], values: { ...FIRST, ...values } }, word: { type: "LoraLoomPivotalSettings", at: [420, 0], values: { tokens: "TOK*2", lr: 0.01, stop: 1 } },
    check: { type: "LoraLoomValidationSettings", at: [420, 300], values: { share: 0.2, every: 25, ...settings } } },
  [...BASE.map(([from, to]) => ["model", from, "train", to]), ["folder", "dataset", "train", "dataset"], ["word", "settings", "check", "settings"], ["check", "settings", "train", "settings"]],
];
const shotOf = async (selector, picture) => page.locator(selector).first().screenshot({ path: file(picture) });

/** All nodes of the graph as they stand, without what the page has around them. */
const whole = async (picture) => {
  const box = await page.evaluate(async () => {
    const canvas = window.app.canvas, room = canvas.canvas.getBoundingClientRect();
    const boxes = window.app.graph._nodes.map((n) => [n.pos[0], n.pos[1] - 40, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
    const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((b) => b[i])));
    const [right, bottom] = [2, 3].map((i) => Math.max(...boxes.map((b) => b[i])));
    const scale = Math.min((room.width - 120) / (right - left), (room.height - 200) / (bottom - top), 1);
    canvas.ds.scale = scale;
    canvas.ds.offset = [-left + 90 / scale, -top + 110 / scale];
    canvas.setDirty(true, true);
    await new Promise((done) => setTimeout(done, 1500));
    return { x: room.left + 78, y: room.top + 98, width: (right - left) * scale + 24, height: (bottom - top) * scale + 24 };
  });
  await page.screenshot({ path: file(picture), clip: box });
};

const steps = {
  async training() { // train-panel, result-card, viewer
    await graph(...training({}));
    await page.evaluate(() => window.app.queuePrompt(0, 1));
    await panel("p.state?.step >= 255 && p.state.samples.length >= 5", 900);
    await look("train", 420, -250);
    await panel("p.samples.newest.complete && p.samples.newest.naturalWidth > 0", 60);
    await whole("graph.png");
    await look("train", 420, -250);
    await shotOf(".loom-panel", "train-panel.png");
    await panel("p.state?.status === 'finished' && p.state.result?.files", 600);
    await page.waitForTimeout(2500);
    await look("train", 420, -250);
    await shotOf(".loom-panel", "result-card.png");
    await page.locator(".loom-panel .newest").click();
    await pictures(".loom-viewer .stage img");
    await page.keyboard.press("w");
    await page.waitForTimeout(800);
    await pictures(".loom-viewer .stage img");
    await page.screenshot({ path: file("viewer.png") });
    await page.keyboard.press("Escape");
  },
  async runs() { // a second run, to compare with
    await graph(...training({ name: "loomy_rank_4", rank: 4, targets: "attention" }));
    await run();
  },
  async compare() { // compare-runs
    await page.addStyleTag({ content: ".p-toast { display: none }" });
    await tall(760);
    await page.locator("[aria-label*='LoRA Loom']").first().click();
    await page.waitForSelector(".loom-runs .card");
    await pictures(".loom-runs .card > img");
    for (const box of await page.locator(".loom-runs .card input[type=checkbox]").all()) await box.check();
    await page.locator(".loom-runs .tools button", { hasText: "Compare" }).click();
    await pictures(".loom-compare .samples img");
    await page.waitForTimeout(1000);
    await page.screenshot({ path: file("compare-runs.png") });
    await page.keyboard.press("Escape");
    await page.locator("[aria-label*='LoRA Loom']").first().click();
    await tall(1180);
  },
  async dataset() { // load-folder, check-dataset, dataset-editor
    await tall(1900);
    await graph({ folder: { ...FOLDER, at: [0, 0], values: { folder: "toy: mascot" }, size: [390, 700] }, face: { ...FOLDER, at: [-900, 0], values: { folder: "koala" } },
      check: { type: "LoraLoomCheckDataset", at: [500, 0], values: { resolution: 128 }, size: [560, 620] },
      editor: { type: "LoraLoomDatasetEditor", at: [1200, 0], size: [640, 720] } }, [["face", "dataset", "check", "dataset"], ["face", "dataset", "editor", "dataset"]]);
    await run();
    await nodeShot("folder", "load-folder.png");
    await nodeShot("check", "check-dataset.png");
    await look("editor");
    await page.waitForTimeout(2500);
    await nodeShot("editor", "dataset-editor.png");
    await tall(1180);
  },
  async probes() { // check-training, find-learning-rate
    const wires = (to) => [...BASE.map(([from, input]) => ["model", from, to, input]), ["folder", "dataset", to, "dataset"]];
    await graph({ model: LOADER, folder: FOLDER, check: { type: "LoraLoomCheck", at: [500, 0], values: { steps: 300, batch_size: 4, rank: 16, targets: "conv" }, size: [430, 560] },
      rate: { type: "LoraLoomFindLearningRate", at: [1050, 0], values: { rank: 16, targets: "conv", batch_size: 4 }, size: [540, 700] },
      plot: { type: "PreviewImage", at: [1700, 0] } }, [...wires("check"), ...wires("rate"), ["rate", "plot", "plot", "images"]]);
    await run();
    await nodeShot("check", "check-training.png");
    await nodeShot("rate", "find-learning-rate.png");
  },
  async files() { // inspect, convert-lora
    const made = "loomy.safetensors";
    await graph({ inspect: { type: "LoraLoomInspect", at: [0, 0], size: [570, 560] }, convert: { type: "LoraLoomConvertLora", at: [700, 0], values: { form: "diffusers", name: "loomy_diffusers" }, size: [575, 560] } }, []);
    await page.evaluate((name) => {
      for (const one of Object.values(window.loomNodes)) {
        const widget = one.widgets.find((w) => w.name === "file"), values = widget.options.values;
        widget.value = (typeof values === "function" ? values() : values).find((value) => value.endsWith(name));
      }
    }, made);
    await run();
    await nodeShot("inspect", "inspect.png");
    await nodeShot("convert", "convert-lora.png");
  },
  async saves() { // run-checkpoints: the pictures that each save draws; compare-checkpoints: the sheet of all
    const template = JSON.parse(fs.readFileSync(path.join(import.meta.dirname, "../../example_workflows/24 Which save is best (toy).json")));
    await page.evaluate(async (workflow) => {
      await window.app.loadGraphData(workflow);
      const nodes = window.app.graph._nodes, of = (type) => nodes.filter((n) => n.type === type);
      for (const node of [...of("LoraLoomRunCheckpoints"), ...of("LoraLoomCompareCheckpoints")]) {
        const widget = node.widgets.find((w) => w.name === "run");
        const values = typeof widget.options.values === "function" ? widget.options.values() : widget.options.values;
        widget.value = values.find((value) => String(value).startsWith("loomy") && !String(value).includes("rank")) ?? widget.value;
      }
      for (const node of of("CLIPTextEncode")) if (node.widgets[0].value) node.widgets[0].value = "a TOK emoji wearing a crown";
      window.loomNodes = { saves: of("LoraLoomRunCheckpoints")[0] };
    }, template);
    await run();
    await page.keyboard.press("Escape");
    await look("saves", 80, 200, 0.72);
    await page.screenshot({ path: file("run-checkpoints.png"), clip: { x: 60, y: 150, width: 1380, height: 430 } });
    const sheet = await page.evaluate(async () => {
      const history = Object.values(await (await fetch("/history?max_items=20")).json());
      const shown = history.flatMap(({ outputs }) => Object.values(outputs).flatMap((o) => o.images ?? []));
      return shown.filter(({ filename }) => filename.includes("compared")).at(-1);
    });
    const response = await page.request.get(`${address}/view?${new URLSearchParams(sheet)}`);
    fs.writeFileSync(file("compare-checkpoints.png"), await response.body());
  },
};

for (const [name, step] of Object.entries(steps)) {
  if (wanted.length && !wanted.includes(name)) continue;
  try {
    await step();
  } catch (error) {
    seen.failed[name] = String(error.stack ?? error);
    await page.screenshot({ path: file(`${name}-failed.png`) }).catch(() => {});
  }
}
await end(seen);
