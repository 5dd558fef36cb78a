// @ts-check
// Nodes of a workflow and of the subgraphs in it. A node runs under its execution id: "12", or "5:12" inside node 5.

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

/** The widget of a node by its name. */
export const widgetOf = (/** @type {ComfyNode} */ node, /** @type {string} */ name) =>
  node.widgets?.find((widget) => widget.name === name);
