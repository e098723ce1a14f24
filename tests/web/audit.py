"""What a page owes to people who do not see it, or see it badly: names, order, headings and contrast."""

from __future__ import annotations

from playwright.sync_api import Page

# Returns one line for each fault.
_SCRIPT = r"""
() => {
  const faults = [];
  const tell = (what, node) => faults.push(`${what}: ${node.outerHTML.slice(0, 140)}`);
  const visible = (node) => node.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  ids.filter((id, at) => ids.indexOf(id) !== at).forEach((id) => faults.push(`two elements have the id ${id}`));
  for (const node of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    const named = node.labels?.length || node.getAttribute("aria-label") || node.getAttribute("aria-labelledby");
    if (!named) tell("no label", node);
  }
  for (const node of document.querySelectorAll("button, a[href], summary, [role=group], dialog")) {
    const by = node.getAttribute("aria-labelledby");
    const name = node.getAttribute("aria-label") || (by ? document.getElementById(by)?.textContent : node.textContent);
    if (!name?.trim()) tell("no name", node);
  }
  for (const node of document.querySelectorAll("[tabindex]")) if (node.tabIndex > 0) tell("its own tab order", node);
  if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
  let last = 1;
  for (const node of document.querySelectorAll("main h1, main h2, main h3, main h4")) {
    if (!visible(node)) continue;
    const level = Number(node.tagName[1]);
    if (level > last + 1) tell("skips a level", node);
    last = level;
  }
  if (!document.documentElement.lang) faults.push("no language");
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (over, colour) => {
    canvas.fillStyle = `rgb(${over.join(",")})`;
    canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const ground = (node) => {
    const chain = [];
    for (let at = node; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
    return chain.reduce(paint, matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || seen.has(node) || node.closest("svg, script, style, :disabled, .hidden, option")) continue;
    seen.add(node);
    if (!visible(node)) continue;
    const style = getComputedStyle(node);
    const back = ground(node);
    const [a, b] = [light(paint(back, style.color)), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) tell(`contrast ${ratio.toFixed(2)}`, node);
  }
  return faults;
}
"""


def faults(page: Page) -> list[str]:
    """Return what a page owes, one line for each fault."""
    found: list[str] = page.evaluate(_SCRIPT)
    return found


def assert_accessible(page: Page) -> None:
    """Hold a page to it in light and dark, and that nothing sticks out sideways on a telephone."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert faults(page) == []
    page.emulate_media(color_scheme="light")
    size = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if size:
        page.set_viewport_size(size)
