// Opens graphs in ComfyUI's page: node graphs.mjs <address> <folder for screenshots> <classic|nodes2> <scenario> [file of a workflow ...]
// Scenarios: sight, old, templates, app (a workflow and the folder of files that are dropped). Prints one line of JSON.
import fs from "node:fs";
import path from "node:path";
import { opened } from "./comfy.mjs";

const [address, shots, renderer, scenario, ...files] = process.argv.slice(2);
const seen = {};
const { page, cdp, shot, end } = await opened(address, shots, renderer, "graphs");

/** Widgets of a node that are seen before anything is unfolded, without what stands for the fold, buttons and panels of ours. */
const inSight = (type) => page.evaluate((kind) => {
  const node = window.app.graph._nodes.find((one) => one.type === kind);
  const elements = Boolean(window.LiteGraph.vueNodesMode);
  const shown = node.widgets.filter((w) => !w.hidden && !w.options?.hidden && !(elements && w.options?.advanced));
  return shown.map((w) => w.name).filter((name) => !name.startsWith("loom_"));
}, type);

/** "<kind>.<widget>" of every widget at 0 whose label says nothing but its name, on a new node of each of our kinds. */
async function bareZeros() {
  await page.evaluate(() => {
    const { graph } = window.app;
    for (const kind of Object.keys(window.LiteGraph.registered_node_types).filter((one) => one.startsWith("LoraLoom"))) {
      if (!graph._nodes.some((node) => node.type === kind)) graph.add(window.LiteGraph.createNode(kind));
    }
  });
  await page.waitForTimeout(3000); // labels are looked at every second
  return page.evaluate(() => window.app.graph._nodes.flatMap((node) =>
    (node.widgets ?? []).filter((w) => w.value === 0 && !/\(.+\)$/.test(w.label ?? "")).map((w) => `${node.type}.${w.name}`)));
}

/** Opens a saved workflow: what it would queue, by node. */
async function open(file) {
  await page.evaluate(async (workflow) => window.app.loadGraphData(workflow), JSON.parse(fs.readFileSync(file, "utf8")));
  await page.waitForTimeout(2500);
  return page.evaluate(async () => (await window.app.graphToPrompt()).output);
}

const scenarios = {
  async sight() { // a new node of each kind
    for (const kind of ["LoraLoomTrainLora", "LoraLoomTrainEmbedding", "LoraLoomLoadFolder", "LoraLoomLossNoiseSettings"]) {
      await page.evaluate((type) => {
        const node = window.LiteGraph.createNode(type);
        window.app.graph.add(node);
        node.pos = [80 + 460 * (window.app.graph._nodes.length - 1), 100];
      }, kind);
      await page.waitForTimeout(1500);
      seen[kind] = await inSight(kind);
    }
    await shot("sight");
    seen.zeros = await bareZeros();
  },
  async old() { // workflows of an older version: what they queue, and which moved widgets they show
    for (const file of files) {
      const prompt = await open(file), name = path.basename(file, ".json");
      const shown = await page.evaluate(() => window.app.graph._nodes.flatMap((node) =>
        (node.widgets ?? []).filter((w) => w.loomMoved && !w.options.hidden).map((w) => w.name)));
      seen[name] = { prompt, shown };
    }
    await page.evaluate(() => window.app.graph._nodes.find((node) => node.loomUnfold)?.loomUnfold());
    await page.waitForTimeout(800);
    await shot("old");
  },
  async templates() { // each as it opens, grown as it does when it has run: which nodes lie over one another
    for (const file of files) {
      await open(file);
      await page.evaluate(() => { window.app.extensionManager.setting.set("Comfy.Minimap.Visible", false); window.app.graph.extra.linearMode = false; });
      await page.evaluate(() => window.app.canvas.fitViewToSelectionAnimated ? window.app.canvas.fitViewToSelectionAnimated({ duration: 0 }) : null).catch(() => {});
      await page.waitForTimeout(1200);
      seen[path.basename(file, ".json")] = await page.evaluate(() => {
        const title = window.LiteGraph.NODE_TITLE_HEIGHT;
        const boxes = window.app.graph._nodes.map((node) => ({ name: `${node.id} ${node.title}`, left: node.pos[0], top: node.pos[1] - title,
          right: node.pos[0] + node.size[0], bottom: node.pos[1] + node.size[1] }));
        const overlaps = boxes.flatMap((a, n) => boxes.slice(n + 1).filter((b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
          .map((b) => `${a.name} / ${b.name}`));
        return { overlaps, nodes: boxes.length, groups: window.app.graph._groups.map((group) => group.title) };
      });
      await shot(`template-${path.basename(file, ".json")}`);
    }
  },
  async app() { // App mode: files on the page, a trigger, Run
    const [file, folder] = files;
    await page.evaluate(async (flow) => window.app.loadGraphData(flow, true, true, "app"), JSON.parse(fs.readFileSync(file, "utf8")));
    await page.waitForSelector("[data-testid=linear-center-panel]", { timeout: 60000 });
    await page.waitForTimeout(2500);
    await page.getByRole("button", { name: "Skip" }).click({ timeout: 4000 }).catch(() => {}); // the host's own tour
    await shot("app-open");
    Object.assign(seen, { clicks: 0, typed: 0, panel: await page.locator(".loom-plan").first().isVisible().catch(() => false) });
    seen.labels = await page.evaluate(() => document.body.innerText);
    const data = { items: [], files: fs.readdirSync(folder).map((name) => path.join(folder, name)), dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver", "drop"]) await cdp.send("Input.dispatchDragEvent", { type, x: 800, y: 500, data });
    await page.waitForSelector(".loom-upload.done", { timeout: 90000 });
    await page.waitForTimeout(3000);
    await shot("app-dropped");
    seen.folder = await page.evaluate(() => window.app.graph._nodes.find((n) => n.comfyClass === "LoraLoomLoadFolder").widgets.find((w) => w.name === "folder").value);
    await page.locator("input[aria-label=trigger]:visible").first().click();
    await page.keyboard.type("zog");
    seen.clicks += 1;
    seen.typed += 1;
    await page.waitForTimeout(2500);
    await shot("app-typed");
    await page.getByRole("button", { name: "Run", exact: true }).last().click();
    seen.clicks += 1;
    await page.waitForFunction(() => window.app.graph._nodes.find((n) => n.loomPanel)?.loomPanel.state?.result?.files, null, { timeout: 240000 });
    await page.waitForTimeout(2500);
    seen.files = await page.evaluate(() => window.app.graph._nodes.find((n) => n.loomPanel).loomPanel.state.result.files);
    await shot("app-done");
  },
};
try {
  await scenarios[scenario]();
} catch (error) {
  seen.failed = error.message;
  await shot("failed");
}
await end(seen);
