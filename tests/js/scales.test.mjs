import assert from "node:assert/strict";
import test from "node:test";
import { nearestSample } from "../../js/curves.js";
import {
  coursesRange, decades, extent, linearScale, logarithmicScale, lossRange, niceTicks,
} from "../../js/scales.js";

const row = (step, loss, smooth = loss) => [step, step, loss, loss, smooth, 1e-4, 1];

test("a linear scale takes its ends to the ends, also downwards", () => {
  const y = linearScale(2, 4, 100, 0);
  assert.deepEqual([2, 3, 4, 5].map(y), [100, 50, 0, -50]);
});

test("the extent of values is their lowest and highest, also of more than a call takes arguments", () => {
  assert.deepEqual(extent([3, -1, 2]), [-1, 3]);
  assert.deepEqual(extent(Array.from({ length: 300_000 }, (_, n) => n)), [0, 299_999]);
});

test("a logarithmic scale gives each factor the same room and keeps what is too small at its start", () => {
  const y = logarithmicScale(0.01, 1, 100, 0);
  assert.deepEqual([0.01, 0.1, 1, 0, -1].map((loss) => Math.round(y(loss) * 1e6) / 1e6), [100, 50, 0, 100, 100]);
});

test("ticks are round, inside, and of one distance", () => {
  assert.deepEqual(niceTicks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(niceTicks(0.03, 0.11, 5), [0.04, 0.06, 0.08, 0.1]);
  assert.deepEqual(niceTicks(-0.3, 0.3, 3), [-0.2, 0, 0.2]);
  assert.deepEqual(niceTicks(1000, 15000, 4), [5000, 10000, 15000]);
});

test("ticks of every range are few and cover it", () => {
  for (const [from, to] of [[0, 1e-7], [1e-9, 3e-9], [0, 1], [17, 123456], [-5, -4.99]]) {
    const ticks = niceTicks(from, to, 5);
    assert.ok(ticks.length >= 2 && ticks.length <= 7, `${from} to ${to}: ${ticks}`);
    assert.ok(ticks.every((tick) => tick >= from - (to - from) * 1e-3 && tick <= to + (to - from) * 1e-3));
  }
});

test("ticks of an empty range end", () => assert.ok(niceTicks(3, 3, 5).length <= 1));

test("a logarithmic axis names 1, 2 and 5 of each power of ten", () => {
  assert.deepEqual(decades(0.01, 1), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]);
});

test("where powers of ten are too close the axis has plain ticks", () => {
  assert.deepEqual(decades(0.04, 0.15), niceTicks(0.04, 0.15, 5));
});

test("a chart shows every smoothed loss and probe, but not the rarest peaks of the raw one", () => {
  const rows = Array.from({ length: 200 }, (_, n) => row(n + 1, n === 50 ? 90 : 1, 1));
  const range = lossRange(rows, 0, 200, [[5, 3, null]], false);
  assert.ok(range.low < 1 && range.low > 0.8);
  assert.ok(range.high > 3 && range.high < 4);
  assert.equal(range.logarithmic, false);
});

test("only the rows that are in sight count", () => {
  const range = lossRange([row(1, 50), row(2, 1), row(3, 2)], 1, 3, [], false);
  assert.ok(range.high < 3);
});

test("losses that cannot be below 0 have an axis that does not go there", () => {
  assert.equal(lossRange([row(1, 0.001), row(2, 1)], 0, 2, [], false).low, 0);
  assert.ok(lossRange([row(1, -0.5), row(2, 1)], 0, 2, [], false).low < -0.5);
});

test("a logarithmic axis is for losses above 0 alone", () => {
  assert.equal(lossRange([row(1, 0.1), row(2, 1)], 0, 2, [], true).logarithmic, true);
  assert.equal(lossRange([row(1, 0), row(2, 1)], 0, 2, [], true).logarithmic, false);
});

test("one loss, and none at all, have an axis too", () => {
  const one = lossRange([row(1, 0.5)], 0, 1, [], false);
  assert.ok(one.low < 0.5 && one.high > 0.5);
  assert.deepEqual(lossRange([row(1, null)], 0, 1, [[1, null, null]], true), { low: 0, high: 1, logarithmic: false });
});

test("courses over one another leave out the highest hundredth", () => {
  const range = coursesRange([500, ...Array.from({ length: 199 }, (_, n) => 1 + n / 199)]);
  assert.ok(range.high < 2.2 && range.low < 1);
});

test("the loss under the pointer is that of the nearest step", () => {
  const samples = [[1, 0.5], [10, 0.4], [20, 0.3]];
  assert.deepEqual([0, 5, 6, 14, 99].map((step) => nearestSample(samples, step)[0]), [1, 1, 10, 10, 20]);
  assert.equal(nearestSample([], 3), null);
});
