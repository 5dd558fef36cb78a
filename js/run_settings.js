// @ts-check
// The settings of several runs beside one another: which differ, and how they are read.
import { figure } from "./plan.js";
import { t } from "./words.js";

/** @typedef {Record<string, unknown>} RunSettings by config path */
/** @typedef {{ path: string, values: unknown[] }} Difference the value of each run; undefined: it lacks the setting */

const OWN = ["name"]; // differ in any case

/**
 * The settings that are not the same in all runs, in the order of the first run that has them.
 * @param {RunSettings[]} runs
 * @returns {Difference[]}
 */
export function differing(runs) {
  const paths = [...new Set(runs.flatMap((settings) => Object.keys(settings)))];
  return paths.filter((path) => !OWN.includes(path))
    .map((path) => ({ path, values: runs.map((settings) => settings[path]) }))
    .filter(({ values }) => new Set(values.map((value) => JSON.stringify(value))).size > 1);
}

/** A value as a person reads it. */
export function valueText(/** @type {unknown} */ value) {
  if (value === undefined || value === null || value === "") return "–";
  if (typeof value === "boolean") return t(value ? "compare.on" : "compare.off");
  if (typeof value === "number") return figure(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

/**
 * Section and name of a setting: ["adapter", "rank"]; a setting of the run itself has no section.
 * @param {string} path
 * @returns {[string, string]}
 */
export function sectionAndName(path) {
  const at = path.lastIndexOf(".");
  return [path.slice(0, Math.max(0, at)), path.slice(at + 1)];
}
