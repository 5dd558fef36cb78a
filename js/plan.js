// @ts-check
// What a run will do, before it is started: which base and pictures, how long, how fine, and who decided each.
import { make, style } from "./dom.js";
import { clock, memory } from "./figures.js";
import { said, t } from "./words.js";

/** @typedef {import("./words.js").Message} Message */
/** @typedef {"you" | "settings" | "preset" | "model"} Source */
/** @typedef {{ path: string, value: number, source: Source }} PlanRow */

/**
 * What the server says of a graph's train node; `problem` alone where it would be refused.
 * @typedef {object} Plan
 * @property {?Message} problem
 * @property {{ file: string, family: string }} [base]
 * @property {number} [pictures]
 * @property {number} [uncaptioned]
 * @property {string} [trigger]
 * @property {number[][]} [buckets] width, height, pictures
 * @property {number} [epochs]
 * @property {PlanRow[]} [rows]
 * @property {?{ seconds: number, bytes: number, run: string }} [cost] measured in an earlier run like this one
 * @property {?Message} [memory] what the choice of memory decides
 * @property {Message[]} [notes]
 * @property {number} [more_notes]
 */

/** @type {Record<string, string>} what the values are called */
const NAMES = { "steps": "steps", "adapter.rank": "rank", "optimizer.lr": "rate", "data.resolution": "resolution" };
const STYLE = `
.loom-plan { font-size: 12px; overflow: auto; max-height: 220px; }
.loom-plan summary { cursor: pointer; opacity: .8; }
.loom-plan.first summary { display: none; }
.loom-plan .base { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.loom-plan .values { display: grid; grid-template-columns: repeat(auto-fit, minmax(92px, 1fr)); gap: 4px;
  margin: 5px 0; }
.loom-plan .values div { padding: 3px 7px; border-radius: 5px; background: rgba(127, 127, 127, .14); }
.loom-plan .values b { display: block; font-size: 15px; font-variant-numeric: tabular-nums; }
.loom-plan .values span { font-size: 10px; opacity: .75; }
.loom-plan .problem { padding: 5px 8px; border-left: 4px solid #ff5f56; border-radius: 5px;
  background: rgba(255, 95, 86, .16); user-select: text; }
.loom-plan .note { padding-left: 8px; border-left: 3px solid #c9962b; margin-top: 3px; user-select: text; }
`;

/** A number of a plan as people write it: 1200, 0.0001 as 1e-4. */
export function figure(/** @type {number} */ value) {
  if (value !== 0 && Math.abs(value) < 0.01) return String(value.toExponential(2)).replace(/\.?0+e/, "e");
  return String(Math.round(value * 1000) / 1000);
}

/**
 * How the pictures are used, in a sentence's parts.
 * @param {Plan} plan
 */
export function pictureParts({ pictures = 0, buckets = [], epochs, trigger, uncaptioned = 0 }) {
  const parts = [pictures ? t("plan.pictures", { count: pictures }) : t("plan.no_pictures")];
  const [width, height] = buckets[0] ?? [];
  if (buckets.length === 1) parts.push(t("plan.one_size", { width, height }));
  if (buckets.length > 1) parts.push(t("plan.sizes", { count: buckets.length, width, height }));
  if (epochs) parts.push(t("plan.epochs", { count: epochs }));
  if (trigger) parts.push(t("plan.trigger", { trigger }));
  if (uncaptioned) parts.push(t("plan.uncaptioned", { count: uncaptioned }));
  return parts;
}

/** What the run will cost, as far as that was measured. */
export function costLine(/** @type {Plan} */ { cost }) {
  if (!cost) return t("plan.unmeasured");
  const { seconds, bytes, run } = cost;
  return t(bytes ? "plan.cost" : "plan.time", { time: clock(seconds), size: memory(bytes), run });
}

export class PlanView {
  constructor() {
    style("loom-plan", STYLE);
    this.summary = make("summary", { textContent: t("plan.next") });
    this.body = make("div");
    this.root = make("details", { className: "loom-plan first", open: true, hidden: true }, this.summary, this.body);
    this.drawn = "";
  }

  /**
   * @param {?Plan} plan null: nothing is known before the graph runs
   * @param {string[]} [kinds] of the nodes around it, the nearest first
   * @returns {boolean} whether it changed
   */
  set(plan, kinds = []) {
    const key = JSON.stringify([plan, kinds]);
    if (key === this.drawn) return false;
    this.drawn = key;
    this.root.hidden = !plan;
    this.body.replaceChildren(...(plan ? this.parts(plan, kinds) : []));
    return true;
  }

  /** Whether no run was shown yet: then the plan is the panel; afterwards it is folded. */
  first(/** @type {boolean} */ yes) {
    if (this.root.classList.contains("first") === yes) return;
    this.root.classList.toggle("first", yes);
    this.root.open = yes;
  }

  /** What the choice of memory decides; a note where it may not suffice. @param {Message} room */
  roomOf(room) {
    return make("div", { className: room.code === "memory.decided" ? "" : "note", textContent: said(room) });
  }

  /**
   * @param {Plan} plan
   * @param {string[]} kinds
   */
  parts(plan, kinds) {
    if (plan.problem) return [make("div", { className: "problem", textContent: said(plan.problem, kinds) })];
    const { base, rows = [], notes = [], more_notes: more = 0, memory: room } = plan;
    const values = rows.map(({ path, value, source }) => make("div", { title: t(`plan.from_${source}_tip`) },
      make("span", { textContent: t(`plan.${NAMES[path]}`) }),
      make("b", { textContent: figure(value) }), make("span", { textContent: t(`plan.from_${source}`) })));
    const out = [
      make("div", { className: "base", textContent: `${base?.file ?? ""} · ${base?.family ?? ""}`, title: base?.file }),
      make("div", { textContent: pictureParts(plan).join(" · ") }),
      make("div", { className: "values" }, ...values),
      make("div", { textContent: costLine(plan) }),
      ...(room ? [this.roomOf(room)] : []),
      ...notes.map((note) => make("div", { className: "note", textContent: said(note, kinds) })),
    ];
    if (more) out.push(make("div", { className: "note", textContent: t("plan.more", { count: more }) }));
    return out;
  }
}
