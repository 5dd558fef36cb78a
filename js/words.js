// Our own texts in the reader's language: `t` for what the page says, `said` for what the server says. One file per language in js/locales/.
import { api } from "../../scripts/api.js";

const LANGUAGES = ["en", "zh", "ko", "ja"];

async function file(language) {
  try {
    const response = await fetch(new URL(`./locales/${language}.json`, import.meta.url));
    return response.ok ? await response.json() : {};
  } catch {
    return {}; // without a file there is still English in it, or the key
  }
}

async function chosen() {
  let wanted = null;
  try {
    wanted = await api.getSetting("Comfy.Locale"); // null until the user has chosen; then the page follows the browser
  } catch { /* an older host without it */ }
  const [language] = String(wanted || navigator.language || "en").split(/[-_]/);
  return LANGUAGES.includes(language) ? language : "en";
}

export const language = await chosen();
const english = await file("en");
const words = language === "en" ? english : await file(language);

function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** The text of `key` with {name} replaced by `values.name`. Falls back to English, then to the key. */
export function t(key, values = {}) {
  return filled(words[key] ?? english[key] ?? key, values);
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

// English sentences of the server, as patterns whose groups are the values in them. More fixed text is tried first.
const PATTERNS = Object.entries(english).filter(([key]) => /^(error|server)\./.test(key)).map(([key, text]) => {
  const parts = text.split(/\{(\w+)\}/); // text, name, text, name, text
  const source = parts.map((part, n) => (n % 2 ? "(.*?)" : escaped(part))).join("");
  return { key, names: parts.filter((_, n) => n % 2), weight: parts.filter((_, n) => n % 2 === 0).join("").length, pattern: new RegExp(`^${source}$`, "s") };
}).sort((a, b) => b.weight - a.weight);

/** A sentence of the server in the reader's language, or as it is where we have no words for it. What it holds may itself be such a sentence. */
export function said(sentence) {
  if (words === english) return sentence;
  for (const { key, names, pattern } of PATTERNS) {
    const found = pattern.exec(sentence);
    if (found) return t(key, Object.fromEntries(names.map((name, n) => [name, said(found[n + 1])])));
  }
  return sentence;
}
