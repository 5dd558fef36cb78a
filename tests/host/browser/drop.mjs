// Drops real files on a real page: node drop.mjs <address> <folder for screenshots> <classic|nodes2> <scenario> <folder of files>
// Scenarios: empty, node, again, cancel, left, paste. Prints one line of JSON.
import fs from "node:fs";
import path from "node:path";
import { opened } from "./comfy.mjs";

const [address, shots, renderer, scenario, folder] = process.argv.slice(2);
const seen = { clicks: 0, typed: 0 };
const { page, cdp, shot, end } = await opened(address, shots, renderer, "drop");
const sent = [];
page.on("request", (request) => request.url().includes("/lora_loom/upload/part") && sent.push(Number(request.headers()["content-length"] ?? 0)));

/** A drop as the system makes it: real files and folders of the disk, at a place of the page. */
async function drop(files, x = 800, y = 500) {
  const data = { items: [], files, dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) await cdp.send("Input.dispatchDragEvent", { type, x, y, data });
}

const node = (kind) => page.evaluate((wanted) => {
  const one = window.app.graph._nodes.find((n) => n.comfyClass === wanted);
  return one && { id: one.id, folder: one.widgets?.find((w) => w.name === "folder")?.value, name: one.widgets?.find((w) => w.name === "name")?.value,
    pos: [...one.pos], selected: Boolean(one.selected ?? one.is_selected), inputs: Object.fromEntries((one.inputs ?? []).map((i) => [i.name, i.link != null])) };
}, kind);
const card = (state, seconds = 60) => page.waitForSelector(`.loom-upload.${state}`, { timeout: seconds * 1000 });
const cardText = () => page.locator(".loom-upload").last().innerText();
const type = async (kind, widget, text) => { // a person's way to a widget is the renderer's own; what counts is that a value was typed
  seen.typed += 1;
  await page.evaluate(([wanted, name, value]) => {
    const found = window.app.graph._nodes.find((n) => n.comfyClass === wanted).widgets.find((w) => w.name === name);
    found.value = value;
    found.callback?.(value);
  }, [kind, widget, text]);
};
const run = async () => { seen.clicks += 1; await page.evaluate(() => window.app.queuePrompt(0, 1)); };
const files = () => fs.readdirSync(folder).map((name) => path.join(folder, name));

const scenarios = {
  async empty() { // files on an empty canvas, to a LoRA
    await drop(files());
    await card("done");
    await page.waitForFunction(() => window.app.graph._nodes.some((n) => n.loomReport?.textContent), null, { timeout: 60000 });
    await page.waitForTimeout(1500);
    seen.card = await cardText();
    seen.report = await page.evaluate(() => window.app.graph._nodes.find((n) => n.loomReport).loomReport.textContent);
    Object.assign(seen, { loader: await node("LoraLoomLoadFolder"), train: await node("LoraLoomTrainLora") });
    await shot("empty");
    await run(); // without a trigger
    await page.waitForFunction(() => window.app.graph._nodes.find((n) => n.loomPanel)?.loomPanel.error.textContent, null, { timeout: 60000 });
    await page.waitForTimeout(800);
    seen.refused = await page.evaluate(() => window.app.graph._nodes.find((n) => n.loomPanel).loomPanel.error.textContent);
    await shot("refused");
    seen.clicks = 0;
    await type("LoraLoomLoadFolder", "trigger", "zog");
    await page.evaluate(() => { // only to be quick: nobody has to set it
      const train = window.app.graph._nodes.find((n) => n.loomPanel);
      for (const [name, value] of Object.entries({ steps: 3, sample_every: 0, targets: "cross-attention" })) train.widgets.find((w) => w.name === name).value = value;
    });
    await run();
    await page.waitForFunction(() => window.app.graph._nodes.find((n) => n.loomPanel)?.loomPanel.state?.result?.files, null, { timeout: 180000 });
    seen.files = await page.evaluate(() => window.app.graph._nodes.find((n) => n.loomPanel).loomPanel.state.result.files);
    await shot("trained");
  },

  async node() { // a folder on a node that is there
    await page.evaluate(() => {
      const one = window.LiteGraph.createNode("LoraLoomLoadFolder");
      one.pos = [300, 200];
      window.app.graph.add(one);
      Object.assign(window.app.canvas.ds, { scale: 1, offset: [0, 0] });
      window.app.canvas.setDirty(true, true);
    });
    await page.waitForTimeout(800);
    const canvas = await page.evaluate(() => { const { x, y } = window.app.canvas.canvas.getBoundingClientRect(); return [x, y]; });
    await drop([folder], canvas[0] + 400, canvas[1] + 215);
    await card("done");
    await page.waitForFunction(() => window.app.graph._nodes.some((n) => n.loomReport?.textContent), null, { timeout: 60000 });
    seen.nodes = await page.evaluate(() => window.app.graph._nodes.filter((n) => n.comfyClass === "LoraLoomLoadFolder").length);
    seen.loader = await node("LoraLoomLoadFolder");
    seen.saved = await page.evaluate(() => window.app.graph.serialize().nodes.find((n) => n.type === "LoraLoomLoadFolder").widgets_values);
    seen.button = await page.evaluate(() => window.app.graph._nodes[0].widgets.find((w) => w.name === "loom_add_pictures")?.label);
    await shot("node");
    await page.evaluate(() => window.app.graph._nodes[0].widgets.find((w) => w.name === "loom_add_pictures").callback());
    await page.locator(".loom-upload input").fill("/etc");
    await page.locator(".loom-upload button", { hasText: "Use" }).click();
    await page.waitForFunction(() => [...document.querySelectorAll(".loom-upload .fact")].at(-1).textContent.includes("/etc"));
    seen.typed_path = await cardText();
    await shot("ask");
  },

  async again() { // the same folder twice: nothing is sent the second time
    await drop([folder]);
    await card("done");
    seen.first = sent.length;
    await page.waitForTimeout(500);
    await drop([folder]);
    await page.waitForFunction(() => document.querySelectorAll(".loom-upload.done").length === 2, null, { timeout: 60000 });
    seen.second = sent.length - seen.first;
    seen.card = await cardText();
  },

  async cancel() {
    await page.route("**/lora_loom/upload/part*", async (route) => { await new Promise((done) => setTimeout(done, 1500)); await route.continue().catch(() => {}); });
    await drop([folder]);
    await page.waitForSelector(".loom-upload button:has-text('Cancel')");
    await page.waitForFunction(() => document.querySelector(".loom-upload .fact").textContent.includes("of"));
    await shot("sending");
    await page.locator(".loom-upload button", { hasText: "Cancel" }).click();
    await card("bad");
    await page.waitForTimeout(2500);
    seen.card = await cardText();
    seen.nodes = await page.evaluate(() => window.app.graph._nodes.length);
  },

  async paste() { // pictures of the clipboard on an empty graph; what is pasted into a text field stays there
    const pictures = files().filter((file) => file.endsWith(".jpg")).slice(0, 6);
    const data = pictures.map((file) => [path.basename(file), fs.readFileSync(file).toString("base64")]);
    const paste = (wanted, given) => page.evaluate(([selector, all]) => {
      const transfer = new DataTransfer();
      for (const [name, text] of all) {
        transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, { type: "image/jpeg" }));
      }
      const event = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
      (document.querySelector(selector) ?? document.body).dispatchEvent(event);
      return event.defaultPrevented;
    }, [wanted, given]);
    await page.evaluate(() => document.body.append(Object.assign(document.createElement("textarea"), { id: "a_text" })));
    seen.in_text = await paste("#a_text", data);
    seen.cards_before = await page.locator(".loom-upload").count();
    seen.taken = await paste("canvas", data);
    await card("done");
    await page.waitForFunction(() => window.app.graph._nodes.some((n) => n.loomReport?.textContent), null, { timeout: 60000 });
    seen.card = await cardText();
    Object.assign(seen, { loader: await node("LoraLoomLoadFolder"), train: await node("LoraLoomTrainLora") });
    await shot("pasted");
  },

  async left() { // what the page opens itself stays the page's
    await drop(files().slice(0, 1));
    await page.waitForFunction(() => window.app.graph._nodes.some((n) => n.comfyClass === "LoadImage"), null, { timeout: 30000 });
    seen.cards = await page.locator(".loom-upload").count();
  },
};

try {
  await scenarios[scenario]();
} catch (error) {
  seen.failed = String(error.stack ?? error);
  await shot(`${scenario}-failed`).catch(() => {});
}
await end(seen);
