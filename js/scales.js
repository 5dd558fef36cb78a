// @ts-check
// From values to pixels: scales, the values an axis names, and the range it shows.
import { HIGH, LOW, SECOND, SMOOTH } from "./series.js";

/** @typedef {(value: number) => number} Scale */
/** @typedef {[number, ?number, ?number]} Probe step, loss on held-out pictures, loss on trained pictures */
/** @typedef {{ low: number, high: number, logarithmic: boolean }} Range */

const SAMPLED_ROWS = 600; // enough for a percentile of the raw losses

/**
 * The lowest and the highest of some values: of any number of them, which the arguments of a call are not.
 * @param {Iterable<number>} values
 * @returns {[number, number]}
 */
export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return [low, high];
}

/**
 * Takes `low` to `start` and `high` to `end`.
 * @param {number} low
 * @param {number} high
 * @param {number} start
 * @param {number} end
 * @returns {Scale}
 */
export const linearScale = (low, high, start, end) => (value) => start + ((value - low) / (high - low)) * (end - start);

/**
 * As `linearScale`, of the logarithms; what is smaller than `low` stays at `start`.
 * @param {number} low
 * @param {number} high
 * @param {number} start
 * @param {number} end
 * @returns {Scale}
 */
export function logarithmicScale(low, high, start, end) {
  const scale = linearScale(Math.log(low), Math.log(high), start, end);
  return (value) => scale(Math.log(Math.max(value, low)));
}

/**
 * About `count` round values between two: multiples of 1, 2 or 5 times a power of ten.
 * @param {number} from
 * @param {number} to
 * @param {number} count
 */
export function niceTicks(from, to, count) {
  const rough = (to - from) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5].map((m) => m * power).find((s) => s >= rough) ?? 10 * power;
  const ticks = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to + step * 1e-6; tick += step) {
    ticks.push(Number(tick.toPrecision(6)));
  }
  return ticks;
}

/**
 * 1, 2 and 5 of each power of ten between two losses; where these are too close, the plain ticks.
 * @param {number} low
 * @param {number} high
 */
export function decades(low, high) {
  const ticks = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    for (const m of [1, 2, 5]) ticks.push(Number((m * power).toPrecision(2)));
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 2 ? inside : niceTicks(low, high, 5);
}

/**
 * The losses to show of the rows from `begin` to before `end`: the smoothed course and the probes whole, the raw one
 * without its rarest peaks. Logarithmic only where it is wanted and every loss is above 0.
 * @param {import("./series.js").Row[]} rows
 * @param {number} begin
 * @param {number} end
 * @param {Probe[]} probes
 * @param {boolean} logarithm
 * @returns {Range}
 */
export function lossRange(rows, begin, end, probes, logarithm) {
  const raw = [], stride = Math.max(1, Math.floor((end - begin) / SAMPLED_ROWS));
  let low = Infinity, high = -Infinity;
  const include = (/** @type {?number} */ loss) => {
    if (loss === null) return;
    low = Math.min(low, loss);
    high = Math.max(high, loss);
  };
  for (let n = begin; n < end; n += 1) {
    const row = rows[n];
    include(row[SMOOTH]);
    include(row[SECOND] ?? null);
    if ((n - begin) % stride === 0 && row[LOW] !== null && row[HIGH] !== null) raw.push(row[LOW], row[HIGH]);
  }
  raw.sort((a, b) => a - b);
  if (raw.length) {
    low = Math.min(low, raw[Math.floor(raw.length * 0.01)]);
    high = Math.max(high, raw[Math.min(raw.length - 1, Math.floor(raw.length * 0.98))]);
  }
  for (const [, heldOut, trained] of probes) {
    include(heldOut);
    include(trained);
  }
  if (!Number.isFinite(low)) return { low: 0, high: 1, logarithmic: false };
  if (logarithm && low > 0) return { low: low * 0.94, high: high * 1.06, logarithmic: true };
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return { low: low >= 0 ? Math.max(0, low - pad) : low - pad, high: high + pad, logarithmic: false };
}

/**
 * The range of several courses over one another, without the highest hundredth: the first steps would squeeze the rest.
 * @param {number[]} losses
 * @returns {Range}
 */
export function coursesRange(losses) {
  const sorted = [...losses].sort((a, b) => a - b);
  const low = sorted[0], high = sorted[Math.floor(0.99 * (sorted.length - 1))];
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return { low: low - pad, high: high + pad, logarithmic: false };
}
