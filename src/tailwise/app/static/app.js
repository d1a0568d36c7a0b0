"use strict";
(() => {
  const $ = (selector) => document.querySelector(selector), all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const proof = $("meta[name=csrf]").content;
  document.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-CSRF-Token"] = proof; });
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr } = event.detail;
    if (xhr.status >= 400 && xhr.responseText) { event.detail.shouldSwap = true; event.detail.isError = false; }
  });
  document.addEventListener("htmx:beforeRequest", () => { $("#problem").replaceChildren(); });
  document.addEventListener("htmx:sendError", () => { $("#problem").textContent = "The server does not answer."; });

  // ---- theme
  const storage = { get: () => { try { return localStorage.getItem("tailwise-theme"); } catch { return null; } },
                    set: (value) => { try { localStorage.setItem("tailwise-theme", value); } catch { /* private window */ } } };
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  let theme = storage.get() || (preferred.matches ? "dark" : "light");
  const apply = (name) => {
    theme = name;
    document.documentElement.dataset.theme = name;
    $("#theme").textContent = name === "dark" ? "Light" : "Dark";
  };
  apply(theme);
  const toggle = () => { apply(theme === "dark" ? "light" : "dark"); storage.set(theme); redraw(); };
  $("#theme").addEventListener("click", toggle);
  preferred.addEventListener("change", () => { if (!storage.get()) { apply(preferred.matches ? "dark" : "light"); redraw(); } });

  // ---- charts
  let figures = null;
  const drawer = async () => {
    figures ??= fetch("/api/themes").then((answer) => answer.json()).then((themes) => tailwiseFigures(themes));
    return figures;
  };
  const specs = new Map();
  const quiet = { tooltip: { disableDefaultStyle: true }, embed: { defaultStyle: false, forceActionsMenu: true } };
  const fetched = async (source) => {
    const answer = await fetch(source), body = await answer.json();
    if (!answer.ok) throw new Error([body.error, body.fix].filter(Boolean).join(": "));
    return body;
  };
  const show = async (target, fresh = false) => {
    target.dataset.shown = "1";
    try {
      if (fresh || !specs.has(target)) specs.set(target, await fetched(target.dataset.source));
      const spec = specs.get(target), many = Object.values(spec.datasets || {}).some((rows) => rows.length > 1500);
      target.classList.remove("failed");
      await (await drawer()).draw(target, structuredClone(spec), theme, many ? "canvas" : "svg", quiet);
    } catch (error) {
      target.classList.add("failed", "done");
      target.textContent = `Not drawn: ${error.message}`;
    }
  };
  const redraw = () => all(".chart[data-shown]").forEach((target) => show(target));
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && !entry.target.dataset.shown) show(entry.target);
  }), { rootMargin: "400px" });
  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => all(".chart[data-shown]").forEach((target) => {
      if (Math.abs(target.dataset.width - target.clientWidth) > 8) show(target);
    }), 200);
  });
  addEventListener("beforeprint", () => all(".chart:not([data-shown])").forEach((target) => show(target)));

  // ---- what the server tells by itself
  const streams = new Map();
  const listen = (element) => {
    if (streams.has(element)) return;
    for (const [old, stream] of streams) if (!old.isConnected) { stream.close(); streams.delete(old); }
    const source = new EventSource(element.dataset.events), pulse = $("#pulse");
    streams.set(element, source);
    const say = (text, kind) => { if (pulse) { pulse.textContent = text; pulse.className = `pulse ${kind}`; } };
    source.addEventListener("open", () => say("live", "live"));
    source.addEventListener("error", () => say("the server does not answer; trying again", "lost"));
    source.addEventListener("trouble", (event) => { source.close(); say(JSON.parse(event.data).message, "lost"); });
    let first = true;
    source.addEventListener("point", (event) => {
      const run = JSON.parse(event.data);
      say(`live, step ${run.last_step ?? "–"}`, "live");
      if (first) { first = false; return; }
      all("[data-live-chart][data-shown]").forEach((target) => show(target, true));
      for (const id of ["state", "alarms"]) htmx.ajax("GET", location.pathname + location.search, { target: `#${id}`, select: `#${id}`, swap: "outerHTML" });
    });
    source.addEventListener("jobs", (event) => {
      const jobs = JSON.parse(event.data), lines = all("[data-job]");
      if (jobs.length !== lines.length || jobs.some((job) => $(`[data-job="${job.id}"]`)?.dataset.state !== job.state)) {
        source.close(); streams.delete(element);
        htmx.ajax("GET", "/jobs", { target: "#queue", swap: "outerHTML" });
        return;
      }
      for (const job of jobs) {
        const line = $(`[data-job="${job.id}"]`);
        line.querySelector("progress").value = job.share;
        line.querySelector("[data-said]").textContent = job.total ? `${job.done} of ${job.total} matrices` : "";
      }
    });
  };

  const begin = (root) => {
    all(".chart[data-source]", root).forEach((target) => seen.observe(target));
    all("[data-events]", root).forEach(listen);
    if (root.matches?.("[data-events]")) listen(root);
  };
  document.addEventListener("htmx:load", (event) => begin(event.detail.elt));
  begin(document);

  // ---- small things
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-goto]")) location.assign(event.target.value);
    if (event.target.matches("[data-submit]")) event.target.form.submit();
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("[data-columns]");
    if (form) form.querySelector("input[name=columns]").value = all("input:checked", form).map((box) => box.value).join(",");
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) navigator.clipboard.writeText($(button.dataset.copy).textContent).then(() => { button.textContent = "Copied"; });
  });
  const areas = { m: "/models", c: "/compare", t: "/training", p: "/plans", a: "/jobs", h: "/help" };
  let going = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, [contenteditable]")) return;
    const follow = (rel) => { const link = $(`main a[rel=${rel}]`); if (link) link.click(); };
    if (going) { going = false; if (areas[event.key]) { event.preventDefault(); location.assign(areas[event.key]); } return; }
    const keys = { "/": () => $("[data-search]")?.focus(), "[": () => follow("prev"), "]": () => follow("next"), d: toggle,
                   "?": () => location.assign("/help"), g: () => { going = true; setTimeout(() => { going = false; }, 1200); } };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
})();
