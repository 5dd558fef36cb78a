// What a chart draws, by the calls its pen gets.
import assert from "node:assert/strict";
import { test } from "node:test";
import { PALETTES } from "../../js/chart_colours.js";
import {
  BOTTOM, LEFT, RIGHT, TOP, drawBest, drawChoice, drawLosses, drawMarks, drawRates,
} from "../../js/chart_drawing.js";
import { linearScale } from "../../js/scales.js";

const WIDTH = 400, HEIGHT = 200, RIGHT_PX = WIDTH - RIGHT, BOTTOM_PX = HEIGHT - BOTTOM;

/** A pen that notes what it is asked, with the colour it has at that time. */
function notingPen() {
  const calls = [];
  const noted = (pen, name) =>
    name in pen ? pen[name] : (...given) => void calls.push([name, ...given, pen.strokeStyle]);
  return { calls, pen: new Proxy({}, { get: noted }) };
}

function viewOf(pen, rows, more = {}) {
  const last = rows.at(-1)?.[1] ?? 100;
  return {
    pen, rows, width: WIDTH, height: HEIGHT, ink: "ink", palette: PALETTES.dark, from: 0, to: last, begin: 0,
    end: rows.length, probes: [], ticks: [], x: linearScale(0, last, LEFT, RIGHT_PX),
    y: linearScale(0, 1, BOTTOM_PX, TOP), ...more,
  };
}

const row = (step, rate = 1e-4) => [step, step, 0.4, 0.6, 0.5, rate, 1];
const named = (calls, name) => calls.filter(([call]) => call === name);

test("each column of pixels has the raw loss from its highest to its lowest, and one point of the smoothed", () => {
  const rows = Array.from({ length: 4000 }, (_, n) => row(n + 1)), { calls, pen } = notingPen();
  rows[2000][3] = 0.9;
  rows[1001][2] = 0.2;
  drawLosses(viewOf(pen, rows));
  const lines = named(calls, "lineTo"), raw = lines.filter((line) => line.at(-1) === PALETTES.dark.raw);
  const smooth = lines.filter((line) => line.at(-1) === PALETTES.dark.smooth);
  const columns = RIGHT_PX - LEFT + 1;
  assert.equal(raw.length, 2 * columns);
  assert.ok(smooth.length <= columns && smooth.length > columns - 3);
  const y = linearScale(0, 1, BOTTOM_PX, TOP), heights = new Set(raw.map(([, , height]) => height));
  assert.deepEqual([...heights].sort((a, b) => a - b), [y(0.9), y(0.6), y(0.4), y(0.2)]);
});

test("a rate that rises over orders of magnitude is drawn by its logarithm, any other from zero", () => {
  const rising = Array.from({ length: 50 }, (_, n) => row(n + 1, 1e-6 * 1.4 ** n));
  const middle = (rows, rises) => {
    const { calls, pen } = notingPen();
    const end = drawRates(viewOf(pen, rows), rises);
    return [named(calls, "lineTo")[25][2], end, named(calls, "fillText").length];
  };
  const [steep, top, words] = middle(rising, true), [flat] = middle(rising, false);
  const height = BOTTOM_PX - TOP;
  assert.ok(Math.abs(steep - (BOTTOM_PX - 0.47 * height)) < 0.03 * height);
  assert.ok(flat > BOTTOM_PX - 0.01 * height);
  assert.ok(Math.abs(top - (BOTTOM_PX - 0.92 * height)) < 1);
  assert.equal(words, 2);
  assert.equal(drawRates(viewOf(notingPen().pen, [row(1, null)]), true), null);
});

test("marks, the best step and what is chosen stand where their steps are, and nothing outside of the view", () => {
  const { calls, pen } = notingPen(), view = viewOf(pen, [], { from: 10, to: 60 });
  drawMarks(view, [5, 20, 70], [30, 90]);
  assert.deepEqual(named(calls, "moveTo").map(([, x]) => x), [view.x(20)]);
  assert.deepEqual(named(calls, "arc").map(([, x]) => x), [view.x(30)]);
  drawBest(view, 70, "best");
  assert.deepEqual(named(calls, "fillText"), []);
  drawBest(view, 40, "best");
  assert.deepEqual(named(calls, "fillText").map(([, text, x]) => [text, x]), [[" best 40 ", view.x(40)]]);
  drawChoice(view, [120, 80]);
  assert.deepEqual(named(calls, "fillRect").map(([, left, , width]) => [left, width]), [[80, 40]]);
});
