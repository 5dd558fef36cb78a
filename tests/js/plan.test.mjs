import assert from "node:assert/strict";
import test from "node:test";
import { costLine, figure, pictureParts } from "../../js/plan.js";
import { speak } from "../../js/words.js";

test("numbers stand as people write them", () => {
  const written = { 1e-4: "1e-4", 5e-5: "5e-5", 0.00125: "1.25e-3", 1200: "1200", 0.01: "0.01", 0: "0", 1: "1" };
  for (const [value, text] of Object.entries(written)) assert.equal(figure(Number(value)), text);
});

test("what is trained on is said in parts, each only where there is something to say", async (context) => {
  const texts = {
    "plan.pictures": "[count:{count} picture|{count} pictures]", "plan.one_size": "{width}x{height}",
    "plan.sizes": "{count} sizes, {width}x{height}", "plan.epochs": "{count} times", "plan.trigger": "{trigger}!",
    "plan.uncaptioned": "{count} bare", "plan.cost": "{time} {size} {run}", "plan.time": "{time} {run}",
    "plan.unmeasured": "later",
  };
  context.mock.method(globalThis, "fetch", async () => new Response(JSON.stringify(texts)));
  await speak("zh");
  assert.deepEqual(pictureParts({ problem: null, pictures: 1, buckets: [[64, 32, 1]] }), ["1 picture", "64x32"]);
  const buckets = [[8, 8, 3], [4, 8, 2]];
  const whole = { problem: null, pictures: 5, buckets, epochs: 12, trigger: "zog", uncaptioned: 2 };
  assert.deepEqual(pictureParts(whole), ["5 pictures", "2 sizes, 8x8", "12 times", "zog!", "2 bare"]);
  assert.equal(costLine({ problem: null, cost: null }), "later");
  assert.equal(costLine({ problem: null, cost: { seconds: 75, bytes: 0, run: "a" } }), "1:15 a");
  assert.match(costLine({ problem: null, cost: { seconds: 75, bytes: 2 ** 31, run: "a" } }), /^1:15 2\.0 a$/);
});
