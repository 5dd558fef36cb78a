// The tab LoRA Loom in a real browser: node tab.mjs ADDRESS SHOTS PICTURE... Writes what it saw as JSON on the last line.
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(import.meta.url);
const { chromium } = require(process.env.PLAYWRIGHT_CORE || "playwright-core");
const [address, shots, ...pictures] = process.argv.slice(2);
const seen = { problems: [] };
const LONG = 120_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 1400 } });
page.on("pageerror", (error) => {  // the host's own scripts have some of their own
  if (/lora_loom|\/js\//.test(error.stack ?? "")) seen.problems.push(String(error));
});
page.on("console", (message) => {
  if (message.type() === "error" && message.text().includes("LoRA Loom")) seen.problems.push(message.text());
});
page.on("response", (answer) => {
  const url = answer.url();
  if (answer.status() >= 400 && /lora-loom|lora_loom|\/js\//.test(url)) seen.problems.push(`${answer.status()} ${url}`);
});
const shot = (name) => page.screenshot({ path: path.join(shots, `${name}.png`), fullPage: true });
const tab = (name) => page.locator("#tabs > .tab-nav button, #tabs > .tab-wrapper button[role=tab]", { hasText: name });
const field = (id) => page.locator(`#${id} textarea, #${id} input`).first();

try {
  await page.goto(address, { timeout: LONG });
  await tab("LoRA Loom").first().click({ timeout: LONG });
  await page.locator("#lora_loom_panel .lora-loom, #lora_loom_panel > *").first().waitFor({ timeout: LONG });
  await shot("tab");
  await page.waitForTimeout(6000);  // the page is drawn before it hears
  await page.locator("#lora_loom_pictures input[type=file]").setInputFiles(pictures);
  await page.waitForFunction(() => {
    const folder = document.querySelector("#lora_loom_folder textarea, #lora_loom_folder input");
    return folder && folder.value.length > 5;
  }, null, { timeout: LONG });
  await field("lora_loom_name").fill("from_the_page");
  await field("lora_loom_trigger").fill("sks");
  await field("lora_loom_steps").fill("40");
  await field("lora_loom_steps").blur();
  seen.sections = await page.locator("#lora_loom_tab_train .label-wrap, #tab_lora_loom .label-wrap").allInnerTexts();
  await page.waitForFunction(() => document.querySelector("#lora_loom_plan p"), null, { timeout: LONG });
  seen.plan = await page.locator("#lora_loom_plan p").first().innerText();
  for (const [id, value] of [["data_resolution", "64"], ["samples_every", "10"], ["samples_steps", "2"], ["batch_size", "1"]]) {
    const input = field(`lora_loom_${id}`);
    await input.evaluate((element) => {  // its section is closed
      for (let at = element; at; at = at.parentElement) if (at.style?.display === "none") at.style.display = "block";
    });
    await input.fill(value, { force: true });
    await input.blur();
  }
  await page.locator("#lora_loom_start").click();
  await page.waitForFunction(() => /from_the_page|[1-9]\d*\s*\/\s*40/.test(
    document.querySelector("#lora_loom_panel")?.innerText ?? ""), null, { timeout: LONG });
  await page.waitForTimeout(6000);
  await shot("running");
  seen.running = await page.locator("#lora_loom_panel").innerText();
  seen.charts = await page.locator("#lora_loom_panel canvas").count();
  const stop = page.locator("#lora_loom_panel button", { hasText: /stop/i }).first();
  if (await stop.isVisible()) await stop.click();
  await page.locator("#lora_loom_panel .loom-result:not([hidden])").waitFor({ timeout: LONG });
  seen.result = await page.locator("#lora_loom_panel .loom-result").innerText();
  seen.samples = await page.locator("#lora_loom_panel img").count();
  await shot("done");
  await page.locator("#lora_loom_panel .loom-result button").last().click();
  await page.waitForTimeout(1000);
  seen.prompt = await page.locator("#txt2img_prompt textarea").inputValue();
  await shot("prompt");
} catch (error) {
  seen.failed = String(error);
  await shot("failed").catch(() => {});
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
