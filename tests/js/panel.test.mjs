import assert from "node:assert/strict";
import test from "node:test";
import { fakeHost, openPage } from "./page.mjs";
import { RequestError } from "../../js/api.js";
import { PALETTES, followInk, paletteFor } from "../../js/chart_colours.js";
import { COLOURS } from "../../js/compare.js";
import { spread } from "../../js/end_labels.js";
import { Settings } from "../../js/settings.js";
import { watchPanels } from "../../js/panel_watch.js";
import { headline, speedOf, usage } from "../../js/panel_words.js";
import { TrainPanel } from "../../js/train_panel.js";

openPage();
globalThis.getComputedStyle = () => ({ color: "", fontFamily: "Inter" });
const KIND = "LoraLoomTrainLora";
const row = (step) => [step, step, 0.5, 0.5, 0.5, 1e-4, 1];
const EVENT = {
  node: "3", kind: KIND, workflow: "w", session: "s", changes: 1, run: "cat", status: "training", doing: {}, step: 2,
  steps: 9, speed: 2, left_s: 4, memory: null, rows: [row(1), row(2)],
};
const STATE = {
  ...EVENT, error: {}, inputs: {}, probes: [], saves: [], samples: [], messages: [], result: {}, can_continue: false,
};

function panelOn(host, { ids = ["3"], workflow = "w" } = {}) {
  const marks = [];
  const seat = {
    kind: KIND, ids: () => ids, workflow: () => workflow, grow() {},
    mark(error) { marks.push(error); return { name: "rank" }; },
    unmark() { marks.pop(); },
    goOn: async () => {},
  };
  return Object.assign(new TrainPanel(host, seat, new Settings(host)), { marks });
}

const settled = () => new Promise((done) => setImmediate(done));

test("a panel that knows nothing asks for the whole state when an event comes", async () => {
  const host = fakeHost({ "/lora_loom/panel": { panel: STATE } }), panel = panelOn(host);
  panel.take(EVENT);
  await settled();
  assert.equal(host.asked.length, 1);
  assert.deepEqual(panel.rows, STATE.rows);
  assert.equal(panel.last(), 2);
});

test("events that miss nothing are taken without a question", async () => {
  const host = fakeHost({ "/lora_loom/panel": { panel: STATE } }), panel = panelOn(host);
  panel.set(STATE);
  panel.take({ ...EVENT, step: 4, rows: [row(3), row(4)] });
  await settled();
  assert.deepEqual(host.asked, []);
  assert.equal(panel.last(), 4);
});

for (const [name, change] of Object.entries({
  "what an event does not carry has changed": { changes: 2, rows: [] },
  "steps are missing": { rows: [row(4)] },
  "the run has another status": { status: "stopped", rows: [] },
  "another run began": { session: "new", rows: [] },
})) {
  test(`a panel asks when ${name}`, async () => {
    const host = fakeHost({ "/lora_loom/panel": { panel: null } }), panel = panelOn(host);
    panel.set(STATE);
    panel.take({ ...EVENT, ...change });
    await settled();
    assert.equal(host.asked.length, 1);
  });
}

test("a panel asks under each id it may run under until one has a run", async () => {
  const refused = new RequestError("no", 404);
  const host = fakeHost({ "/lora_loom/panel?node=5%3A3": refused, "/lora_loom/panel?node=6": { panel: STATE } });
  const panel = panelOn(host, { ids: ["5:3", "6:3", "7:3"] });
  await panel.answer();
  assert.equal(host.asked.length, 2);
});

test("a server that is gone is told of while a run goes on", async () => {
  const host = fakeHost({ "/lora_loom/panel": new RequestError("gone", 0) }), panel = panelOn(host);
  panel.set(STATE);
  panel.refresh();
  await settled();
  assert.equal(panel.line.textContent, "panel.server_gone");
});

test("a run of another kind that had this node's id is not shown", () => {
  const panel = panelOn(fakeHost());
  panel.set({ ...STATE, kind: "LoraLoomFindLearningRate" });
  assert.equal(panel.state, null);
});

test("the end of a run is told once, and only in a page that saw it go on", () => {
  const host = fakeHost({ "/lora_loom/panel": { panel: null } }), panel = panelOn(host);
  const end = { ...STATE, status: "finished", result: { files: ["cat.safetensors"], lora: "cat" } };
  panel.set(end);
  assert.deepEqual([host.toasts, host.refreshed], [[], 0]);
  panel.take(EVENT);
  panel.set(end);
  panel.set(end);
  assert.equal(host.toasts.length, 1);
  assert.equal(host.toasts[0][0], "success");
  assert.equal(host.refreshed, 1);
});

for (const [status, more, words] of /** @type {const} */ ([
  ["finished", { result: { files: ["cat.safetensors"], lora: "cat" } }, "panel.made"],
  ["failed", { error: { code: "rank", field: "adapter.rank", values: {}, text: "1024 is too large" } }, "too large"],
])) {
  test(`a run that ${status} while an older state was on its way is told of with all there is to tell`, () => {
    const host = fakeHost({ "/lora_loom/panel": { panel: null } }), panel = panelOn(host);
    panel.set(STATE);
    panel.take({ ...EVENT, status, changes: 3, rows: [] });
    panel.set({ ...STATE, changes: 2 }); // asked for before the end
    assert.deepEqual(host.toasts, []);
    panel.set({ ...STATE, status, changes: 3, ...more });
    assert.equal(host.toasts.length, 1);
    assert.ok(host.toasts[0][1].includes(words), host.toasts[0][1]);
  });
}

test("the field of an error is marked until the run is another one", () => {
  const panel = panelOn(fakeHost({ "/lora_loom/panel": { panel: null } }));
  const error = { code: "rank", field: "adapter.rank", values: {}, text: "adapter.rank: 1024 is too large" };
  panel.set({ ...STATE, status: "failed", error });
  assert.deepEqual(panel.marks, [error]);
  assert.equal(panel.error.hidden, false);
  panel.take({ ...EVENT, session: "new" });
  assert.deepEqual(panel.marks, []);
  assert.equal(panel.error.hidden, true);
});

test("a button that the server refuses warns in its words; one that nobody hears is an error", async () => {
  const refusing = fakeHost({ "/lora_loom/stop": new RequestError("no run is going on", 404) });
  const gone = fakeHost({ "/lora_loom/stop": new RequestError("gone", 0) });
  const working = fakeHost({ "/lora_loom/stop": {} });
  for (const host of [refusing, gone, working]) {
    const panel = panelOn(host);
    panel.set({ ...STATE, node: "5:3" });
    await panel.ask("stop");
    assert.deepEqual(host.posted, [["/lora_loom/stop", { node: "5:3" }]]);
  }
  assert.deepEqual(refusing.toasts, [["warn", "no run is going on"]]);
  assert.equal(gone.toasts[0][0], "error");
  assert.deepEqual(working.toasts, [["info", "panel.asked_stop"]]);
});

test("an event of another workflow is no news, unless it is of the run that is shown", (context) => {
  context.mock.method(globalThis, "setInterval", () => 0);
  const host = fakeHost({ "/lora_loom/panel": { panel: null } }), panel = panelOn(host, { workflow: "mine" });
  watchPanels(host, () => [panel], (id) => (id === "3" ? panel : undefined));
  host.tell("panel", { ...EVENT, workflow: "yours" });
  host.tell("panel", { ...EVENT, workflow: "" }); // queued by a program, without a workflow
  host.tell("panel", { ...EVENT, workflow: "mine", kind: "LoraLoomFindLearningRate" });
  host.tell("panel", { ...EVENT, node: "9" });
  assert.equal(panel.state, null);
  host.tell("panel", { ...EVENT, workflow: "mine" });
  host.tell("panel", { ...EVENT, workflow: "yours", step: 7 });
  assert.equal(panel.state.step, 7);
});

test("the newest sample and the legend follow the state", () => {
  const panel = panelOn(fakeHost());
  panel.set({ ...STATE, samples: [[0, 11], [4, 12]], saves: [4], probes: [[2, 0.4, 0.5]] });
  assert.equal(panel.samples.newest.src, "http://server/lora_loom/panel/sample?run=cat&step=4&size=1024&v=12");
  const legend = () => panel.legend.children.map((one) => one.textContent);
  assert.deepEqual(legend(), ["panel.saves", "panel.samples", "runs.measured"]);
  panel.set({ ...STATE, samples: [[0, 11], [4, 12]], saves: [4], probes: [] });
  assert.deepEqual(legend(), ["panel.saves", "panel.samples"]); // without validation nothing was measured
});

test("the legend opens what was measured, and says what goes wrong", async () => {
  const measured = { pictures: null, concepts: null, cell_px: 96, columns: 16 };
  for (const [answer, toasts] of [[measured, 0], [new Error("gone"), 1]]) {
    const host = fakeHost({ "/lora_loom/runs/measured": answer }), panel = panelOn(host);
    panel.set({ ...STATE, probes: [[2, 0.4, 0.5]] });
    await panel.legend.children.at(-1).onclick();
    assert.ok(host.asked.includes("/lora_loom/runs/measured?id=cat"));
    assert.equal(host.toasts.length, toasts);
  }
});

/** WCAG 2.1: how far two colours are apart in lightness, from 1 to 21. */
function contrast(one, two) {
  const lightness = (colour) => {
    const channels = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
    const [red, green, blue] = channels.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const [dark, light] = [lightness(one), lightness(two)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

test("every line and mark can be read as a word on dark and on light pages", () => {
  const grounds = { dark: ["#353535", "#262729", "#0b0f19"], light: ["#ffffff", "#f0f0f0", "#f3f4f6"] };
  for (const [theme, palette] of Object.entries(PALETTES)) {
    for (const [name, colour] of Object.entries(palette).filter(([name]) => name !== "ground")) {
      for (const ground of grounds[theme]) assert.ok(contrast(colour, ground) >= 4.5, `${theme} ${name} on ${ground}`);
    }
  }
  for (const colour of COLOURS) assert.ok(contrast(colour, "#16181c") >= 4.5, colour); // of runs that are compared
});

test("the colours are those for the page's ink, and the legend follows them", () => {
  assert.equal(paletteFor("rgb(221, 221, 221)"), PALETTES.dark);
  assert.equal(paletteFor("rgba(31, 35, 40, 0.9)"), PALETTES.light);
  const panel = panelOn(fakeHost()), colours = [];
  panel.set({ ...STATE, saves: [4] });
  panel.showLegend = () => colours.push(panel.chart.palette.save);
  panel.chart.take(PALETTES.light);
  panel.chart.take(PALETTES.light);
  assert.deepEqual(colours, [PALETTES.light.save]);
});

test("a page that turns from dark to light has its charts drawn anew, and only those whose ink changed", () => {
  const [one, two, gone] = [1, 2, 3].map(() => panelOn(fakeHost()).chart), drawn = [];
  for (const chart of [one, two, gone]) Object.assign(chart, { ink: "dark", changed: () => drawn.push(chart) });
  one.inkNow = gone.inkNow = () => "light";
  two.inkNow = () => "dark";
  gone.dispose();
  followInk();
  assert.deepEqual(drawn, [one]);
});

test("names at the ends of lines never lie over one another, and stay inside where there is room", () => {
  assert.deepEqual(spread([50, 10, 90], 14, 0, 100), [50, 10, 90]);
  assert.deepEqual(spread([50, 51, 52], 14, 0, 100), [50, 64, 78]);
  assert.deepEqual(spread([99, 98, 5], 14, 0, 100), [100, 86, 5]);
  const many = spread([1, 1, 1, 1], 14, 7, 93);
  assert.deepEqual(many, [7, 21, 35, 49]);
});

test("each line of the chart is named at its end, where it has one", () => {
  const { chart } = panelOn(fakeHost());
  Object.assign(chart, { width: 400, height: 200, rows: [row(1), row(2)], rateEnd: 30 });
  const view = { begin: 0, end: 2, probes: [[2, 0.4, null]], y: (loss) => 100 * loss };
  chart.name(view);
  const names = chart.ends.root.children.map((one) => [one.textContent, one.style.top]);
  assert.deepEqual(names, [
    ["panel.loss", "48px"], ["panel.smoothed", "62px"], ["panel.rate", "20px"], ["panel.held_out", "34px"],
  ]);
});

test("a setting shows at once", () => {
  const host = fakeHost(), panel = panelOn(host), before = panel.minHeight.bind(panel);
  panel.set({ ...STATE, samples: [[4, 12]] });
  const medium = before();
  panel.settings.take("LoraLoom.panel.sampleSize", "large");
  assert.equal(panel.samples.root.style.minHeight, "460px");
  assert.equal(before() - medium, 460 - 350);
  panel.dispose();
  panel.settings.take("LoraLoom.panel.sampleSize", "small");
  assert.equal(panel.samples.root.style.minHeight, "460px");
});

test("a speed is told in the larger unit, and none before there is one", () => {
  assert.deepEqual(speedOf({ speed: 0 }), []);
  assert.deepEqual(speedOf({ speed: 2 }), ["panel.per_second"]);
  assert.deepEqual(speedOf({ speed: 0.5 }), ["panel.per_step"]);
});

test("step and time left stand large, and what goes on between two steps beside them", () => {
  assert.equal(headline({ status: "training", step: 2, steps: 9, left_s: 60 }), "panel.step · panel.left");
  assert.equal(headline({ status: "finished", step: 9, steps: 9, left_s: null }), "panel.step");
  assert.equal(headline({ status: "preparing", step: 0, steps: 0, left_s: null }), "");
  const panel = panelOn(fakeHost());
  panel.set({ ...STATE, doing: { text: "Generating samples 2/4" } });
  assert.equal(panel.doing.textContent, "Generating samples 2/4");
  panel.set({ ...STATE, status: "finished", doing: { text: "Generating samples 4/4" } });
  assert.equal(panel.doing.textContent, "");
});

test("what a node waits for is told before its run begins, and not while it goes on", () => {
  const panel = panelOn(fakeHost());
  panel.awaiting("first: Load Checkpoint");
  assert.equal(panel.status.textContent, "first: Load Checkpoint");
  panel.awaiting("");
  assert.equal(panel.status.textContent, "panel.idle");
  panel.set(STATE);
  panel.awaiting("first: Load Checkpoint");
  assert.equal(panel.doing.textContent, "");
});

test("a step never goes back, whatever arrives late", () => {
  const panel = panelOn(fakeHost({ "/lora_loom/panel": { panel: null } }));
  panel.set({ ...STATE, step: 6 });
  panel.take({ ...EVENT, step: 5, rows: [] });
  assert.equal(panel.state.step, 6);
  panel.set({ ...STATE, step: 4 });
  assert.equal(panel.state.step, 6);
  panel.take({ ...EVENT, session: "new", step: 1, rows: [] });
  assert.equal(panel.state.step, 1);
});

test("a snapshot that was made before the newest event does not take its news back", () => {
  const panel = panelOn(fakeHost({ "/lora_loom/panel": { panel: null } }));
  panel.set(STATE);
  panel.take({ ...EVENT, changes: 5, status: "finished", step: 9, rows: [] });
  panel.set({ ...STATE, changes: 3, saves: [4] });
  assert.deepEqual([panel.state.status, panel.state.step, panel.state.saves], ["finished", 9, [4]]);
  panel.set({ ...STATE, changes: 5, status: "finished", step: 9, saves: [4, 9] });
  assert.deepEqual(panel.state.saves, [4, 9]);
});

test("a new run never shows the old chart", () => {
  const panel = panelOn(fakeHost({ "/lora_loom/panel": { panel: null } }));
  panel.set({ ...STATE, probes: [[2, 0.4, 0.5]], saves: [2], samples: [[2, 11]] });
  panel.take({ ...EVENT, session: "new", step: 0, rows: [] });
  const { rows, probes, saves, samples } = panel.chart;
  assert.deepEqual([rows, probes, saves, samples, panel.samples.root.hidden], [[], [], [], [], true]);
});

test("the samples take at least half of the panel", () => {
  const panel = panelOn(fakeHost());
  panel.set({ ...STATE, samples: [[0, 11], [4, 12]] });
  assert.ok(2 * parseInt(panel.samples.root.style.minHeight) >= panel.minHeight());
});

test("the use of a result holds the prompt the samples were drawn with, and its tag for A1111", () => {
  const result = { files: ["cat.safetensors"], lora: "cat", a1111: "<lora:cat:1>" };
  const lines = usage({ inputs: { sample_prompt: " a cat \na dog" }, result });
  assert.deepEqual(lines, ["panel.made", "panel.in_comfyui_lora", "A1111: a cat, <lora:cat:1>"]);
  const embedding = usage({ inputs: {}, result: { files: ["e"], trigger: "zog", comfyui: "embedding:e", a1111: "e" } });
  assert.deepEqual(embedding, ["panel.made", "panel.trigger", "ComfyUI: embedding:e", "A1111: e"]);
});
