// @ts-check
// Elements and their styles.

// Colours are ComfyUI's, else gradio's, else those of a dark page; data-theme sets them whatever the page says.
const STYLE = `
.loom { display: flex; flex-direction: column; box-sizing: border-box; height: 100%;
  --loom-ink: var(--input-text, var(--body-text-color, #ddd));
  --loom-field: var(--comfy-input-bg, var(--input-background-fill, #2b2b2b));
  --loom-line: var(--border-color, var(--border-color-primary, #555)); --loom-bad: #ff7b6b;
  font: 12px/1.4 Inter, system-ui, sans-serif; color: var(--loom-ink); }
.loom[data-theme=light] { --loom-ink: #1f2328; --loom-field: #fff; --loom-line: #b6bdc6;
  --loom-bad: #b3261e; }
.loom[data-theme=dark] { --loom-ink: #ddd; --loom-field: #2b2b2b; --loom-line: #555; }
.loom input[type=text], .loom select, .loom textarea { background: var(--loom-field); color: inherit;
  border: 1px solid var(--loom-line); border-radius: 4px; padding: 3px 5px; font: inherit; min-width: 0; }
.loom input[type=checkbox] { appearance: auto; width: 14px; height: 14px; min-width: 0; margin: 0; padding: 0;
  background: none; border: 0; box-shadow: none; accent-color: #2f7dd1; }
.loom button { background: var(--loom-field); color: inherit; border: 1px solid var(--loom-line);
  border-radius: 4px; padding: 3px 9px; cursor: pointer; font: inherit; }
.loom button:disabled { opacity: .45; cursor: default; }
.loom .tools { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
.loom .notice { min-height: 1.4em; overflow-wrap: anywhere; }
.loom .notice.bad { color: var(--loom-bad); }
`;

/**
 * An element with properties and children.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Partial<HTMLElementTagNameMap[Tag]>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/**
 * Puts the rules of a part into the page, once; those that all parts share come before them.
 * @param {string} part
 * @param {string} rules
 */
export function style(part, rules) {
  if (part !== "loom") style("loom", STYLE);
  const id = `${part}-style`;
  if (!document.getElementById(id)) document.head.append(make("style", { id, textContent: rules }));
}

/**
 * A sentence below the tools of a part.
 * @param {HTMLElement} notice
 * @param {string} text
 * @param {boolean} [bad]
 */
export function say(notice, text, bad = false) {
  notice.textContent = text;
  notice.classList.toggle("bad", bad);
}
