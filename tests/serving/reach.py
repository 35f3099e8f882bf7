"""What keeps people from using a page, looked for by script: names, references, contrast, width."""

from __future__ import annotations

from typing import Any

LEAST_CONTRAST = 4.5
"""WCAG 2.2, 1.4.3 (AA), text of usual size."""

FIND = """(least) => {
  const found = [];
  const tell = (what, node) => found.push(`${what}: ${node.outerHTML.slice(0, 120)}`);
  const seen = (node) => node.checkVisibility({ opacityProperty: true });
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of ids.filter((id, at) => ids.indexOf(id) !== at)) found.push(`twice: ${id}`);
  for (const name of ["aria-controls", "aria-labelledby", "aria-describedby", "for"])
    for (const node of document.querySelectorAll(`[${name}]`))
      if (!document.getElementById(node.getAttribute(name))) tell(`${name} leads nowhere`, node);
  if (!document.documentElement.lang) found.push("no language");
  for (const node of document.querySelectorAll("img"))
    if (seen(node) && !node.alt) tell("no alt", node);
  for (const node of document.querySelectorAll("button, a, input, textarea, canvas")) {
    const label = [...(node.labels ?? [])].map((label) => label.innerText).join("");
    const name = label || node.ariaLabel || (node.matches("button, a") ? node.innerText : "");
    if (seen(node) && !name.trim()) tell("no name", node);
  }
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => {
    const [r, g, b] = channels(text).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((channels(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim());
    if (!text || !seen(node) || node.disabled) continue;
    const pair = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < least) tell(`contrast ${contrast.toFixed(2)}`, node);
  }
  if (document.documentElement.scrollWidth > innerWidth)
    found.push(`wider than the window: ${document.documentElement.scrollWidth}`);
  return found;
}"""


def barriers(page: Any) -> list[str]:
    """One line each, for what is shown now."""
    found: list[str] = page.evaluate(FIND, LEAST_CONTRAST)
    return found
