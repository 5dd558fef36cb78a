// A page without a browser: as much of the DOM as our parts ask for when they are made and filled. Nothing is drawn.
class Element {
  constructor(tag) {
    this.tagName = tag.toUpperCase();
    this.children = [];
    this.style = { setProperty() {} };
    this.dataset = {};
    this.listeners = {};
    this.className = this.text = this.value = "";
    const others = (name) => this.className.split(" ").filter((other) => other && other !== name);
    this.classList = {
      contains: (name) => this.className.split(" ").includes(name),
      add: (name) => { this.className = [...others(name), name].join(" "); },
      remove: (name) => { this.className = others(name).join(" "); },
      toggle: (name, on) => { this.className = (on ? [...others(name), name] : others(name)).join(" "); },
    };
  }

  get textContent() { return this.text + this.children.map((child) => child.textContent ?? child).join(""); }
  set textContent(text) { this.children = []; this.text = String(text); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; this.text = ""; }
  addEventListener(name, listener) { (this.listeners[name] ??= []).push(listener); }
  remove() { this.removed = true; }
  focus() {}
  setAttribute(name, value) { this[name] = value; }
  querySelectorAll() { return []; }
  querySelector(selector) { // of a class alone
    const name = selector.slice(1), inner = this.children.filter((child) => child instanceof Element);
    const found = inner.find((child) => child.classList.contains(name));
    return found ?? inner.map((child) => child.querySelector(selector)).find((child) => child) ?? null;
  }
  getContext() { return null; }
}

class Observer {
  observe() {}
  disconnect() {}
}

/** Puts the page into the global names where our parts look for it. */
export function openPage() {
  const head = new Element("head"), listeners = {};
  const document = {
    head, listeners, hidden: false, visibilityState: "visible",
    createElement: (tag) => new Element(tag),
    createElementNS: (space, tag) => new Element(tag),
    getElementById: (id) => head.children.find((child) => child.id === id) ?? null,
    body: new Element("body"), documentElement: new Element("html"),
    addEventListener(name, listener) { (listeners[name] ??= []).push(listener); },
    removeEventListener(name, listener) { listeners[name] = listeners[name].filter((other) => other !== listener); },
  };
  Object.assign(globalThis, {
    document, HTMLElement: Element, window: { addEventListener() {} },
    ResizeObserver: Observer, IntersectionObserver: Observer, MutationObserver: Observer,
    requestAnimationFrame: () => 1, cancelAnimationFrame() {},
  });
  return document;
}

/** A host that keeps what is asked of it. `answers`: what is answered to a path, by its beginning. */
export function fakeHost(answers = {}) {
  const host = {
    asked: [], posted: [], toasts: [], refreshed: 0, listeners: {}, settings: {},
    async fetchJson(path) {
      host.asked.push(path);
      const key = Object.keys(answers).find((beginning) => path.startsWith(beginning));
      if (answers[key] instanceof Error) throw answers[key];
      return structuredClone(answers[key]);
    },
    async postJson(path, body) {
      host.posted.push([path, body]);
      return host.fetchJson(path);
    },
    imageUrl: (path) => `http://server${path}`,
    program: "comfyui",
    onEvent(name, listener) {
      (host.listeners[name] ??= []).push(listener);
      return () => { host.listeners[name] = host.listeners[name].filter((other) => other !== listener); };
    },
    tell: (name, detail) => host.listeners[name].forEach((listener) => listener(detail)),
    toast: (severity, text) => host.toasts.push([severity, text]),
    language: async () => "en",
    setting: (id) => host.settings[id],
    async refreshLists() { host.refreshed += 1; },
    openRun: async () => null,
  };
  return host;
}
