// @ts-check
// What a run measured at its validations, on the whole page: pictures of each concept under every trigger, and each
// picture with the course of its loss, the hardest first.
import { route } from "./api.js";
import { make, style } from "./dom.js";
import { short } from "./figures.js";
import { extent, linearScale } from "./scales.js";
import { inside } from "./viewer.js";
import { language, t } from "./words.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {{ step: number, losses: number[] }} PictureRow loss of each picture, 1: a usual one before training */
/** @typedef {{ step: number, losses: number[][], bleeds: [string, string][] }} ConceptRow of each concept, by word */

/**
 * @typedef {object} Pictures
 * @property {{ name: string, held_out: boolean }[]} pictures
 * @property {PictureRow[]} rows
 * @property {number[]} hard places of pictures
 * @property {number[]} memorised
 */

/** @typedef {{ words: string[], held_out: boolean[], rows: ConceptRow[] }} Concepts */
/** @typedef {{ pictures: ?Pictures, concepts: ?Concepts, cell_px: number, columns: number }} Measured */

const COURSE = [132, 34]; // px
const CARDS = 400; // pictures shown

const STYLE = `
.loom-measured { position: fixed; inset: 0; z-index: 9990; height: auto; color: #e8e8ea; font-size: 13px; outline: none;
  background: #16181c; --loom-field: #2b2e35; --loom-line: #4a4f59; --loom-ink: #e8e8ea; }
.loom-measured .top { display: flex; gap: 10px; align-items: center; padding: 12px 18px; flex: none; }
.loom-measured .top h2 { flex: 1; margin: 0; font-size: 17px; font-weight: 600; overflow-wrap: anywhere; }
.loom-measured .body { flex: 1; min-height: 0; overflow-y: auto; padding: 0 18px 18px; }
.loom-measured h3 { margin: 10px 0 4px; font-size: 14px; font-weight: 600; }
.loom-measured p { margin: 0 0 8px; color: #b8bfca; max-width: 90ch; }
.loom-measured table { border-collapse: collapse; margin-bottom: 6px; }
.loom-measured th, .loom-measured td { padding: 7px 14px; text-align: right; font-weight: 400;
  border: 1px solid rgba(255, 255, 255, .14); font-variant-numeric: tabular-nums; }
.loom-measured th { text-align: left; color: #c8ced8; overflow-wrap: anywhere; max-width: 240px; }
.loom-measured td.own { font-weight: 600; outline: 2px solid #3fa65a; outline-offset: -2px; }
.loom-measured td.bled { background: rgba(217, 83, 74, .5) !important; }
.loom-measured .steps { display: flex; gap: 12px; align-items: center; max-width: 640px; }
.loom-measured .steps input { flex: 1; accent-color: #4ea1ff; }
.loom-measured .steps output { min-width: 110px; font-weight: 600; }
.loom-measured .cards { display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); }
.loom-measured .cards > div { display: flex; gap: 9px; padding: 7px; border-radius: 7px; background: #22252b;
  min-width: 0; }
.loom-measured .cards > .hard { box-shadow: inset 3px 0 #e0a030; }
.loom-measured .cards > .memorised { box-shadow: inset 3px 0 #c48be6; }
.loom-measured .cards i { flex: none; border-radius: 4px; background-color: #08090b; }
.loom-measured .cards .about { min-width: 0; flex: 1; overflow-wrap: anywhere; }
.loom-measured .cards b { font-weight: 600; font-variant-numeric: tabular-nums; }
.loom-measured .cards small { display: block; color: #b8bfca; font-size: 12px; }
.loom-measured .cards svg { display: block; }
`;

/**
 * The places of the pictures, the one hardest at the last measure first.
 * @param {PictureRow[]} rows
 * @returns {number[]}
 */
export function byDifficulty(rows) {
  const losses = rows.at(-1)?.losses ?? [];
  return losses.map((_, n) => n).sort((a, b) => losses[b] - losses[a]);
}

/**
 * Place -> the points of a picture's course, as SVG wants them; all pictures stand on one scale, which is made once.
 * @param {PictureRow[]} rows
 * @returns {(place: number) => string}
 */
export function coursePoints(rows) {
  const [width, height] = COURSE, last = rows.at(-1)?.step ?? 1;
  const [bottom, top] = extent(rows.flatMap(({ losses }) => losses).filter((loss) => loss > 0)).map(Math.log);
  const x = linearScale(rows[0].step, Math.max(last, rows[0].step + 1), 2, width - 2);
  const y = linearScale(bottom, top > bottom ? top : bottom + 1, height - 3, 3);
  return (place) => rows.filter(({ losses }) => losses[place] > 0)
    .map(({ step, losses }) => `${x(step).toFixed(1)},${y(Math.log(losses[place])).toFixed(1)}`).join(" ");
}

/**
 * How well a trigger fits, from 1 where it is as good as the own one to 0; half at 5 % more loss.
 * @param {number} loss
 * @param {number} own
 */
export const fit = (loss, own) => 1 / (1 + 20 * Math.max(0, loss / own - 1));

/**
 * A cell of the table: the loss under the own trigger, and by how much it is higher under another one.
 * @param {number[]} losses of a concept
 * @param {number} own
 * @param {number} column
 */
export function told(losses, own, column) {
  if (column === own) return short(losses[own]);
  const more = 100 * (losses[column] / losses[own] - 1);
  return `${more < 0 ? "−" : "+"}${Number(Math.abs(more).toFixed(Math.abs(more) < 10 ? 2 : 0))} %`;
}

export class MeasuredView {
  /**
   * @param {Host} host
   * @param {string} run
   * @param {Measured} measured
   */
  constructor(host, run, measured) {
    this.host = host;
    this.run = run;
    this.measured = measured;
    style("loom-measured", STYLE);
    const { pictures, concepts } = measured;
    this.at = (concepts?.rows.length ?? 1) - 1;
    this.table = make("div");
    this.told = make("output");
    this.slider = make("input", { type: "range", min: "0", step: "1", max: String(this.at) });
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    const close = make("button", { textContent: "✕", title: t("viewer.close"), onclick: () => this.close() });
    const parts = [...(concepts ? this.concepts() : []), ...(pictures ? this.pictures(pictures) : [])];
    if (!parts.length) parts.push(make("p", { textContent: t("measured.none") }));
    this.root = make("div", { className: "loom loom-measured", lang: language, tabIndex: -1 },
      make("div", { className: "top" }, make("h2", { textContent: t("measured.title", { run }) }), close),
      make("div", { className: "body" }, ...parts));
    this.root.setAttribute("role", "dialog");
    this.root.setAttribute("aria-modal", "true");
    this.root.setAttribute("aria-label", t("measured.title", { run }));
    this.root.addEventListener("keydown", (event) => this.key(event));
    for (const event of ["wheel", "pointerdown", "paste", "keyup"]) {
      this.root.addEventListener(event, (e) => e.stopPropagation()); // not for the graph below
    }
    this.show(this.at);
  }

  open() {
    document.body.append(this.root);
    this.root.focus();
  }

  close() {
    this.root.remove();
  }

  key(/** @type {KeyboardEvent} */ event) {
    event.stopPropagation();
    if (event.key === "Escape") this.close();
  }

  concepts() {
    const walk = make("div", { className: "steps", hidden: this.at < 1 }, this.slider, this.told);
    return [make("h3", { textContent: t("measured.concepts") }),
      make("p", { textContent: t("measured.concepts_about") }), this.table, walk];
  }

  /** Shows the table of a validation. */
  show(/** @type {number} */ at) {
    const { concepts } = this.measured;
    if (!concepts) return;
    this.at = inside(at, concepts.rows.length);
    this.slider.value = String(this.at);
    const { step, losses, bleeds } = concepts.rows[this.at], { words } = concepts;
    this.told.textContent = step ? t("runs.at_step", { step }) : t("viewer.before");
    const cell = (/** @type {number} */ row, /** @type {number} */ column) => {
      const bled = bleeds.some(([own, other]) => own === words[row] && other === words[column]);
      const className = [row === column ? "own" : "", bled ? "bled" : ""].filter(Boolean).join(" ");
      const td = make("td", { className, textContent: told(losses[row], row, column) });
      if (bled) td.title = t("measured.bled");
      td.style.background = `rgba(78, 161, 255, ${(0.5 * fit(losses[row][column], losses[row][row])).toFixed(2)})`;
      return td;
    };
    const head = [make("th"), ...words.map((word) => make("th", { textContent: t("measured.under", { word }) })),
      make("th", { textContent: t("measured.without") })];
    const lines = words.map((word, row) => make("tr", {},
      make("th", { textContent: t(concepts.held_out[row] ? "measured.held_out_of" : "measured.trained_of", { word }) }),
      ...losses[row].map((_, column) => cell(row, column))));
    this.table.replaceChildren(make("table", {}, make("tr", {}, ...head), ...lines));
  }

  pictures(/** @type {Pictures} */ pictures) {
    const order = byDifficulty(pictures.rows), points = coursePoints(pictures.rows);
    const cards = order.slice(0, CARDS).map((place) => this.card(pictures, place, points(place)));
    return [make("h3", { textContent: t("measured.pictures", { count: order.length }) }),
      make("p", { textContent: t("measured.pictures_about") }), make("div", { className: "cards" }, ...cards)];
  }

  /**
   * A picture, how hard it is, and its course.
   * @param {Pictures} pictures
   * @param {number} place
   * @param {string} points of its course
   */
  card({ pictures, rows, hard, memorised }, place, points) {
    const { cell_px: cell, columns } = this.measured, { name, held_out: heldOut } = pictures[place];
    const small = make("i");
    Object.assign(small.style, { width: `${cell}px`, height: `${cell}px`,
      backgroundImage: `url("${this.host.imageUrl(route("runs/thumbnails", { id: this.run }))}")`,
      backgroundPosition: `-${(place % columns) * cell}px -${Math.floor(place / columns) * cell}px` });
    const marks = [heldOut ? t("measured.validation") : t("measured.training"),
      ...(hard.includes(place) ? [t("measured.hard")] : []),
      ...(memorised.includes(place) ? [t("measured.memorised")] : [])];
    const first = rows[0].losses[place], last = /** @type {PictureRow} */ (rows.at(-1)).losses[place];
    const figures = rows.length > 1 ? `${short(first)} → ${short(last)}` : short(last);
    const className = hard.includes(place) ? "hard" : memorised.includes(place) ? "memorised" : "";
    return make("div", { className }, small, make("div", { className: "about" },
      make("b", { textContent: figures }), course(points, heldOut),
      make("small", { textContent: marks.join(" · ") }), make("small", { textContent: name })));
  }
}

/**
 * @param {string} points
 * @param {boolean} heldOut
 */
function course(points, heldOut) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  for (const [name, value] of Object.entries({ width: COURSE[0], height: COURSE[1] })) {
    svg.setAttribute(name, String(value));
  }
  line.setAttribute("points", points);
  const look = { fill: "none", stroke: heldOut ? "#ff9a52" : "#5b9bff", "stroke-width": "2" };
  for (const [name, value] of Object.entries(look)) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}

/**
 * Shows what a run measured on the whole page.
 * @param {Host} host
 * @param {string} run
 */
export async function viewMeasured(host, run) {
  const view = new MeasuredView(host, run, await host.fetchJson(route("runs/measured", { id: run })));
  view.open();
  return view;
}
