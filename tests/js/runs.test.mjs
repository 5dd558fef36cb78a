import assert from "node:assert/strict";
import test from "node:test";
import { fakeHost, openPage } from "./page.mjs";
import { Editor, replaced } from "../../js/dataset_editor.js";
import { COLOURS, Compare, outcome, sampledSteps } from "../../js/compare.js";
import { QueueView, ends, timeOf } from "../../js/queue.js";
import { RunEntry, exportChoices, mainAct, sparkPoints } from "../../js/run_entry.js";
import { differing, sectionAndName, valueText } from "../../js/run_settings.js";
import { Runs, exportedSave, filteredRuns, promptOf } from "../../js/runs.js";

openPage();
const RUN = {
  id: "cat", method: "lora", base: "Stable Diffusion 1.x", trigger: "zog", step: 5, steps: 9, best: null,
  state: "running", error: null, changed: 1, size_bytes: 1e6, picture: null, saves: [3, 6], best_save: null,
  results: [],
};

test("the weights to export: the result, the best, then whole saves from the newest on, none twice", () => {
  const choices = exportChoices({ saves: [3, 6, 9], best_save: 6, results: ["cat.safetensors"] });
  assert.deepEqual(choices.map(([value]) => value), ["result", "best", "9", "3"]);
  assert.deepEqual(exportChoices({ saves: [], best_save: null, results: [] }), []);
});

test("a step to export travels as a number, a name as it is", () => {
  assert.deepEqual(["12", "0", "best", "result"].map(exportedSave), [12, 0, "best", "result"]);
});

test("runs are filtered by name, base, trigger and state, whatever the case", () => {
  const runs = [RUN, { ...RUN, id: "dog", base: "SDXL", trigger: "", state: "failed" }];
  for (const text of ["CAT", " stable ", "Zog", "_running"]) assert.deepEqual(filteredRuns(runs, text), [RUN]);
  assert.equal(filteredRuns(runs, "").length, 2);
  assert.equal(filteredRuns(runs, "bird").length, 0);
});

test("the list of runs is drawn from what the server says, and anew only when that changed", async () => {
  const finished = { ...RUN, id: "dog", state: "finished", picture: 4, results: ["x"] };
  const list = { runs: [RUN, finished], trash: [], local: false, place: "output/x" };
  const host = fakeHost({ "/lora_loom/runs/queue": { queue: [] }, "/lora_loom/runs": list }), runs = new Runs(host);
  await runs.load();
  runs.rest();
  const [first, second] = runs.list.children;
  assert.ok(first.textContent.includes("cat") && second.textContent.includes("dog"));
  assert.equal(second.children[0].src, "http://server/lora_loom/runs/picture?id=dog&step=4&of=1");
  await runs.load();
  runs.rest();
  assert.equal(runs.list.children[0], first);
});

const buttons = (element) => [
  ...(element.tagName === "BUTTON" ? [element] : []), ...(element.children ?? []).flatMap(buttons),
];
const button = (element, text) => buttons(element).find((one) => one.textContent === text);
const settled = () => new Promise((done) => setImmediate(done));

/** A card, and what was asked of the list. */
function entry(run) {
  const asked = [], acts = {
    local: true, place: "output/x", chosen: new Set(), saves: new Map(), opened: new Set(), choose() {},
    act: (work) => work(), picture: () => "http://server/picture",
  };
  for (const name of ["look", "use", "resume", "export", "open", "copy", "delete", "remark"]) {
    acts[name] = async (...given) => { asked.push([name, ...given.map((one) => one.id ?? one)]); };
  }
  return { asked, acts, card: new RunEntry(run, acts) };
}
const DONE = { ...RUN, state: "finished", results: ["cat.safetensors"], picture: 4 };

test("a run has one main button: its result is used, else it goes on, and neither while it is trained", () => {
  assert.equal(mainAct(DONE), "use");
  assert.equal(mainAct({ ...DONE, results: [] }), "resume");
  assert.equal(mainAct({ ...DONE, state: "failed" }), "resume");
  assert.equal(mainAct({ ...DONE, state: "failed", saves: [] }), null);
  assert.equal(mainAct({ ...DONE, state: "running" }), null);
  const { card, asked } = entry(DONE);
  assert.deepEqual(buttons(card.root).map((one) => one.textContent), ["☆", "runs.use", "⋯"]);
  button(card.root, "runs.use").onclick();
  assert.deepEqual(asked, [["use", "cat"]]);
});

test("the rest stands in a menu that is made when it is opened, and stays open when the list is drawn anew", () => {
  const { card, acts, asked } = entry(DONE);
  card.toggle();
  const wanted = ["look", "resume", "rename", "write_note", "trigger", "open", "delete", "export"];
  assert.deepEqual(buttons(card.menu).map((one) => one.textContent), wanted.map((name) => `runs.${name}`));
  for (const name of ["look", "resume", "trigger", "open", "delete"]) button(card.menu, `runs.${name}`).onclick();
  assert.deepEqual(asked, [
    ["look", "cat"], ["resume", "cat"], ["copy", "zog"], ["open", "cat"], ["delete", "cat"],
  ]);
  assert.ok(new RunEntry(DONE, acts).menu);
  card.toggle();
  assert.ok(!new RunEntry(DONE, acts).menu);
});

test("a card has the file of the base, and the title in the place of the name, which stays in sight", () => {
  const { card } = entry({ ...DONE, base_file: "v1-5.safetensors", title: "The good one", note: "lower rate" });
  const text = card.root.textContent;
  assert.ok(text.includes("v1-5.safetensors · Stable Diffusion 1.x"));
  assert.ok(text.includes("The good one") && text.includes("cat") && text.includes("lower rate"));
});

test("a title and a note are kept by Enter or by leaving the field, not by Escape and not unchanged", () => {
  const { card, asked } = entry({ ...DONE, title: "old" });
  const write = (begin, text, name) => {
    begin();
    const field = (name === "note" ? card.note : card.name).children[0];
    field.value = text;
    return field;
  };
  const press = (field, key) => field.listeners.keydown[0]({ key, stopPropagation() {}, preventDefault() {} });
  press(write(() => card.rename(), "new", "name"), "Enter");
  press(write(() => card.rename(), "other", "name"), "Escape");
  write(() => card.rename(), "old", "name").listeners.blur[0]();
  write(() => card.writeNote(), "a note", "note").listeners.blur[0]();
  press(write(() => card.rename(), "cat", "name"), "Enter"); // its own name: no title
  assert.deepEqual(asked.map(([, , remark]) => remark), [{ title: "new" }, { note: "a note" }, { title: "" }]);
});

test("a star is asked for with a POST, and what the server answers is shown", async () => {
  const host = fakeHost({ "/lora_loom/runs/remark": { title: "", note: "", star: true } }), runs = new Runs(host);
  runs.runs = [{ ...DONE }];
  runs.draw();
  button(runs.list, "☆").listeners.click[0]();
  await settled();
  assert.deepEqual(host.posted, [["/lora_loom/runs/remark", { id: "cat", star: true }]]);
  assert.ok(button(runs.list, "★"));
  runs.onlyStarred = true;
  runs.runs.push({ ...DONE, id: "dog" });
  runs.draw();
  assert.equal(runs.list.children.length, 1);
});

test("where a run has no picture its loss stands in small, and a word where it has none either", () => {
  assert.deepEqual(sparkPoints([2, 1], 100), "5.0,12.0 95.0,88.0");
  assert.ok(sparkPoints([1, 1, 1], 88).split(/[ ,]/).map(Number).every(Number.isFinite));
  assert.equal(entry({ ...DONE, picture: null, spark: [3, 2, 1] }).card.root.children[0].children[0].tagName, "SVG");
  assert.equal(entry({ ...DONE, picture: null, spark: [] }).card.root.children[0].textContent, "runs.no_samples");
});

test("without a graph, a run is used by the prompt that calls it, which is copied where no prompt is", async () => {
  assert.equal(promptOf(["models/loras/cat_2.safetensors"], RUN), "<lora:cat_2:1>, zog");
  assert.equal(promptOf(["zog.safetensors"], { ...RUN, method: "embedding" }), "zog");
  const answers = { "/lora_loom/runs/export": { files: ["cat.safetensors"] } }, prompts = [];
  const host = { ...fakeHost(answers), usePrompt: (prompt) => prompts.push(prompt) };
  await new Runs(host).use(DONE);
  assert.deepEqual(prompts, ["<lora:cat:1>, zog"]);
  const copies = new Runs(fakeHost(answers));
  copies.copy = async (text) => { prompts.push(text); };
  await copies.use(DONE);
  assert.equal(prompts[1], prompts[0]);
  const used = [], graph = new Runs({ ...fakeHost(), useRun: async (run) => { used.push(run.id); } });
  await graph.use(DONE);
  assert.deepEqual(used, ["cat"]);
});

const ROWS = [
  { id: "1", name: "cat", running: true, step: 12, steps: 400, seconds: 100 },
  { id: "2", name: "dog", running: false, step: null, steps: 50, seconds: 60 },
  { id: "3", name: "", running: false, step: null, steps: null, seconds: null },
  { id: "4", name: "cow", running: false, step: null, steps: 50, seconds: 60 },
];

test("a queue says when each is done, as long as it is known what those before it take", () => {
  assert.deepEqual(ends(ROWS), [100, 160, null, null]);
  assert.equal(timeOf(ROWS[0], 100), "panel.step · panel.left");
  assert.equal(timeOf(ROWS[1], 160), "card.steps · queue.takes · queue.done_in");
  assert.equal(timeOf(ROWS[3], null), "card.steps · queue.takes");
  assert.equal(timeOf({ ...ROWS[3], seconds: null }, null), "card.steps · queue.unknown");
  assert.equal(timeOf(ROWS[2], null), "");
});

test("the queue stands in its order, and is not there without a training in it", () => {
  const view = new QueueView();
  view.set(ROWS);
  assert.deepEqual(view.list.children.map((row) => row.children[1].textContent), ["cat", "dog", "queue.other", "cow"]);
  assert.equal(view.root.hidden, false);
  assert.equal(view.summary.textContent, "queue.title");
  view.set(ROWS.slice(0, 2));
  assert.equal(view.summary.textContent, "queue.title · queue.all_done_in");
  view.set([ROWS[2]]);
  assert.equal(view.root.hidden, true);
});

test("settings that differ stand in a table, equal ones do not, and a missing one is told", () => {
  const runs = [
    { name: "a", "adapter.rank": 4, seed: 1, "schedule.name": "cosine", rules: [] },
    { name: "b", "adapter.rank": 8, seed: 1, "schedule.name": "cosine", rules: [], fresh: true },
  ];
  assert.deepEqual(differing(runs), [
    { path: "adapter.rank", values: [4, 8] }, { path: "fresh", values: [undefined, true] },
  ]);
  assert.deepEqual([4, 0.00012345, true, "", null, [1, 2], "x"].map(valueText), [
    "4", "1.23e-4", "compare.on", "–", "–", "[1,2]", "x",
  ]);
  assert.deepEqual([sectionAndName("adapter.rank"), sectionAndName("seed")], [["adapter", "rank"], ["", "seed"]]);
});

const COMPARED = ["cat", "dog"].map((id, n) => ({
  run: { ...DONE, id, step: 8 }, colour: COLOURS[n], settings: { "adapter.rank": n }, pace: { seconds_per_step: 2 },
  course: { loss: [[1, 0.5], [8, 0.25]], held_out: [] },
  samples: {
    run: id, pictures: 2 - n, samples: n ? [[0, 1], [6, 1]] : [[0, 1], [4, 1], [8, 1]],
    prompts: [{ prompt: "a zog", seed: 1, cfg: 4 }, { prompt: "a red zog", seed: 1, cfg: 4 }],
  },
}));
const pictures = (element) => [
  ...(element.tagName === "IMG" ? [element] : []), ...(element.children ?? []).flatMap(pictures),
];
const drawnAt = (compare) => pictures(compare.samples).map(({ src }) => {
  const query = new URL(src).searchParams;
  return [query.get("run"), Number(query.get("step")), Number(query.get("picture"))];
});

test("samples of one step stand side by side; a run without that step shows its nearest and says so", () => {
  assert.deepEqual(sampledSteps(COMPARED.map(({ samples }) => samples)), [0, 4, 6, 8]);
  const compare = new Compare(fakeHost(), COMPARED);
  compare.open();
  assert.deepEqual(drawnAt(compare), [["cat", 8, 0], ["dog", 6, 0], ["cat", 8, 1]]);
  const figures = () => compare.samples.children.filter((one) => one.tagName === "FIGURE");
  const captions = () => figures().map((one) => one.textContent);
  assert.deepEqual(captions(), ["cat", "dog · runs.at_step", "cat", "compare.not_drawndog"]);
  const key = (name) => compare.key({ key: name, stopPropagation() {}, preventDefault() {} });
  for (let n = 0; n < 5; n += 1) key("ArrowLeft");
  assert.deepEqual(drawnAt(compare)[1], ["dog", 0, 0]);
  assert.equal(captions()[1], "dog");
  key("Escape");
  assert.ok(compare.root.removed);
});

test("what came of each run stands above its settings", () => {
  const facts = Object.fromEntries(outcome(COMPARED[0]));
  assert.deepEqual([facts.loss, facts.pace, facts.memory, facts.base], [
    "0.25", "panel.per_step", "–", "Stable Diffusion 1.x",
  ]);
  const text = new Compare(fakeHost(), COMPARED).table().textContent;
  assert.ok(text.includes("adapter rank01") && text.includes("compare.settings"));
});

test("runs without any sample are compared all the same", () => {
  const bare = COMPARED.map((one) => ({ ...one, samples: { run: one.run.id, samples: [], pictures: 0, prompts: [] } }));
  const compare = new Compare(fakeHost(), bare);
  compare.open();
  assert.equal(compare.samples.textContent, "compare.no_samples");
});

test("a list that does not come is told of", async () => {
  const runs = new Runs(fakeHost({ "/lora_loom/runs": new Error("gone") }));
  await runs.load();
  assert.equal(runs.notice.textContent, "gone");
  assert.ok(runs.notice.classList.contains("bad"));
});

test("a text is replaced word by word, whatever the case and the signs in it", () => {
  assert.equal(replaced("A (cat), a CAT", "(CAT)", "$& dog"), "A $& dog, a CAT");
  assert.equal(replaced("cat Cat", "cat", "dog"), "dog dog");
});

const PICTURE = { id: "a", set: 0, name: "a.png", caption: "cat", excluded: false, locked: "", width: 32, height: 32 };
const SETS = [{ label: "mine", editable: true, trigger: "" }, { label: "theirs", editable: false, trigger: "" }];

test("what is edited waits to be saved until the server has it or the file is another one", () => {
  const editor = new Editor(fakeHost()), pictures = ["a", "b", "c"].map((id) => ({ ...PICTURE, id }));
  editor.take({ sets: SETS, pictures });
  for (const picture of pictures) editor.edits.edit(picture, "dog");
  editor.edits.exclude(pictures[0], true);
  const [first, second, third] = pictures;
  editor.take({ sets: SETS, pictures: [first, { ...second, caption: "dog" }, { ...third, caption: "bird" }] });
  assert.deepEqual([...editor.edits.edited], [["a", "dog"]]);
  assert.deepEqual([...editor.edits.flipped], [["a", true]]);
  editor.edits.edit(pictures[0], "cat");
  editor.edits.exclude(pictures[0], false);
  assert.equal(editor.edits.size, 0);
});

test("an edit is sent with the caption that was seen", async () => {
  const dataset = { sets: SETS, pictures: [PICTURE] };
  const host = fakeHost({ "/lora_loom/dataset/edit": { changed: 1 }, "/lora_loom/dataset": dataset });
  const editor = new Editor(host);
  await editor.open("s");
  editor.edits.edit(PICTURE, "dog");
  await editor.send();
  const body = { session: "s", captions: { a: ["cat", "dog"] }, excluded: {} };
  assert.deepEqual(host.posted, [["/lora_loom/dataset/edit", body]]);
});

test("replacing changes neither locked captions nor folders that are not the user's", () => {
  const editor = new Editor(fakeHost());
  const locked = { ...PICTURE, id: "b", locked: "a table" }, foreign = { ...PICTURE, id: "c", set: 1 };
  editor.take({ sets: SETS, pictures: [PICTURE, locked, foreign] });
  editor.find.value = "cat";
  editor.replacement.value = "dog";
  editor.replace();
  assert.deepEqual([...editor.edits.edited], [["a", "dog"]]);
});
