// Our parts in a page that is not ComfyUI's: mounted by one call, asking a server by themselves.
import assert from "node:assert/strict";
import test from "node:test";
import { mountEditor, mountPanel, mountRuns } from "../../js/mount.js";
import { pageHost } from "../../js/page_host.js";
import { openPage } from "./page.mjs";

const document = openPage();
const STATE = {
  node: "page", kind: "train", workflow: "", session: "s", changes: 1, run: "cat", status: "training", doing: {},
  step: 2, steps: 9, speed: 2, left_s: 4, memory: null, rows: [[1, 1, 0.5, 0.5, 0.5, 1e-4, 1]],
  error: {}, inputs: { sample_prompt: "a cat" }, probes: [], saves: [], samples: [], messages: [], result: {},
  can_continue: false,
};
const DONE = { status: "finished", result: { files: ["cat.safetensors"], trigger: "zog", a1111: "<lora:cat:1>" } };

/** A page with a server that answers with `state.panel`, and what was asked of it. */
function page(context, { panel = null, options = {} } = {}) {
  let tick = () => {};
  context.mock.method(globalThis, "setInterval", (work) => { tick = work; return 1; });
  context.mock.method(globalThis, "clearInterval", () => { tick = () => {}; });
  context.mock.method(globalThis, "setTimeout", (work) => setImmediate(work));
  const server = { panel, asked: [], toasts: [], tick: () => tick() };
  server.host = pageHost({
    server: "/lora-loom/v1/", language: () => "en", toast: (...toast) => server.toasts.push(toast), ...options,
    async fetch(url, request = {}) {
      server.asked.push([request.method ?? "GET", url, request.body ?? ""]);
      return new Response(JSON.stringify(server.answer?.(url) ?? { panel: server.panel }));
    },
  });
  server.place = document.createElement("div");
  return server;
}
const settled = async () => { for (let n = 0; n < 6; n += 1) await new Promise((done) => setImmediate(done)); };
const texts = (element) => element.textContent;

test("routes lie where the page says, and no other address is asked", async (context) => {
  const { host, asked } = page(context);
  await host.fetchJson("/lora_loom/runs?x=1");
  assert.deepEqual(asked, [["GET", "/lora-loom/v1/runs?x=1", ""]]);
  assert.equal(host.imageUrl("/lora_loom/panel/sample?run=a"), "/lora-loom/v1/panel/sample?run=a");
  await assert.rejects(host.fetchJson("/sdapi/v1/txt2img"));
  assert.equal(asked.length, 1);
});

test("without a word of the page, routes lie where ComfyUI has them", async () => {
  const asked = [];
  const host = pageHost({ fetch: async (url) => { asked.push(url); return new Response("{}"); } });
  await host.fetchJson("/lora_loom/runs");
  assert.deepEqual(asked, ["/lora_loom/runs"]);
  assert.equal(await host.openRun({ name: "a", method: "lora", workflow: null }), null);
});

test("an event handed on is heard until the listener has ended that", async () => {
  const host = pageHost(), heard = [];
  const end = host.onEvent("runs", (detail) => heard.push(detail));
  host.tell("runs", 1);
  end();
  host.tell("runs", 2);
  host.tell("panel");
  assert.deepEqual(heard, [1]);
});

test("a mounted panel asks at once, shows a run of any kind, and asks again while it goes on", async (context) => {
  const server = page(context, { panel: STATE });
  const { panel } = await mountPanel(server.place, server.host);
  await settled();
  assert.equal(server.place.children[0], panel.root);
  assert.match(server.asked[0][1], /^\/lora-loom\/v1\/messages\/en$/);
  assert.match(server.asked[1][1], /^\/lora-loom\/v1\/panel\?node=page&workflow=&session=&after=0$/);
  assert.equal(panel.state.run, "cat");
  server.tick();
  await settled();
  assert.match(server.asked.at(-1)[1], /session=s&after=1$/);
  assert.equal(server.asked.length, 3);
});

test("where nothing goes on, a panel asks more rarely, and so it still sees a run begin", async (context) => {
  const server = page(context);
  const { panel } = await mountPanel(server.place, server.host);
  await settled();
  const before = server.asked.length;
  server.panel = STATE;
  for (let n = 0; n < 4; n += 1) server.tick();
  await settled();
  assert.equal(server.asked.length, before + 1);
  assert.equal(panel.state.status, "training");
});

test("a page that nobody looks at asks nothing", async (context) => {
  const server = page(context, { panel: STATE });
  await mountPanel(server.place, server.host);
  await settled();
  const before = server.asked.length;
  document.visibilityState = "hidden";
  for (let n = 0; n < 8; n += 1) server.tick();
  document.visibilityState = "visible";
  await settled();
  assert.equal(server.asked.length, before);
});

test("the end of a polled run is told once, with the prompt that uses its result", async (context) => {
  const prompts = [];
  let lists = 0;
  const options = { usePrompt: (prompt) => prompts.push(prompt), refreshLists: async () => { lists += 1; } };
  const server = page(context, { panel: STATE, options });
  const { panel, refresh } = await mountPanel(server.place, server.host);
  await settled();
  server.panel = { ...STATE, ...DONE };
  for (let n = 0; n < 2; n += 1) {
    refresh();
    await settled();
  }
  assert.equal(lists, 1);
  assert.equal(server.toasts.length, 1);
  assert.deepEqual(server.toasts[0][1].split("\n"), ["panel.made", "panel.trigger", "panel.prompt"]);
  const card = panel.root.children.at(-1);
  assert.equal(card.hidden, false);
  assert.match(texts(card), /a cat, <lora:cat:1>/);
  card.children.at(-1).children[0].onclick();
  assert.deepEqual(prompts, ["a cat, <lora:cat:1>"]);
});

test("a run that was over when the page opened shows its result and says nothing", async (context) => {
  const server = page(context, { panel: { ...STATE, ...DONE } });
  const states = [];
  let runs = 0;
  server.host.onEvent("runs", () => { runs += 1; });
  const { panel, refresh } = await mountPanel(server.place, server.host, {}, (state) => states.push(state.status));
  await settled();
  assert.equal(runs, 1); // a list of runs beside it is told
  refresh();
  await settled();
  assert.equal(runs, 1);
  assert.deepEqual(server.toasts, []);
  assert.equal(panel.root.children.at(-1).hidden, false);
  assert.deepEqual(states, ["finished", "finished"]);
});

test("buttons ask the server of the run that is shown", async (context) => {
  const server = page(context, { panel: { ...STATE, status: "paused", can_continue: true } });
  const { panel } = await mountPanel(server.place, server.host);
  await settled();
  await panel.goOn();
  await panel.ask("stop");
  const posted = server.asked.filter(([method]) => method === "POST").map(([, url, body]) => [url, JSON.parse(body)]);
  const expected = [["go_on", { node: "page", run: "cat" }], ["stop", { node: "page" }]];
  assert.deepEqual(posted, expected.map(([name, body]) => [`/lora-loom/v1/${name}`, body]));
});

test("a search of a learning rate can be stopped only; a run after it has all buttons", async (context) => {
  const server = page(context, { panel: { ...STATE, kind: "find-lr" } });
  const { panel, refresh } = await mountPanel(server.place, server.host);
  await settled();
  const offered = () => Object.keys(panel.buttons).filter((name) => !panel.buttons[name].hidden);
  assert.deepEqual(offered(), ["stop"]);
  assert.equal(panel.chart.risingRate, true);
  server.panel = { ...STATE, session: "t" };
  refresh();
  await settled();
  assert.deepEqual(offered(), ["stop", "save", "sample", "pause"]);
  assert.equal(panel.chart.risingRate, false);
});

test("a panel that was taken out asks nothing more and listens to nothing", async (context) => {
  const server = page(context, { panel: STATE });
  const { panel, end } = await mountPanel(server.place, server.host);
  await settled();
  const before = server.asked.length;
  end();
  server.tick();
  server.host.tell("reconnected");
  document.listeners.visibilitychange.forEach((listener) => listener());
  await settled();
  assert.equal(server.asked.length, before);
  assert.equal(panel.root.removed, true);
});

test("a page says which colours a panel has, and may change them", async (context) => {
  const server = page(context, { panel: STATE, options: { theme: () => theme } });
  let theme = "light";
  const { panel, refresh } = await mountPanel(server.place, server.host);
  await settled();
  assert.equal(panel.root.dataset.theme, "light");
  theme = "dark";
  refresh();
  await settled();
  assert.equal(panel.root.dataset.theme, "dark");
});

test("the list of runs and the editor stand in a page too", async (context) => {
  const server = page(context);
  server.answer = (url) => (url.includes("/runs") ? { runs: [], trash: [], local: false, place: "runs" } : {
    sets: [{ label: "cats", editable: true, trigger: "" }],
    pictures: [{ id: "1", set: 0, name: "a.png", caption: "a", excluded: false, locked: null, width: 8, height: 8 }],
  });
  const runs = await mountRuns(server.place, server.host);
  await settled();
  assert.equal(runs.place, "runs");
  const editor = await mountEditor(document.createElement("div"), server.host, "key");
  await settled();
  assert.equal(editor.pictures.length, 1);
  const asked = server.asked.map(([, url]) => url);
  for (const name of ["dataset", "dataset/notes", "dataset/captioning"]) {
    assert.ok(asked.some((url) => url.startsWith(`/lora-loom/v1/${name}?session=key`)), name);
  }
});
