// @ts-check
// The course of a run as a chart: loss raw and smoothed, probes, learning rate on its own axis, marks.
// It draws when something changed and can be seen.
import { make } from "./dom.js";
import { short, stepRange } from "./figures.js";
import { decades, linearScale, logarithmicScale, lossRange, niceTicks } from "./scales.js";
import { FIRST, HIGH, LAST, LOW, RATE, SMOOTH, indexAt, nearestRow } from "./series.js";
import { t } from "./words.js";

/** @typedef {import("./series.js").Row} Row */
/** @typedef {import("./scales.js").Scale} Scale */
/** @typedef {import("./scales.js").Probe} Probe */
/** @typedef {[number, number]} Point */

/**
 * What one drawing shows: steps, rows from `begin` to before `end`, and where a step and a loss lie.
 * @typedef {object} View
 * @property {CanvasRenderingContext2D} pen
 * @property {number} from
 * @property {number} to
 * @property {number} begin
 * @property {number} end
 * @property {Probe[]} probes
 * @property {number[]} ticks
 * @property {Scale} x
 * @property {Scale} y
 */

export const COLOURS = {
  raw: "rgba(140, 140, 140, .75)", smooth: "#4ea1ff", rate: "#d99a2b", held_out: "#ff7b6b", trained: "#62c370",
  save: "#62c370", sample: "#c58af9",
};
const LEFT = 46, RIGHT = 46, TOP = 8, BOTTOM = 30; // px around the curves
const SMALLEST_PX = 60; // a collapsed node has less
const SMALLEST_DRAG_PX = 8;
const STEEP = 200; // a learning rate that rises by more than this factor is seen on a logarithmic axis only
const MOST_DOTS = 200;

/** @type {WeakMap<EventTarget, Chart>} */
const charts = new WeakMap();
let listening = false;

// Nodes 2.0 takes the wheel before an element in a node sees it; only the window is earlier.
function listen() {
  if (listening) return;
  listening = true;
  const wheel = (/** @type {WheelEvent} */ event) => event.target && charts.get(event.target)?.wheel(event);
  window.addEventListener("wheel", wheel, { capture: true, passive: false });
}

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

export class Chart {
  /** @param {Pick<import("./settings.js").Settings, "logarithmicLoss">} settings */
  constructor(settings) {
    this.settings = settings;
    this.canvas = make("canvas");
    this.readout = make("div", { className: "readout" });
    this.root = make("div", { className: "chart" }, this.canvas, this.readout);
    /** @type {Row[]} */
    this.rows = [];
    /** @type {Probe[]} */
    this.probes = [];
    /** @type {number[]} */
    this.saves = [];
    /** @type {number[]} */
    this.samples = [];
    /** @type {?Point} first and last step that is shown; null: all */
    this.view = null;
    /** @type {?number} px of the pointer */
    this.hover = null;
    /** @type {?Point} px of begin and end */
    this.drag = null;
    /** @type {?Row} under the pointer */
    this.near = null;
    this.width = this.height = 0;
    this.ink = "";
    this.frame = 0; // asked for
    this.drawn = 0;
    this.seen = true;
    this.risingRate = false;
    this.sizes = new ResizeObserver(() => this.changed());
    this.sizes.observe(this.root);
    this.sight = new IntersectionObserver((entries) => {
      this.seen = entries[entries.length - 1].isIntersecting;
      if (this.seen) this.changed();
    });
    this.sight.observe(this.root);
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("pointerup", (event) => this.release(event));
    this.canvas.addEventListener("pointerleave", () => {
      this.hover = null;
      this.changed();
    });
    this.canvas.addEventListener("dblclick", (event) => {
      event.stopPropagation();
      this.view = null;
      this.changed();
    });
    charts.set(this.canvas, this);
    listen();
  }

  dispose() {
    this.sizes.disconnect();
    this.sight.disconnect();
    cancelAnimationFrame(this.frame);
  }

  changed() {
    if (this.frame || !this.seen) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  /** @returns {Point} first and last step there is */
  range() {
    const last = Math.max(this.rows.at(-1)?.[LAST] ?? 0, this.probes.at(-1)?.[0] ?? 0);
    const first = Math.min(this.rows[0]?.[FIRST] ?? 0, this.probes[0]?.[0] ?? Infinity);
    return [first, Math.max(last, first + 1)];
  }

  /** The pointer in px of the chart, whatever the zoom of the graph is. */
  at(/** @type {MouseEvent} */ event) {
    const box = this.canvas.getBoundingClientRect();
    return (event.clientX - box.left) * (this.width / (box.width || 1));
  }

  step(/** @type {number} */ x) {
    const [from, to] = this.view ?? this.range();
    return from + ((x - LEFT) / Math.max(1, this.width - LEFT - RIGHT)) * (to - from);
  }

  press(/** @type {PointerEvent} */ event) {
    if (event.button !== 0 || event.ctrlKey || event.altKey || !this.rows.length) return;
    event.stopPropagation();
    this.drag = [this.at(event), this.at(event)];
    this.canvas.setPointerCapture?.(event.pointerId);
  }

  move(/** @type {PointerEvent} */ event) {
    this.hover = this.at(event);
    if (this.drag) this.drag[1] = this.hover;
    this.changed();
  }

  release(/** @type {PointerEvent} */ event) {
    if (!this.drag) return;
    event.stopPropagation();
    const [left, right] = [Math.min(...this.drag), Math.max(...this.drag)];
    this.drag = null;
    if (right - left >= SMALLEST_DRAG_PX) this.zoom(this.step(left), this.step(right));
    this.changed();
  }

  wheel(/** @type {WheelEvent} */ event) {
    if (!event.ctrlKey && !event.altKey) return; // the graph's own
    event.preventDefault();
    event.stopImmediatePropagation();
    const [from, to] = this.view ?? this.range();
    const middle = this.step(this.at(event)), factor = 1.2 ** Math.sign(event.deltaY);
    this.zoom(middle - (middle - from) * factor, middle + (to - middle) * factor);
  }

  /**
   * @param {number} from
   * @param {number} to
   */
  zoom(from, to) {
    const [first, last] = this.range();
    const low = Math.max(first, from), high = Math.min(last, to);
    if (high - low < 2) return;
    this.view = low <= first && high >= last ? null : [low, high];
    this.changed();
  }

  draw() {
    this.near = null;
    const pen = this.blank();
    if (!pen) return;
    if (this.rows.length || this.probes.length) this.show(this.shown(pen));
    this.read();
  }

  /** The pen over an empty canvas of the element's size; null where there is no room to draw. */
  blank() {
    const width = this.root.clientWidth, height = this.root.clientHeight;
    const pen = this.canvas.getContext("2d");
    if (width < SMALLEST_PX || height < SMALLEST_PX || !pen) return null;
    this.drawn += 1;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const size = { width: Math.round(width * ratio), height: Math.round(height * ratio) };
    if (this.canvas.width !== size.width || this.canvas.height !== size.height) Object.assign(this.canvas, size);
    this.width = width;
    this.height = height;
    this.ink = getComputedStyle(this.root).color;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "10px system-ui, sans-serif";
    return pen;
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @returns {View}
   */
  shown(pen) {
    const [from, to] = this.view ?? this.range();
    const begin = indexAt(this.rows, from), end = Math.min(this.rows.length, indexAt(this.rows, to) + 1);
    const probes = this.probes.filter(([step]) => step >= from && step <= to);
    const losses = lossRange(this.rows, begin, end, probes, this.settings.logarithmicLoss());
    const { low, high } = losses;
    return {
      pen, from, to, begin, end, probes,
      x: linearScale(from, to, LEFT, this.width - RIGHT),
      y: (losses.logarithmic ? logarithmicScale : linearScale)(low, high, this.height - BOTTOM, TOP),
      ticks: losses.logarithmic ? decades(low, high) : niceTicks(low, high, 5),
    };
  }

  show(/** @type {View} */ view) {
    this.axes(view);
    this.rates(view);
    this.clipped(view, () => {
      this.curves(view);
      this.dots(view, 1, COLOURS.held_out);
      this.dots(view, 2, COLOURS.trained);
    });
    this.marks(view);
    this.best(view);
    this.pointer(view);
  }

  /**
   * Calls `draw` with the axes out of its reach.
   * @param {View} view
   * @param {() => void} draw
   */
  clipped({ pen }, draw) {
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, TOP, this.width - LEFT - RIGHT, this.height - TOP - BOTTOM);
    pen.clip();
    draw();
    pen.restore();
  }

  axes(/** @type {View} */ { pen, from, to, x, y, ticks }) {
    pen.lineWidth = 1;
    pen.fillStyle = pen.strokeStyle = this.ink;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const tick of ticks) {
      pen.globalAlpha = 0.14;
      stroke(pen, [[LEFT, y(tick)], [this.width - RIGHT, y(tick)]]);
      pen.globalAlpha = 0.75;
      pen.fillText(short(tick), LEFT - 5, y(tick));
    }
    pen.textAlign = "center";
    const steps = niceTicks(from, to, Math.max(2, Math.floor(this.width / 75))).filter(Number.isInteger);
    for (const step of steps) pen.fillText(String(step), x(step), this.height - 8);
    pen.globalAlpha = 1;
  }

  rates(/** @type {View} */ view) {
    const { pen, begin, end } = view;
    let low = Infinity, high = 0;
    for (let n = begin; n < end; n += 1) {
      const rate = this.rows[n][RATE] ?? 0;
      if (rate > 0) low = Math.min(low, rate);
      high = Math.max(high, rate);
    }
    if (!high) return;
    const logarithmic = this.risingRate && high / low > STEEP;
    const bottom = this.height - BOTTOM, top = bottom - (bottom - TOP) * 0.92;
    const y = logarithmic ? logarithmicScale(low, high, bottom, top) : linearScale(0, high, bottom, top);
    pen.strokeStyle = pen.fillStyle = COLOURS.rate;
    pen.lineWidth = 1.2;
    pen.setLineDash([4, 3]);
    this.clipped(view, () => this.line(view, (row) => {
      const rate = row[RATE] ?? 0;
      return rate > 0 || !logarithmic ? y(rate) : null;
    }));
    pen.setLineDash([]);
    pen.textAlign = "left";
    for (const rate of logarithmic ? [low, high] : [high / 2, high]) {
      pen.fillText(short(rate), this.width - RIGHT + 4, y(rate));
    }
  }

  /**
   * One point a pixel column, the last of the column. `height`: px of a row; null: none.
   * @param {View} view
   * @param {(row: Row) => ?number} height
   */
  line({ pen, begin, end, x }, height) {
    /** @type {?Point} */
    let point = null;
    pen.beginPath();
    for (let n = begin; n < end; n += 1) {
      const y = height(this.rows[n]);
      if (y === null) continue;
      const px = x(this.rows[n][LAST]);
      if (point && Math.floor(px) !== Math.floor(point[0])) pen.lineTo(...point);
      point = [px, y];
    }
    if (point) pen.lineTo(...point);
    pen.stroke();
  }

  curves(/** @type {View} */ view) {
    const { pen, y } = view;
    pen.strokeStyle = COLOURS.raw;
    pen.lineWidth = 1;
    this.band(view);
    pen.strokeStyle = COLOURS.smooth;
    pen.lineWidth = 2;
    this.line(view, (row) => (row[SMOOTH] === null ? null : y(row[SMOOTH])));
  }

  /** The raw loss: from the highest to the lowest one of each pixel column. */
  band(/** @type {View} */ { pen, begin, end, x, y }) {
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
      const row = this.rows[n];
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
  dots({ pen, probes, x, y }, index, colour) {
    /** @type {Point[]} */
    const points = [];
    for (const probe of probes) if (probe[index] !== null) points.push([x(probe[0]), y(probe[index])]);
    if (!points.length) return;
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = 1.5;
    stroke(pen, points);
    if (points.length < MOST_DOTS) for (const point of points) dot(pen, ...point, 2.5);
  }

  /** Saves and samples, below the axis. */
  marks(/** @type {View} */ { pen, from, to, x }) {
    const bottom = this.height - BOTTOM;
    const inside = (/** @type {number} */ step) => step >= from && step <= to;
    pen.fillStyle = COLOURS.save;
    for (const step of this.saves.filter(inside)) {
      pen.beginPath();
      pen.moveTo(x(step), bottom + 1);
      pen.lineTo(x(step) - 4, bottom + 8);
      pen.lineTo(x(step) + 4, bottom + 8);
      pen.fill();
    }
    pen.fillStyle = COLOURS.sample;
    for (const step of this.samples.filter(inside)) dot(pen, x(step), bottom + 11, 3);
  }

  /** The step with the lowest loss on held-out pictures of the whole run; null without a probe. */
  bestStep() {
    let step = null, loss = Infinity;
    for (const [at, heldOut] of this.probes) if (heldOut !== null && heldOut < loss) [step, loss] = [at, heldOut];
    return step;
  }

  best(/** @type {View} */ { pen, from, to, x }) {
    const step = this.bestStep();
    if (step === null || step < from || step > to) return;
    pen.strokeStyle = pen.fillStyle = COLOURS.held_out;
    pen.setLineDash([2, 3]);
    stroke(pen, [[x(step), TOP], [x(step), this.height - BOTTOM]]);
    pen.setLineDash([]);
    pen.textAlign = x(step) > this.width - RIGHT - 60 ? "right" : "left";
    pen.fillText(` ${t("panel.best")} ${step} `, x(step), TOP + 6);
  }

  pointer(/** @type {View} */ { pen, x }) {
    if (this.drag) {
      const [left, right] = [Math.min(...this.drag), Math.max(...this.drag)];
      pen.fillStyle = "rgba(127, 160, 255, .25)";
      pen.fillRect(left, TOP, right - left, this.height - TOP - BOTTOM);
    }
    this.near = this.hover === null ? null : nearestRow(this.rows, this.step(this.hover));
    if (!this.near) return;
    pen.strokeStyle = this.ink;
    pen.globalAlpha = 0.45;
    stroke(pen, [[x(this.near[LAST]), TOP], [x(this.near[LAST]), this.height - BOTTOM]]);
    pen.globalAlpha = 1;
  }

  read() {
    if (this.near) this.readout.textContent = this.reading(this.near);
    else this.readout.textContent = this.rows.length ? t("panel.zoom_hint") : "";
  }

  reading(/** @type {Row} */ [first, last, low, high, smooth, rate, norm]) {
    const parts = [stepRange(first, last), `${t("panel.loss")} ${lossText(low, high)}`];
    if (smooth !== null) parts.push(`${t("panel.smoothed")} ${short(smooth)}`);
    if (rate !== null) parts.push(`${t("panel.rate")} ${rate.toExponential(2)}`);
    if (norm !== null) parts.push(`${t("panel.norm")} ${short(norm)}`);
    const probe = this.probes.find(([step]) => step >= first && step <= last);
    if (probe) {
      parts.push(`${t("panel.held_out")} ${lossText(probe[1], probe[1])}`);
      parts.push(`${t("panel.trained")} ${lossText(probe[2], probe[2])}`);
    }
    return parts.join(" · ");
  }
}

/**
 * @param {?number} low
 * @param {?number} high
 */
function lossText(low, high) {
  if (low === null || high === null) return "–";
  return low === high ? short(low) : `${short(low)} – ${short(high)}`;
}
