// @ts-check
// What our parts (panel, chart, runs, editor) need of the page they stand in. A host is handed to each part:
// comfyui.js is the one for ComfyUI, page_host.js makes one for any other page. A part imports no host.

/**
 * What a host tells of: "panel": an event of a run (PanelEvent), "runs": a run began or ended, "reconnected": the
 * server is there again, and something may have been missed.
 * @typedef {"panel" | "runs" | "reconnected"} HostEvent
 */

/** @typedef {"success" | "info" | "warn" | "error"} Severity */

/**
 * @typedef {object} Host
 * @property {"comfyui" | "page"} program what the page belongs to; some texts differ
 * @property {(path: string) => Promise<any>} fetchJson what the server answers; raises RequestError
 * @property {(path: string, body: object) => Promise<any>} postJson as fetchJson, for what changes something
 * @property {(path: string, body: Blob, signal?: AbortSignal) => Promise<any>} postBytes as postJson, for bytes
 * @property {(path: string) => string} imageUrl the address of a picture of the server
 * @property {(event: HostEvent, listener: (detail: any) => void) => () => void} onEvent what it returns ends that
 * @property {(event: HostEvent, detail?: unknown) => void} [tell] hands an event on, where the server sends none itself
 * @property {number} [pollMs] where the server sends no "panel" events: how often a panel asks instead
 * @property {(severity: Severity, text: string, lifeMs?: number) => void} toast a message that goes away by itself
 * @property {() => ?("light" | "dark")} [theme] the colours of our parts; null or left out: those of the page
 * @property {() => Promise<?string>} language the one the reader chose, as "en" or "zh-TW"; null: the browser's
 * @property {(id: string) => unknown} setting what the reader chose in the host's settings; undefined: nothing yet
 * @property {() => Promise<void>} refreshLists lists of files are read anew, without a word
 * @property {(run: RunToOpen) => Promise<?string>} openRun makes ready to go on with a run; the title of what does so,
 *   null where the page has no place for it
 * @property {(run: import("./runs.js").Run) => Promise<void>} [useRun] puts what a run made to where pictures are made
 * @property {(prompt: string) => void} [usePrompt] takes the prompt of a result to where pictures are made
 * @property {(settings: Record<string, unknown>) => void} [takeOver] puts settings, by config path, into the page
 */

/** @typedef {{ name: string, method: string, workflow: ?object }} RunToOpen */

/** @typedef {{ name: string }} Field a field on the page that an error is about; the rest is the host's */

/**
 * Where a panel stands: a node of a graph, a tab of a page.
 * @typedef {object} Seat
 * @property {string} kind what runs here, as the server names it
 * @property {() => string[]} ids under which the server may know this place
 * @property {() => string[]} [kinds] the kind of this node and of those wired to it, the nearest first
 * @property {() => string} workflow the graph it belongs to; empty: none
 * @property {(element: HTMLElement, heightPx: number) => void} grow gives the panel the room it needs
 * @property {() => number} [extraHeightPx] what the place has put into the panel itself, as the card of a result
 * @property {(error: import("./words.js").Message) => ?Field} mark marks the field an error is about
 * @property {(field: Field) => void} unmark
 * @property {(run: import("./train_panel.js").PanelState) => Promise<void>} goOn queues again what continues a run
 */

export {};
