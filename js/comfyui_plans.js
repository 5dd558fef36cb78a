// @ts-check
// Asks what the train nodes of the graph will do whenever something they depend on changes, and says it in the nodes.
import { app, host, rootGraph } from "./comfyui.js";
import { RequestError, route } from "./api.js";
import { allNodes, executionIds, upstream } from "./graph.js";
import { figure } from "./plan.js";
import { WIDGET_NAMES } from "./widget_names.js";
import { t } from "./words.js";
import { ZEROS } from "./zeros.js";

/** @typedef {import("./plan.js").Plan} Plan */
/** @typedef {Record<string, { inputs: Record<string, unknown> } | undefined>} Prompt */

const EVERY_MS = 1200;

/** What a node's plan depends on, as one text. */
export function signature(/** @type {ComfyNode} */ node) {
  return JSON.stringify(upstream(node).map((one) => [
    one.id, one.comfyClass, one.mode, (one.widgets ?? []).map(({ name, value }) => [name, value]),
  ]));
}

/**
 * The part of a prompt that a node depends on.
 * @param {Prompt} prompt
 * @param {string} id
 * @returns {Prompt}
 */
export function partOf(prompt, id) {
  const ids = new Set([id]);
  for (const one of ids) {
    for (const value of Object.values(prompt[one]?.inputs ?? {})) {
      if (Array.isArray(value) && String(value[0]) in prompt) ids.add(String(value[0]));
    }
  }
  return Object.fromEntries([...ids].filter((one) => one in prompt).map((one) => [one, prompt[one]]));
}

/**
 * Writes behind the names of widgets what they will be: where they leave it open the plan's value, else what 0 is.
 * @param {ComfyNode} node
 * @param {?Plan} plan
 */
export function label(node, plan) {
  const names = (/** @type {string} */ path) => WIDGET_NAMES[path] ?? [path.split(".").at(-1) ?? path];
  const left = (plan?.rows ?? []).filter(({ source }) => source !== "you");
  const planned = new Map(left.flatMap(({ path, value }) => names(path).map((name) => [name, value])));
  let changed = false;
  for (const widget of node.widgets ?? []) {
    const known = planned.get(widget.name) ?? null, word = ZEROS[node.comfyClass ?? ""]?.[widget.name];
    if (known === null && !word && widget.loomLabel === undefined) continue;
    widget.loomLabel ??= widget.label ?? widget.name;
    const meaning = known !== null ? figure(known) : word && widget.value === 0 ? t(`zero.${word}`) : "";
    const text = meaning ? `${widget.loomLabel} (${meaning})` : widget.loomLabel;
    changed ||= widget.label !== text;
    widget.label = text;
  }
  if (changed) node.setDirtyCanvas?.(true, true);
}

/**
 * Keeps the plans of the open graph up to date.
 * @returns {() => void} what ends that
 */
export function watchPlans() {
  /** @type {WeakMap<ComfyNode, string>} */
  const asked = new WeakMap();
  /** @type {WeakMap<ComfyNode, ?Plan>} */
  const plans = new WeakMap();
  let busy = false;
  const refresh = async () => {
    const nodes = allNodes(rootGraph());
    for (const node of nodes) if ((node.comfyClass ?? "") in ZEROS) label(node, plans.get(node) ?? null);
    for (const node of nodes) {
      const panel = node.loomPanel;
      if (!panel || panel.active()) continue;
      const now = `${panel.state?.session} ${panel.state?.status} ${signature(node)}`; // a run that ended was measured
      if (asked.get(node) === now) continue;
      asked.set(node, now);
      try {
        const plan = await planOf(node);
        panel.setPlan(plan);
        plans.set(node, plan);
        label(node, plan);
      } catch (error) {
        if (!(error instanceof RequestError && error.status)) asked.delete(node); // a graph that is being built, or a
      } // server that is gone: ask again
    }
  };
  const timer = setInterval(async () => {
    if (busy || document.visibilityState !== "visible") return;
    busy = true;
    await refresh();
    busy = false;
  }, EVERY_MS);
  return () => clearInterval(timer);
}

/**
 * @param {ComfyNode} node
 * @returns {Promise<?Plan>}
 */
async function planOf(node) {
  const prompt = (await app.graphToPrompt()).output;
  const id = executionIds(rootGraph(), node).find((one) => one in prompt);
  if (!id) return null;
  const { plan } = await host.postJson(route("plan"), { prompt: partOf(prompt, id), node: id });
  return Object.keys(plan).length ? plan : null;
}
