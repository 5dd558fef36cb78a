// @ts-check
// What our parts (panel, chart, runs, editor) need of the page they stand in. A host is handed to each part;
// comfyui.js is the one for ComfyUI. A part imports no host.

/**
 * What a host tells of: "panel": an event of a run (PanelEvent), "runs": a run began or ended, "reconnected": the
 * server is there again, and something may have been missed.
 * @typedef {"panel" | "runs" | "reconnected"} HostEvent
 */

/** @typedef {"success" | "info" | "warn" | "error"} Severity */

/**
 * @typedef {object} Host
 * @property {(path: string) => Promise<any>} fetchJson what the server answers; raises RequestError
 * @property {(path: string, body: object) => Promise<any>} postJson as fetchJson, for what changes something
 * @property {(path: string) => string} imageUrl the address of a picture of the server
 * @property {(event: HostEvent, listener: (detail: any) => void) => void} onEvent
 * @property {(severity: Severity, text: string, lifeMs?: number) => void} toast a message that goes away by itself
 * @property {() => Promise<?string>} language the one the reader chose, as "en" or "zh-TW"; null: the browser's
 * @property {(id: string) => unknown} setting what the reader chose in the host's settings; undefined: nothing yet
 * @property {() => Promise<void>} refreshLists lists of files are read anew, without a word
 * @property {(run: RunToOpen) => Promise<?string>} openRun makes ready to go on with a run; the title of what does so,
 *   null where the page has no place for it
 */

/** @typedef {{ name: string, method: string, workflow: ?object }} RunToOpen */

/** @typedef {{ name: string }} Field a field on the page that an error is about; the rest is the host's */

/**
 * Where a panel stands: a node of a graph, a tab of a page.
 * @typedef {object} Seat
 * @property {string} kind what runs here, as the server names it
 * @property {() => string[]} ids under which the server may know this place
 * @property {() => string} workflow the graph it belongs to; empty: none
 * @property {(element: HTMLElement, heightPx: number) => void} grow gives the panel the room it needs
 * @property {(error: import("./words.js").Message) => ?Field} mark marks the field an error is about
 * @property {(field: Field) => void} unmark
 * @property {(run: import("./train_panel.js").PanelState) => Promise<void>} goOn queues again what continues a run
 */

export {};
