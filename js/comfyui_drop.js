// @ts-check
// Pictures dropped on ComfyUI's page: on a Load Training Folder, on the graph, pasted, or chosen with its button. They
// end in a folder that such a node has chosen; on an empty graph the nodes of a training stand around it.
import { app, host, rootGraph } from "./comfyui.js";
import { choose, made } from "./comfyui_build.js";
import { entriesOf, filesOf, hasFolder, isSet, loose } from "./dropped.js";
import { allNodes, executionIds, widgetOf } from "./graph.js";
import { extent } from "./scales.js";
import { DROP_PICTURES } from "./settings.js";
import { askForPictures, sendShown } from "./upload_card.js";
import { t } from "./words.js";

const LOADER = "LoraLoomLoadFolder", TRAIN = "LoraLoomTrainLora", TOY = "LoraLoomLoadToyModel";
const CHECKPOINT = "CheckpointLoaderSimple";
const TRAINERS = [TRAIN, "LoraLoomTrainEmbedding", "LoraLoomTrainBothExperts"];
const TOY_SET = "toy: ";
const GAP = [60, 100], MARGIN = [70, 130]; // px; the page's own bars lie above
/** @type {[number, number]} */
const LOADER_SIZE = [400, 420]; // px
const TEXT_FIELDS = "input, textarea, [contenteditable=true]";

/** The graph that is open: the workflow's, or that of a subgraph in it. */
const openGraph = () => app.canvas?.graph ?? rootGraph();

/**
 * Where an event lies in the graph.
 * @param {MouseEvent} event
 * @returns {[number, number]}
 */
const placeOf = (event) => app.canvas?.convertEventToCanvasOffset?.(event) ?? [0, 0];

/** The node under a drag. */
function nodeUnder(/** @type {DragEvent} */ event) {
  const element = event.target instanceof Element ? event.target.closest("[data-node-id]") : null;
  const id = element instanceof HTMLElement ? element.dataset.nodeId : undefined;
  if (id !== undefined) return openGraph()?.getNodeById(Number(id)) ?? null;
  return openGraph()?.getNodeOnPos?.(...placeOf(event)) ?? null;
}

const isLoader = (/** @type {?ComfyNode | undefined} */ node) => node?.comfyClass === LOADER;

/** Whether loose files are taken from the page: many pictures or a ZIP file, unless the reader does not want that. */
const forTraining = (/** @type {File[]} */ files) =>
  host.setting(DROP_PICTURES) !== false && isSet(files.map((file) => file.name));

/** Takes what is meant for a training, and leaves everything else to the page. */
function onDrop(/** @type {DragEvent} */ event) {
  const node = nodeUnder(event), dropped = entriesOf(event.dataTransfer);
  if (!dropped.files.length && !dropped.entries.length) return;
  const ours = isLoader(node);
  if (!ours && node?.onDragDrop) return; // a node that takes files itself
  if (!ours && !hasFolder(dropped.entries) && !forTraining(dropped.files)) return;
  take(event);
  const place = placeOf(event);
  filesOf(dropped).then((drop) => bring(drop, ours ? node : null, place)).catch(failed);
}

function onPaste(/** @type {ClipboardEvent} */ event) {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length || (event.target instanceof Element && event.target.closest(TEXT_FIELDS))) return;
  const chosen = Object.values(app.canvas?.selected_nodes ?? {}), loader = chosen.length === 1 ? chosen[0] : null;
  if (!isLoader(loader) && !forTraining(files)) return;
  take(event);
  bring(loose(files), isLoader(loader) ? loader : null).catch(failed);
}

function take(/** @type {Event} */ event) {
  event.preventDefault();
  event.stopImmediatePropagation();
}

const failed = (/** @type {Error} */ error) => host.toast("error", error.message);

/**
 * Sends pictures and shows them in a node.
 * @param {import("./dropped.js").Drop} drop
 * @param {?ComfyNode} node that was dropped on
 * @param {[number, number]} [place] in the graph where it was dropped
 */
async function bring(drop, node, place) {
  const uploaded = await sendShown(host, drop);
  if (uploaded) await show(uploaded.folder, node, place);
}

/**
 * Chooses a folder in a node, which is made where there is none, and shows its sheet.
 * @param {string} folder
 * @param {?ComfyNode} node
 * @param {[number, number]} [place]
 */
async function show(folder, node, place) {
  const graph = openGraph();
  if (!graph) return;
  const empty = ![...allNodes(graph)].length;
  const loader = node?.graph ? node : waiting(graph) ?? made(graph, LOADER, place ?? [0, 0], LOADER_SIZE);
  if (!loader) return;
  await host.refreshLists();
  choose(loader, "folder", folder);
  if (!node) surround(graph, loader, folder);
  app.canvas?.selectNode?.(loader);
  if (empty) lookAt(graph);
  app.canvas?.setDirty(true, true);
  await app.queuePrompt?.(0, 1, executionIds(rootGraph(), loader).slice(0, 1)); // its sheet: nothing else is run
}

/** The one node that waits for pictures: its folder is not there, or is a toy set. */
function waiting(/** @type {ComfyGraph} */ graph) {
  const loaders = [...allNodes(graph)].filter((node) => isLoader(node) && node.graph === graph);
  const widget = loaders.length === 1 ? widgetOf(loaders[0], "folder") : undefined, value = String(widget?.value);
  const isThere = widget?.options?.values?.includes(value) && !value.startsWith(TOY_SET);
  return widget && !isThere ? loaders[0] : null;
}

/**
 * Puts what trains beside a dataset where the graph has nothing that does.
 * @param {ComfyGraph} graph
 * @param {ComfyNode} loader
 * @param {string} folder
 */
function surround(graph, loader, folder) {
  const nodes = [...allNodes(graph)].filter((node) => node.graph === graph);
  const trainers = nodes.filter((node) => TRAINERS.includes(node.comfyClass ?? ""));
  if (trainers.length) {
    const waits = trainers.find((node) => node.inputs?.some((input) => input.name === "dataset" && input.link == null));
    if (waits) loader.connect?.(0, waits, "dataset");
    return;
  }
  const [x, y] = loader.pos;
  const model = nodes.find((node) => node.comfyClass === CHECKPOINT) ?? modelNode(graph, [x, y]);
  if (model && model.pos[0] === x && model.pos[1] === y) loader.pos = [x, y + model.size[1] + GAP[1]];
  const train = made(graph, TRAIN, [x + loader.size[0] + GAP[0], y]);
  if (!train) return;
  ["model", "clip", "vae"].forEach((name, slot) => model?.connect?.(slot, train, name));
  loader.connect?.(0, train, "dataset");
  choose(train, "name", folder);
}

/** A checkpoint's loader; where none is installed, that of the toy model, so that the graph runs. */
function modelNode(/** @type {ComfyGraph} */ graph, /** @type {[number, number]} */ place) {
  const node = made(graph, CHECKPOINT, place);
  if (node && widgetOf(node, "ckpt_name")?.options?.values?.length) return node;
  if (node) graph.remove?.(node);
  host.toast("info", t("drop.toy"));
  return made(graph, TOY, place);
}

/** Moves and scales the view so that a whole new graph is in sight. */
function lookAt(/** @type {ComfyGraph} */ graph) {
  const view = app.canvas?.ds, page = app.canvas?.canvas?.getBoundingClientRect();
  const nodes = [...allNodes(graph)];
  if (!view || !page || !nodes.length) return;
  const [left, right] = extent(nodes.flatMap((node) => [node.pos[0], node.pos[0] + node.size[0]]));
  const [top] = extent(nodes.map((node) => node.pos[1]));
  view.scale = Math.min(1, (page.width - 2 * MARGIN[0]) / (right - left));
  view.offset = [MARGIN[0] / view.scale - left, MARGIN[1] / view.scale - top];
}

/** @type {ComfyExtension} */
export const dropExtension = {
  name: "lora_loom.drop",
  setup() {
    document.addEventListener("drop", onDrop, { capture: true });
    document.addEventListener("paste", onPaste, { capture: true });
  },
  nodeCreated(node) {
    if (!isLoader(node)) return;
    node.onDragOver = (event) => Boolean(event.dataTransfer?.types.includes("Files"));
    const add = () => askForPictures(host, (drop) => bring(drop, node).catch(failed),
      (folder) => show(folder, node).catch(failed));
    const button = node.addWidget?.("button", "loom_add_pictures", null, add, { serialize: false });
    if (!button) return;
    button.label = t("drop.add");
    button.serialize = false;
  },
};
