"use strict";
// Vega-Lite figures in the page's theme and width; specs name colours by what they mean (`@ink`).
const tailwiseFigures = (themes) => {
  const views = new Map();
  const fill = (value, theme) => JSON.parse(JSON.stringify(value).replace(/"@([\w.]+)"/g, (all, name) =>
    name in themes[theme] ? JSON.stringify(themes[theme][name]) : all));
  const narrow = (node, width) => {
    if (Array.isArray(node)) { node.forEach((item) => narrow(item, width)); return; }
    if (!node || typeof node !== "object") return;
    if (node.legend && node.legend.columns) {
      node.legend.columns = Math.max(1, Math.floor(width / (node.legend.orient === "top" ? 152 : 105)));
    }
    Object.values(node).forEach((item) => narrow(item, width));
  };
  const fit = (spec, width) => {
    narrow(spec, width);
    if (spec.facet) {
      const columns = Math.max(1, Math.min(spec.columns || 4, Math.floor((width - 40) / 135)));
      spec.columns = columns;
      spec.spec.width = Math.max(70, Math.floor((width - 62 - 14 * (columns - 1)) / columns));
    } else if (spec.vconcat) {
      spec.vconcat.forEach((part) => { part.width = Math.max(120, width - 78); });  // less the longest axis labels
    } else {
      spec.width = width - 4;
      spec.autosize = { type: "fit-x", contains: "padding" };
    }
    return spec;
  };
  const clear = (target) => { views.get(target)?.finalize(); views.delete(target); };
  const draw = async (target, { datasets, ...rest }, theme, renderer, more = {}) => {
    target.dataset.width = target.clientWidth;
    clear(target);
    const spec = fit(fill(rest, theme), Math.floor(target.clientWidth));
    spec.config = { ...fill(themes.config, theme), padding: 2, font: getComputedStyle(document.body).fontFamily };
    const options = { mode: "vega-lite", ast: true, renderer, logLevel: 1, tooltip: { theme, ...more.tooltip }, ...more.embed,
                      actions: { export: true, source: false, compiled: false, editor: false } };
    options.downloadFileName = [document.querySelector("h1")?.textContent, target.closest("article")?.querySelector("h3")?.textContent || target.dataset.chart]
      .filter(Boolean).join(" ").replace(/[^\p{L}\p{N}.]+/gu, "-").slice(0, 100) || "chart";
    const label = target.getAttribute("aria-label") || target.dataset.label || "";
    views.set(target, await vegaEmbed(target, { ...spec, datasets }, options));
    // The picture alone is an image; its menu is a control beside it, with a name of its own.
    const picture = target.querySelector("svg.marks, canvas.marks");
    if (picture && label) {
      target.dataset.label = label; target.removeAttribute("role"); target.removeAttribute("aria-label");
      picture.setAttribute("role", "img"); picture.setAttribute("aria-label", label);
      // Parts of an image are none of their own, and Vega's have roles without names.
      picture.querySelectorAll("[role]").forEach((part) => ["role", "aria-roledescription", "aria-label"].forEach((name) => part.removeAttribute(name)));
    }
    target.querySelector("details > summary")?.setAttribute("aria-label", "Save this chart");
    target.classList.add("done");
  };
  return { draw, clear };
};
