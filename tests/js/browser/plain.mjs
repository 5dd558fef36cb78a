// Drives a page of no host in a real browser: node plain.mjs <address> <folder for screenshots>
// Prints one line of JSON with what it saw. playwright-core: $PLAYWRIGHT_CORE or an installed one; the browser: $CHROMIUM
// or /usr/bin/chromium.
import path from "node:path";
import { createRequire } from "node:module";

const [address, shots] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(process.env.PLAYWRIGHT_CORE || "playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"],
});
const page = await browser.newPage({ viewport: { width: 900, height: 700 } });
const seen = { problems: [], requests: [] };
page.on("pageerror", (error) => seen.problems.push(error.message));
page.on("response", (response) => {
  if (!response.ok()) seen.problems.push(`${response.status()} ${response.url()}`);
  seen.requests.push(new URL(response.url()).pathname);
});
const text = (selector) => page.locator(selector).first().textContent();
const tell = (what) => page.request.post(`${address}/test/${what}`);
const shot = (name) => page.screenshot({ path: path.join(shots, `plain_${name}.png`) });

try {
  await page.goto(address);
  await page.waitForSelector(".loom-panel");
  seen.idle = await text(".loom-panel .status");

  await tell("begin");
  await page.waitForSelector(".loom-panel .status.training");
  await tell("step");
  await page.waitForFunction(() => document.querySelector(".loom-panel .now").textContent.includes("40"));
  await page.waitForFunction(() => { // something of the curve's colour
    const canvas = document.querySelector(".loom-panel .chart canvas");
    if (!canvas.width) return false;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let n = 0; n < data.length; n += 4) {
      if (data[n + 2] > data[n] + 100 && data[n + 2] > data[n + 1] + 60 && data[n + 3] > 200) return true;
    }
    return false;
  });
  await page.waitForFunction(() => document.querySelector(".loom-panel .newest img")?.naturalWidth > 0);
  seen.language = await page.locator(".loom-panel").getAttribute("lang");
  seen.buttons = await page.locator(".loom-panel .buttons button:visible").allTextContents();
  seen.message = await text(".loom-panel .messages");
  seen.ink = await page.locator(".loom-panel").evaluate((panel) => getComputedStyle(panel).color);
  await shot("light");
  await page.evaluate(() => { document.body.className = "dark"; });
  await page.waitForFunction(() => document.querySelector(".loom-panel").dataset.theme === "dark");
  seen.darkInk = await page.locator(".loom-panel").evaluate((panel) => getComputedStyle(panel).color);

  await page.locator(".loom-panel .buttons button").first().click();
  await page.waitForSelector(".loom-panel .status.stopped");
  await page.waitForSelector(".loom-result");
  seen.result = await text(".loom-result code");
  await page.locator(".loom-result button").click();
  seen.prompt = await page.evaluate(() => window.usedPrompt);
  seen.toasts = await page.locator("#loom-toasts div").allTextContents();
  await shot("dark");

  await page.reload();
  await page.waitForSelector(".loom-panel .status.stopped");
  await page.waitForSelector(".loom-result");
  seen.toastsAfterReload = await page.locator("#loom-toasts div").count();
} catch (error) {
  seen.failed = String(error);
}
console.log(JSON.stringify(seen));
await browser.close();
