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
  let before = null;
  addEventListener("beforeprint", () => { before = theme; apply("light"); all(".chart[data-source]").forEach((target) => show(target)); });
  addEventListener("afterprint", () => { if (before) { apply(before); before = null; redraw(); } });
  // One after the other in idle time: what printing would have to fetch first came too late.
  let idle = 0;
  const later = (after = 50) => { clearTimeout(idle); idle = setTimeout(() => (window.requestIdleCallback || setTimeout)(rest), after); };
  const rest = async () => {
    const target = document.hidden ? null : $(".chart[data-source]:not([data-shown])");
    if (target) { await show(target); later(); }
  };

  // ---- what the server tells by itself
  // A browser opens six connections to a server, for all its tabs together: those that nobody sees hold none.
  const streams = new Map();
  const hush = (element) => { streams.get(element)?.close(); streams.delete(element); };
  const listen = (element, again = false) => {
    for (const old of [...streams.keys()]) if (!old.isConnected) hush(old);
    if (streams.has(element) || document.hidden) return;
    const source = new EventSource(element.dataset.events), pulse = $("#pulse");
    streams.set(element, source);
    const say = (text, kind) => { if (pulse) { pulse.textContent = text; pulse.className = `pulse ${kind}`; } };
    source.addEventListener("open", () => say("connected", "live"));
    source.addEventListener("error", () => say("the server does not answer; trying again", "lost"));
    source.addEventListener("trouble", (event) => { source.close(); say(JSON.parse(event.data).message, "lost"); });
    let first = !again;
    source.addEventListener("point", (event) => {
      const run = JSON.parse(event.data);
      say(`${first ? "connected" : "live"}, step ${run.last_step ?? "–"}`, "live");
      if (first) { first = false; return; }
      all("[data-live-chart][data-shown]").forEach((target) => show(target, true));
      for (const id of ["state", "alarms"]) htmx.ajax("GET", location.pathname + location.search, { target: `#${id}`, select: `#${id}`, swap: "outerHTML" });
    });
    source.addEventListener("jobs", (event) => {
      const jobs = JSON.parse(event.data), lines = all("[data-job]");
      if (jobs.length !== lines.length || jobs.some((job) => $(`[data-job="${job.id}"]`)?.dataset.state !== job.state)) {
        hush(element);
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
    all("[data-events]", root).forEach((element) => listen(element));
    if (root.matches?.("[data-events]")) listen(root);
    later(1500);
  };
  document.addEventListener("htmx:load", (event) => begin(event.detail.elt));
  begin(document);
  const attend = () => {
    if (document.hidden) [...streams.keys()].forEach(hush);
    else { all("[data-events]").forEach((element) => listen(element, true)); later(); }
  };
  document.addEventListener("visibilitychange", attend);
  addEventListener("pagehide", () => [...streams.keys()].forEach(hush));
  addEventListener("pageshow", (event) => { if (event.persisted) attend(); });

  // ---- small things
  document.addEventListener("change", (event) => {
    // A server that refuses a large file ends the connection, and then nobody can be told why.
    if (event.target.matches("[data-largest]")) {
      const [file] = event.target.files, most = Number(event.target.dataset.largest);
      event.target.setCustomValidity(file && file.size > most ? `This file is larger than the ${Math.round(most / 1e6)} MB that are taken. Copy it into a folder that is served instead.` : "");
      event.target.reportValidity();
    }
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
  // ---- the assistant
  const drawer_ = $("#assistant"), talk = $("#talk");
  if (drawer_) {
    const kept = (key, value) => { try { return value === undefined ? sessionStorage.getItem(key) : sessionStorage.setItem(key, value); } catch { return null; } };
    let said = [];
    const screen = () => {
      const { audit, base, layer, chart, run, plan, file, audits, area } = document.body.dataset, given = { audit, base, layer, chart, run, plan, file };
      const there = Object.fromEntries(Object.entries(given).filter(([, value]) => value));
      return { area: area || "models", ...there, audits: audits ? audits.split(" ").filter(Boolean) : [] };
    };
    const line = (role, text) => {
      const element = document.createElement("div");
      element.className = `said ${role}`;
      element.textContent = text;
      talk.append(element);
      element.scrollIntoView({ block: "nearest" });
      return element;
    };
    // Answers come as HTML that the server made from Markdown without any HTML in it.
    const finish = (element, html, odd) => {
      element.innerHTML = html;
      if (odd.length) {
        const note = document.createElement("p");
        note.className = "odd";
        note.textContent = `Not in the data: ${odd.join(", ")}. Do not rely on ${odd.length > 1 ? "these numbers" : "this number"}.`;
        element.append(note);
      }
    };
    const keep = () => { kept("tailwise-said", JSON.stringify(said.slice(-24))); };
    const suggest = () => {
      const chips = { details: ["Is this model healthy?", "Which layers are worst?", "What should I do?", "Which layers can I prune?"],
                      layer: ["What is wrong with this layer?", "What is alpha?"], chart: ["How do I read this chart?"], base: ["Is this fine-tune worse than its base?"],
                      compare: ["Which of these is better?"], run: ["What changed in training?", "Is it still running?"], plan: ["What does this plan do?"], file: ["What is this?"], models: ["Which are healthy?", "Which models are here?"], plans: ["Can I quantize to int4?"] }[document.body.dataset.area]
                      || ["Which models are here?", "What is alpha?", "What can I ask?"];
      const box = document.createElement("div");
      box.className = "chips";
      chips.forEach((text) => { const button = document.createElement("button"); button.type = "button"; button.textContent = text; button.addEventListener("click", () => ask(text)); box.append(button); });
      talk.append(box);
    };
    let answering = false; // one at a time: what is said would get out of order
    const ask = async (text) => {
      answering = true;
      all(".chips", talk).forEach((box) => box.remove());
      line("user", text);
      said.push({ role: "user", content: text });
      const element = line("assistant", "…");
      element.setAttribute("aria-busy", "true");
      let written = "";
      const take = (event) => {
        if (event.kind === "text") { written += event.text; element.textContent = written; }
        if (event.kind === "call" && !written) element.textContent = `looking up: ${event.name} …`;
        if (event.kind === "failed") { element.textContent = `${event.message} ${event.fix}`; element.classList.add("trouble"); said.pop(); }
        if (event.kind === "done") { finish(element, event.html, event.answer.unverified); said.push({ role: "assistant", content: event.answer.text, html: event.html, odd: event.answer.unverified }); }
        element.scrollIntoView({ block: "nearest" });
      };
      try {
        const messages = said.slice(-23).map(({ role, content }) => ({ role, content: content.slice(0, 8000) }));
        const answer = await fetch("/assistant/ask", { method: "POST", headers: { "Content-Type": "application/json", "X-CSRF-Token": proof }, body: JSON.stringify({ messages, screen: screen() }) });
        if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}`);
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let rest = ""; ;) {
          const { value, done } = await reader.read();
          if (done) break;
          const parts = (rest + value).split("\n\n");
          rest = parts.pop();
          parts.filter((part) => part.startsWith("data: ")).forEach((part) => take(JSON.parse(part.slice(6))));
        }
      } catch (error) { element.textContent = `No answer: ${error.message}`; element.classList.add("trouble"); said.pop(); }
      element.removeAttribute("aria-busy");
      answering = false;
      keep();
    };
    const open = (wanted) => {
      drawer_.hidden = !wanted;
      document.body.classList.toggle("asking", wanted);
      $("#ask-open").setAttribute("aria-expanded", String(wanted));
      kept("tailwise-asking", wanted ? "1" : "");
      if (wanted) { $("#question").focus(); if (!talk.children.length) suggest(); }
    };
    const begun = () => {
      try { said = JSON.parse(kept("tailwise-said") || "[]"); } catch { said = []; }
      if (!Array.isArray(said)) said = [];
      for (const one of said) { const element = line(one.role, one.content); if (one.html) finish(element, one.html, one.odd || []); }
      if (kept("tailwise-asking")) { open(true); document.activeElement.blur(); }
    };
    begun();
    const query = new URLSearchParams(Object.entries(screen()).flatMap(([key, value]) => Array.isArray(value) ? value.map((one) => [key, one]) : [[key, value]]));
    $("#ask-prompt").href = `/settings?${query}`;
    $("#ask-open").addEventListener("click", () => open(drawer_.hidden));
    $("#ask-close").addEventListener("click", () => open(false));
    $("#ask-clear").addEventListener("click", () => { said = []; keep(); talk.replaceChildren(); suggest(); });
    $("#ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = $("#question").value.trim();
      if (text && !answering) { $("#question").value = ""; ask(text); }
    });
    drawer_.addEventListener("keydown", (event) => { if (event.key === "Escape") { open(false); $("#ask-open").focus(); } });
    document.addEventListener("keydown", (event) => {
      if (event.key === "i" && !event.ctrlKey && !event.metaKey && !event.target.closest("input, textarea, select")) { event.preventDefault(); open(true); }
    });
  }

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
