import assert from "node:assert/strict";
import test from "node:test";
import { clock, fileSize, memory, short, stepRange } from "../../js/figures.js";

test("a number has three digits, a very small or large one a power of ten", () => {
  const values = [0, 0.01, 0.012345, 12.345, 999, -0.5, 1000, 0.0001];
  assert.deepEqual(values.map(short), ["0", "0.01", "0.0123", "12.3", "999", "-0.5", "1.0e+3", "1.0e-4"]);
});

test("a time has minutes and seconds, and hours from the first one on", () => {
  assert.deepEqual([-3, 0, 5, 65.4, 3599.6, 7207].map(clock), ["0:00", "0:00", "0:05", "1:05", "1:00:00", "2:00:07"]);
});

test("sizes of files are in megabytes until they are gigabytes, those of embeddings in kilobytes", () => {
  const sizes = [0, 300, 7_400, 99_999, 250_000, 9_900_000, 144_000_000, 2_400_000_000];
  assert.deepEqual(sizes.map(fileSize), ["0.0 MB", "1 kB", "7 kB", "100 kB", "0.3 MB", "9.9 MB", "144 MB", "2.4 GB"]);
});

test("memory is counted in units of 2^30 bytes", () => assert.equal(memory(24 * 2 ** 30), "24.0"));

test("a row of one step bears its number, one of more a range", () => {
  assert.deepEqual([stepRange(7, 7), stepRange(8, 15)], ["7", "8–15"]);
});
