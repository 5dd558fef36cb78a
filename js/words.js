// @ts-check
// Texts in the reader's language: `t` for what the page says, from js/locales/; `said` for what the server says, from
// the table the server has of each language.

const LANGUAGES = ["en", "zh", "ko", "ja"];
/**
 * The server's words in a language: its sentences by their code, and what settings are called: for each one rows of
 * (the kind of node it is set on, the title of that, the label), the usual place first.
 * @typedef {{ sentences: Record<string, string>, names: Record<string, [string, string, string][]> }} Words
 */

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

const SETTING = /\{@([\w.]+)\}/g; // {@optimizer.lr}: a setting, by the name the reader knows

const english = await file("en");
let words = english;
/** @type {Words} */
let server = { sentences: {}, names: {} };
let program = ""; // of the host: a text that differs there has the key with @program
export let language = "en";

/**
 * From now on texts are in the language that is wanted, as "ja" or "zh-TW"; without one in the browser's; in English
 * where we have no such texts. Called once, before anything is shown.
 * @param {?string} [wanted]
 * @param {(language: string) => Promise<Words>} [wordsOf] the server's words in a language
 * @param {string} [inProgram] whose texts are taken where they differ
 */
export async function speak(wanted, wordsOf = async () => ({ sentences: {}, names: {} }), inProgram = "") {
  program = inProgram;
  const [chosen] = String(wanted || globalThis.navigator?.language || "en").split(/[-_]/);
  language = LANGUAGES.includes(chosen) ? chosen : "en";
  const none = { sentences: {}, names: {} }; // what the server says comes with its English text
  const texts = language === "en" ? english : file(language);
  const [ours, theirs] = await Promise.all([texts, wordsOf(language).catch(() => none)]);
  words = ours;
  server = { ...none, ...theirs };
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
/** @typedef {string | number | boolean | Setting | Part | Array<string | Setting | Part>} Value */

/**
 * What the reader knows a setting by: the label of its widget, and where that is another node its title too.
 * @param {string} name
 * @param {readonly string[]} kinds the node that speaks and what is wired to it, the nearest first
 */
export function nameOf(name, kinds = []) {
  const places = server.names[name] ?? [];
  for (const kind of kinds) {
    const place = places.find(([owner]) => owner === kind);
    if (place) return inPlace(place, kind === kinds[0]);
  }
  return places.length ? inPlace(places[0], false) : name;
}

/**
 * @param {[string, string, string]} place
 * @param {boolean} here
 */
function inPlace([, title, label], here) {
  if (!label || !title) return label || title;
  return here ? label : `${label} (${title})`;
}

/**
 * @param {Value} value
 * @param {readonly string[]} kinds
 * @returns {string | undefined}
 */
function inWords(value, kinds) {
  if (Array.isArray(value)) {
    const parts = value.map((part) => inWords(part, kinds));
    if (parts.includes(undefined)) return undefined;
    return parts.join(value.some((part) => typeof part === "object" && "code" in part) ? "; " : ", ");
  }
  if (typeof value !== "object") return String(value);
  return "setting" in value ? nameOf(value.setting, kinds) : sentenceOf(value, kinds);
}

/**
 * The sentence of a message; undefined where the table lacks it or a part of it.
 * @param {Part} message
 * @param {readonly string[]} kinds
 * @returns {string | undefined}
 */
function sentenceOf({ code = "", field, values = {} }, kinds) {
  if (!(code in server.sentences)) return undefined;
  const entries = Object.entries(values).map(([name, value]) => [name, inWords(value, kinds)]);
  if (entries.some(([, words]) => words === undefined)) return undefined;
  const sentence = server.sentences[code].replace(SETTING, (_, name) => nameOf(name, kinds));
  const words = filled(sentence, Object.fromEntries(entries));
  return field ? `${nameOf(field, kinds)}: ${words}` : words;
}

/**
 * What the server says, in the reader's language and with the names the reader knows; as it came where we have no words
 * for it.
 * @param {?Message} [message]
 * @param {readonly string[]} [kinds] the node that speaks and what is wired to it, the nearest first
 */
export function said(message, kinds = []) {
  return (message?.code && sentenceOf(message, kinds)) || (message?.text ?? "");
}
