"use strict";
(async () => {
  const $ = (selector) => document.querySelector(selector);
  // Large parts are gzip in base64; small ones are plain JSON.
  const read = async (id) => {
    const element = document.getElementById(id), text = element.textContent;
    if (element.type === "application/json") return JSON.parse(text);
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const [layers, specs, themes, pages] = await Promise.all(["layers", "specs", "themes", "pages"].map(read));
  const at = Object.fromEntries(layers.columns.map((name, index) => [name, index]));
  const records = (table, fields) => {
    const kept = table.columns.map((name, index) => [name, index]).filter(([name]) => !fields || fields(name));
    return table.rows.map((row) => Object.fromEntries(kept.map(([name, index]) => [name, row[index]])));
  };
  const drawn = layers.rows.filter((row) => row[at.measured]);
  const renderer = drawn.length > 1500 ? "canvas" : "svg";
  const storage = { get: () => { try { return localStorage.getItem("tailwise-theme"); } catch { return null; } },
                    set: (value) => { try { localStorage.setItem("tailwise-theme", value); } catch { /* private window */ } } };
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  let theme = storage.get() || (preferred.matches ? "dark" : "light");

  // ---- figures
  const figures = tailwiseFigures(themes);
  const draw = (target, own) => {
    const spec = specs[target.dataset.chart], text = JSON.stringify({ ...spec, datasets: null });
    const sets = { ...(spec.datasets || {}), ...(own || {}) };
    if (text.includes('"name":"layers"')) {
      sets.layers = records({ columns: layers.columns, rows: drawn }, (name) => text.includes(name));
    }
    return figures.draw(target, { ...spec, datasets: sets }, theme, renderer);
  };
  const charts = [...document.querySelectorAll(".chart")].filter((target) => !target.dataset.page);
  const pageCharts = [...document.querySelectorAll(".chart[data-page]")];
  const waiting = new Set(charts);
  const show = (target) => { waiting.delete(target); return draw(target); };
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && waiting.has(entry.target)) show(entry.target);
  }), { rootMargin: "600px" });
  charts.forEach((target) => seen.observe(target));
  // The rest in idle time, so that printing finds every picture; very large audits wait for the reader.
  const idle = window.requestIdleCallback || ((call) => setTimeout(call, 30));
  const rest = () => idle(async () => {
    const [next] = waiting;
    if (next) { await show(next); rest(); }
  });
  if (drawn.length <= 2000) rest();

  // ---- one layer
  const choice = $("#layer-choice");
  let page = null;
  const openLayer = (index, scroll) => {
    const data = pages[index];
    if (!data || !choice) return;
    choice.value = index;
    page = Object.fromEntries(Object.entries(data).map(([name, table]) => [name, records(table)]));
    const row = layers.rows[index], value = (name) => (row[at[name]] ?? "–");
    $("#layer-facts").textContent = `${value("role")}, ${value("shape")}, α ${value("alpha")} ± ${value("alpha_sigma")}, D ${value("ks_distance")}`;
    if (page.esd_log.length) {
      pageCharts.forEach((target) => draw(target, page));
    } else {
      page = null;
      pageCharts.forEach((target) => { figures.clear(target); target.textContent = "All its eigenvalues are equal or zero: nothing to draw."; });
    }
    if (scroll) $("#layer").scrollIntoView();
  };
  if (choice) {
    choice.addEventListener("change", () => openLayer(choice.value));
    if (choice.options.length) openLayer(choice.value);
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-layer]");
    if (link) { event.preventDefault(); openLayer(link.dataset.layer, true); }
  });

  // ---- theme, width, print
  const redraw = () => Promise.all([
    ...charts.filter((target) => !waiting.has(target)).map((target) => draw(target)),
    ...(page ? pageCharts.map((target) => draw(target, page)) : []),
  ]);
  const apply = (name) => { theme = name; document.documentElement.dataset.theme = name; };
  apply(theme);
  const toggle = $("#theme");
  const label = () => { toggle.textContent = theme === "dark" ? "Light" : "Dark"; };
  label();
  toggle.addEventListener("click", () => { apply(theme === "dark" ? "light" : "dark"); storage.set(theme); label(); redraw(); });
  preferred.addEventListener("change", () => { if (!storage.get()) { apply(preferred.matches ? "dark" : "light"); label(); redraw(); } });
  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { if (charts.concat(pageCharts).some((t) => t.dataset.width && Math.abs(t.dataset.width - t.clientWidth) > 8)) redraw(); }, 200);
  });
  let before = null, fillTable = () => {};
  addEventListener("beforeprint", () => { before = theme; apply("light"); [...waiting].forEach(show); redraw(); fillTable(1000); });
  addEventListener("afterprint", () => { if (before) { apply(before); before = null; redraw(); fillTable(); } });

  // ---- the table, where the page has one of layers
  if (!$("#layer-table")) return;
  const SIZE = 100, shown = JSON.parse($("#layer-table").dataset.columns);
  const body = $("#layer-table tbody"), filter = $("#filter"), count = $("#count");
  let order = layers.rows.map((_, index) => index), sorted = null, down = false, start = 0;
  const text = layers.rows.map((row) => shown.filter((n) => typeof row[at[n]] === "string").map((n) => row[at[n]]).join(" ").toLowerCase());
  const cell = (row, index, name) => {
    const td = document.createElement("td"), value = row[at[name]];
    if (name === "name" && pages[index]) {
      const link = document.createElement("a");
      link.href = "#layer"; link.dataset.layer = index; link.textContent = value;
      td.append(link);
    } else td.textContent = value === null || value === undefined ? "–" : typeof value === "number" ? String(+value.toPrecision(4)) : value;
    if (name === "name") { td.className = "name"; td.title = value; }
    if (typeof value === "string") td.classList.add("text");
    return td;
  };
  fillTable = (size = SIZE) => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = order.filter((index) => words.every((word) => text[index].includes(word)));
    start = Math.min(start, Math.max(0, found.length - 1));
    start -= start % SIZE;
    const from = size > SIZE ? 0 : start;
    body.replaceChildren(...found.slice(from, from + size).map((index) => {
      const tr = document.createElement("tr");
      tr.append(...shown.map((name) => cell(layers.rows[index], index, name)));
      return tr;
    }));
    count.textContent = found.length ? `${from + 1}–${Math.min(from + size, found.length)} of ${found.length}` : "none";
    $("#back").disabled = start === 0;
    $("#next").disabled = start + SIZE >= found.length;
  };
  const sortBy = (name, head) => {
    down = sorted === name ? !down : false;
    sorted = name;
    const sign = down ? -1 : 1, column = at[name];
    order.sort((a, b) => {
      const x = layers.rows[a][column], y = layers.rows[b][column];
      if (x === y) return a - b;
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    });
    document.querySelectorAll("#layer-table th").forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    start = 0;
    fillTable();
  };
  document.querySelectorAll("#layer-table th").forEach((head) =>
    head.firstElementChild.addEventListener("click", () => sortBy(head.dataset.column, head)));
  filter.addEventListener("input", () => { start = 0; fillTable(); });
  $("#back").addEventListener("click", () => { start = Math.max(0, start - SIZE); fillTable(); });
  $("#next").addEventListener("click", () => { start += SIZE; fillTable(); });
  fillTable();
})();
