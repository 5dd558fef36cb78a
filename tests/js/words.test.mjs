import assert from "node:assert/strict";
import test from "node:test";
import { said, speak } from "../../js/words.js";

const RANK = {
  code: "rank", field: "adapter.rank", values: { rank: 64, layer: "q" }, text: "adapter.rank: 64 is too large for q.",
};
const TABLE = {
  rank: "{layer} には {rank} は大きすぎます。", about: "{about}：{error}", listed: "{names} から選ぶ", option: "{option} で指定",
  several: "{reasons}",
};
const inJapanese = () => speak("ja-JP", async () => TABLE);

test("a message is said in the reader's language, its field in front", async () => {
  await inJapanese();
  assert.equal(said(RANK), "adapter.rank: q には 64 は大きすぎます。");
});

test("values that are messages are said in the same language", async () => {
  await inJapanese();
  const { text, ...part } = RANK;
  const about = { code: "about", values: { about: "a.png", error: part }, text };
  assert.equal(said(about), "a.png：adapter.rank: q には 64 は大きすぎます。");
  assert.equal(said({ code: "several", values: { reasons: [part, part] }, text }).split("; ").length, 2);
});

test("lists and names of settings stand as they are", async () => {
  await inJapanese();
  assert.equal(said({ code: "listed", field: "", values: { names: ["a", "b"] }, text: "" }), "a, b から選ぶ");
  assert.equal(said({ code: "option", values: { option: { setting: "family" } }, text: "" }), "family で指定");
});

test("what the table lacks, in whole or in part, is said in English", async () => {
  await inJapanese();
  assert.equal(said({ ...RANK, code: "new" }), RANK.text);
  const about = { code: "about", values: { about: "a", error: { code: "new", values: {} } }, text: "a: in English" };
  assert.equal(said(about), "a: in English");
  assert.equal(said({ text: "of an older version" }), "of an older version");
});

test("a word that depends on a number has the form of that number", async () => {
  await speak("ja", async () => ({ n: "[count:{count} picture|{count} pictures], [other:a|b]" }));
  assert.equal(said({ code: "n", values: { count: 1 }, text: "" }), "1 picture, [other:a|b]");
  assert.equal(said({ code: "n", values: { count: 21, other: "1" }, text: "" }), "21 pictures, a");
});

test("nothing to say is nothing", () => {
  for (const nothing of [null, undefined, {}]) assert.equal(said(nothing), "");
});

test("an English reader needs no table, and one that does not come costs the translation alone", async () => {
  await speak("en", () => assert.fail("not asked for"));
  assert.equal(said(RANK), RANK.text);
  await speak("ja", async () => { throw new Error("no answer"); });
  assert.equal(said(RANK), RANK.text);
});

test("a text that differs on another page is taken there, and there alone", async (context) => {
  const texts = { "panel.idle": "Press Run.", "panel.idle@page": "Start it.", "panel.stop": "Stop" };
  context.mock.method(globalThis, "fetch", async () => new Response(JSON.stringify(texts)));
  const { speak: speakAnew, t } = await import("../../js/words.js?anew");
  await speakAnew("en", undefined, "comfyui");
  assert.equal(t("panel.idle"), "Press Run.");
  await speakAnew("en", undefined, "page");
  assert.equal(t("panel.idle"), "Start it.");
  assert.equal(t("panel.stop"), "Stop");
});
