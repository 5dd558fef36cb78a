// @ts-check
// Nodes of a workflow and of the subgraphs in it. A node runs under its execution id: "12", or "5:12" inside node 5.

/** Widgets that a run which goes on takes from its node as it is. */
const CHANGEABLE = ["steps", "save_every", "sample_prompt", "sample_every", "sample_cfg", "auto_fit"];

const FARTHEST = 200; // nodes a train node is taken to depend on

const nodesIn = (/** @type {?ComfyGraph | undefined} */ graph) => graph?._nodes ?? graph?.nodes ?? [];

/**
 * Every node, those inside of subgraphs too.
 * @param {?ComfyGraph | undefined} graph
 * @returns {Generator<ComfyNode>}
 */
export function* allNodes(graph) {
  for (const node of nodesIn(graph)) {
    yield node;
    if (node.subgraph) yield* allNodes(node.subgraph);
  }
}

/**
 * The node that runs under an execution id; null where the workflow has none.
 * @param {?ComfyGraph | undefined} root
 * @param {string | number} id
 * @returns {?ComfyNode}
 */
export function nodeById(root, id) {
  const parts = String(id).split(":").map(Number);
  const last = parts.pop();
  let graph = root;
  for (const part of parts) graph = graph?.getNodeById(part)?.subgraph;
  return graph?.getNodeById(Number(last)) ?? null;
}

/**
 * The ids under which a node runs, one for each place its subgraph is used in.
 * @param {?ComfyGraph | undefined} root
 * @param {ComfyNode} node
 * @returns {string[]}
 */
export function executionIds(root, node) {
  /** @type {string[]} */
  const ids = [];
  const walk = (/** @type {?ComfyGraph | undefined} */ graph, /** @type {string} */ prefix) => {
    if (graph === node.graph) ids.push(prefix + node.id);
    for (const inner of nodesIn(graph)) if (inner.subgraph) walk(inner.subgraph, `${prefix}${inner.id}:`);
  };
  walk(root, "");
  return ids;
}

/**
 * Whether a node gets something from another, by however many nodes between them.
 * @param {ComfyNode} source
 * @param {ComfyNode} node
 */
export function isUpstream(source, node) {
  const seen = new Set([node]);
  for (const one of seen) { // grows while it is walked through
    for (const [slot, input] of (one.inputs ?? []).entries()) {
      const before = input.link != null ? one.getInputNode?.(slot) : null;
      if (before) seen.add(before);
    }
  }
  return source !== node && seen.has(source);
}

/**
 * A node and everything wired to it, directly or not.
 * @param {ComfyNode} node
 * @returns {ComfyNode[]}
 */
export function upstream(node) {
  const found = new Set([node]);
  for (const one of found) {
    if (found.size > FARTHEST) break;
    (one.inputs ?? []).forEach((input, slot) => {
      const source = input.link == null ? null : one.getInputNode?.(slot);
      if (source) found.add(source);
    });
  }
  return [...found];
}

/**
 * The kinds of a node and of what is wired to it, the nearest first.
 * @param {ComfyNode} node
 */
export const kindsAround = (node) => [...new Set(upstream(node).map(({ comfyClass }) => comfyClass ?? ""))];

/** The widget of a node by its name. */
export const widgetOf = (/** @type {ComfyNode} */ node, /** @type {string} */ name) =>
  node.widgets?.find((widget) => widget.name === name);

/**
 * The node a run is trained by: the one whose name the run bears, else the only one there is.
 * @param {ComfyNode[]} nodes
 * @param {string} run
 */
export function trainNode(nodes, run) {
  const namesakes = nodes.filter((node) => run.startsWith(String(widgetOf(node, "name")?.value)));
  if (namesakes.length === 1) return namesakes[0];
  return nodes.length === 1 ? nodes[0] : null;
}

/**
 * The inputs of a node that goes on with a run: the values the run was started with, but for those that may change.
 * @param {Record<string, unknown>} inputs of the node as it is
 * @param {Pick<import("./train_panel.js").PanelState, "inputs" | "run">} state
 */
export function continuedInputs(inputs, { inputs: started, run }) {
  const values = { ...inputs };
  for (const [name, value] of Object.entries(started ?? {})) {
    const wired = Array.isArray(inputs[name]);
    if (name in inputs && !wired && !CHANGEABLE.includes(name)) values[name] = value;
  }
  return { ...values, name: run, resume: "continue last" };
}
