// Dropped files: which are taken, how they are listed, that every missing byte is sent once.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import test from "node:test";
import { filesOf, hasFolder, isSet, loose } from "../../js/dropped.js";
import { Sha256, digestOf } from "../../js/sha256.js";
import { Cancelled, Upload, body, requests } from "../../js/uploads.js";

const sha = (data) => createHash("sha256").update(data).digest("hex");
const bytes = (count) => Uint8Array.from({ length: count }, (_, n) => (n * 7 + (n >> 8)) % 256);
const file = (name, count = 3) => new File([bytes(count)], name);
const entry = (one) => ({ isDirectory: false, name: one.name, file: (done) => done(one) });
const folder = (name, ...entries) => ({
  isDirectory: true, name,
  createReader: () => {
    const left = [...entries];
    return { readEntries: (done) => done(left.splice(0, 2)) }; // a few at a time, as browsers do
  },
});

test("the digest is SHA-256, whatever the length and however it comes in", () => {
  for (const length of [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000]) {
    const data = bytes(length), hash = new Sha256();
    for (let at = 0; at < length; at += 37) hash.update(data.subarray(at, at + 37));
    assert.equal(hash.hex(), sha(data), String(length));
  }
});

test("the digest of a file's beginning is that of its bytes, with and without the browser's own", async (context) => {
  const data = bytes(9000), blob = new Blob([data]);
  assert.equal(await digestOf(blob, 5000), sha(data.subarray(0, 5000)));
  context.mock.getter(globalThis, "crypto", () => undefined); // as on a page without HTTPS
  assert.equal(await digestOf(blob, 5000), sha(data.subarray(0, 5000)));
});

test("a folder, a ZIP file or many pictures are a set; few files are the page's", () => {
  assert.ok(isSet(["set.ZIP"]));
  assert.ok(isSet(["1.jpg", "2.JPG", "3.heic", "4.png", "5.webp", "5.txt"]));
  for (const names of [["1.png"], ["workflow.json"], ["1.png", "2.png", "3.mp4", "4.mp4", "5.mp4"], []]) {
    assert.ok(!isSet(names), String(names));
  }
  assert.ok(hasFolder([entry(file("a.png")), folder("b")]));
});

test("a folder gives its name, and paths below it", async () => {
  const inner = folder("12_dog", entry(file("b.png")), entry(file("b.txt")), entry(file("c.png")));
  const drop = await filesOf({ entries: [folder("cats", entry(file("a.png")), inner)], files: [] });
  assert.equal(drop.name, "cats");
  assert.deepEqual(drop.files.map(({ path }) => path), ["a.png", "12_dog/b.png", "12_dog/b.txt", "12_dog/c.png"]);
});

test("several folders lie beside each other", async () => {
  const entries = [folder("one", entry(file("a.png"))), folder("two", entry(file("a.png"))), entry(file("b.png"))];
  const drop = await filesOf({ entries, files: [] });
  assert.deepEqual([drop.name, drop.files.map(({ path }) => path)], ["", ["one/a.png", "two/a.png", "b.png"]]);
});

test("a folder and folders of it may hold more files than a call takes arguments", async () => {
  const one = entry(file("a.png")), full = { ...folder("full"), createReader: () => {
    const lists = [Array.from({ length: 150_000 }, () => one), []];
    return { readEntries: (done) => done(lists.shift() ?? []) };
  } };
  for (const entries of [[full], [folder("outer", full)], [full, one]]) {
    const { files } = await filesOf({ entries, files: [] });
    assert.equal(files.length, 149_999 + entries.length);
  }
});

test("a ZIP file alone gives its name, and so does a folder of a file dialogue", () => {
  assert.equal(loose([file("my set.zip")]).name, "my set");
  const inFolder = (path) => Object.assign(file("a.png"), { webkitRelativePath: path });
  const chosen = ["cats/a.png", "cats/x/b.png"].map(inFolder);
  assert.deepEqual([loose(chosen).name, loose(chosen).files.map(({ path }) => path)], ["cats", ["a.png", "x/b.png"]]);
  assert.equal(loose([file("a.png"), file("b.png")]).name, "");
});

test("every byte that is missing is sent once and in order, in requests of bounded size", () => {
  const sizes = [0, 5, 100, 3, 3, 3, 40], here = [0, 5, 10, 0, 1, 3, 0];
  const got = [...here];
  for (const parts of requests(sizes, here, 32, 3)) {
    assert.ok(parts.length <= 3 && parts.reduce((sum, [, , length]) => sum + length, 0) <= 32);
    for (const [n, at, length] of parts) {
      assert.equal(at, got[n]);
      assert.ok(length > 0);
      got[n] += length;
    }
  }
  assert.deepEqual(got, sizes);
});

test("a request's body is the length of its list, the list, the bytes", async () => {
  const data = new Uint8Array(await body([[0, 2, 3], [1, 0, 2]], [file("a", 9), file("b", 2)]).arrayBuffer());
  const length = new DataView(data.buffer).getUint32(0), end = 4 + length;
  assert.deepEqual(JSON.parse(new TextDecoder().decode(data.subarray(4, end))), [[0, 2, 3], [1, 0, 2]]);
  assert.deepEqual([...data.subarray(end)], [...bytes(9).subarray(2, 5), ...bytes(2)]);
});

/** A server that has `have` of the files and notes what it is asked. */
function server(have = [], refuse = []) {
  const asked = [];
  const postJson = async (path, sent) => {
    const name = path.split("/").pop().split("?")[0];
    asked.push([name, sent]);
    if (name === "begin") return { id: "7", wanted: sent.files.map((_, n) => n), have };
    if (name === "claim") return { have: sent.files.map(([n, count]) => [n, refuse.includes(n) ? 0 : count]) };
    return name === "finish" ? { folder: "set", pictures: 2, captions: 0, notes: [] } : {};
  };
  const postBytes = async (path, blob) => { asked.push(["part", blob.size]); };
  return { asked, postJson, postBytes };
}

const drop = (...files) => ({ name: "set", files: files.map((one) => ({ path: one.name, file: one })) });

test("what the server has is claimed by its hash and not sent", async () => {
  const host = server([[0, 300], [1, 100]]);
  const progress = [];
  const answer = await new Upload(host, drop(file("a", 300), file("b", 200)), (news) => progress.push(news)).send();
  assert.equal(answer.folder, "set");
  const claims = host.asked.find(([name]) => name === "claim")[1].files;
  assert.deepEqual(claims, [[0, 300, sha(bytes(300))], [1, 100, sha(bytes(100))]]);
  assert.deepEqual(host.asked.filter(([name]) => name === "part").length, 1);
  const last = progress.at(-1);
  assert.deepEqual([last.done, last.total, last.files, last.all], [500, 500, 2, 2]);
});

test("what turns out to be other bytes is sent", async () => {
  const host = server([[0, 300]], [0]);
  await new Upload(host, drop(file("a", 300))).send();
  assert.ok(host.asked.find(([name]) => name === "part")[1] > 300);
});

test("cancelled at any moment, the server is told to keep nothing and no folder is made", async () => {
  for (const moment of ["begin", "claim", "part"]) {
    const host = server([[0, 10]], [0]);
    const upload = new Upload(host, drop(file("a", 300)));
    const hook = (name, work) => async (path, ...rest) => {
      const answer = await work(path, ...rest);
      if (path.includes(`/${name}`)) await upload.cancel();
      return answer;
    };
    if (moment === "part") host.postBytes = hook("part", host.postBytes);
    else host.postJson = hook(moment, host.postJson);
    await assert.rejects(upload.send(), Cancelled, moment);
    assert.equal(host.asked.at(-1)[0], "cancel", moment);
    assert.ok(!host.asked.some(([name]) => name === "finish"), moment);
  }
});
