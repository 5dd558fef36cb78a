// What we use of the page of A1111, Forge and reForge: their own scripts define these on every page.

declare function gradioApp(): Document | ShadowRoot;
declare function switch_to_txt2img(): void;

interface Window {
  opts?: { localization?: string };
}
