// @ts-check
// The course of a run in rows, each of one step or of several neighbours. Joined as the server joins them.

/**
 * First and last step, lowest and highest loss, smoothed loss, learning rate, largest gradient norm; where two networks
 * are trained in turn, the smoothed loss of the second one.
 * @typedef {[number, number, ?number, ?number, ?number, ?number, ?number, (?number)?]} Row
 */

export const FIRST = 0, LAST = 1, LOW = 2, HIGH = 3, SMOOTH = 4, RATE = 5, NORM = 6, SECOND = 7;

/** The number of two that `choose` takes; null counts as none. */
const either = (/** @type {?number} */ one, /** @type {?number} */ two, /** @type {typeof Math.min} */ choose) => {
  if (one === null) return two;
  return two === null ? one : choose(one, two);
};

/**
 * Two neighbouring rows as one.
 * @param {Row} one
 * @param {Row} two
 * @returns {Row}
 */
export function joined(one, two) {
  /** @type {Row} */
  const row = [
    one[FIRST], two[LAST],
    either(one[LOW], two[LOW], Math.min), either(one[HIGH], two[HIGH], Math.max),
    two[SMOOTH], two[RATE], either(one[NORM], two[NORM], Math.max),
  ];
  if (two.length > SECOND) row.push(two[SECOND] ?? null);
  return row;
}

/**
 * Each two neighbours as one row; a last one without a neighbour stays.
 * @param {Row[]} rows
 * @returns {Row[]}
 */
export function halved(rows) {
  const pairs = [];
  for (let n = 0; n < rows.length; n += 2) pairs.push(n + 1 < rows.length ? joined(rows[n], rows[n + 1]) : rows[n]);
  return pairs;
}

/** The last step of `rows`; 0 without rows. */
export const lastStep = (/** @type {Row[]} */ rows) => rows.at(-1)?.[LAST] ?? 0;

/**
 * `rows` with `news` at its end: steps that are there already are not taken twice. Changes `rows`, and returns it
 * unless it grew beyond `most` rows; then the result is half as long.
 * @param {Row[]} rows
 * @param {Row[]} news
 * @param {number} most
 * @returns {Row[]}
 */
export function continued(rows, news, most) {
  for (const row of news) {
    const last = lastStep(rows);
    if (row[LAST] <= last) continue;
    rows.push(/** @type {Row} */ ([Math.max(row[FIRST], last + 1), ...row.slice(LAST)]));
  }
  return rows.length > most ? halved(rows) : rows;
}

/**
 * The index of the first row that ends at `step` or later; their number where none does.
 * @param {Row[]} rows
 * @param {number} step
 */
export function indexAt(rows, step) {
  let low = 0, high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle][LAST] < step) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The row nearest to `step`; null without rows.
 * @param {Row[]} rows
 * @param {number} step
 */
export function nearestRow(rows, step) {
  if (!rows.length) return null;
  const n = Math.min(rows.length - 1, indexAt(rows, step));
  return n && step - rows[n - 1][LAST] < rows[n][FIRST] - step ? rows[n - 1] : rows[n];
}
