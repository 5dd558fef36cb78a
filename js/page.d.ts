// What we use of ComfyUI's page. Its modules lie two folders above ours where ComfyUI serves them.

declare module "*/scripts/app.js" {
  export const app: ComfyApp;
}

declare module "*/scripts/api.js" {
  export const api: ComfyApi;
}

interface ComfyWidget {
  name: string;
  value: unknown;
  label?: string;
  advanced?: boolean;
  options?: { advanced?: boolean; hidden?: boolean; serialize?: boolean; values?: string[] };
  serialize?: boolean;
  hidden?: boolean;
  loomMoved?: { usual: unknown; unused: boolean }; // it stands on a settings node now; `usual`: its default
  loomLabel?: string; // as it was before it said what "auto" means
  y?: number;
  last_y?: number;
  computedHeight?: number;
  callback?(value: unknown): void;
}

interface ComfyInput {
  name: string;
  localized_name?: string;
  link?: number | null;
}

/** What a node has put out; what begins with loom_ is ours. */
interface ComfyOutput {
  images?: object[];
  text?: string[];
  loom_dataset?: string[];
  loom_messages?: import("./words.js").Message[];
}

interface ComfyNode {
  id: number | string;
  comfyClass?: string;
  title?: string;
  graph?: ComfyGraph | null;
  subgraph?: ComfyGraph;
  mode?: number;
  size: [number, number];
  pos: [number, number];
  flags?: { collapsed?: boolean };
  widgets?: ComfyWidget[];
  inputs?: ComfyInput[];
  showAdvanced?: boolean;
  getInputNode?(slot: number): ComfyNode | null;
  getInputLink?(slot: number): { origin_slot: number } | null;
  getInputPos(slot: number): [number, number];
  computeSize(): [number, number];
  setSize(size: [number, number]): void;
  setDirtyCanvas?(foreground: boolean, background: boolean): void;
  connect?(slot: number, target: ComfyNode, input: string): unknown;
  addWidget?(type: string, name: string, value: unknown, work: () => void, options?: object): ComfyWidget;
  onDragOver?(event: DragEvent): boolean;
  onDragDrop?(event: DragEvent): unknown;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: object): ComfyWidget;
  onExecuted?(this: ComfyNode, output: ComfyOutput | undefined, ...others: unknown[]): void;
  onRemoved?(this: ComfyNode): void;
  onDrawForeground?(this: ComfyNode, pen: CanvasRenderingContext2D, ...others: unknown[]): void;

  loomPanel?: import("./train_panel.js").TrainPanel;
  loomEditor?: import("./dataset_editor.js").Editor;
  loomReport?: HTMLElement;
  loomFold?: import("./comfyui_fold.js").Fold;
  loomUnfold?(): void;
  properties?: Record<string, unknown>;
  onConfigure?(this: ComfyNode, ...values: unknown[]): void;
  loomMarked?: string | null;
  loomMarks?: boolean;
}

interface ComfyGraph {
  id?: string;
  nodes?: ComfyNode[];
  _nodes?: ComfyNode[];
  getNodeById(id: number): ComfyNode | null | undefined;
  getNodeOnPos?(x: number, y: number): ComfyNode | null | undefined;
  add?(node: ComfyNode): unknown;
  remove?(node: ComfyNode): void;
}

interface ComfyPrompt {
  output: Record<string, { inputs: Record<string, unknown> } | undefined>;
}

interface ComfyExtension {
  name: string;
  settings?: object[];
  setup?(): void;
  nodeCreated?(node: ComfyNode): void;
  afterConfigureGraph?(): void;
  getNodeMenuItems?(node: ComfyNode): { content: string; callback(): void }[];
}

interface ComfySidebarTab {
  id: string;
  icon: string;
  title: string;
  tooltip: string;
  type: "custom";
  render(place: HTMLElement): void;
  destroy(): void;
}

interface ComfyApp {
  graph?: ComfyGraph;
  rootGraph?: ComfyGraph;
  canvas?: {
    canvas?: HTMLCanvasElement;
    graph?: ComfyGraph;
    ds?: { scale: number; offset: [number, number] };
    selected_nodes?: Record<string, ComfyNode>;
    convertEventToCanvasOffset?(event: MouseEvent): [number, number];
    selectNode?(node: ComfyNode): void;
    centerOnNode(node: ComfyNode): void;
    setDirty(foreground: boolean, background: boolean): void;
  };
  extensionManager?: {
    setting?: { get(id: string): unknown };
    toast?: { add(message: { severity: string; summary: string; detail: string; life: number }): void };
    registerSidebarTab?(tab: ComfySidebarTab): void;
  };
  registerExtension(extension: ComfyExtension): void;
  graphToPrompt(): Promise<ComfyPrompt>;
  loadGraphData(workflow: object, clean: boolean, restoreView: boolean, name: string): Promise<void>;
  queuePrompt?(number: number, count: number, nodes?: string[]): Promise<unknown>;
  reloadNodeDefs?(): Promise<void>;
  refreshComboInNodes?(): Promise<void>;
}

interface ComfyApi {
  fetchApi(path: string, options?: RequestInit): Promise<Response>;
  apiURL(path: string): string;
  getSetting(id: string): Promise<string | null>;
  queuePrompt(number: number, prompt: ComfyPrompt): Promise<{ prompt_id?: string } | undefined>;
  addEventListener(name: string, listener: (event: CustomEvent) => void): void;
  removeEventListener(name: string, listener: (event: CustomEvent) => void): void;
}

interface Window {
  LiteGraph?: { vueNodesMode?: boolean; createNode?(kind: string): ComfyNode | null };
}
