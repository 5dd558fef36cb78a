// @ts-check
// Our own texts in the reader's language: `t` for what the page says, `said` for what the server says.
// One file per language in js/locales/.

const LANGUAGES = ["en", "zh", "ko", "ja"];

/**
 * @param {string} language
 * @returns {Promise<Record<string, string>>}
 */
async function file(language) {
  try {
    const response = await fetch(new URL(`./locales/${language}.json`, import.meta.url));
    return response.ok ? await response.json() : {};
  } catch {
    return {}; // without a file there is still English in it, or the key
  }
}

const english = await file("en");
let words = english;
export let language = "en";

/**
 * From now on texts are in the language that is wanted, as "ja" or "zh-TW"; without one in the browser's; in English
 * where we have no such texts. Called once, before anything is shown.
 * @param {?string} [wanted]
 */
export async function speak(wanted) {
  const [chosen] = String(wanted || globalThis.navigator?.language || "en").split(/[-_]/);
  language = LANGUAGES.includes(chosen) ? chosen : "en";
  words = language === "en" ? english : await file(language);
}

/**
 * @param {string} text
 * @param {Record<string, unknown>} values
 */
function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/**
 * The text of `key` with {name} replaced by `values.name`. Falls back to English, then to the key.
 * @param {string} key
 * @param {Record<string, unknown>} [values]
 */
export function t(key, values = {}) {
  return filled(words[key] ?? english[key] ?? key, values);
}

const escaped = (/** @type {string} */ text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

// English sentences of the server, as patterns whose groups are the values in them. More fixed text is tried first.
const PATTERNS = Object.entries(english).filter(([key]) => /^(error|server)\./.test(key)).map(([key, text]) => {
  const parts = text.split(/\{(\w+)\}/); // text, name, text, name, text
  const source = parts.map((part, n) => (n % 2 ? "(.*?)" : escaped(part))).join("");
  return { key, names: parts.filter((_, n) => n % 2), weight: parts.filter((_, n) => n % 2 === 0).join("").length, pattern: new RegExp(`^${source}$`, "s") };
}).sort((a, b) => b.weight - a.weight);

/**
 * A sentence of the server in the reader's language, or as it is where we have no words for it. What it holds may
 * itself be such a sentence.
 * @param {string} sentence
 * @returns {string}
 */
export function said(sentence) {
  if (words === english) return sentence;
  for (const { key, names, pattern } of PATTERNS) {
    const found = pattern.exec(sentence);
    if (found) return t(key, Object.fromEntries(names.map((name, n) => [name, said(found[n + 1])])));
  }
  return sentence;
}
