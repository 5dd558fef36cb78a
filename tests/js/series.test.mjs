import assert from "node:assert/strict";
import fs from "node:fs";
import test from "node:test";
import { continued, halved, indexAt, joined, lastStep, nearestRow } from "../../js/series.js";

const cases = JSON.parse(fs.readFileSync(new URL("./series_cases.json", import.meta.url), "utf8"));
const row = (first, last = first, loss = 0.5) => [first, last, loss, loss, loss, 1e-4, 1];

for (const { name, one, two, joined: expected } of cases.joined) {
  test(`rows are joined as on the server: ${name}`, () => assert.deepEqual(joined(one, two), expected));
}

for (const { name, rows, halved: expected } of cases.halved) {
  test(`rows are halved as on the server: ${name}`, () => assert.deepEqual(halved(rows), expected));
}

test("new rows follow the old ones, and no step is taken twice", () => {
  const rows = continued([row(1), row(2)], [row(2), row(2, 4), row(5)], 100);
  assert.deepEqual(rows.map(([first, last]) => [first, last]), [[1, 1], [2, 2], [3, 4], [5, 5]]);
});

test("rows that were handed in stay as they are", () => {
  const news = [row(1, 4)];
  continued([row(1), row(2)], news, 100);
  assert.deepEqual(news, [row(1, 4)]);
});

test("an hour of rows stays bounded, without a gap, and keeps its extremes", () => {
  let rows = [];
  for (let step = 1; step <= 5000; step += 1) {
    const loss = { 1234: 9.5, 4001: -2 }[step] ?? 0.5;
    rows = continued(rows, [row(step, step, loss)], 1000);
    assert.ok(rows.length <= 1000);
  }
  rows.forEach(([first], n) => assert.equal(first, n ? rows[n - 1][1] + 1 : 1));
  assert.equal(lastStep(rows), 5000);
  assert.equal(Math.max(...rows.map(([, , , high]) => high)), 9.5);
  assert.equal(Math.min(...rows.map(([, , low]) => low)), -2);
});

test("the row of a step is found by its last step", () => {
  const rows = [row(1, 4), row(5, 8), row(9, 9)];
  assert.deepEqual([0, 1, 4, 5, 8, 9, 10].map((step) => indexAt(rows, step)), [0, 0, 0, 1, 1, 2, 3]);
  assert.equal(indexAt([], 3), 0);
});

test("the nearest row is the one read off under the pointer", () => {
  const rows = [row(1, 2), row(10, 12), row(13, 13)];
  assert.equal(nearestRow(rows, 4), rows[0]);
  assert.equal(nearestRow(rows, 8), rows[1]);
  assert.equal(nearestRow(rows, 99), rows[2]);
  assert.equal(nearestRow([], 1), null);
});

test("without rows there is no last step", () => assert.equal(lastStep([]), 0));

test("two rows of two experts keep the smoothed loss of the second one", () => {
  const one = [1, 1, 0.5, 0.5, 0.5, 1e-4, 0.1, null], two = [2, 2, 0.9, 0.9, 0.5, 1e-4, 0.2, 0.9];
  assert.deepEqual(joined(one, two), [1, 2, 0.5, 0.9, 0.5, 1e-4, 0.2, 0.9]);
  assert.equal(joined(one.slice(0, 7), two.slice(0, 7)).length, 7);
});
