// Drives the panel in a real browser: node panel.mjs <address> <folder for screenshots> <classic|nodes2> <run|subgraph|cancel|errors|words|settings|load>
// Prints one line of JSON with what it saw and measured. playwright-core: $PLAYWRIGHT_CORE or an installed one; the browser: $CHROMIUM or /usr/bin/chromium.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [address, shots, renderer, scenario] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(process.env.PLAYWRIGHT_CORE || "playwright-core");
const template = JSON.parse(fs.readFileSync(path.join(import.meta.dirname, "../../../example_workflows/21 Train the toy, then try it.json")));
template.nodes = template.nodes.filter((n) => n.id <= 3 && n.id >= 1); // model, folder, training
template.links = template.links.filter((l) => l[1] <= 3 && l[3] <= 3);
for (const node of template.nodes) for (const output of node.outputs ?? []) output.links = (output.links ?? []).filter((id) => template.links.some((l) => l[0] === id));
const QUICK = { steps: 4000, sample_every: 15, save_every: 25, batch_size: 1, targets: "cross-attention", learning_rate: 0.001 };
const NAME = `${scenario}_${renderer}`;

const seen = {};
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-precise-memory-info", "--js-flags=--expose-gc"],
});
const context = await browser.newContext({ viewport: { width: 1500, height: 1180 } });
const page = await context.newPage();
const problems = [];
page.on("pageerror", (error) => problems.push(error.message));

await page.addInitScript(() => { // the training node, in the graph or in a subgraph of it
  window.loomNode = (graph = window.app?.rootGraph ?? window.app?.graph) => {
    for (const node of graph?._nodes ?? []) {
      const found = node.comfyClass === "LoraLoomTrainLora" ? node : node.subgraph && window.loomNode(node.subgraph);
      if (found) return found;
    }
    return null;
  };
});

async function opened() {
  await page.goto(address, { waitUntil: "domcontentloaded" });
  await ready();
  await page.evaluate(async (nodes2) => {
    const settings = window.app.extensionManager.setting;
    await settings.set("Comfy.VueNodes.Enabled", nodes2);
    await settings.set("Comfy.Canvas.MaximumFps", 20); // a machine without a GPU draws with the cores that train
  }, renderer === "nodes2");
  await page.keyboard.press("Escape");
  await page.waitForTimeout(500);
}

async function ready() {
  await page.waitForFunction(() => window.app?.graph && window.app.extensionManager && window.LiteGraph?.registered_node_types?.LoraLoomTrainLora, null, { timeout: 120000 });
  await page.waitForTimeout(1500);
}

async function drop(values) {
  await page.evaluate(async (workflow) => { await window.app.loadGraphData(workflow); }, template);
  await page.waitForTimeout(1000);
  await set(values);
  await look();
}

const set = (values) => page.evaluate((all) => {
  const node = window.loomNode();
  for (const [name, value] of Object.entries(all)) node.widgets.find((w) => w.name === name).value = value;
}, values);

// Moves the graph so that the panel fills the screen.
const look = () => page.evaluate(async () => {
  const node = window.loomNode(), view = window.app.canvas.ds;
  view.scale = 1;
  view.offset = [-node.pos[0] + 420, -node.pos[1] + 90];
  window.app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 400));
  const box = node.loomPanel.root.getBoundingClientRect();
  view.offset[1] -= Math.max(0, box.bottom - 1150);
  window.app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 400));
});

const panel = (body, argument) => page.evaluate(([text, value]) => {
  const p = window.loomNode().loomPanel;
  return new Function("p", "value", `return ${text}`)(p, value);
}, [body, argument]);

const until = (body, argument, seconds = 120) => page.waitForFunction(([text, value]) => {
  const p = window.loomNode?.()?.loomPanel;
  return p && new Function("p", "value", `return ${text}`)(p, value);
}, [body, argument], { timeout: seconds * 1000, polling: 100 });

const outlined = async () => {
  await page.waitForTimeout(600);
  return page.evaluate(() => [...document.querySelectorAll("[data-node-id] *")].some((e) => e.style?.outline && e.getBoundingClientRect().height > 8));
};
const run = () => page.evaluate(() => window.app.queuePrompt(0, 1));
const toasts = async (words) => { // what all of them say, once one has these words: a busy page shows it late
  const wanted = page.locator(".p-toast-message").filter({ hasText: words }).first();
  await wanted.waitFor({ timeout: 20000 }).catch(() => {});
  return page.locator(".p-toast-message").allInnerTexts();
};
const shot = (name) => page.screenshot({ path: path.join(shots, `${renderer}-${name}.png`) });
const click = (name) => page.locator(".loom-panel .buttons button", { hasText: name }).first().click();

const scenarios = {
  async run() { // Run, chart, sample, reload, pause, go on, stop
    await drop({ ...QUICK, name: NAME });
    await page.evaluate(() => {
      const loader = window.LiteGraph.createNode("LoraLoader");
      loader.pos = [2500, 0];
      window.app.graph.add(loader);
    });
    await run();
    await until("p.state");
    await look();
    await until("p.chart.drawn > 0 && p.rows.length > 0");
    seen.chart_at = Date.now() / 1000;
    seen.chart_while = await panel("p.state.status");
    const drawn = await panel("p.chart.drawn");
    await until("p.chart.drawn > value", drawn, 20);
    await until("p.state.samples.length >= 2 && p.samples.newest.complete && p.samples.newest.naturalWidth > 0 && p.samples.newest.clientHeight > 50");
    await page.waitForTimeout(1200);
    await look();
    await shot("training");
    seen.large = await panel("p.samples.root.querySelectorAll('figure').length");
    seen.first_picture = await panel("p.samples.root.querySelector('figcaption').textContent");
    const graph = await page.evaluate(() => JSON.stringify(window.app.graph.serialize()));
    seen.workflow_has_panel = graph.includes("loom_panel") || graph.includes("\"rows\"");
    const before = await panel("p.last()");
    const second = await page.context().newPage(); // another tab
    await second.goto(address, { waitUntil: "domcontentloaded" });
    await second.waitForFunction((step) => window.app?.graph?._nodes?.some((n) => n.loomPanel && n.loomPanel.last() > step && n.loomPanel.rows[0][0] === 1), before, { timeout: 60000 });
    seen.second_tab = true;
    await second.close();
    await page.reload({ waitUntil: "domcontentloaded" });
    await ready();
    const came = Date.now();
    await until("p.rows.length && p.last() > value", before, 60);
    await look();
    await until("p.rows.length && p.last() > value && p.chart.drawn > 0", before, 60);
    seen.back_after_s = (Date.now() - came) / 1000;
    const steps = await panel("p.rows.map((r) => [r[0], r[1]])");
    seen.gaps = steps.filter((r, n) => r[0] !== (n ? steps[n - 1][1] + 1 : 1)).length;
    seen.points = steps.length;
    await look();
    await page.evaluate(() => { window.loomNode().collapse(); });
    await page.waitForTimeout(700);
    const still = await panel("p.chart.drawn");
    await page.waitForTimeout(1500);
    seen.drawn_while_collapsed = (await panel("p.chart.drawn")) - still;
    await page.evaluate(() => { window.loomNode().collapse(); });
    await until("p.chart.drawn > value && p.root.isConnected", still, 20);
    await look();
    await click("Pause");
    await until("p.state.status === 'paused' && p.state.can_continue");
    seen.paused_at = await panel("p.state.step");
    await shot("paused");
    await click("Go on");
    await until("p.state.status === 'training' && p.state.step > value", seen.paused_at);
    seen.after_pause = await panel("p.rows.map((r) => [r[0], r[1]])");
    seen.gaps_after_pause = seen.after_pause.filter((r, n, all) => r[0] !== (n ? all[n - 1][1] + 1 : 1)).length;
    delete seen.after_pause;
    await click("Save now");
    await until("p.state.messages.some((m) => m.code === 'run.saved')");
    await click("Sample now");
    const samples = await panel("p.state.samples.length");
    await until("p.state.samples.length > value", samples);
    seen.stop_clicked = Date.now() / 1000;
    await click("Stop and keep");
    await until("p.state.status === 'stopped'");
    seen.stopped_at = Date.now() / 1000;
    seen.run = await panel("p.state.run");
    seen.toasts = await toasts(`${seen.run}.safetensors`);
    seen.listed = await page.evaluate(async (run) => {
      const node = window.app.graph._nodes.find((n) => n.comfyClass === "LoraLoader");
      const values = node.widgets[0].options.values;
      return (typeof values === "function" ? values() : values).includes(`${run}.safetensors`);
    }, seen.run);
    await shot("stopped");
  },

  async subgraph() { // the training node inside a subgraph runs under an id such as 12:3
    await drop({ ...QUICK, name: NAME, sample_every: 0 });
    await page.evaluate(() => { window.app.graph.convertToSubgraph(new Set([window.loomNode()])); });
    await page.waitForTimeout(800);
    await run();
    await until("p.rows.length > 3");
    await page.evaluate(() => window.app.canvas.openSubgraph?.(window.loomNode().graph, window.app.graph._nodes.find((n) => n.subgraph)));
    await page.waitForTimeout(800);
    await look();
    await until("p.chart.drawn > 2");
    seen.id = await panel("p.state.node");
    await shot("subgraph");
    await page.reload({ waitUntil: "domcontentloaded" });
    await ready();
    await until("p.rows.length > 3");
    const steps = await panel("p.rows.map((r) => [r[0], r[1]])");
    seen.gaps = steps.filter((r, n) => r[0] !== (n ? steps[n - 1][1] + 1 : 1)).length;
    await panel("p.ask('stop')");
    await until("p.state.status === 'stopped'");
    seen.run = await panel("p.state.run");
  },

  async cancel() {
    await drop({ ...QUICK, name: NAME, sample_every: 0, save_every: 5 });
    await run();
    await until("p.state?.saves.length >= 1 && p.state.step > 6");
    await page.evaluate(() => fetch("/interrupt", { method: "POST" }));
    await until("p.state && p.state.status === 'cancelled' && p.state.can_continue");
    seen.run = await panel("p.state.run");
    seen.step = await panel("p.state.step");
    seen.can_continue = await panel("p.state.can_continue");
  },

  async errors() {
    seen.errors = {};
    const good = { ...QUICK, name: NAME, steps: 3, sample_every: 0 };
    const cases = {
      name: [{ name: "../x" }, "contains a path"], rank: [{ rank: 1024 }, "is larger than layer"], include: [{ include: "nothing" }, "selects none"],
      exclude: [{ exclude: "(" }, "regular expression"], resume: [{ resume: "continue last", name: "never_there" }, "there is no run"],
    };
    await drop(good);
    for (const [label, [values, sentence]] of Object.entries(cases)) {
      await set({ ...good, rank: 4, include: "", exclude: "", resume: "new run", ...values });
      await run();
      await until("p.state?.status === 'failed' && p.error.textContent.includes(value)", sentence, 60);
      const toasted = (await toasts(sentence)).some((text) => text.includes(sentence));
      const box = await page.locator(".loom-panel .error").boundingBox();
      seen.errors[label] = {
        text: await panel("p.error.textContent"), visible: Boolean(box && box.height > 10 && box.width > 100), toast: toasted,
        marked: await panel("p.marked?.name ?? null"), outlined: renderer === "classic" || (await outlined()),
      };
      if (label === "rank") { await look(); await shot("error"); }
    }
    await page.evaluate(() => {
      const node = window.loomNode(), view = window.app.canvas.ds;
      view.offset = [-node.pos[0] + 420, -node.pos[1] + 90];
      window.app.canvas.setDirty(true, true);
    });
    await page.waitForTimeout(1500);
    await shot("marked");
  },

  async words() { // the panel, an error and the Runs tab in three languages; nothing runs over its edge
    const over = () => page.evaluate(() => [...document.querySelectorAll(".loom-panel .head, .loom-panel .buttons, .loom-panel button, .loom-panel .error, .loom-runs, .loom-runs button, .loom-runs .card")]
      .filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map((e) => `${e.className} ${e.textContent.slice(0, 40)}`));
    for (const language of ["zh", "ko", "ja"]) {
      await page.evaluate((to) => window.app.extensionManager.setting.set("Comfy.Locale", to), language);
      await page.reload({ waitUntil: "domcontentloaded" });
      await ready();
      await drop({ ...QUICK, name: `${NAME}_${language}`, steps: 6, sample_every: 0 });
      const idle = await panel("p.status.textContent");
      await run();
      await until("p.state?.status === 'finished' && p.state.saves.length && p.state.result.files"); // the last two come with the answer to a question
      const told = await toasts(`${NAME}_${language}.safetensors`);
      const finished = { text: await panel("p.root.innerText"), toasts: told, over: await over() };
      await set({ rank: 1024 });
      await run();
      await until("p.state?.status === 'failed' && p.error.textContent && p.marked");
      const error = await panel("p.error.textContent"), marked = await panel("p.marked?.name ?? null");
      await page.locator("[aria-label*='LoRA Loom']").first().click();
      await page.waitForFunction(() => document.querySelector(".loom-runs .card")?.offsetParent);
      await page.locator(".loom-runs .card .actions button", { hasText: "⋯" }).first().click(); // the rest of its buttons
      await page.waitForTimeout(500);
      seen[language] = { idle, finished, error, marked, runs: await page.locator(".loom-runs").evaluate((e) => e.textContent), over: await over() };
      await shot(language);
    }
    await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.Locale", "en"));
  },

  async settings() { // what a person chooses shows at once
    await drop({ name: NAME });
    await page.evaluate(() => {
      const p = window.loomNode().loomPanel;
      p.refresh = async () => {};
      p.take({ node: "3", kind: "LoraLoomTrainLora", workflow: "", session: "s", changes: 0, run: "", status: "training", doing: {}, speed: 5, left_s: 10, memory: null, step: 400, steps: 500, rows: [] });
      p.rows = Array.from({ length: 400 }, (_, n) => { const loss = 0.02 + 2 / (n + 2); return [n + 1, n + 1, loss * 0.9, loss * 1.1, loss, 1e-4, 1]; });
      p.state.samples = [[400, 1]]; // there is something to be seen large
      p.add([]);
    });
    await look();
    const set = (id, value) => page.evaluate(([id, value]) => window.app.extensionManager.setting.set(id, value), [id, value]);
    const look2 = async () => { await page.waitForTimeout(700); return panel("({ drawn: p.chart.drawn, middle: p.chart.canvas.toDataURL().length, pictures: p.samples.root.style.minHeight, least: p.minHeight() })"); };
    seen.before = await look2();
    await set("LoraLoom.panel.lossAxis", "logarithmic");
    seen.logarithmic = await look2();
    await shot("settings");
    await set("LoraLoom.panel.sampleSize", "large");
    seen.large = await look2();
    await set("LoraLoom.panel.lossAxis", "linear");
    await set("LoraLoom.panel.sampleSize", "medium");
    seen.after = await look2();
  },

  async plan() { // what the run will do, before it is started
    const text = () => page.evaluate(() => { const { plan } = window.loomNode().loomPanel; return plan.root.hidden ? "" : plan.root.innerText; });
    const until = async (wanted) => { for (let n = 0; n < 80; n += 1) { const now = await text(); if (wanted(now)) return now; await page.waitForTimeout(250); } throw new Error(`plan: ${await text()}`); };
    const labels = () => page.evaluate(() => Object.fromEntries(window.loomNode().widgets.map((w) => [w.name, w.label ?? w.name])));
    await drop({ name: NAME, steps: 0, rank: 0, learning_rate: 0, resolution: 0 });
    seen.first = await until((now) => now.includes("toy") && now.includes("preset"));
    seen.labels = await labels();
    seen.visible = await page.evaluate(() => window.app.graph._nodes.map((node) => [node.comfyClass, node.widgets.filter((w) => !w.hidden && !w.element && w.name !== "loom_fold").map((w) => w.name)]));
    await shot("plan");
    await set({ steps: 30, sample_every: 100, save_every: 100 });
    seen.changed = await until((now) => now.includes("yours"));
    seen.labels_changed = await labels();
    await set({ rank: 999999 });
    seen.refused = await until((now) => now.includes("999999"));
    await shot("plan-refused");
    await set({ rank: 0 });
    await until((now) => now.includes("toy"));
    await run();
    await page.waitForFunction(() => window.loomNode().loomPanel.active(), null, { timeout: 120000 });
    seen.during = await page.evaluate(() => getComputedStyle(window.loomNode().loomPanel.plan.root).display);
    await page.waitForFunction(() => window.loomNode().loomPanel.state?.status === "finished", null, { timeout: 240000 });
    seen.after = await until((now) => now.includes("next run"));
    await page.evaluate(() => { window.loomNode().loomPanel.plan.root.open = true; });
    seen.measured = await until((now) => now.includes(`measured in ${NAME}`));
    await shot("plan-after");
  },

  async load() { // 20,000 points while the graph is dragged; an hour of events
    await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.Canvas.MaximumFps", 0));
    await drop({ name: NAME });
    const heart = { node: "3", kind: "LoraLoomTrainLora", workflow: "", session: "load", changes: 0, run: "", status: "training", doing: {}, speed: 5, left_s: 10, memory: { of: "RAM", used: 1, total: 2 } };
    const measure = (points) => page.evaluate(async ([heart, points]) => {
      const node = window.loomNode(), p = node.loomPanel;
      p.rows = Array.from({ length: points }, (_, n) => { const loss = 0.1 + 0.05 * Math.random() + 1 / (n + 10); return [n + 1, n + 1, loss, loss, loss, 1e-4, 1]; });
      p.add([]);
      await new Promise((done) => setTimeout(done, 800));
      const view = window.app.canvas.ds, from = [...view.offset], times = [], drawn = p.chart.drawn;
      let next = performance.now() + 250, step = points;
      for (let last = performance.now(), n = 0; n < 240; n += 1) {
        await new Promise((done) => requestAnimationFrame(done));
        const now = performance.now();
        times.push(now - last);
        last = now;
        view.offset[0] = from[0] + 60 * Math.sin(n / 10);
        view.offset[1] = from[1] + 40 * Math.cos(n / 10);
        window.app.canvas.setDirty(true, true);
        if (now > next) { step += 1; next = now + 250; p.take({ ...heart, step, steps: 40000, rows: [[step, step, 0.1, 0.1, 0.1, 1e-4, 1]] }); }
      }
      const before = performance.now();
      for (let n = 0; n < 20; n += 1) p.chart.draw();
      const draw = (performance.now() - before) / 20;
      times.sort((a, b) => a - b);
      return { points: p.rows.length, fps: (1000 * times.length) / times.reduce((a, b) => a + b), slowest_5_percent_ms: times[Math.floor(times.length * 0.95)], chart_draw_ms: draw, drawn: p.chart.drawn - drawn - 20 };
    }, [heart, points]);
    await page.evaluate((heart) => {
      const p = window.loomNode().loomPanel;
      p.refresh = async () => {};
      p.take({ ...heart, step: 0, steps: 40000, rows: [] });
      p.state.changes = 0; // as if the server had been asked
    }, heart);
    await look();
    seen.without_points = await measure(2);
    seen.with_points = await measure(20000);
    await shot("load");
    const box = await page.locator(".loom-panel .chart canvas").boundingBox(), middle = [box.x + box.width / 2, box.y + box.height / 2];
    const state = () => page.evaluate(() => [window.app.canvas.ds.scale, window.loomNode().loomPanel.chart.view]);
    await page.mouse.move(...middle);
    seen.readout = await panel("(p.chart.draw(), p.chart.readout.textContent)");
    await page.keyboard.down("Alt");
    await page.mouse.wheel(0, -300);
    await page.keyboard.up("Alt");
    await page.waitForTimeout(300);
    const [scale, zoomed] = await state();
    seen.alt_wheel = { chart_zoomed: zoomed !== null, graph_scale: scale };
    await page.mouse.dblclick(...middle);
    await page.waitForTimeout(300);
    seen.double_click_resets = (await state())[1] === null;
    await page.mouse.move(box.x + box.width * 0.3, middle[1]);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.6, middle[1], { steps: 4 });
    await page.mouse.up();
    seen.drag_view = (await state())[1];
    seen.offset_kept = await page.evaluate(() => window.app.canvas.ds.scale === 1);
    await page.mouse.wheel(0, 240);
    await page.waitForTimeout(500);
    seen.plain_wheel_scale = (await state())[0];
    seen.memory_mb = await page.evaluate(async (heart) => {
      const p = window.loomNode().loomPanel, used = [];
      const settle = async () => { for (let n = 0; n < 3; n += 1) { window.gc?.(); await new Promise((done) => setTimeout(done, 150)); } return performance.memory.usedJSHeapSize / 1e6; };
      let step = 0;
      p.take({ ...heart, session: "hour", step, steps: 1e6, rows: [] });
      p.state.changes = 0;
      for (let part = 0; part < 9; part += 1) { // 8 times 1800 events: an hour of four a second, after a first part that fills the record
        for (let n = 0; n < (part ? 1800 : 9000); n += 1) {
          const rows = Array.from({ length: 4 }, () => [++step, step, 0.1, 0.12, 0.11, 1e-4, 1]);
          p.take({ ...heart, session: "hour", step, steps: 1e6, rows });
          if (n % 100 === 0) await new Promise((done) => requestAnimationFrame(done));
        }
        used.push(await settle());
      }
      return used;
    }, heart);
    seen.rows_after_hour = await panel("p.rows.length");
  },
};

try {
  await opened();
  await scenarios[scenario]();
} catch (error) {
  seen.failed = String(error.stack ?? error).slice(0, 1500);
  await shot(`${scenario}-failed`).catch(() => {});
}
seen.problems = problems;
await page.evaluate(() => fetch("/interrupt", { method: "POST" })).catch(() => {}); // nothing of a failed scenario goes on
console.log(JSON.stringify(seen));
await browser.close();
process.exit(seen.failed ? 1 : 0);
