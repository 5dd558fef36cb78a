// ComfyUI's page in a real browser: what the drivers beside this file share. playwright-core: $PLAYWRIGHT_CORE or an installed one; the browser: $CHROMIUM
// or /usr/bin/chromium.
import path from "node:path";
import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)(process.env.PLAYWRIGHT_CORE || "playwright-core");

/** Opens the page at an address in one of the two renderers: `page`, `cdp`, `shot(name)`, `problems`, and `end(seen)`, which prints what was seen. */
export async function opened(address, shots, renderer, part) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  const context = await browser.newContext({ viewport: { width: 1600, height: 1000 } });
  const page = await context.newPage(), problems = [];
  page.on("pageerror", (error) => problems.push(error.message));
  await page.goto(address, { waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => window.app?.graph && window.app.extensionManager && window.LiteGraph?.registered_node_types?.LoraLoomTrainLora, null, { timeout: 120000 });
  await page.waitForTimeout(1500);
  await page.evaluate(async (nodes2) => {
    const settings = window.app.extensionManager.setting;
    await settings.set("Comfy.VueNodes.Enabled", nodes2);
    await settings.set("Comfy.Canvas.MaximumFps", 20); // a machine without a GPU draws with the cores that train
    window.app.graph.clear();
  }, renderer === "nodes2");
  await page.keyboard.press("Escape");
  await page.waitForTimeout(500);
  const shot = (name) => page.screenshot({ path: path.join(shots, `${renderer}-${part}-${name}.png`) });
  return {
    page, problems, shot, cdp: await context.newCDPSession(page),
    async end(seen) {
      await page.evaluate(() => fetch("/interrupt", { method: "POST" })).catch(() => {}); // nothing of a failed scenario goes on
      console.log(JSON.stringify({ ...seen, problems }));
      await browser.close();
    },
  };
}
