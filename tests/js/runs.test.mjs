import assert from "node:assert/strict";
import test from "node:test";
import { fakeHost, openPage } from "./page.mjs";
import { Editor, replaced } from "../../js/dataset_editor.js";
import { Runs, exportChoices, exportedSave, filteredRuns } from "../../js/runs.js";

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
  const host = fakeHost({ "/lora_loom/runs": list }), runs = new Runs(host);
  await runs.load();
  runs.rest();
  const [first, second] = runs.list.children;
  assert.ok(first.textContent.includes("cat") && second.textContent.includes("dog"));
  assert.equal(second.children[0].src, "http://server/lora_loom/runs/picture?id=dog&step=4&of=1");
  await runs.load();
  runs.rest();
  assert.equal(runs.list.children[0], first);
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
  for (const picture of pictures) editor.edit(picture, "dog");
  editor.exclude(pictures[0], true);
  const [first, second, third] = pictures;
  editor.take({ sets: SETS, pictures: [first, { ...second, caption: "dog" }, { ...third, caption: "bird" }] });
  assert.deepEqual([...editor.edited], [["a", "dog"]]);
  assert.deepEqual([...editor.flipped], [["a", true]]);
  editor.edit(pictures[0], "cat");
  editor.exclude(pictures[0], false);
  assert.equal(editor.edited.size + editor.flipped.size, 0);
});

test("an edit is sent with the caption that was seen", async () => {
  const dataset = { sets: SETS, pictures: [PICTURE] };
  const host = fakeHost({ "/lora_loom/dataset/edit": { changed: 1 }, "/lora_loom/dataset": dataset });
  const editor = new Editor(host);
  await editor.open("s");
  editor.edit(PICTURE, "dog");
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
  assert.deepEqual([...editor.edited], [["a", "dog"]]);
});
