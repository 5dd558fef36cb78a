// @ts-check
// What was dropped, pasted or chosen, as a list of files with their paths.

/** @typedef {{ path: string, file: File }} Dropped `path`: below the folder that was dropped, with forward slashes */
/** @typedef {{ name: string, files: Dropped[] }} Drop `name`: of the folder they shall lie in; empty: none is known */

/**
 * The parts of the file system's entries that are used here.
 * @typedef {object} FileEntry
 * @property {boolean} isDirectory
 * @property {string} name
 * @property {(done: (file: File) => void, failed: (error: Error) => void) => void} [file]
 * @property {() => { readEntries: ReadEntries }} [createReader]
 */

/** @typedef {(done: (some: FileEntry[]) => void, failed: (error: Error) => void) => void} ReadEntries */

const PICTURE = /\.(png|jpe?g|jfif|webp|bmp|gif|tiff?|avif|hei[cf])$/i;
const ZIP = /\.zip$/i;
const MANY = 5; // fewer loose pictures are left to the page, which makes a node of each

/** Whether files of these names are pictures for a training rather than something the page opens itself. */
export function isSet(/** @type {string[]} */ names) {
  return names.some((name) => ZIP.test(name)) || names.filter((name) => PICTURE.test(name)).length >= MANY;
}

/**
 * The entries of a drag: only while its event is being handled may they be asked for.
 * @param {?DataTransfer} transfer
 */
export function entriesOf(transfer) {
  const items = [...(transfer?.items ?? [])].filter((item) => item.kind === "file");
  const entries = items.map((item) => /** @type {?FileEntry} */ (/** @type {unknown} */ (item.webkitGetAsEntry?.())));
  return { entries: entries.filter((entry) => entry != null), files: [...(transfer?.files ?? [])] };
}

/** Whether a folder is among the entries. */
export const hasFolder = (/** @type {FileEntry[]} */ entries) => entries.some((entry) => entry.isDirectory);

/**
 * Everything in what was dropped. A single folder gives its name; several lie beside each other.
 * @param {{ entries: FileEntry[], files: File[] }} dropped
 * @returns {Promise<Drop>}
 */
export async function filesOf({ entries, files }) {
  if (!hasFolder(entries)) return loose(files);
  /** @type {Dropped[]} */
  const all = [];
  if (entries.length === 1) {
    await addFiles(all, entries[0], "");
    return { name: entries[0].name, files: all };
  }
  for (const entry of entries) await addFiles(all, entry, entry.isDirectory ? `${entry.name}/` : "");
  return { name: "", files: all };
}

/**
 * Puts the files of an entry at the end of `all`, with `prefix` before their paths.
 * @param {Dropped[]} all
 * @param {FileEntry} entry
 * @param {string} prefix
 */
async function addFiles(all, entry, prefix) {
  if (!entry.isDirectory) {
    const file = await new Promise((done, failed) => entry.file?.(done, failed));
    all.push({ path: prefix + entry.name, file });
    return;
  }
  const reader = entry.createReader?.();
  for (;;) { // a reader gives a hundred at a time
    /** @type {FileEntry[]} */
    const some = await new Promise((done, failed) => (reader ? reader.readEntries(done, failed) : done([])));
    if (!some.length) return;
    for (const one of some) await addFiles(all, one, one.isDirectory ? `${prefix}${one.name}/` : prefix);
  }
}

/**
 * Files without a folder, or those that a file dialogue gives with the folder that was chosen in it.
 * @param {Iterable<File>} files
 * @returns {Drop}
 */
export function loose(files) {
  const all = [...files], paths = all.map((file) => file.webkitRelativePath || file.name);
  const top = paths[0]?.includes("/") ? paths[0].split("/")[0] : "";
  const inside = top && paths.every((path) => path.startsWith(`${top}/`));
  const listed = all.map((file, n) => ({ path: inside ? paths[n].slice(top.length + 1) : paths[n], file }));
  const zip = listed.length === 1 && ZIP.test(listed[0].path) ? listed[0].path.replace(ZIP, "") : "";
  return { name: inside ? top : zip, files: listed };
}
