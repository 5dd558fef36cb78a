// The course of a run as a chart: loss raw and smoothed, probes, learning rate on its own axis, marks. It draws when something changed and can be seen.
import { logarithmicLoss } from "./settings.js";
import { t } from "./words.js";

const FIRST = 0, LAST = 1, LOW = 2, HIGH = 3, SMOOTH = 4, RATE = 5, NORM = 6; // of a row
const COLOURS = { raw: "rgba(90, 160, 255, .38)", smooth: "#4ea1ff", rate: "#d99a2b", held_out: "#ff7b6b", trained: "#62c370", save: "#62c370", sample: "#c58af9" };
const LEFT = 46, RIGHT = 46, TOP = 8, BOTTOM = 30;
const SMALLEST_DRAG_PX = 8;

const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 0.01 && Math.abs(value) < 1000 ? String(Number(value.toPrecision(3))) : value.toExponential(1));

function niceTicks(from, to, count) {
  const rough = (to - from) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to + step * 1e-6; tick += step) ticks.push(Number(tick.toPrecision(6)));
  return ticks;
}

// 1, 2 and 5 of each power of ten between two losses; where these are too close, the plain ticks.
function decades(low, high) {
  const ticks = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) for (const m of [1, 2, 5]) ticks.push(Number((m * power).toPrecision(2)));
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 2 ? inside : niceTicks(low, high, 5);
}

// The first row that ends at `step` or later.
function place(rows, step) {
  let low = 0, high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle][LAST] < step) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Nodes 2.0 takes the wheel before an element in a node sees it; only the window is earlier.
const charts = new WeakMap();
window.addEventListener("wheel", (event) => charts.get(event.target)?.wheel(event), { capture: true, passive: false });

export class Chart {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.readout = Object.assign(document.createElement("div"), { className: "readout" });
    this.root = Object.assign(document.createElement("div"), { className: "chart" });
    this.root.append(this.canvas, this.readout);
    Object.assign(this, { rows: [], probes: [], saves: [], samples: [], view: null, hover: null, drag: null, frame: 0, seen: true, drawn: 0, risingRate: false });
    this.sizes = new ResizeObserver(() => this.changed());
    this.sizes.observe(this.root);
    this.sight = new IntersectionObserver((entries) => {
      this.seen = entries[entries.length - 1].isIntersecting;
      if (this.seen) this.changed();
    });
    this.sight.observe(this.root);
    this.canvas.addEventListener("pointerdown", (e) => this.press(e));
    this.canvas.addEventListener("pointermove", (e) => this.move(e));
    this.canvas.addEventListener("pointerup", (e) => this.release(e));
    this.canvas.addEventListener("pointerleave", () => { this.hover = null; this.changed(); });
    this.canvas.addEventListener("dblclick", (e) => { e.stopPropagation(); this.view = null; this.changed(); });
    charts.set(this.canvas, this);
  }

  dispose() {
    this.sizes.disconnect();
    this.sight.disconnect();
    cancelAnimationFrame(this.frame);
  }

  changed() {
    if (!this.frame && this.seen) this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(); });
  }

  range() {
    const last = Math.max(this.rows.at(-1)?.[LAST] ?? 0, this.probes.at(-1)?.[0] ?? 0);
    const first = Math.min(this.rows[0]?.[FIRST] ?? 0, this.probes[0]?.[0] ?? Infinity);
    return [first, Math.max(last, first + 1)];
  }

  at(event) { // pointer -> px in the chart, whatever the zoom of the graph is
    const box = this.canvas.getBoundingClientRect();
    return (event.clientX - box.left) * (this.width / (box.width || 1));
  }

  step(x) {
    const [from, to] = this.view ?? this.range();
    return from + ((x - LEFT) / Math.max(1, this.width - LEFT - RIGHT)) * (to - from);
  }

  press(event) {
    if (event.button !== 0 || event.ctrlKey || event.altKey || !this.rows.length) return;
    event.stopPropagation();
    this.drag = [this.at(event), this.at(event)];
    this.canvas.setPointerCapture?.(event.pointerId);
  }

  move(event) {
    this.hover = this.at(event);
    if (this.drag) this.drag[1] = this.hover;
    this.changed();
  }

  release(event) {
    if (!this.drag) return;
    event.stopPropagation();
    const [a, b] = this.drag;
    this.drag = null;
    if (Math.abs(a - b) >= SMALLEST_DRAG_PX) this.zoom(this.step(Math.min(a, b)), this.step(Math.max(a, b)));
    this.changed();
  }

  wheel(event) {
    if (!event.ctrlKey && !event.altKey) return; // the graph's own
    event.preventDefault();
    event.stopImmediatePropagation();
    const [from, to] = this.view ?? this.range();
    const middle = this.step(this.at(event)), factor = 1.2 ** Math.sign(event.deltaY);
    this.zoom(middle - (middle - from) * factor, middle + (to - middle) * factor);
  }

  zoom(from, to) {
    const [first, last] = this.range();
    const low = Math.max(first, from), high = Math.min(last, to);
    if (high - low < 2) return;
    this.view = low <= first && high >= last ? null : [low, high];
    this.changed();
  }

  draw() {
    const width = this.root.clientWidth, height = this.root.clientHeight;
    if (width < 60 || height < 60) return; // collapsed
    this.drawn += 1;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    this.width = width;
    this.height = height;
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "10px system-ui, sans-serif";
    this.ink = getComputedStyle(this.root).color;
    if (!this.rows.length && !this.probes.length) return this.read();
    const [from, to] = this.view ?? this.range();
    const begin = place(this.rows, from), end = Math.min(this.rows.length, place(this.rows, to) + 1);
    const probes = this.probes.filter((p) => p[0] >= from && p[0] <= to);
    const [low, high, logarithmic] = this.losses(begin, end, probes);
    const x = (step) => LEFT + ((step - from) / (to - from)) * (width - LEFT - RIGHT);
    const scale = logarithmic ? (loss) => Math.log(Math.max(loss, low)) : (loss) => loss;
    const y = (loss) => TOP + ((scale(high) - scale(loss)) / (scale(high) - scale(low))) * (height - TOP - BOTTOM);
    this.axes(pen, from, to, x, y, logarithmic ? decades(low, high) : niceTicks(low, high, 5));
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, TOP, width - LEFT - RIGHT, height - TOP - BOTTOM);
    pen.clip();
    this.rates(pen, begin, end, x);
    this.curves(pen, begin, end, x, y);
    for (const [index, colour] of [[1, COLOURS.held_out], [2, COLOURS.trained]]) this.dots(pen, probes, index, colour, x, y);
    pen.restore();
    this.marks(pen, from, to, x, y);
    this.pointer(pen, from, to, x);
    this.read();
  }

  // Lowest and highest loss to show, and whether on a logarithmic axis: the smoothed course and the probes whole, the raw one without its rarest peaks.
  losses(begin, end, probes) {
    const raw = [], stride = Math.max(1, Math.floor((end - begin) / 600));
    let low = Infinity, high = -Infinity;
    for (let n = begin; n < end; n += 1) {
      const row = this.rows[n];
      if (row[SMOOTH] !== null) { low = Math.min(low, row[SMOOTH]); high = Math.max(high, row[SMOOTH]); }
      if ((n - begin) % stride === 0 && row[LOW] !== null) raw.push(row[LOW], row[HIGH]);
    }
    raw.sort((a, b) => a - b);
    if (raw.length) { low = Math.min(low, raw[Math.floor(raw.length * 0.01)]); high = Math.max(high, raw[Math.min(raw.length - 1, Math.floor(raw.length * 0.98))]); }
    for (const p of probes) for (const value of [p[1], p[2]]) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
    if (!Number.isFinite(low)) return [0, 1, false];
    if (logarithmicLoss() && low > 0) return [low * 0.94, high * 1.06, true];
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad, false];
  }

  axes(pen, from, to, x, y, ticks) {
    pen.lineWidth = 1;
    pen.fillStyle = this.ink;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const tick of ticks) {
      pen.globalAlpha = 0.14;
      pen.strokeStyle = this.ink;
      pen.beginPath(); pen.moveTo(LEFT, y(tick)); pen.lineTo(this.width - RIGHT, y(tick)); pen.stroke();
      pen.globalAlpha = 0.75;
      pen.fillText(short(tick), LEFT - 5, y(tick));
    }
    pen.textAlign = "center";
    for (const tick of niceTicks(from, to, Math.max(2, Math.floor(this.width / 75)))) if (Number.isInteger(tick)) pen.fillText(String(tick), x(tick), this.height - 8);
    pen.globalAlpha = 1;
  }

  rates(pen, begin, end, x) {
    let low = Infinity, high = 0;
    for (let n = begin; n < end; n += 1) {
      const rate = this.rows[n][RATE];
      if (rate > 0) { low = Math.min(low, rate); high = Math.max(high, rate); }
    }
    if (!high) return;
    const logarithmic = this.risingRate && high / low > 200, bottom = this.height - BOTTOM, span = (bottom - TOP) * 0.92;
    const y = (rate) => (logarithmic ? bottom - (Math.log(Math.max(rate, low) / low) / Math.log(high / low)) * span : bottom - (rate / high) * span);
    pen.strokeStyle = COLOURS.rate;
    pen.lineWidth = 1.2;
    pen.setLineDash([4, 3]);
    this.line(pen, begin, end, x, (row) => (row[RATE] > 0 || !logarithmic ? y(row[RATE] ?? 0) : null));
    pen.setLineDash([]);
    pen.restore(); pen.save(); // the axis lies outside the clipped area
    pen.fillStyle = COLOURS.rate;
    pen.textAlign = "left";
    for (const rate of logarithmic ? [low, high] : [high / 2, high]) pen.fillText(short(rate), this.width - RIGHT + 4, y(rate));
    pen.beginPath(); pen.rect(LEFT, TOP, this.width - LEFT - RIGHT, this.height - TOP - BOTTOM); pen.clip();
  }

  // One point a pixel column, the last of the column.
  line(pen, begin, end, x, value) {
    pen.beginPath();
    let column = -1, open = false, point = null;
    for (let n = begin; n < end; n += 1) {
      const y = value(this.rows[n]);
      if (y === null) continue;
      const px = x(this.rows[n][LAST]);
      if (point && Math.floor(px) !== column) { open ? pen.lineTo(...point) : pen.moveTo(...point); open = true; }
      column = Math.floor(px);
      point = [px, y];
    }
    if (point) open ? pen.lineTo(...point) : pen.moveTo(...point);
    pen.stroke();
  }

  curves(pen, begin, end, x, y) {
    pen.strokeStyle = COLOURS.raw;
    pen.lineWidth = 1;
    pen.beginPath();
    let column = null, low = 0, high = 0, before = null;
    const flush = () => {
      if (column === null) return;
      before === null ? pen.moveTo(column, y(high)) : pen.lineTo(column, y(high));
      pen.lineTo(column, y(low));
      before = column;
    };
    for (let n = begin; n < end; n += 1) {
      const row = this.rows[n];
      if (row[LOW] === null) continue;
      const px = Math.round(x(row[LAST]));
      if (px !== column) { flush(); column = px; low = row[LOW]; high = row[HIGH]; }
      else { low = Math.min(low, row[LOW]); high = Math.max(high, row[HIGH]); }
    }
    flush();
    pen.stroke();
    pen.strokeStyle = COLOURS.smooth;
    pen.lineWidth = 2;
    this.line(pen, begin, end, x, (row) => (row[SMOOTH] === null ? null : y(row[SMOOTH])));
  }

  dots(pen, probes, index, colour, x, y) {
    const points = probes.filter((p) => p[index] !== null).map((p) => [x(p[0]), y(p[index])]);
    if (!points.length) return;
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = 1.5;
    pen.beginPath();
    points.forEach((p, n) => (n ? pen.lineTo(...p) : pen.moveTo(...p)));
    pen.stroke();
    if (points.length < 200) for (const p of points) { pen.beginPath(); pen.arc(...p, 2.5, 0, 7); pen.fill(); }
  }

  best() {
    return this.probes.reduce((best, p) => (p[1] !== null && (!best || p[1] < best[1]) ? p : best), null);
  }

  marks(pen, from, to, x) {
    const bottom = this.height - BOTTOM;
    pen.fillStyle = COLOURS.save;
    for (const step of this.saves) if (step >= from && step <= to) {
      pen.beginPath(); pen.moveTo(x(step), bottom + 1); pen.lineTo(x(step) - 4, bottom + 8); pen.lineTo(x(step) + 4, bottom + 8); pen.fill();
    }
    pen.fillStyle = COLOURS.sample;
    for (const step of this.samples) if (step >= from && step <= to) { pen.beginPath(); pen.arc(x(step), bottom + 11, 3, 0, 7); pen.fill(); }
    const best = this.best();
    if (best && best[0] >= from && best[0] <= to) {
      pen.strokeStyle = pen.fillStyle = COLOURS.held_out;
      pen.setLineDash([2, 3]);
      pen.beginPath(); pen.moveTo(x(best[0]), TOP); pen.lineTo(x(best[0]), bottom); pen.stroke();
      pen.setLineDash([]);
      pen.textAlign = x(best[0]) > this.width - RIGHT - 60 ? "right" : "left";
      pen.fillText(` ${t("panel.best")} ${best[0]} `, x(best[0]), TOP + 6);
    }
  }

  pointer(pen, from, to, x) {
    this.near = null;
    if (this.drag) {
      pen.fillStyle = "rgba(127, 160, 255, .25)";
      pen.fillRect(Math.min(...this.drag), TOP, Math.abs(this.drag[0] - this.drag[1]), this.height - TOP - BOTTOM);
    }
    if (this.hover === null || !this.rows.length) return;
    const step = this.step(this.hover), n = Math.min(this.rows.length - 1, place(this.rows, step));
    this.near = n && step - this.rows[n - 1][LAST] < this.rows[n][FIRST] - step ? this.rows[n - 1] : this.rows[n];
    pen.strokeStyle = this.ink;
    pen.globalAlpha = 0.45;
    pen.beginPath(); pen.moveTo(x(this.near[LAST]), TOP); pen.lineTo(x(this.near[LAST]), this.height - BOTTOM); pen.stroke();
    pen.globalAlpha = 1;
  }

  read() {
    const row = this.near;
    if (!row) return void (this.readout.textContent = this.rows.length ? t("panel.zoom_hint") : "");
    const [first, last, low, high, smooth, rate, norm] = row;
    const raw = low === null ? "–" : low === high ? short(low) : `${short(low)} – ${short(high)}`;
    const parts = [`${first === last ? last : `${first}–${last}`}`, `${t("panel.loss")} ${raw}`];
    if (smooth !== null) parts.push(`${t("panel.smoothed")} ${short(smooth)}`);
    if (rate !== null) parts.push(`${t("panel.rate")} ${rate.toExponential(2)}`);
    if (norm !== null) parts.push(`${t("panel.norm")} ${short(norm)}`);
    const probe = this.probes.find((p) => p[0] >= first && p[0] <= last);
    if (probe) parts.push(`${t("panel.held_out")} ${short(probe[1])}`, `${t("panel.trained")} ${short(probe[2])}`);
    this.readout.textContent = parts.join(" · ");
  }
}
