// What holds for every file of js/: loading it does nothing, only ComfyUI's own files know ComfyUI, lines are short.
import assert from "node:assert/strict";
import fs from "node:fs";
import test from "node:test";
import { standInForComfyUI } from "./comfyui_modules.mjs";

const FOLDER = new URL("../../js/", import.meta.url);
const DOOR = "lora_loom.js";
const OF_COMFYUI = [
  DOOR, "comfyui.js", "comfyui_build.js", "comfyui_captions.js", "comfyui_drop.js", "comfyui_fold.js",
  "comfyui_nodes.js", "comfyui_panels.js",
  "comfyui_plans.js", "comfyui_result.js",
];
const MOST_COLUMNS = 120;
const files = fs.readdirSync(FOLDER).filter((name) => name.endsWith(".js")).sort();
const sources = Object.fromEntries(files.map((name) => [name, fs.readFileSync(new URL(name, FOLDER), "utf8")]));

// They note what is asked of them.
const HOST = `
  globalThis.loomCalls = [];
  const note = (name, answer) => (...values) => { globalThis.loomCalls.push([name, ...values]); return answer; };
  export const api = { addEventListener: note("listen"), getSetting: note("setting", "ja"), fetchApi: note("ask") };
  export const app = { registerExtension: note("register") };
`;
standInForComfyUI(HOST);

/** The modules a source imports, in its code or in its types. */
const imported = (source) => [...source.matchAll(/(?:from |import\()"([^"]+)"/g)].map(([, name]) => name);

test("every file ComfyUI loads is there", () => assert.ok(files.length > 15 && files.includes(DOOR)));

test("ComfyUI's modules are imported by one file", () => {
  const importing = files.filter((name) => imported(sources[name]).some((path) => path.includes("/scripts/")));
  assert.deepEqual(importing, ["comfyui.js"]);
});

test("what another host shall use imports nothing of ComfyUI's side", () => {
  for (const name of files.filter((file) => !OF_COMFYUI.includes(file))) {
    const strangers = imported(sources[name]).filter((path) => OF_COMFYUI.includes(path.replace("./", "")));
    assert.deepEqual(strangers, [], name);
  }
});

test("every file is checked by TypeScript, and nothing in it is left out", () => {
  for (const name of files) {
    assert.ok(sources[name].startsWith("// @ts-check\n"), name);
    assert.ok(!/@ts-(ignore|nocheck|expect-error)/.test(sources[name]), name);
  }
  const door = fs.readFileSync(new URL("../javascript/lora_loom.mjs", FOLDER), "utf8");
  assert.ok(door.startsWith("// @ts-check\n"));
});

test("loading a file does nothing to the page or the host", async () => {
  globalThis.loomCalls = []; // and there is no window and no document here to touch
  for (const name of files.filter((file) => file !== DOOR)) await import(new URL(name, FOLDER));
  assert.deepEqual(globalThis.loomCalls, []);
});

test("the door registers each extension once, in the language of the host", async (context) => {
  context.mock.method(globalThis, "setInterval", () => 0); // it would go on for as long as the page is open
  const { openPage } = await import("./page.mjs");
  openPage();
  await import(new URL(DOOR, FOLDER));
  const names = globalThis.loomCalls.filter(([call]) => call === "register").map(([, extension]) => extension.name);
  const parts = ["dataset_editor", "drop", "fold", "panel", "report", "runs", "settings", "stop"];
  assert.deepEqual(names.sort(), parts.map((name) => `lora_loom.${name}`));
  const heard = globalThis.loomCalls.filter(([call]) => call === "listen").map(([, name]) => name);
  for (const name of ["lora_loom.panel", "execution_error", "reconnected"]) assert.ok(heard.includes(name), name);
  assert.equal((await import(new URL("words.js", FOLDER))).language, "ja");
});

test("a list of any length is not what a call gets as its arguments: engines take about a hundred thousand", () => {
  for (const [name, source] of Object.entries(sources)) {
    assert.doesNotMatch(source, /\b(push|unshift|splice|Math\.min|Math\.max|fromCharCode)\([^()[{]*\.\.\./, name);
  }
});

test("no line is too long to be read", () => {
  const tests = fs.readdirSync(new URL(".", import.meta.url)).filter((name) => name.endsWith(".mjs"));
  for (const name of tests) sources[name] = fs.readFileSync(new URL(name, import.meta.url), "utf8");
  for (const [name, source] of Object.entries(sources)) {
    const long = source.split("\n").filter((line) => line.length > MOST_COLUMNS);
    assert.deepEqual(long, [], name);
  }
});
