import assert from "node:assert/strict";
import test from "node:test";
import { fakeHost, openPage } from "./page.mjs";
import { MeasuredView, byDifficulty, coursePoints, fit, told, viewMeasured } from "../../js/measured.js";
import { RunEntry } from "../../js/run_entry.js";

openPage();
const ROWS = [{ step: 0, losses: [1, 2, 0.5] }, { step: 50, losses: [0.25, 1.9, 0.6] }];
const PICTURES = {
  pictures: [{ name: "a.png", held_out: false }, { name: "b.png", held_out: false }, { name: "c.png", held_out: true }],
  rows: ROWS, hard: [1], memorised: [0],
};
const CONCEPTS = {
  words: ["zog", "dax"], held_out: [true, false],
  rows: [{ step: 0, losses: [[0.3, 0.3, 0.3], [0.4, 0.4, 0.4]], bleeds: [] },
    { step: 50, losses: [[0.1, 0.3, 0.2], [0.2, 0.2, 0.3]], bleeds: [["dax", "zog"]] }],
};
const MEASURED = { pictures: PICTURES, concepts: CONCEPTS, cell_px: 96, columns: 2 };

const all = (element, tag) => [
  ...(element.tagName === tag ? [element] : []), ...(element.children ?? []).flatMap((child) => all(child, tag)),
];

test("the hardest picture at the last validation stands first", () => {
  assert.deepEqual(byDifficulty(ROWS), [1, 2, 0]);
  assert.deepEqual(byDifficulty([]), []);
});

test("all courses stand on one scale: the lowest loss of all at the bottom, the highest at the top", () => {
  const course = coursePoints(ROWS);
  const points = (place) => course(place).split(" ").map((point) => point.split(",").map(Number));
  assert.equal(points(0)[1][1], 31);
  assert.equal(points(1)[0][1], 3);
  assert.equal(points(0)[0][1], 12.3); // 1 lies two thirds up from 1/4 to 2, by ratio
  assert.deepEqual(points(2).map(([x]) => x), [2, 130]);
});

test("a thousand pictures measured three hundred times have their courses too", () => {
  const rows = Array.from({ length: 300 }, (_, step) => ({ step, losses: Array.from({ length: 1000 }, () => 1) }));
  assert.equal(coursePoints(rows)(999).split(" ").length, 300);
});

test("a trigger fits fully where it is as good as the own one, half at 5 % more loss, and less beyond", () => {
  assert.deepEqual([1, 0.9, 2].map((loss) => fit(loss, 1).toFixed(2)), ["1.00", "1.00", "0.05"]);
  assert.equal(fit(1.05, 1).toFixed(2), "0.50");
  assert.deepEqual([0.10006, 0.09995, 0.1234].map((loss) => told([0.1, loss], 0, 1)), ["+0.06 %", "−0.05 %", "+23 %"]);
});

test("the matrix shows the last validation first, marks its own triggers and those that bled, and goes back", () => {
  const view = new MeasuredView(fakeHost(), "cat", MEASURED), cells = () => all(view.table, "TD");
  assert.deepEqual(cells().map((cell) => cell.textContent), ["0.1", "+200 %", "+100 %", "+0 %", "0.2", "+50 %"]);
  assert.deepEqual(cells().map((cell) => cell.className), ["own", "", "", "bled", "own", ""]);
  view.show(0);
  assert.deepEqual(cells().map((cell) => cell.className), ["own", "", "", "", "own", ""]);
  const heads = all(view.table, "TH").map((cell) => cell.textContent);
  assert.ok(heads.includes("measured.held_out_of") && heads.includes("measured.trained_of"));
});

test("each picture has its cell of the sheet, its figures and what is said of it", () => {
  const view = new MeasuredView(fakeHost(), "cat", MEASURED);
  const cards = all(view.root, "I");
  assert.deepEqual(cards.map((one) => one.style.backgroundPosition), ["-96px -0px", "-0px -96px", "-0px -0px"]);
  assert.match(cards[0].style.backgroundImage, /runs\/thumbnails\?id=cat/);
  const text = view.root.textContent;
  assert.ok(text.includes("2 → 1.9") && text.includes("measured.training · measured.hardb.png"));
  assert.ok(text.includes("measured.training · measured.memoriseda.png") && text.includes("measured.validationc.png"));
});

test("a run that measured nothing says so", async () => {
  const host = fakeHost({ "/lora_loom/runs/measured": { pictures: null, concepts: null, cell_px: 96, columns: 16 } });
  const view = await viewMeasured(host, "cat");
  assert.ok(view.root.textContent.includes("measured.none"));
  view.key({ key: "Escape", stopPropagation() {} });
  assert.ok(view.root.removed);
});

test("a run offers it where it has measured", () => {
  const run = {
    id: "cat", method: "lora", base: "", trigger: "", step: 5, steps: 9, best: null, state: "finished", error: null,
    changed: 1, size_bytes: 1, picture: null, saves: [], best_save: null, results: [], measured: true,
  };
  const asked = [], acts = {
    local: true, place: "x", chosen: new Set(), saves: new Map(), opened: new Set(["cat"]), choose() {},
    act: (work) => work(), picture: () => "", measured: (one) => asked.push(one.id),
  };
  const button = (one) => all(one.root, "BUTTON").find((each) => each.textContent === "runs.measured");
  button(new RunEntry(run, acts)).onclick();
  assert.deepEqual(asked, ["cat"]);
  assert.equal(button(new RunEntry({ ...run, measured: false }, acts)), undefined);
});
