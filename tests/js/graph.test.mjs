import assert from "node:assert/strict";
import test from "node:test";
import { allNodes, continuedInputs, executionIds, isUpstream, nodeById, trainNode } from "../../js/graph.js";

const graph = (id, ...nodes) => {
  const made = { id, _nodes: nodes, getNodeById: (number) => nodes.find((node) => node.id === number) ?? null };
  for (const node of nodes) node.graph = made;
  return made;
};

const train = { id: 3 }, inner = graph("inner", train, { id: 4 });
const middle = graph("middle", { id: 7, subgraph: inner });
const root = graph("root", { id: 1 }, { id: 12, subgraph: inner }, { id: 13, subgraph: middle });

test("a walk meets the nodes of every subgraph, once for each place it is used in", () => {
  assert.deepEqual([...allNodes(root)].map((node) => node.id), [1, 12, 3, 4, 13, 7, 3, 4]);
});

test("a graph that is not there has no nodes", () => assert.deepEqual([...allNodes(undefined)], []));

test("a graph of an older frontend is walked too", () => {
  assert.deepEqual([...allNodes({ nodes: [{ id: 5 }] })].map((node) => node.id), [5]);
});

test("a node is found by the id it runs under", () => {
  assert.equal(nodeById(root, "1"), root._nodes[0]);
  assert.equal(nodeById(root, 1), root._nodes[0]);
  assert.equal(nodeById(root, "12:3"), train);
  assert.equal(nodeById(root, "13:7:3"), train);
});

test("an id without a node gives none", () => {
  for (const id of ["2", "1:3", "12:9", "99:1", "", "x"]) assert.equal(nodeById(root, id), null);
  assert.equal(nodeById(undefined, "1"), null);
});

test("a node runs under one id for each place of its subgraph, and is found by each", () => {
  const ids = executionIds(root, train);
  assert.deepEqual(ids, ["12:3", "13:7:3"]);
  for (const id of ids) assert.equal(nodeById(root, id), train);
  assert.deepEqual(executionIds(root, root._nodes[0]), ["1"]);
});

const named = (name) => ({ widgets: [{ name: "name", value: name }] });

test("a run is resumed by the node whose name it bears, else by the only one", () => {
  const cat = named("cat"), dog = named("dog");
  assert.equal(trainNode([cat, dog], "dog_2"), dog);
  assert.equal(trainNode([cat], "bird"), cat);
  assert.equal(trainNode([cat, dog], "bird"), null);
  assert.equal(trainNode([cat, named("cat")], "cat"), null);
  assert.equal(trainNode([], "cat"), null);
});

test("a run goes on with the values it was started with", () => {
  const inputs = { rank: 8, steps: 900, model: ["1", 0], name: "cat", resume: "new run" };
  const started = { rank: 4, steps: 500, model: "x", gone: 1 };
  assert.deepEqual(continuedInputs(inputs, { inputs: started, run: "cat_2" }),
    { rank: 4, steps: 900, model: ["1", 0], name: "cat_2", resume: "continue last" });
  assert.equal(inputs.rank, 8);
});

test("a node is upstream of those that get something from it, also through others and round a loop", () => {
  const source = { id: 1 }, between = { id: 2 }, end = { id: 3 }, apart = { id: 4 };
  const wired = (node, ...sources) => Object.assign(node, {
    inputs: [...sources.map((_, n) => ({ name: `in${n}`, link: n })), { name: "free", link: null }],
    getInputNode: (slot) => sources[slot],
  });
  wired(between, source, end);
  wired(end, between);
  assert.deepEqual([source, between, apart, end].map((node) => isUpstream(node, end)), [true, true, false, false]);
});
