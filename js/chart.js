// @ts-check
// The course of a run as a chart: when it draws (something changed and can be seen), zoom, and what is read off.
import { PALETTES, paletteFor, watchInk } from "./chart_colours.js";
import {
  BOTTOM, LEFT, RIGHT, TOP, clipped, drawAxes, drawBest, drawChoice, drawLosses, drawMarks, drawPointer, drawProbes,
  drawRates,
} from "./chart_drawing.js";
import { make } from "./dom.js";
import { EndLabels } from "./end_labels.js";
import { short, stepRange } from "./figures.js";
import { decades, extent, linearScale, logarithmicScale, lossRange, niceTicks } from "./scales.js";
import { FIRST, HIGH, LAST, LOW, SECOND, SMOOTH, indexAt, nearestRow } from "./series.js";
import { t } from "./words.js";

/** @typedef {import("./series.js").Row} Row */
/** @typedef {import("./scales.js").Probe} Probe */
/** @typedef {import("./chart_colours.js").Palette} Palette */
/** @typedef {import("./chart_drawing.js").Point} Point */
/** @typedef {import("./chart_drawing.js").View} View */

const SMALLEST_PX = 60; // a collapsed node has less
const SMALLEST_DRAG_PX = 8;

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

export class Chart {
  /** @param {Pick<import("./settings.js").Settings, "logarithmicLoss">} settings */
  constructor(settings) {
    this.settings = settings;
    this.canvas = make("canvas");
    this.readout = make("div", { className: "readout" });
    this.ends = new EndLabels();
    this.root = make("div", { className: "chart" }, this.canvas, this.readout, this.ends.root);
    this.palette = PALETTES.dark;
    /** @type {(palette: Palette) => void} called when the colours are others */
    this.onPalette = () => {};
    /** @type {?number} px at which the learning rate ends */
    this.rateEnd = null;
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
    this.unwatch = watchInk(this);
  }

  /** The colour that words of the page have at this place. */
  inkNow() {
    return getComputedStyle(this.root).color;
  }

  dispose() {
    this.unwatch();
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
    const [left, right] = extent(this.drag);
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
    else this.ends.root.replaceChildren();
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
    const { color, fontFamily } = getComputedStyle(this.root);
    this.ink = color;
    this.take(paletteFor(color));
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${fontFamily}`;
    return pen;
  }

  take(/** @type {Palette} */ palette) {
    if (palette === this.palette) return;
    this.palette = palette;
    this.onPalette(palette);
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
      pen, from, to, begin, end, probes, rows: this.rows,
      width: this.width, height: this.height, ink: this.ink, palette: this.palette,
      x: linearScale(from, to, LEFT, this.width - RIGHT),
      y: (losses.logarithmic ? logarithmicScale : linearScale)(low, high, this.height - BOTTOM, TOP),
      ticks: losses.logarithmic ? decades(low, high) : niceTicks(low, high, 5),
    };
  }

  show(/** @type {View} */ view) {
    drawAxes(view);
    this.rateEnd = drawRates(view, this.risingRate);
    clipped(view, () => {
      drawLosses(view);
      drawProbes(view, 1, this.palette.held_out);
      drawProbes(view, 2, this.palette.trained);
    });
    drawMarks(view, this.saves, this.samples);
    drawBest(view, this.bestStep(), t("panel.best"));
    drawChoice(view, this.drag);
    this.near = this.hover === null ? null : nearestRow(this.rows, this.step(this.hover));
    drawPointer(view, this.near);
    this.name(view);
  }

  /** Names each line at its end. */
  name(/** @type {View} */ { begin, end, probes, y }) {
    const last = this.rows.slice(begin, end).at(-1);
    /** @type {import("./end_labels.js").EndLabel[]} */
    const labels = [];
    /** @type {(key: string, colour: string, height: ?number) => void} */
    const add = (key, colour, height) => {
      if (height !== null && Number.isFinite(height)) labels.push({ text: t(`panel.${key}`), colour, y: height });
    };
    const { palette } = this, low = last?.[LOW], high = last?.[HIGH], smooth = last?.[SMOOTH];
    add("loss", palette.raw, low == null || high == null ? null : y((low + high) / 2));
    const second = last?.[SECOND], both = last !== undefined && last.length > SECOND;
    add(both ? "high_noise" : "smoothed", palette.smooth, smooth == null ? null : y(smooth));
    add("low_noise", palette.second, second == null ? null : y(second));
    add("rate", palette.rate, this.rateEnd);
    const ended = (/** @type {1 | 2} */ index) => probes.findLast((probe) => probe[index] !== null)?.[index];
    const heldOut = ended(1), trained = ended(2);
    add("held_out", palette.held_out, heldOut == null ? null : y(heldOut));
    add("trained", palette.trained, trained == null ? null : y(trained));
    this.ends.show(labels, { right: RIGHT + 2, top: TOP, bottom: this.height - BOTTOM, ground: palette.ground });
  }

  /** The step with the lowest loss on held-out pictures of the whole run; null without a probe. */
  bestStep() {
    let step = null, loss = Infinity;
    for (const [at, heldOut] of this.probes) if (heldOut !== null && heldOut < loss) [step, loss] = [at, heldOut];
    return step;
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
