// @ts-check
// What a chart draws of a run: axes, the raw loss as a band, lines, probes, learning rate, marks, each by a function.
import { short } from "./figures.js";
import { extent, linearScale, logarithmicScale, niceTicks } from "./scales.js";
import { HIGH, LAST, LOW, RATE, SECOND, SMOOTH } from "./series.js";

/** @typedef {import("./series.js").Row} Row */
/** @typedef {import("./scales.js").Scale} Scale */
/** @typedef {import("./scales.js").Probe} Probe */
/** @typedef {[number, number]} Point */

/**
 * What one drawing shows: steps, rows from `begin` to before `end`, and where a step and a loss lie.
 * @typedef {object} View
 * @property {CanvasRenderingContext2D} pen
 * @property {number} width px, with the axes
 * @property {number} height
 * @property {string} ink
 * @property {import("./chart_colours.js").Palette} palette
 * @property {Row[]} rows
 * @property {number} from
 * @property {number} to
 * @property {number} begin
 * @property {number} end
 * @property {Probe[]} probes
 * @property {number[]} ticks
 * @property {Scale} x
 * @property {Scale} y
 */

export const LEFT = 46, RIGHT = 46, TOP = 8, BOTTOM = 30; // px around the curves
const STEEP = 200; // a learning rate that rises by more than this factor is seen on a logarithmic axis only
const MOST_DOTS = 200;

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Point[]} points
 */
function stroke(pen, points) {
  pen.beginPath();
  for (const point of points) pen.lineTo(...point);
  pen.stroke();
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {number} x
 * @param {number} y
 * @param {number} radius
 */
function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

/**
 * Calls `draw` with the axes out of its reach.
 * @param {View} view
 * @param {() => void} draw
 */
export function clipped({ pen, width, height }, draw) {
  pen.save();
  pen.beginPath();
  pen.rect(LEFT, TOP, width - LEFT - RIGHT, height - TOP - BOTTOM);
  pen.clip();
  draw();
  pen.restore();
}

export function drawAxes(/** @type {View} */ { pen, width, height, ink, from, to, x, y, ticks }) {
  pen.lineWidth = 1;
  pen.fillStyle = pen.strokeStyle = ink;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const tick of ticks) {
    pen.globalAlpha = 0.14;
    stroke(pen, [[LEFT, y(tick)], [width - RIGHT, y(tick)]]);
    pen.globalAlpha = 0.75;
    pen.fillText(short(tick), LEFT - 5, y(tick));
  }
  pen.textAlign = "center";
  const steps = niceTicks(from, to, Math.max(2, Math.floor(width / 75))).filter(Number.isInteger);
  for (const step of steps) pen.fillText(String(step), x(step), height - 8);
  pen.globalAlpha = 1;
}

/**
 * The learning rate, on an axis of its own. Returns the px at which it ends; null where there is none.
 * @param {View} view
 * @param {boolean} rising whether it is one that rises over orders of magnitude
 * @returns {?number}
 */
export function drawRates(view, rising) {
  const { pen, rows, width, begin, end } = view;
  let low = Infinity, high = 0;
  for (let n = begin; n < end; n += 1) {
    const rate = rows[n][RATE] ?? 0;
    if (rate > 0) low = Math.min(low, rate);
    high = Math.max(high, rate);
  }
  if (!high) return null;
  const logarithmic = rising && high / low > STEEP;
  const bottom = view.height - BOTTOM, top = bottom - (bottom - TOP) * 0.92;
  const y = logarithmic ? logarithmicScale(low, high, bottom, top) : linearScale(0, high, bottom, top);
  pen.strokeStyle = pen.fillStyle = view.palette.rate;
  pen.lineWidth = 1.2;
  pen.setLineDash([4, 3]);
  const height = (/** @type {Row} */ row) => {
    const rate = row[RATE] ?? 0;
    return rate > 0 || !logarithmic ? y(rate) : null;
  };
  clipped(view, () => line(view, height));
  pen.setLineDash([]);
  pen.textAlign = "left";
  for (const rate of logarithmic ? [low, high] : [high / 2, high]) {
    pen.fillText(short(rate), width - RIGHT + 4, y(rate));
  }
  const last = rows[end - 1];
  return last ? height(last) : null;
}

/**
 * One point a pixel column, the last of the column. `height`: px of a row; null: none.
 * @param {View} view
 * @param {(row: Row) => ?number} height
 */
function line({ pen, rows, begin, end, x }, height) {
  /** @type {?Point} */
  let point = null;
  pen.beginPath();
  for (let n = begin; n < end; n += 1) {
    const y = height(rows[n]);
    if (y === null) continue;
    const px = x(rows[n][LAST]);
    if (point && Math.floor(px) !== Math.floor(point[0])) pen.lineTo(...point);
    point = [px, y];
  }
  if (point) pen.lineTo(...point);
  pen.stroke();
}

/** The loss, raw and smoothed; of two experts each. */
export function drawLosses(/** @type {View} */ view) {
  const { pen, palette, y } = view;
  pen.strokeStyle = palette.raw;
  pen.lineWidth = 1;
  band(view);
  pen.strokeStyle = palette.smooth;
  pen.lineWidth = 2;
  line(view, (row) => (row[SMOOTH] === null ? null : y(row[SMOOTH])));
  pen.strokeStyle = palette.second;
  line(view, (row) => (row[SECOND] == null ? null : y(row[SECOND])));
}

/** The raw loss: from the highest to the lowest one of each pixel column. */
function band(/** @type {View} */ { pen, rows, begin, end, x, y }) {
  /** @type {?number} */
  let column = null;
  let low = 0, high = 0;
  const flush = () => {
    if (column === null) return;
    pen.lineTo(column, y(high));
    pen.lineTo(column, y(low));
  };
  pen.beginPath();
  for (let n = begin; n < end; n += 1) {
    const row = rows[n];
    if (row[LOW] === null || row[HIGH] === null) continue;
    const px = Math.round(x(row[LAST]));
    if (px !== column) {
      flush();
      [column, low, high] = [px, row[LOW], row[HIGH]];
    }
    low = Math.min(low, row[LOW]);
    high = Math.max(high, row[HIGH]);
  }
  flush();
  pen.stroke();
}

/**
 * The probes on held-out (1) or trained pictures (2).
 * @param {View} view
 * @param {1 | 2} index
 * @param {string} colour
 */
export function drawProbes({ pen, probes, x, y }, index, colour) {
  /** @type {Point[]} */
  const points = [];
  for (const probe of probes) if (probe[index] !== null) points.push([x(probe[0]), y(probe[index])]);
  if (!points.length) return;
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = 1.5;
  stroke(pen, points);
  if (points.length < MOST_DOTS) for (const point of points) dot(pen, ...point, 2.5);
}

/**
 * Saves and samples, below the axis.
 * @param {View} view
 * @param {number[]} saves steps
 * @param {number[]} samples steps
 */
export function drawMarks({ pen, height, palette, from, to, x }, saves, samples) {
  const bottom = height - BOTTOM;
  const inside = (/** @type {number} */ step) => step >= from && step <= to;
  pen.fillStyle = palette.save;
  for (const step of saves.filter(inside)) {
    pen.beginPath();
    pen.moveTo(x(step), bottom + 1);
    pen.lineTo(x(step) - 4, bottom + 8);
    pen.lineTo(x(step) + 4, bottom + 8);
    pen.fill();
  }
  pen.fillStyle = palette.sample;
  for (const step of samples.filter(inside)) dot(pen, x(step), bottom + 11, 3);
}

/**
 * The step that was best, with a word.
 * @param {View} view
 * @param {?number} step
 * @param {string} word
 */
export function drawBest({ pen, width, height, palette, from, to, x }, step, word) {
  if (step === null || step < from || step > to) return;
  pen.strokeStyle = pen.fillStyle = palette.held_out;
  pen.setLineDash([2, 3]);
  stroke(pen, [[x(step), TOP], [x(step), height - BOTTOM]]);
  pen.setLineDash([]);
  pen.textAlign = x(step) > width - RIGHT - 60 ? "right" : "left";
  pen.fillText(` ${word} ${step} `, x(step), TOP + 6);
}

/**
 * What is being chosen to be zoomed into.
 * @param {View} view
 * @param {?Point} drag px of begin and end
 */
export function drawChoice({ pen, height }, drag) {
  if (!drag) return;
  const [left, right] = extent(drag);
  pen.fillStyle = "rgba(127, 160, 255, .25)";
  pen.fillRect(left, TOP, right - left, height - TOP - BOTTOM);
}

/**
 * The row under the pointer.
 * @param {View} view
 * @param {?Row} row
 */
export function drawPointer({ pen, height, ink, x }, row) {
  if (!row) return;
  pen.strokeStyle = ink;
  pen.globalAlpha = 0.45;
  stroke(pen, [[x(row[LAST]), TOP], [x(row[LAST]), height - BOTTOM]]);
  pen.globalAlpha = 1;
}
