// A run with samples on a real page, and what can be done with its result: node result.mjs <address> <folder for screenshots> <classic|nodes2> <run|failed>
// Prints one line of JSON with what it saw.
import fs from "node:fs";
import path from "node:path";
import { opened } from "./comfy.mjs";

const [address, shots, renderer, scenario] = process.argv.slice(2);
const seen = {};
const { page, shot, end } = await opened(address, shots, renderer, "result");
const template = JSON.parse(fs.readFileSync(path.join(import.meta.dirname, "../../../example_workflows/21 Train the toy, then try it.json")));
template.nodes = template.nodes.filter((n) => n.id <= 3 && n.id >= 1); // model, folder, training
template.links = template.links.filter((l) => l[1] <= 3 && l[3] <= 3);
for (const node of template.nodes) for (const output of node.outputs ?? []) output.links = (output.links ?? []).filter((id) => template.links.some((l) => l[0] === id));

const panel = (body, value) => page.evaluate(([text, given]) => new Function("p", "value", `return ${text}`)(
  window.app.graph._nodes.find((n) => n.loomPanel).loomPanel, given), [body, value]);
const until = (body, seconds = 180) => page.waitForFunction((text) => {
  const p = window.app.graph._nodes.find((n) => n.loomPanel)?.loomPanel;
  return p && new Function("p", `return ${text}`)(p);
}, body, { timeout: seconds * 1000, polling: 100 });

async function load(values) {
  await page.evaluate(async (workflow) => { await window.app.loadGraphData(workflow); }, template);
  await page.waitForTimeout(1000);
  await page.evaluate((all) => {
    const node = window.app.graph._nodes.find((n) => n.loomPanel);
    for (const [name, value] of Object.entries(all)) node.widgets.find((w) => w.name === name).value = value;
  }, values);
}

const look = () => page.evaluate(async () => {
  const node = window.app.graph._nodes.find((n) => n.loomPanel), view = window.app.canvas.ds;
  view.scale = 1;
  view.offset = [-node.pos[0] + 500, -node.pos[1] + 100];
  window.app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 500));
  const box = node.loomPanel.root.getBoundingClientRect();
  view.offset[1] -= Math.max(0, box.bottom - 980);
  window.app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 500));
});
const viewer = () => page.evaluate(() => {
  const root = document.querySelector(".loom-viewer");
  return root && { pictures: [...root.querySelectorAll(".stage img")].map((i) => new URL(i.src).search), prompts: [...root.querySelectorAll(".prompts button")].map((b) => b.textContent),
    loaded: [...root.querySelectorAll(".stage img")].every((i) => i.complete && i.naturalWidth > 0) };
});
const loaded = () => page.waitForFunction(() => { // the viewer asks the server for its pictures first
  const images = [...document.querySelectorAll(".loom-viewer .stage img")];
  return images.length > 0 && images.every((i) => i.complete && i.naturalWidth > 0);
});

/** Whether the loaders of the page offer a LoRA of this name. */
const offered = (name) => page.evaluate(async (wanted) => {
  await window.app.refreshComboInNodes?.();
  const values = window.LiteGraph.createNode("LoraLoader").widgets[0].options.values;
  const listed = (typeof values === "function" ? values() : values).some((one) => one.includes(wanted));
  const { LoraLoader } = await (await fetch("/object_info/LoraLoader")).json();
  return [listed, JSON.stringify(LoraLoader.input.required.lora_name).includes(wanted)];
}, name);

const scenarios = {
  async failed() { // a run whose numbers run away: what it leaves is listed only when that is asked for
    const name = `failed_${renderer}`;
    await load({ name, steps: 60, sample_every: 0, save_every: 2, batch_size: 1, learning_rate: 10 });
    await page.evaluate(() => window.app.queuePrompt(0, 1));
    await until("p.state?.status === 'failed' && p.error.textContent && document.querySelector('.loom-card.bad:not([hidden])')");
    await page.waitForTimeout(1500);
    await look();
    seen.card = await page.locator(".loom-card.bad").innerText();
    seen.error = await panel("p.error.textContent");
    seen.before = await offered(name);
    await shot("failed");
    await page.evaluate(() => [...document.querySelectorAll(".loom-card button")].find((b) => b.textContent === "Keep anyway").click());
    await page.waitForFunction(() => document.querySelector(".loom-card").hidden, null, { timeout: 60000 });
    await page.waitForTimeout(1500);
    seen.after = await offered(name);
    await page.reload({ waitUntil: "domcontentloaded" });
    await page.waitForFunction(() => window.app?.graph?._nodes?.some((n) => n.loomPanel), null, { timeout: 120000 });
    await until("p.state?.status === 'failed' && p.error.textContent", 60);
    await page.waitForTimeout(1000);
    seen.reloaded = await page.locator(".loom-card.bad").isVisible();
    await shot("kept");
    await look();
    const colours = async (name) => {
      await page.evaluate((palette) => window.app.extensionManager.setting.set("Comfy.ColorPalette", palette), name);
      await page.waitForTimeout(2000);
      const told = await page.evaluate(() => [...document.querySelectorAll(".loom-ends span")].map((one) => one.style.color));
      return [await panel("p.chart.palette.smooth"), told.length];
    };
    seen.light = await colours("light"); // drawn anew at once, although the run has long ended
    await shot("light");
    seen.dark = await colours("dark");
  },

  async run() {
    const name = `result_${renderer}`;
    await load({ name, steps: 12, sample_every: 4, save_every: 4, batch_size: 1, targets: "cross-attention", learning_rate: 0.001, sample_prompt: "a zog on a white ground\na red circle on a white ground" });
    seen.doing = [];
    await page.exposeFunction("loomDoing", (text) => { if (text && seen.doing.at(-1) !== text) seen.doing.push(text); });
    await page.evaluate(() => {
      const { loomPanel: p } = window.app.graph._nodes.find((n) => n.loomPanel);
      new MutationObserver(() => window.loomDoing(p.doing.textContent)).observe(p.doing, { childList: true, characterData: true, subtree: true });
    });
    await page.evaluate(() => window.app.queuePrompt(0, 1));
    await until("p.state?.samples.length >= 2 && p.samples.newest.complete && p.samples.newest.naturalWidth > 0");
    await look();
    await shot("training");
    await until("p.state?.result?.files && p.state.status === 'finished'");
    await page.waitForTimeout(1500);
    await look();
    await shot("card");
    seen.card = await page.locator(".loom-card").innerText();
    seen.heights = await page.evaluate(() => {
      const { loomPanel: p } = window.app.graph._nodes.find((n) => n.loomPanel);
      return [p.samples.root.clientHeight, p.root.clientHeight, p.samples.newest.clientHeight, document.querySelector(".loom-card").clientHeight];
    });
    await page.locator(".loom-panel .newest").click(); // the viewer
    await loaded();
    seen.opened = await viewer();
    await shot("viewer");
    await page.keyboard.press("ArrowLeft");
    await page.keyboard.press("ArrowDown");
    seen.walked = await viewer();
    await page.keyboard.press("w");
    await loaded();
    seen.wipe = await viewer();
    await shot("wipe");
    await page.keyboard.press("b");
    await page.keyboard.press("+");
    await loaded();
    seen.beside = await viewer();
    await shot("beside");
    await page.keyboard.press("Escape");
    seen.closed = await viewer();
    await page.locator(".loom-card button", { hasText: "Use it here" }).click();
    await page.waitForFunction(() => window.app.graph._nodes.some((n) => n.type === "PreviewImage" && window.app.nodeOutputs?.[n.id]?.images?.length), null, { timeout: 120000 });
    await page.waitForTimeout(1500);
    seen.used = await page.evaluate(() => {
      const nodes = window.app.graph._nodes, of = (kind) => nodes.find((n) => n.type === kind);
      const lora = of("LoraLoader");
      return { lora: lora.widgets.find((w) => w.name === "lora_name").value, model: lora.getInputNode(0)?.comfyClass, text: of("CLIPTextEncode").widgets[0].value,
        wired: ["KSampler", "VAEDecode", "PreviewImage"].every((kind) => of(kind).inputs.filter((i) => !i.widget).every((i) => i.link != null)) };
    });
    seen.steps_after_use = await panel("p.state.step"); // nothing was trained for it
    await shot("used");
    await page.evaluate(() => [...document.querySelectorAll(".loom-card button")].find((b) => b.textContent === "Train longer").click());
    await until("p.state.steps === 18 && p.state.status === 'finished'");
    seen.longer = await panel("[p.state.run, p.state.step, p.rows.at(-1)[1]]");
    await page.evaluate(async () => { // a program's run, without a workflow, under the id of this node
      const { output } = await window.app.graphToPrompt();
      for (const [id, node] of Object.entries(output)) if (!["LoraLoomTrainLora", "LoraLoomLoadFolder", "LoraLoomLoadToyModel"].includes(node.class_type)) delete output[id];
      const node = Object.values(output).find((one) => one.class_type === "LoraLoomTrainLora");
      Object.assign(node.inputs, { name: `program_${Date.now()}`, steps: 2, resume: "new run", sample_every: 0 });
      await fetch("/prompt", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ prompt: output }) });
      for (;;) {
        await new Promise((done) => setTimeout(done, 500));
        const queue = await (await fetch("/queue")).json();
        if (!queue.queue_running.length && !queue.queue_pending.length) break;
      }
    });
    await page.waitForTimeout(1500);
    seen.after_program = await panel("p.state.run");
    await page.evaluate(async (workflow) => { await window.app.loadGraphData(workflow); }, template); // a fresh graph with the same ids
    await page.waitForTimeout(2000);
    seen.fresh = await panel("p.state?.run ?? null");
  },
};

try {
  await scenarios[scenario]();
} catch (error) {
  seen.failed = String(error.stack ?? error);
  await shot(`${scenario}-failed`).catch(() => {});
}
await end(seen);
