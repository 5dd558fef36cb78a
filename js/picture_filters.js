// @ts-check
// What a picture of a dataset is found by: its caption, and what was noticed about it.

/**
 * Something noticed about a picture. `kind`: what it is filtered by; `severity`: how grave it is.
 * @typedef {import("./words.js").Message & { severity: "stop" | "look" | "note", kind: string }} Note
 */

/**
 * What is asked of a picture here.
 * @typedef {object} Look
 * @property {string} caption as it stands in the editor
 * @property {string} trigger of its set
 * @property {boolean} excluded
 * @property {boolean} changed
 * @property {Note[]} notes
 */

const LONG_WORDS = 75; // about what one piece of CLIP's text encoder holds
const KINDS = ["broken", "dark", "duplicate", "odd", "blurred", "faces", "far", "flat", "small", "grey", "cropped",
  "mask"];

/** Whether a word stands in a text by itself, whatever its case is. */
export function hasWord(/** @type {string} */ text, /** @type {string} */ word) {
  const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`(?<![\\p{L}\\p{N}_])${escaped}(?![\\p{L}\\p{N}_])`, "iu").test(text);
}

/** How long a caption is, in words; of scripts without spaces each character is one. */
export const wordCount = (/** @type {string} */ caption) =>
  (caption.match(/[\u3040-\u30ff\u3400-\u9fff]|[\p{L}\p{N}'’-]+/gu) ?? []).length;

/** @type {Record<string, (look: Look) => boolean>} */
const TESTS = {
  empty: ({ caption }) => !caption.trim(),
  no_trigger: ({ caption, trigger }) => Boolean(trigger && caption.trim()) && !hasWord(caption, trigger),
  long: ({ caption }) => caption.split("\n").some((line) => wordCount(line) > LONG_WORDS),
  changed: ({ changed }) => changed,
  out: ({ excluded }) => excluded,
  ...Object.fromEntries(KINDS.map((kind) => [kind, ({ notes }) => notes.some((note) => note.kind === kind)])),
};

/** In the order in which chips stand: the caption's first. */
export const FILTERS = ["empty", "no_trigger", "long", ...KINDS, "changed", "out"];

/** Whether a picture passes all the filters that are chosen. */
export const passes = (/** @type {Look} */ look, /** @type {Iterable<string>} */ chosen) =>
  [...chosen].every((filter) => TESTS[filter](look));

/**
 * How many pictures each filter finds.
 * @param {Look[]} looks
 * @returns {Record<string, number>}
 */
export function filterCounts(looks) {
  return Object.fromEntries(FILTERS.map((filter) => [filter, looks.filter((look) => TESTS[filter](look)).length]));
}

/** The gravest of some notes; "" where there is none. */
export const gravest = (/** @type {Note[]} */ notes) =>
  ["stop", "look", "note"].find((severity) => notes.some((note) => note.severity === severity)) ?? "";
