// The Dataset Editor in a real browser. Called by test_browser_editor.py: node editor.mjs ADDRESS SHOTS RENDERER FOLDER
import { opened } from "./comfy.mjs";

const [address, shots, renderer, folder] = process.argv.slice(2);
const { page, shot, end } = await opened(address, shots, renderer, "editor");
const seen = {};
page.setDefaultTimeout(180000); // screenshots too, on a machine that is busy
const inEditor = (work, ...values) => page.evaluate(new Function("given", `
  const editor = window.app.graph._nodes.find((node) => node.loomEditor)?.loomEditor;
  return (${work})(editor, ...given);`), values);
const until = (work, ...values) => page.waitForFunction(new Function("given", `
  const editor = window.app.graph._nodes.find((node) => node.loomEditor)?.loomEditor;
  return editor && (${work})(editor, ...given);`), values, { timeout: 180000 });
const chips = () => inEditor((editor) => [...editor.chips.children].map((chip) => chip.textContent));
const click = (text, within = "root") => inEditor((editor, wanted, part) => {
  const place = part === "root" ? editor.root : editor[part].root ?? editor[part];
  [...place.querySelectorAll("button")].find((one) => one.textContent.startsWith(wanted)).click();
}, text, within);
const shown = () => inEditor((editor) => editor.filtered.map((picture) => picture.name));

try {
  await page.evaluate((name) => {
    const { graph } = window.app, make = (kind, place, size) => {
      const node = window.LiteGraph.createNode(kind);
      node.pos = place;
      graph.add(node);
      node.setSize(size);
      return node;
    };
    const load = make("LoraLoomLoadFolder", [40, 80], [330, 500]), editor = make("LoraLoomDatasetEditor", [410, 80], [1080, 760]);
    const set = (key, value) => { load.widgets.find((widget) => widget.name === key).value = value; };
    set("folder", name);
    set("trigger", "zog");
    load.connect(0, editor, "dataset");
    window.app.canvas.ds.offset = [0, 0];
    window.app.canvas.ds.scale = 1;
  }, folder);
  await page.evaluate(() => window.app.queuePrompt(0, 1));
  await until((editor) => editor.pictures.length > 0 && editor.notes.size > 0 && !editor.looking);
  await page.waitForTimeout(1500);
  seen.chips = await chips();
  seen.cards = await inEditor((editor) => editor.grid.children.length);
  await shot("open");

  await click("duplicate", "chips");
  seen.duplicates = await shown();
  seen.notes = await inEditor((editor) => [...editor.grid.querySelectorAll(".loom-notes div")].map((one) => [one.className, one.textContent]));
  await page.waitForTimeout(600);
  await shot("duplicates");
  await click("duplicate", "chips");
  await click("dark", "chips");
  seen.dark = await shown();
  seen.grave = await inEditor((editor) => [...editor.grid.querySelectorAll(".loom-notes div")].map((one) => [one.className, one.textContent]));
  await click("dark", "chips");

  await click("no caption", "chips");
  seen.trained = await inEditor((editor) => editor.grid.querySelector(".loom-trained").textContent);
  await click("no caption", "chips");

  await click("Tags");
  seen.tags = await inEditor((editor) => [...editor.tags.list.children].slice(0, 3).map((one) => one.textContent));
  await page.waitForTimeout(400);
  await shot("tags");
  await inEditor((editor) => editor.tags.choose("watermark"));
  seen.tagged = (await shown()).length;
  await click("Remove", "tags");
  seen.removed = await inEditor((editor) => editor.edits.edited.size);
  await inEditor((editor) => editor.tags.choose(""));
  await inEditor((editor) => { editor.chosen.clear(); editor.toggleFilter("changed"); });
  await until((editor) => editor.previews.size > 0);
  seen.preview = await inEditor((editor) => {
    const picture = editor.filtered.find((one) => !editor.edits.caption(one).includes("zog"));
    const card = editor.grid.children[editor.filtered.indexOf(picture)];
    return [editor.edits.caption(picture), card.querySelector(".loom-trained").textContent];
  });
  await inEditor((editor) => editor.toggleFilter("changed"));
  await click("Save");
  await until((editor) => editor.edits.edited.size === 0 && editor.notice.textContent.includes("saved"));
  seen.after = await inEditor((editor) => editor.pictures.filter((one) => one.caption.includes("watermark")).length);
  await click("Undo");
  await until((editor) => editor.pictures.some((one) => one.caption.includes("watermark")));
  seen.back = await inEditor((editor) => editor.pictures.filter((one) => one.caption.includes("watermark")).length);
  await click("Tags");

  await inEditor((editor) => editor.grid.querySelector("img").click());
  await page.waitForSelector(".loom-look");
  const large = () => page.evaluate(() => document.querySelector(".loom-look .name").textContent);
  seen.large = [await large()];
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  seen.large.push(await large());
  await page.keyboard.press("Enter");
  await page.keyboard.press("End");
  await page.keyboard.type(", typed");
  await page.keyboard.press("ArrowLeft"); // in the text, not to the next picture
  seen.large.push(await large());
  await page.keyboard.press("Alt+ArrowLeft");
  seen.large.push(await large());
  await page.waitForTimeout(800);
  await shot("large");
  await page.keyboard.press("Escape");
  seen.closed = await page.evaluate(() => document.querySelector(".loom-look") === null);
  seen.typed = await inEditor((editor) => [...editor.edits.edited.values()]);
  await inEditor((editor) => { editor.edits.edited.clear(); editor.draw(); editor.count(); });

  await click("Caption the empty ones");
  await until((editor) => editor.form.captioner.options.length > 0);
  await page.waitForTimeout(400);
  await shot("form");
  seen.start = await inEditor((editor) => editor.form.start.textContent);
  seen.empty = await inEditor((editor) => editor.captionable().empty);
  await inEditor((editor) => { editor.form.prepend.value = "photo"; });
  await click("Write captions");
  await until((editor) => /of \d+ captions? written/.test(editor.form.notice.textContent));
  seen.done = await inEditor((editor) => editor.form.notice.textContent);
  seen.emptyAfter = await inEditor((editor) => editor.captionable().empty);
  await page.waitForTimeout(800);
  await shot("captioned");
  await click("Undo");
  await until((editor, wanted) => editor.captionable().empty === wanted, seen.empty);
  seen.emptyUndone = await inEditor((editor) => editor.captionable().empty);
  await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.ColorPalette", "light"));
  await page.waitForTimeout(1500);
  await shot("light");
} catch (error) {
  seen.failed = String(error.stack || error);
  await shot("failed");
} finally {
  await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.ColorPalette", "dark")).catch(() => {});
  await end(seen);
}
