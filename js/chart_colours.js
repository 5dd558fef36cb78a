// @ts-check
// The colours of a chart on a dark page and on a light one, and when a page changes from one to the other.

/**
 * The colours of lines and marks, each legible as a word on a ground that is dark or light. `ground`: below such words.
 * @typedef {"raw" | "smooth" | "second" | "rate" | "held_out" | "trained" | "save" | "sample" | "ground"} Colour
 * @typedef {Record<Colour, string>} Palette
 */

/** @type {Record<"dark" | "light", Palette>} */
export const PALETTES = {
  dark: {
    raw: "#b0b0b0", smooth: "#6db5ff", rate: "#e3ad4a", held_out: "#ff9a8c", trained: "#79d48c", save: "#79d48c",
    second: "#ffb073", sample: "#d3a8ff", ground: "rgba(24, 25, 28, .72)",
  },
  light: {
    raw: "#5f5f5f", smooth: "#0b5cb8", rate: "#7d5200", held_out: "#a8241c", trained: "#1b6b30", save: "#1b6b30",
    second: "#9a4a12", sample: "#6f37b5", ground: "rgba(255, 255, 255, .8)",
  },
};

/** The palette that suits a page whose text is of this colour, as "rgb(221, 221, 221)". */
export function paletteFor(/** @type {string} */ ink) {
  const [red = 255, green = 255, blue = 255] = (ink.match(/[\d.]+/g) ?? []).map(Number);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 127 ? PALETTES.dark : PALETTES.light;
}

/** @typedef {{ ink: string, inkNow: () => string, changed: () => void }} Inked `ink`: the colour it was drawn with */

/** @type {Set<Inked>} */
const coloured = new Set();
let watching = false;

/** Draws the charts anew whose ink is another one: the page was turned from dark to light, or back. */
export function followInk() {
  for (const chart of coloured) if (chart.inkNow() !== chart.ink) chart.changed();
}

/** From now on a chart follows the classes and styles by which pages change their colours. Returns what ends that. */
export function watchInk(/** @type {Inked} */ chart) {
  coloured.add(chart);
  if (!watching) {
    watching = true;
    const observer = new MutationObserver(() => setTimeout(followInk)); // once the new rules are in force
    for (const part of [document.documentElement, document.body]) {
      observer.observe(part, { attributes: true, attributeFilter: ["class", "style", "data-theme"] });
    }
  }
  return () => coloured.delete(chart);
}
