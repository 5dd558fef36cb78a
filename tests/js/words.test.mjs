import assert from "node:assert/strict";
import test from "node:test";
import { said, speak } from "../../js/words.js";

const RANK = {
  code: "rank", field: "adapter.rank", values: { rank: 64, layer: "q" }, text: "adapter.rank: 64 is too large for q.",
};
const TABLE = {
  rank: "{layer} には {rank} は大きすぎます。", about: "{about}：{error}", listed: "{names} から選ぶ", option: "{option} で指定",
  several: "{reasons}", rate: "{@optimizer.lr} を下げる",
};
const NAMES = {
  "adapter.rank": [["Train", "LoRA を学習", "ランク"], ["Check", "確認", "大きさ"]], family: [["Convert", "変換", "ベースモデル"]],
  "optimizer.lr": [["", "最適化", "学習率"]], "data.trigger": [["", "", "トリガー"]], method: [["Pivotal", "ピボット", ""]],
};
const inJapanese = () => speak("ja-JP", async () => ({ sentences: TABLE, names: NAMES }));

test("a message is said in the reader's language, its field in front", async () => {
  await inJapanese();
  assert.equal(said(RANK), "ランク (LoRA を学習): q には 64 は大きすぎます。");
});

test("values that are messages are said in the same language", async () => {
  await inJapanese();
  const { text, ...part } = RANK;
  const about = { code: "about", values: { about: "a.png", error: part }, text };
  assert.equal(said(about), "a.png：ランク (LoRA を学習): q には 64 は大きすぎます。");
  assert.equal(said({ code: "several", values: { reasons: [part, part] }, text }).split("; ").length, 2);
});

test("a setting is called as the node that speaks shows it, else with the title of where it is set", async () => {
  await inJapanese();
  assert.match(said(RANK, ["Train", "Check"]), /^ランク: /);
  assert.match(said(RANK, ["Check"]), /^大きさ: /);
  assert.match(said(RANK, ["Sampler", "Check", "Train"]), /^大きさ \(確認\): /);
  assert.match(said(RANK, ["Sampler"]), /^ランク \(LoRA を学習\): /);
  assert.equal(said({ code: "rate", values: {}, text: "" }), "学習率 (最適化) を下げる");
  assert.match(said({ ...RANK, field: "data.trigger" }), /^トリガー: /);
  assert.match(said({ ...RANK, field: "method" }, ["Train"]), /^ピボット: /);
  assert.match(said({ ...RANK, field: "unheard_of" }), /^unheard_of: /);
});

test("lists stand as they are, settings in them by their names", async () => {
  await inJapanese();
  assert.equal(said({ code: "listed", field: "", values: { names: ["a", "b"] }, text: "" }), "a, b から選ぶ");
  const settings = [{ setting: "family" }, { setting: "x" }];
  assert.equal(said({ code: "listed", values: { names: settings }, text: "" }), "ベースモデル (変換), x から選ぶ");
  assert.equal(said({ code: "option", values: { option: { setting: "family" } }, text: "" }), "ベースモデル (変換) で指定");
});

test("what the table lacks, in whole or in part, is said in English", async () => {
  await inJapanese();
  assert.equal(said({ ...RANK, code: "new" }), RANK.text);
  const about = { code: "about", values: { about: "a", error: { code: "new", values: {} } }, text: "a: in English" };
  assert.equal(said(about), "a: in English");
  assert.equal(said({ text: "of an older version" }), "of an older version");
});

test("a word that depends on a number has the form of that number", async () => {
  const sentences = { n: "[count:{count} picture|{count} pictures], [other:a|b]" };
  await speak("ja", async () => ({ names: {}, sentences }));
  assert.equal(said({ code: "n", values: { count: 1 }, text: "" }), "1 picture, [other:a|b]");
  assert.equal(said({ code: "n", values: { count: 21, other: "1" }, text: "" }), "21 pictures, a");
});

test("nothing to say is nothing", () => {
  for (const nothing of [null, undefined, {}]) assert.equal(said(nothing), "");
});

test("an English reader gets the names of the page too, and a table that does not come costs these alone", async () => {
  await speak("en", async () => ({ sentences: { rank: "{rank} is too large for {layer}." }, names: NAMES }));
  assert.equal(said(RANK, ["Train"]), "ランク: 64 is too large for q.");
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
