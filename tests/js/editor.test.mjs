// Tags, filters and the form for captions: what is computed, without a page.
import assert from "node:assert/strict";
import { test } from "node:test";
import "./page.mjs";
import { goesOn, shortName } from "../../js/caption_form.js";
import { captionPrompt } from "../../js/caption_prompt.js";
import { FILTERS, filterCounts, gravest, hasWord, passes, wordCount } from "../../js/picture_filters.js";
import { TAG_WORK, hasTag, tagCounts, tagsOf } from "../../js/tags.js";

test("tags are what stands between commas, counted once for each caption whatever their case", () => {
  assert.deepEqual(tagsOf(" a, b b ,,c\nd "), ["a", "b b", "c", "d"]);
  assert.deepEqual(tagCounts(["Red hat, cat, cat", "red hat", "dog", ""]), [["Red hat", 2], ["cat", 1], ["dog", 1]]);
  assert.ok(hasTag("a, Red Hat", "red hat"));
  assert.ok(!hasTag("a, red hats", "red hat"));
});

test("tags are put in front and behind where they lack, line by line", () => {
  assert.equal(TAG_WORK.prepend("a, b", "zog, A"), "zog, a, b");
  assert.equal(TAG_WORK.prepend("", "zog"), "zog");
  assert.equal(TAG_WORK.append("a\nb, c", "c"), "a, c\nb, c");
});

test("tags are taken out whole, and what does not have them stays to the letter", () => {
  assert.equal(TAG_WORK.remove("a,  red hat, Red Hat , b", "red hat, b"), "a");
  assert.equal(TAG_WORK.remove("a,  red hats", "red hat"), "a,  red hats");
});

test("a tag is replaced where it stood, and never there twice", () => {
  assert.equal(TAG_WORK.exchange("a, cat, b", "Cat", "dog"), "a, dog, b");
  assert.equal(TAG_WORK.exchange("dog, cat, b", "cat", "dog"), "dog, b");
  assert.equal(TAG_WORK.exchange("a, cat, kitten", "cat, kitten", "dog, pet"), "a, dog, pet");
  assert.equal(TAG_WORK.exchange("a,  b", "c", "d"), "a,  b");
  assert.equal(TAG_WORK.exchange("a, cat", "cat", ""), "a");
});

test("sorting leaves the trigger in front", () => {
  assert.equal(TAG_WORK.sort("dog, zog, ant", "zog"), "zog, ant, dog");
  assert.equal(TAG_WORK.sort("dog, ant", ""), "ant, dog");
});

const PLAIN = { caption: "zog, a cat", trigger: "zog", excluded: false, changed: false, notes: [] };
const look = (more = {}) => ({ ...PLAIN, ...more });

test("each filter finds its pictures, all chosen ones have to fit", () => {
  const of = (kind, severity = "look") => ({ text: kind, kind, severity });
  const looks = [
    look(), look({ caption: " " }), look({ caption: "a cat", excluded: true }), look({ caption: "zogs" }),
    look({ caption: `zog ${"word ".repeat(80)}`, notes: [of("duplicate"), of("small", "note")] }),
    look({ caption: "cat", trigger: "", changed: true, notes: [of("dark", "stop")] }),
  ];
  const counts = filterCounts(looks);
  assert.deepEqual(Object.fromEntries(FILTERS.filter((name) => counts[name]).map((name) => [name, counts[name]])), {
    empty: 1, no_trigger: 2, long: 1, dark: 1, duplicate: 1, small: 1, changed: 1, out: 1,
  });
  assert.deepEqual(looks.filter((one) => passes(one, ["no_trigger", "out"])), [looks[2]]);
  assert.equal(looks.filter((one) => passes(one, [])).length, looks.length);
  assert.equal(gravest(looks[4].notes), "look");
  assert.equal(gravest(looks[5].notes), "stop");
  assert.equal(gravest([]), "");
});

test("a caption is long by one of its lines, and may have any number of them", () => {
  const captions = ["word ".repeat(70), "word ".repeat(80)].map((line) => `${"a\n".repeat(200_000)}${line}`);
  assert.deepEqual(captions.map((caption) => passes(look({ caption }), ["long"])), [false, true]);
});

test("words are found whole in every script, and counted", () => {
  assert.ok(hasWord("ein Zög, Katze", "zög"));
  assert.ok(!hasWord("zogen", "zog"));
  assert.ok(hasWord("a (cute:1.3) cat", "(cute:1.3)"));
  assert.equal(wordCount("two words"), 2);
  assert.equal(wordCount("一只猫"), 3);
});

const ORDER = { captioner: "captioners/wd", subject: "style", which: "all", leave_out: "a", prepend: "", append: "" };
const GRAPH = {
  1: { class_type: "LoraLoomLoadFolder", inputs: { folder: "x" } },
  2: { class_type: "LoraLoomDatasetOptions", inputs: { dataset: ["1", 0] } },
  3: { class_type: "LoraLoomDatasetEditor", inputs: { dataset: ["2", 0] } },
  4: { class_type: "LoraLoomTrainLora", inputs: { dataset: ["3", 0] } },
};

test("only the dataset and what it needs is queued, with the captioner behind it", () => {
  const prompt = captionPrompt(GRAPH, ["2", 0], ORDER, { id: "captioners/wd", kind: "folder" });
  assert.deepEqual(Object.keys(prompt).sort(), ["1", "2", "loom_captions"]);
  const { inputs, class_type: kind } = prompt.loom_captions;
  assert.equal(kind, "LoraLoomCaptionPictures");
  assert.deepEqual([inputs.dataset, inputs.captioner, inputs.which], [["2", 0], "captioners/wd", "all"]);
  assert.equal("clip" in inputs, false);
});

test("a model of the host's own is loaded by its own loader", () => {
  const prompt = captionPrompt(GRAPH, ["1", 0], ORDER, { id: "qwen3vl.safetensors", kind: "clip" });
  assert.deepEqual(prompt.loom_captions.inputs.clip, ["loom_captions_clip", 0]);
  assert.equal(prompt.loom_captions.inputs.captioner, "the model at clip");
  assert.equal(prompt.loom_captions_clip.inputs.clip_name, "qwen3vl.safetensors");
  assert.equal(prompt.loom_captions_clip.class_type, "CLIPLoader");
});

test("a captioner is called by its folder, and a captioning goes on until it has ended", () => {
  assert.equal(shortName("captioners/wd-v3/model.onnx"), "wd-v3");
  assert.equal(shortName("LLM/other.onnx"), "LLM/other.onnx");
  assert.deepEqual(["waiting", "running", "finished", "stopped", "failed"].filter((status) => goesOn({ status })),
    ["waiting", "running"]);
  assert.equal(goesOn(null), false);
});
