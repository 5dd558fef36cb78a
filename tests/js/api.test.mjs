import assert from "node:assert/strict";
import test from "node:test";
import { RequestError, jsonClient, ownPath, route } from "../../js/api.js";

const answer = (status, body) => Promise.resolve(new Response(body, { status, statusText: "Broken" }));
const client = (status, body) => jsonClient(() => answer(status, body));
const failure = (status, message) => (error) => {
  assert.ok(error instanceof RequestError);
  assert.equal(error.status, status);
  assert.match(error.message, message);
  return true;
};
const UNREACHABLE = /^runs\.unreachable$/; // its key: without a browser no texts are loaded

test("a route holds its values as they are, whatever they hold", () => {
  assert.equal(route("runs"), "/lora_loom/runs");
  const path = route("runs/curve", { id: "a b&c=d/ü#", step: 3 });
  const query = new URL(path, "http://x").searchParams;
  assert.deepEqual(Object.fromEntries(query), { id: "a b&c=d/ü#", step: "3" });
});

test("nothing is asked of another server, nor of another's route", async () => {
  let asked = 0;
  const { fetchJson, postJson } = jsonClient(() => { asked += 1; return answer(200, "{}"); });
  const paths = [
    "https://example.org/lora_loom/runs", "//example.org/lora_loom/runs", "\\\\example.org/lora_loom/runs",
    "/prompt", "/lora_loom/../prompt", "/lora_loom", "javascript:alert(1)",
  ];
  for (const path of paths) {
    assert.throws(() => ownPath(path), path);
    await assert.rejects(fetchJson(path), path);
    await assert.rejects(postJson(path, {}), path);
  }
  assert.equal(asked, 0);
});

test("an answer is what the server's JSON says", async () => {
  assert.deepEqual(await client(200, '{"runs": []}').fetchJson(route("runs")), { runs: [] });
});

test("a change is sent as JSON", async () => {
  const sent = [];
  const { postJson } = jsonClient((...request) => { sent.push(request); return answer(200, "{}"); });
  await postJson(route("stop"), { node: "3" });
  const [[path, { method, headers, body }]] = sent;
  assert.deepEqual([path, method, body], ["/lora_loom/stop", "POST", '{"node":"3"}']);
  assert.equal(headers["Content-Type"], "application/json");
});

test("a refusal is the sentence of the server", async () => {
  const refused = client(409, '{"error": {"text": "the run is going on"}}').postJson(route("runs/delete"), {});
  await assert.rejects(refused, failure(409, /^the run is going on$/));
});

test("a refusal without a sentence is its status", async () => {
  await assert.rejects(client(500, "{}").fetchJson(route("runs")), failure(500, /^Broken$/));
});

test("a server that is gone, or answers no JSON, is told apart from one that refuses", async () => {
  const gone = jsonClient(() => Promise.reject(new TypeError("fetch failed")));
  await assert.rejects(gone.fetchJson(route("runs")), failure(0, UNREACHABLE));
  await assert.rejects(client(200, "<html>").fetchJson(route("runs")), failure(0, UNREACHABLE));
  await assert.rejects(client(502, "<html>").fetchJson(route("runs")), failure(502, UNREACHABLE));
});
