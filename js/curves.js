// @ts-check
// Loss curves of several runs over one another; the values at a step are read off under the pointer.
import { paletteFor } from "./chart_colours.js";
import { make } from "./dom.js";
import { EndLabels } from "./end_labels.js";
import { coursesRange, linearScale } from "./scales.js";
import { t } from "./words.js";

/** @typedef {[number, number]} Sample step, loss */
/** @typedef {{ loss: Sample[], held_out: Sample[] }} Courses */
/** @typedef {Courses & { name: string, colour: string }} Line */

const LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 22; // px around the curves
const PARTS = 4; // of each axis
/** @type {CanvasTextAlign[]} */
const ALIGNS = ["left", "center", "center", "center", "right"]; // of the steps: none runs over the edge

/**
 * The sample nearest to a step; null without samples.
 * @param {Sample[]} samples
 * @param {number} step
 */
export function nearestSample(samples, step) {
  /** @type {?Sample} */
  let nearest = null;
  for (const sample of samples) {
    if (!nearest || Math.abs(sample[0] - step) < Math.abs(nearest[0] - step)) nearest = sample;
  }
  return nearest;
}

export class Curves {
  /** @param {HTMLElement} legend */
  constructor(legend) {
    this.legend = legend;
    /** @type {Line[]} */
    this.lines = [];
    this.canvas = make("canvas");
    this.ends = new EndLabels();
    this.root = make("div", { className: "chart" }, this.canvas, this.ends.root);
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.root);
    this.canvas.addEventListener("pointermove", (event) => this.draw(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.draw());
  }

  show(/** @type {Line[]} */ lines) {
    this.lines = lines;
    this.draw();
  }

  dispose() {
    this.sizes.disconnect();
  }

  /** @param {number} [pointer] px from the left edge */
  draw(pointer) {
    const width = this.root.clientWidth, height = this.root.clientHeight, ratio = window.devicePixelRatio || 1;
    const pen = this.canvas.getContext("2d");
    if (!width || !height || !pen) return;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    pen.scale(ratio, ratio);
    const { color: ink, fontFamily } = getComputedStyle(this.root);
    pen.font = `11px ${fontFamily}`;
    const samples = this.lines.flatMap((line) => [...line.loss, ...line.held_out]);
    if (!samples.length) return this.read(null);
    const right = width - RIGHT, bottom = height - BOTTOM;
    const last = samples.reduce((most, [step]) => Math.max(most, step), 1);
    const { low, high } = coursesRange(samples.map(([, loss]) => loss));
    const x = linearScale(0, last, LEFT, right), scale = linearScale(low, high, bottom, TOP);
    const y = (/** @type {number} */ loss) => Math.max(TOP, scale(loss));
    pen.fillStyle = ink;
    pen.strokeStyle = "rgba(127,127,127,.3)";
    for (let n = 0; n <= PARTS; n++) {
      const loss = low + ((high - low) * n) / PARTS, step = (last * n) / PARTS;
      this.stroke(pen, [[LEFT, y(loss)], [right, y(loss)]]);
      pen.textAlign = "right";
      pen.fillText(loss.toPrecision(3), LEFT - 5, y(loss) + 4);
      pen.textAlign = ALIGNS[n];
      pen.fillText(String(Math.round(step)), x(step), height - 7);
    }
    for (const line of this.lines) this.course(pen, line, ([step, loss]) => [x(step), y(loss)]);
    const labels = this.lines.flatMap(({ name, colour, loss }) => {
      const last = loss.at(-1);
      return last ? [{ text: name, colour, y: y(last[1]) }] : [];
    });
    this.ends.show(labels, { right: RIGHT + 2, top: TOP, bottom, ground: paletteFor(ink).ground });
    if (pointer === undefined || pointer < LEFT || pointer > right) return this.read(null);
    pen.strokeStyle = ink;
    pen.lineWidth = 1;
    this.stroke(pen, [[pointer, TOP], [pointer, bottom]]);
    this.read(Math.round(((pointer - LEFT) / (right - LEFT)) * last));
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {[number, number][]} points
   */
  stroke(pen, points) {
    pen.beginPath();
    for (const point of points) pen.lineTo(...point);
    pen.stroke();
  }

  /**
   * Solid: the smoothed loss; dashed, with a square on each: the loss on held-out pictures.
   * @param {CanvasRenderingContext2D} pen
   * @param {Line} line
   * @param {(sample: Sample) => [number, number]} place
   */
  course(pen, line, place) {
    pen.strokeStyle = pen.fillStyle = line.colour;
    pen.lineWidth = 1.8;
    this.stroke(pen, line.loss.map(place));
    pen.lineWidth = 1.5;
    pen.setLineDash([5, 4]);
    this.stroke(pen, line.held_out.map(place));
    pen.setLineDash([]);
    for (const [x, y] of line.held_out.map(place)) pen.fillRect(x - 2, y - 2, 4, 4);
  }

  /** Names the runs, with their losses at `step` where the pointer is at one. */
  read(/** @type {?number} */ step) {
    const rows = this.lines.map((line) => {
      const swatch = make("i");
      swatch.style.background = line.colour;
      return make("div", {}, swatch, line.name + (step === null ? "" : this.figures(line, step)));
    });
    const facts = make("div", { className: "facts" }, step === null ? t("runs.loss") : t("runs.at_step", { step }));
    this.legend.replaceChildren(...rows, facts);
  }

  /**
   * @param {Courses} line
   * @param {number} step
   */
  figures(line, step) {
    const loss = step > (line.loss.at(-1)?.[0] ?? 0) ? null : nearestSample(line.loss, step);
    if (!loss) return "";
    const heldOut = nearestSample(line.held_out, step);
    const figures = ` · ${loss[1].toPrecision(4)}`;
    if (!heldOut) return figures;
    return `${figures} · ${heldOut[1].toPrecision(4)} (${t("runs.at_step", { step: heldOut[0] })})`;
  }
}
