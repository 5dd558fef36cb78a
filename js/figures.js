// @ts-check
// Numbers as a person reads them.

/** Three digits: 0.0123, 12.3, 4.5e-6. */
export function short(/** @type {number} */ value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 0.01 && size < 1000 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

/** 1:05 or 2:00:07. */
export function clock(/** @type {number} */ seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** Decimal kilobytes, megabytes or gigabytes, as file managers show them. */
export function fileSize(/** @type {number} */ bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  if (bytes > 0 && bytes < 1e5) return `${Math.max(1, Math.round(bytes / 1e3))} kB`; // an embedding
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

/** Memory in units of 2^30 bytes, without the unit. */
export const memory = (/** @type {number} */ bytes) => (bytes / 2 ** 30).toFixed(1);

/** A step or a range of steps: 12 or 12–15. */
export const stepRange = (/** @type {number} */ first, /** @type {number} */ last) =>
  first === last ? String(last) : `${first}–${last}`;
