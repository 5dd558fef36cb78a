// @ts-check
// The names of lines, at their right ends: near enough to be read without a legend, and never over one another.
import { make, style } from "./dom.js";

/** @typedef {{ text: string, colour: string, y: number }} EndLabel `y`: px from the top of the chart */

const LINE_PX = 14, ABOVE_PX = 10; // a name stands above its line, not on it

const STYLE = `
.loom-ends span { position: absolute; transform: translateY(-50%); padding: 0 4px; border-radius: 4px; font-size: 11px;
  line-height: ${LINE_PX - 1}px; font-weight: 600; pointer-events: none; max-width: 45%; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
`;

/**
 * Heights in the order they came, moved apart so that each has its line, between `top` and `bottom` where they fit.
 * @param {number[]} heights px
 * @param {number} gap px
 * @param {number} top
 * @param {number} bottom
 */
export function spread(heights, gap, top, bottom) {
  const order = heights.map((_, n) => n).sort((a, b) => heights[a] - heights[b]);
  const out = [...heights];
  let least = top;
  for (const n of order) {
    out[n] = Math.max(out[n], least);
    least = out[n] + gap;
  }
  let most = bottom;
  for (const n of order.reverse()) {
    out[n] = Math.min(out[n], most);
    most = out[n] - gap;
  }
  return out;
}

export class EndLabels {
  constructor() {
    style("loom-ends", STYLE);
    this.root = make("div", { className: "loom-ends" });
  }

  /**
   * @param {EndLabel[]} labels
   * @param {{ right: number, top: number, bottom: number, ground: string }} place px from the edges of the chart, and
   *   the colour below the words
   */
  show(labels, { right, top, bottom, ground }) {
    const heights = spread(labels.map(({ y }) => y - ABOVE_PX), LINE_PX, top + LINE_PX / 2, bottom - LINE_PX / 2);
    this.root.replaceChildren(...labels.map(({ text, colour }, n) => {
      const label = make("span", { textContent: text, title: text });
      Object.assign(label.style, { right: `${right}px`, top: `${heights[n]}px`, color: colour, background: ground });
      return label;
    }));
  }
}
