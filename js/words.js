// @ts-check
// Texts in the reader's language: `t` for what the page says, from js/locales/; `said` for what the server says, from
// the table the server has of each language.

const LANGUAGES = ["en", "zh", "ko", "ja"];
const NUMBER = /\[(\w+):([^|\]]*)\|([^\]]*)\]/g; // [count:one|many], for {count} 1 and for any other

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
/** @type {Record<string, string>} */
let sentences = {}; // of the server, by their code; for English it sends them along
let program = ""; // of the host: a text that differs there has the key with @program
export let language = "en";

/**
 * From now on texts are in the language that is wanted, as "ja" or "zh-TW"; without one in the browser's; in English
 * where we have no such texts. Called once, before anything is shown.
 * @param {?string} [wanted]
 * @param {(language: string) => Promise<Record<string, string>>} [tableOf] the server's sentences in a language
 * @param {string} [inProgram] whose texts are taken where they differ
 */
export async function speak(wanted, tableOf = async () => ({}), inProgram = "") {
  program = inProgram;
  const [chosen] = String(wanted || globalThis.navigator?.language || "en").split(/[-_]/);
  language = LANGUAGES.includes(chosen) ? chosen : "en";
  if (language === "en") {
    [words, sentences] = [english, {}];
    return;
  }
  [words, sentences] = await Promise.all([file(language), tableOf(language).catch(() => ({}))]);
}

/**
 * @param {string} text
 * @param {Record<string, unknown>} values
 */
function filled(text, values) {
  const put = (/** @type {string} */ part) =>
    part.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
  return put(text.replace(NUMBER, (whole, name, one, many) => {
    if (!(name in values)) return whole;
    return String(values[name]) === "1" ? one : many;
  }));
}

/**
 * The text of `key` with {name} replaced by `values.name`. Falls back to English, then to the key.
 * @param {string} key
 * @param {Record<string, unknown>} [values]
 */
export function t(key, values = {}) {
  const special = `${key}@${program}`;
  return filled(words[special] ?? words[key] ?? english[special] ?? english[key] ?? key, values);
}

/**
 * What the server says: `code` names its sentence in the table of the language, `values` stand in its places. Without a
 * code, as in what an older version has written, there is only `text`.
 * @typedef {{ text: string, code?: string, field?: string, values?: Record<string, Value> }} Message
 */

/** @typedef {{ setting: string }} Setting the name of a setting inside a sentence */
/** @typedef {Omit<Message, "text">} Part a message inside another */
/** @typedef {string | number | boolean | Setting | Part | Array<string | Part>} Value */

/**
 * @param {Value} value
 * @returns {string | undefined}
 */
function inWords(value) {
  if (Array.isArray(value)) {
    const parts = value.map(inWords);
    if (parts.includes(undefined)) return undefined;
    return parts.join(value.some((part) => typeof part === "object") ? "; " : ", ");
  }
  if (typeof value !== "object") return String(value);
  return "setting" in value ? value.setting : sentenceOf(value);
}

/**
 * The sentence of a message; undefined where the table lacks it or a part of it.
 * @param {Part} message
 * @returns {string | undefined}
 */
function sentenceOf({ code = "", field, values = {} }) {
  if (!(code in sentences)) return undefined;
  const entries = Object.entries(values).map(([name, value]) => [name, inWords(value)]);
  if (entries.some(([, words]) => words === undefined)) return undefined;
  const sentence = filled(sentences[code], Object.fromEntries(entries));
  return field ? `${field}: ${sentence}` : sentence;
}

/**
 * A message of the server in the reader's language, in English where we have no words for it.
 * @param {?Message} [message]
 */
export function said(message) {
  return (message?.code && sentenceOf(message)) || (message?.text ?? "");
}
