// @ts-check
// The queue of the server: what goes on and what waits, in its order, and when each will be done.
import { make, style } from "./dom.js";
import { clock } from "./figures.js";
import { t } from "./words.js";

/**
 * A row as the server tells it. `seconds`: what is left of it, null where nobody can say; without a `name` it is no
 * training.
 * @typedef {{ id: string, name: string, running: boolean, step: ?number, steps: ?number, seconds: ?number }} Queued
 */

const STYLE = `
.loom-queue { flex: none; padding: 6px 8px; border-radius: 6px; background: rgba(127, 127, 127, .12); }
.loom-queue[hidden] { display: none; }
.loom-queue summary { cursor: pointer; font-weight: 600; }
.loom-queue ol { margin: 4px 0 0; padding: 0; list-style: none; max-height: 160px; overflow-y: auto; }
.loom-queue li { display: grid; grid-template-columns: 1.6em minmax(70px, 1fr) auto; gap: 6px; padding: 2px 0; }
.loom-queue li > :first-child { opacity: .7; font-variant-numeric: tabular-nums; }
.loom-queue li > :nth-child(2) { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.loom-queue li > :last-child { opacity: .85; font-variant-numeric: tabular-nums; text-align: right; }
.loom-queue li.running { font-weight: 600; }
`;

/**
 * Seconds until each row is done, from now on; null behind one whose time is not known.
 * @param {Queued[]} rows
 * @returns {(?number)[]}
 */
export function ends(rows) {
  /** @type {?number} */
  let sum = 0;
  return rows.map(({ seconds }) => (sum = sum === null || seconds === null ? null : sum + seconds));
}

/**
 * What is said of the time of a row.
 * @param {Queued} row
 * @param {?number} end seconds until it is done
 */
export function timeOf({ name, running, step, steps, seconds }, end) {
  const parts = [];
  if (running && step !== null) parts.push(t("panel.step", { step, steps }));
  else if (steps) parts.push(t("card.steps", { step: steps }));
  if (running && seconds !== null) parts.push(t("panel.left", { time: clock(seconds) }));
  else if (seconds !== null) parts.push(t("queue.takes", { time: clock(seconds) }));
  else if (name) parts.push(t("queue.unknown"));
  if (!running && end !== null) parts.push(t("queue.done_in", { time: clock(end) }));
  return parts.join(" · ");
}

export class QueueView {
  constructor() {
    style("loom-queue", STYLE);
    this.summary = make("summary");
    this.list = make("ol");
    this.root = make("details", { className: "loom-queue", open: true, hidden: true }, this.summary, this.list);
  }

  /** Shows the rows; nothing where there is no training among them. */
  set(/** @type {Queued[]} */ rows) {
    this.root.hidden = !rows.some(({ name }) => name);
    const done = ends(rows), last = done.at(-1) ?? null;
    const all = t("queue.title", { count: rows.length });
    this.summary.textContent = last === null ? all : `${all} · ${t("queue.all_done_in", { time: clock(last) })}`;
    this.list.replaceChildren(...rows.map((row, n) => make("li", { className: row.running ? "running" : "" },
      make("span", { textContent: String(n + 1) }),
      make("span", { textContent: row.name || t("queue.other"), title: row.name }),
      make("span", { textContent: timeOf(row, done[n]) }))));
  }
}
