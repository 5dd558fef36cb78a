// The Runs tab on a real page: node runs.mjs <address> <folder for screenshots> <classic|nodes2> <tab|queue>
// Prints one line of JSON with what it saw. The server has the runs one, two (with samples) and bare (without).
import { opened } from "./comfy.mjs";

const [address, shots, renderer, scenario] = process.argv.slice(2);
const seen = {};
const { page, shot, end } = await opened(address, shots, renderer, "runs");
const tab = async () => {
  await page.locator("[aria-label*='LoRA Loom']").first().click();
  await page.waitForSelector(".loom-runs .card");
};
const card = (name) => page.locator(".loom-runs .card", { hasText: name }).first();
const loaded = (selector) => page.waitForFunction((wanted) => {
  const images = [...document.querySelectorAll(wanted)];
  return images.length > 0 && images.every((i) => i.complete && i.naturalWidth > 0);
}, selector);

const scenarios = {
  async tab() {
    await tab();
    await loaded(".loom-runs .card > img");
    seen.cards = Object.fromEntries(await Promise.all(["one", "two", "bare"].map(async (name) => [name, await card(name).innerText()])));
    seen.placeholder = await card("bare").locator(".blank svg polyline").count();
    seen.buttons = await card("one").locator("button").allInnerTexts();
    await card("one").locator("button", { hasText: "⋯" }).click();
    seen.menu = await card("one").locator(".menu button").allInnerTexts();
    await shot("list");
    await card("one").locator(".menu button", { hasText: "Rename" }).click();
    await page.keyboard.type("The good one");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector(".loom-runs .list").textContent.includes("The good one"));
    await card("The good one").locator(".menu button", { hasText: "Note" }).click();
    await page.keyboard.type("lower the rate next time");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector(".loom-runs .note:not([hidden])")?.textContent.includes("next time"));
    await card("The good one").locator(".star").click();
    await page.waitForFunction(() => [...document.querySelectorAll(".loom-runs .star")].some((one) => one.textContent === "★"));
    await page.locator(".loom-runs .tools button", { hasText: "★" }).click();
    seen.starred = await page.locator(".loom-runs .card .name").allInnerTexts();
    await page.locator(".loom-runs .tools button", { hasText: "★" }).click();
    for (const name of ["The good one", "two"]) await card(name).locator("input[type=checkbox]").check();
    await shot("chosen");
    await page.locator(".loom-runs .tools button", { hasText: "Compare" }).click();
    await loaded(".loom-compare .samples img");
    await page.waitForTimeout(500);
    seen.table = await page.locator(".loom-compare table").innerText();
    const drawn = () => page.evaluate(() => [...document.querySelectorAll(".loom-compare .samples img")].map((i) => new URL(i.src).search));
    seen.samples = await drawn();
    seen.captions = await page.locator(".loom-compare figcaption").allInnerTexts();
    seen.boxes = await page.evaluate(() => { // everything in sight, the chart drawn on
      const box = (s) => { const { width, height } = document.querySelector(`.loom-compare ${s}`).getBoundingClientRect(); return [width, height]; };
      const canvas = document.querySelector(".loom-compare canvas"), pen = canvas.getContext("2d");
      const colours = new Set(pen.getImageData(0, 0, canvas.width, canvas.height).data.reduce((all, v, n, data) => (n % 4 === 3 && v > 200 ? [...all.slice(-4000), `${data[n - 3]},${data[n - 2]},${data[n - 1]}`] : all), []));
      return { chart: box(".chart"), table: box(".table"), image: box(".samples img"), colours: colours.size };
    });
    await shot("compare");
    await page.keyboard.press("ArrowLeft");
    await loaded(".loom-compare .samples img");
    seen.earlier = await drawn();
    await page.locator(".loom-compare .samples img").first().click();
    await loaded(".loom-viewer .stage img");
    await page.waitForFunction(() => new Set([...document.querySelectorAll(".loom-viewer .stage img")].map((i) => new URL(i.src).searchParams.get("run"))).size === 2);
    await loaded(".loom-viewer .stage img");
    await shot("two-runs");
    seen.labels = await page.locator(".loom-viewer .label").allInnerTexts();
    await page.keyboard.press("Escape");
    seen.under = await page.locator(".loom-compare").count(); // the viewer alone has closed
    await page.keyboard.press("Escape");
    seen.closed = await page.locator(".loom-compare").count();
    await card("two").locator("button", { hasText: "Use" }).click();
    await page.waitForFunction(() => window.app.graph._nodes.some((n) => n.type === "PreviewImage" && window.app.nodeOutputs?.[n.id]?.images?.length), null, { timeout: 180000 });
    seen.used = await page.evaluate(() => {
      const of = (kind) => window.app.graph._nodes.find((n) => n.type === kind), lora = of("LoraLoader");
      return { lora: lora.widgets.find((w) => w.name === "lora_name").value, model: lora.getInputNode(0)?.comfyClass, text: of("CLIPTextEncode").widgets[0].value };
    });
    await page.waitForTimeout(1000);
    await shot("used");
    const nodes = () => page.evaluate(() => window.app.graph._nodes.length), before = await nodes();
    await card("bare").locator("button", { hasText: "Use" }).click(); // its base lies in another kind of folder
    const told = page.locator(".p-toast-message", { hasText: "flux_dev" });
    await told.waitFor();
    seen.refused = (await told.innerText()).split("\n").at(-1);
    seen.added = (await nodes()) - before;
  },

  async queue() { // two runs of a program: one goes on, one waits
    await tab();
    await page.waitForSelector(".loom-queue li.running");
    await page.waitForFunction(() => document.querySelectorAll(".loom-queue li").length === 2 && document.querySelector(".loom-queue li.running").textContent.includes("left"), null, { timeout: 120000 });
    seen.rows = await page.locator(".loom-queue li").allInnerTexts();
    seen.summary = await page.locator(".loom-queue summary").innerText();
    await shot("queue");
  },
};

try {
  await scenarios[scenario]();
} catch (error) {
  seen.failed = String(error.stack ?? error);
  await shot(`${scenario}-failed`).catch(() => {});
}
await end(seen);
