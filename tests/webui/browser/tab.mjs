// The page LoRA Loom in a real browser: node tab.mjs ADDRESS SHOTS PICTURE... Writes what it saw as JSON on the last line.
// In a WebUI it is a tab; with ALONE=1 it is the whole page.
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(import.meta.url);
const { chromium } = require(process.env.PLAYWRIGHT_CORE || "playwright-core");
const [address, shots, ...pictures] = process.argv.slice(2);
const alone = Boolean(process.env.ALONE), steps = process.env.STEPS || "40";
const seen = { problems: [] };
const LONG = 120_000, SOON = 20_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"],
});
const page = await browser.newPage({
  viewport: { width: 1280, height: 900 }, colorScheme: process.env.DARK ? "dark" : "light",
});
page.on("pageerror", (error) => {  // the host's own scripts have some of their own
  if (alone || /lora_loom|\/js\//.test(error.stack ?? "")) seen.problems.push(String(error));
});
page.on("console", (message) => {
  if (message.type() === "error" && message.text().includes("LoRA Loom")) seen.problems.push(message.text());
});
page.on("response", (answer) => {
  const url = answer.url();
  if (answer.status() >= 400 && /lora-loom|lora_loom|\/js\//.test(url)) seen.problems.push(`${answer.status()} ${url}`);
});
const shot = (name, style = "") => page.screenshot({ path: path.join(shots, `${name}.png`), fullPage: true, style });
const WITHOUT_SHEET = "#lora_loom_seen { display: none !important; }";
const tab = (name) => page.locator("#tabs > .tab-nav button, #tabs > .tab-wrapper button[role=tab]", { hasText: name });
const ours = (name) => page.locator("#lora_loom_tabs button[role=tab], #lora_loom_tabs .tab-nav button", { hasText: new RegExp(`^\\s*${name}\\s*$`) }).first();
const field = (id) => page.locator(`#lora_loom_${id} textarea, #lora_loom_${id} input`).first();
const filled = (selector) => page.waitForFunction((css) => document.querySelector(css), selector, { timeout: LONG });

/** Opens a section and those in it, which some gradios draw only then. */
async function open(id) {
  for (let n = 0; n < 40; n += 1) {
    const closed = page.locator(`#lora_loom_${id} .label-wrap:not(.open)`).first();
    if (!(await closed.isVisible())) return;
    await closed.click();
    await page.waitForTimeout(200);
  }
}

/** Closes it again. */
const close = (id) => page.locator(`#lora_loom_${id} .label-wrap.open`).first().click();

async function put(id, value) {
  await field(id).fill(value);
  await field(id).blur();
}

/** Writes a file's name into a list that takes names of its own. */
async function choose(id, name) {
  const input = page.locator(`#lora_loom_${id} input`).first();
  await input.click();
  await input.fill(name);
  await input.press("Enter");
}

try {
  await page.goto(address, { timeout: LONG });
  if (!alone) await tab("LoRA Loom").first().click({ timeout: LONG });
  await page.locator("#lora_loom_panel .loom-panel").first().waitFor({ timeout: LONG });
  await page.waitForTimeout(alone ? 1000 : 6000);  // the page is drawn before it hears
  await shot("tab");
  await page.locator("#lora_loom_pictures input[type=file]").setInputFiles(pictures);
  await page.waitForFunction(() => {
    const folder = document.querySelector("#lora_loom_folder textarea, #lora_loom_folder input");
    return folder && folder.value.length > 5;
  }, null, { timeout: LONG });
  await field("name").fill("from_the_page");
  await field("trigger").fill("sks");
  await field("steps").fill(steps);
  await field("steps").blur();
  await filled("#lora_loom_plan p");
  await page.waitForFunction((n) => document.querySelector("#lora_loom_plan p")?.innerText.includes(n), steps, { timeout: LONG });
  seen.plan = await page.locator("#lora_loom_plan p").first().innerText();

  await page.locator("#lora_loom_check").click();
  await filled("#lora_loom_seen img");
  seen.sheet = await page.locator("#lora_loom_seen .lora_loom_report").innerText();
  await shot("sheet");
  await page.locator("#lora_loom_captions").click();
  await page.locator("#lora_loom_editor .card").first().waitFor({ timeout: LONG });
  seen.cards = await page.locator("#lora_loom_editor .card").count();
  seen.tick = await page.locator("#lora_loom_editor .card input[type=checkbox]").first().evaluate(
    (tick) => [tick.checked, getComputedStyle(tick).appearance]);
  await page.locator("#lora_loom_editor .card textarea").first().fill("a caption of the page");
  await page.locator("#lora_loom_editor .tools button").nth(1).click();
  await page.waitForFunction(() => !document.querySelector("#lora_loom_editor .card.changed"), null, { timeout: SOON });
  seen.caption = await page.locator("#lora_loom_editor .card textarea").first().inputValue();
  await shot("editor");
  await page.locator("#lora_loom_captions").click();

  await open("more");
  seen.sections = await page.locator("#lora_loom_more .label-wrap").allInnerTexts();
  await shot("sections");
  for (const [id, value] of [["data_resolution", "64"], ["samples_every", "10"], ["samples_steps", "2"], ["batch_size", "1"],
    ["adapter_rank", "4"], ["steps", steps], ["name", "from_the_page"], ["trigger", "sks"]]) await put(id, value);
  await page.waitForFunction(() => document.querySelector("#lora_loom_plan p")?.innerText.includes("rank 4"), null, { timeout: LONG });
  await close("more");
  await page.locator("#lora_loom_start").click();
  await page.waitForFunction(() => /from_the_page|[1-9]\d*\s*\/\s*\d+/.test(
    document.querySelector("#lora_loom_panel")?.innerText ?? ""), null, { timeout: LONG });
  await page.waitForFunction(() => document.querySelectorAll("#lora_loom_panel img").length >= 2, null, { timeout: LONG });
  await page.waitForTimeout(3000);
  await shot("running", WITHOUT_SHEET);
  seen.running = await page.locator("#lora_loom_panel").innerText();
  seen.charts = await page.locator("#lora_loom_panel canvas").count();
  const stop = page.locator("#lora_loom_panel button", { hasText: /stop/i }).first();
  if (await stop.isVisible()) await stop.click();
  await page.locator("#lora_loom_panel .loom-result:not([hidden])").waitFor({ timeout: LONG });
  seen.result = await page.locator("#lora_loom_panel .loom-result").innerText();
  seen.samples = await page.locator("#lora_loom_panel img").count();
  seen.said = await page.locator("#lora_loom_said .lora_loom_info:visible").count();
  await shot("done", WITHOUT_SHEET);
  await page.emulateMedia({ colorScheme: "dark" });
  await page.waitForTimeout(1000);
  await shot("done_dark", WITHOUT_SHEET);
  await page.emulateMedia({ colorScheme: "light" });

  await open("more");
  await open("import");
  await put("config", "accelerate launch train_text_to_image_lora.py --rank=8 --train_batch_size=2 --learning_rate=3e-4");
  await page.locator("#lora_loom_take_over").click();
  await filled("#lora_loom_import_report pre");
  await page.waitForFunction(() => document.querySelector("#lora_loom_adapter_rank input")?.value === "8", null, { timeout: SOON });
  seen.imported = await page.locator("#lora_loom_import_report pre").innerText();

  await ours("Files").click();
  await ours("Convert").click();
  await page.locator("#lora_loom_refresh").click();
  await page.waitForTimeout(1500);
  await choose("convert_files", "from_the_page");
  await page.locator("#lora_loom_convert:visible").last().click();
  await filled("#lora_loom_convert_report pre");
  seen.converted = await page.locator("#lora_loom_convert_report pre").innerText();
  await shot("files");
  await ours("Runs").click();
  await page.locator("#lora_loom_runs .card").first().waitFor({ timeout: SOON });
  seen.runs = await page.locator("#lora_loom_runs").innerText();
  await shot("runs");
  await ours("Train").click();

  if (!alone) {
    await page.locator("#lora_loom_panel .loom-result button").last().click();
    await page.waitForTimeout(1000);
    seen.prompt = await page.locator("#txt2img_prompt textarea").inputValue();
    await shot("prompt");
  }
} catch (error) {
  seen.failed = String(error);
  await shot("failed").catch(() => {});
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
