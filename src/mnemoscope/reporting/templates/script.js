"use strict";
// Everything a run says enters the page through textContent, an attribute or an image's source.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);

  // ---- elements, words and numbers ------------------------------------------------------------

  const filled = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const make = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) =>
    filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const button = (text, act, attributes = {}) => {
    const made = make("button", { type: "button", ...attributes }, text);
    made.addEventListener("click", act);
    return made;
  };
  const known = (value) => value !== null && value !== undefined;
  const low = (value) => (known(value) ? value : -Infinity);
  const signed = (text) => text.replace(/-/g, "−");
  const number = (value) => (!known(value) ? "–" : signed(
    value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(1)
      : String(Number(value.toPrecision(3)))));
  const percent = (value) => (known(value) ? Math.round(100 * value) + " %" : "–");
  const hole = (why, kind = "") => make("span", { class: "missing " + kind }, why);
  const picture = (one, alt, kind) => {
    if (one.image) return make("img", { src: "data:image/webp;base64," + one.image, alt, decoding: "async", class: kind });
    if (one.digest) return make("span", { class: "missing " + kind, role: "img", "aria-label": alt + ", redacted" },
      make("span", { class: "digest" }, one.digest));
    return hole(one.why, kind);
  };

  // ---- saving tables and figures --------------------------------------------------------------

  const save = (name, blob) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  // A spreadsheet would run a cell that starts like a formula.
  const cell = (value) => {
    const text = known(value) ? String(value) : "";
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
    return /[",\r\n]/.test(safe) ? '"' + safe.replace(/"/g, '""') + '"' : safe;
  };
  const saveTable = (name, rows) =>
    save(name + ".csv", new Blob([rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n"], { type: "text/csv" }));
  const drawing = (svg) => {
    const style = getComputedStyle(document.documentElement);
    const copy = svg.cloneNode(true);
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    for (const [name, value] of [["xmlns", "http://www.w3.org/2000/svg"], ["width", width], ["height", height],
      ["font-family", "system-ui, sans-serif"]]) copy.setAttribute(name, value);
    copy.prepend(draw("rect", { width: "100%", height: "100%", fill: "var(--paper)" }));
    const text = new XMLSerializer().serializeToString(copy)
      .replace(/var\((--[a-z0-9]+)\)/g, (_, name) => style.getPropertyValue(name).trim())
      .replace(/currentColor/g, style.getPropertyValue("--ink").trim());
    return { text, width, height };
  };
  const saveSvg = (name, svg) => save(name + ".svg", new Blob([drawing(svg).text], { type: "image/svg+xml" }));
  const savePng = (name, svg) => {
    const { text, width, height } = drawing(svg);
    const image = new Image();
    image.addEventListener("load", () => {
      const canvas = make("canvas", { width: Math.round(3 * width), height: Math.round(3 * height) });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(name + ".png", blob));
    });
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  };
  const savers = (name, svg, what) => make("span", { class: "save" },
    button("SVG", () => saveSvg(name, svg), { "aria-label": "Save as SVG: " + what }),
    button("PNG", () => savePng(name, svg), { "aria-label": "Save as PNG: " + what }));

  for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
  for (const figure of document.querySelectorAll("figure.panel[data-name]")) {
    const svg = figure.querySelector("svg");
    figure.append(savers(figure.dataset.name, svg, (svg.getAttribute("aria-label") || "").split(".")[0]));
  }

  // ---- tables that stand in the page: sort, find, save ----------------------------------------

  const valueOf = (text) => {
    const plain = text.replace(/−/g, "-").replace(/[,\u00a0%\s]/g, "").replace(/·10\^/, "e");
    return plain !== "" && !Number.isNaN(Number(plain)) ? Number(plain) : null;
  };
  for (const region of document.querySelectorAll(".scroll")) {
    const table = region.querySelector("table");
    const heads = [...table.querySelectorAll("thead th")];
    if (!heads.length) continue;
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      const name = head.textContent;
      head.replaceChildren(button(name, () => {
        const up = head.getAttribute("aria-sort") === "descending" || !head.hasAttribute("aria-sort") && !head.classList.contains("num");
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const keyed = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
        keyed.sort(([a], [b]) => {
          const [x, y] = [valueOf(a), valueOf(b)];
          const way = x !== null && y !== null ? x - y : x !== null ? 1 : y !== null ? -1 : a < b ? -1 : a > b ? 1 : 0;
          return up ? way : -way;
        });
        body.append(...keyed.map(([, row]) => row));
      }, { class: "open" }));
    });
    const name = region.getAttribute("aria-label") || "table";
    region.after(button("Table as CSV", () => saveTable(name.toLowerCase().replace(/[^a-z0-9]+/g, "-"),
      [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map((one) => one.textContent.trim()))),
    { class: "small", "aria-label": "Table as CSV: " + name }));
  }
  const find = $("find");
  if (find) find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let hits = 0;
    for (const one of $("figures").querySelectorAll("details")) {
      let here = 0;
      for (const row of one.querySelectorAll("tbody tr")) {
        row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
        here += !row.hidden;
      }
      one.hidden = words.length > 0 && !here;
      one.open = words.length > 0 && here > 0;
      hits += here;
    }
    $("hits").textContent = words.length ? hits + " statistics" : "";
  });

  for (const filter of document.querySelectorAll("input.filter")) {
    const table = filter.closest("section").querySelector("table");
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const one of table.tBodies[0].rows) one.hidden = !words.every((word) => one.textContent.toLowerCase().includes(word));
    });
  }

  if (!$("list")) return;

  // ---- the list of prompts --------------------------------------------------------------------

  const [search, group, state, grade, guidance, sort, order, score, count, more, list] =
    ["search", "group", "state", "grade", "guidance", "sort", "order", "score", "count", "more", "list"].map($);
  const PAGE = 48;
  let found = [];
  let shown = 0;
  let body = null;

  data.prompts.forEach((prompt, place) => { prompt.place = place; });
  const option = (select, value, text) => select.append(make("option", { value }, text));
  const unique = (values) => [...new Set(values)].sort();
  for (const value of data.guidances) option(guidance, value, "g = " + value);
  const setLead = () => { if (data.lead !== null) guidance.value = data.lead; };
  for (const value of unique(data.prompts.map((prompt) => prompt.group))) option(group, value, value);
  for (const value of unique(data.prompts.flatMap((prompt) => Object.values(prompt.at).map((here) => here.grade)))) option(grade, value, value);
  data.columns.forEach((column, at) => { option(sort, String(at), column.label); option(score, String(at), column.label); });
  for (const [value, words] of [["text", "prompt"], ["seen", "times seen"], ["tokens", "tokens"]]) option(sort, value, words);

  const ROLES = { memorized: "var(--memorized)", another: "var(--another)", control: "var(--control)", plain: "var(--plain)", unjudged: "var(--schedule)" };
  const WORDS = { memorized: "memorized", another: "copies another image", control: "control", plain: "not memorized", unjudged: "not judged" };
  for (const value of Object.keys(WORDS)) {
    if (data.prompts.some((prompt) => Object.values(prompt.at).some((here) => here.state === value))) option(state, value, WORDS[value]);
  }

  const EMPTY = { n: 0, share: null, state: "unjudged", another: 0, borderline: 0, grade: "not graded", v: [] };
  const at = (prompt, g = guidance.value) => prompt.at[g] || EMPTY;
  const times = (n) => (n === 1 ? "1 sample copies" : n + " samples copy");
  const said = (here) => (here.state === "another" ? "copies another image, " + here.another + " of " + here.n + " samples"
    : (known(here.share) ? percent(here.share) + " of " + here.n + " samples reproduce it"
      : here.state === "unjudged" ? "not judged" : "no training image of its own")
      + (here.another ? "; " + times(here.another) + " another image" : ""));
  // Above the threshold, and yet an unrelated pair comes as close.
  const doubt = (n) => (n ? [" ", make("span", { class: "borderline" }, n + " borderline")] : []);
  const sortable = (prompt) => (sort.value === "text" ? prompt.text
    : sort.value === "seen" ? (known(prompt.seen) ? prompt.seen : prompt.level) : sort.value === "tokens" ? prompt.tokens : at(prompt).v[Number(sort.value)]);
  const about = (prompt) => prompt.group + (known(prompt.seen) ? (prompt.seen ? ", seen " + prompt.seen.toLocaleString("en") + " times" : "")
    : known(prompt.level) ? ", level " + prompt.level : "");
  const cardOf = (prompt, g = guidance.value) => {
    const key = prompt.place + " " + g;
    if (data.redacted) {
      return make("span", { class: "prints" }, ...(data.digests[key] || []).map(([digest, similarity]) =>
        make("span", { class: "missing" }, make("span", { class: "digest" }, digest), known(similarity) ? " " + number(similarity) : "")));
    }
    const source = data.cards[key];
    if (!source) return make("span", { class: "sheet-frame" }, make("span", { class: "missing wide" }, "no picture"));
    return make("span", { class: "sheet-frame" }, make("img", { src: source, loading: "lazy", decoding: "async", width: 192, height: 96, class: "sheet",
      alt: "Left the " + (at(prompt, g).state === "another" ? "image it copies, of another prompt" : prompt.image) + ", right four samples" }));
  };
  const view = () => document.querySelector("input[name=view]:checked").value;
  const goto = (prompt) => { location.hash = "#p/" + prompt.place + "/" + guidance.value; };

  const card = (prompt) => {
    const made = button(cardOf(prompt), () => goto(prompt), { class: "card " + at(prompt).state });
    made.append(make("bdi", { class: "prompt" }, prompt.text), make("span", { class: "share" }, said(at(prompt)), ...doubt(at(prompt).borderline)),
      make("small", {}, about(prompt) + ", " + at(prompt).grade));
    return made;
  };
  const row = (prompt) => {
    const plain = (text, kind = "") => make("td", { class: kind }, text);
    return make("tr", { class: at(prompt).state },
      make("th", { scope: "row" }, button(make("bdi", { class: "prompt" }, prompt.text), () => goto(prompt), { class: "open" })),
      make("td", {}, cardOf(prompt)), plain(prompt.group), make("td", {}, make("span", { class: "share" }, WORDS[at(prompt).state])), plain(at(prompt).grade),
      ...data.columns.map((_, column) => plain(number(at(prompt).v[column]), "num")),
      plain(known(prompt.seen) ? String(prompt.seen) : known(prompt.level) ? "level " + prompt.level : "", "num"), plain(known(prompt.tokens) ? String(prompt.tokens) : "", "num"), plain(String(at(prompt).n), "num"));
  };
  const table = () => {
    const heads = [["prompt", "text"], ["images", ""], ["group", ""], ["what it does", ""], ["grade", ""],
      ...data.columns.map((column, place) => [column.label, String(place), column.about]),
      ["seen", "seen", "how many times as often as an ordinary image its image was trained on"], ["tokens", "tokens"], ["n", "", "samples that are ok"]];
    body = make("tbody");
    list.replaceChildren(make("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Prompts" },
      make("table", { class: "rows" }, make("thead", {}, make("tr", {}, ...heads.map(([name, key, title], place) => {
        const head = make("th", { scope: "col", class: place > 4 ? "num" : "", ...(title ? { title } : {}) });
        if (!key) head.append(name);
        else {
          head.append(button(name, () => {
            order.value = sort.value === key ? (order.value === "down" ? "up" : "down") : key === "text" ? "up" : "down";
            sort.value = key;
            filter();
            const again = [...list.querySelectorAll("thead button")].find((one) => one.textContent === name);
            if (again) again.focus();
          }, { class: "open" }));
          if (sort.value === key) head.setAttribute("aria-sort", order.value === "up" ? "ascending" : "descending");
        }
        return head;
      }))), body)));
  };
  const grow = () => {
    const next = found.slice(shown, shown + PAGE);
    body.append(...next.map(view() === "table" ? row : card));
    shown += next.length;
    more.hidden = shown >= found.length;
  };
  const bound = (id, other) => (Number.isFinite($(id).valueAsNumber) ? $(id).valueAsNumber : other);
  const refresh = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [from, to] = [bound("low", null), bound("high", null)];
    const inRange = (value) => (from === null && to === null)
      || (known(value) && (from === null || value >= from) && (to === null || value <= to));
    found = data.prompts.filter((prompt) => {
      const text = (prompt.text + " " + prompt.id).toLowerCase();
      return words.every((word) => text.includes(word)) && (!group.value || prompt.group === group.value)
        && (!state.value || at(prompt).state === state.value) && (!grade.value || at(prompt).grade === grade.value) && inRange(at(prompt).v[Number(score.value)]);
    });
    const way = order.value === "up" ? 1 : -1;
    found.sort((a, b) => {
      const [x, y] = [sortable(a), sortable(b)];
      // What has no number stands last, whichever way.
      if (!known(x) || !known(y)) return known(y) - known(x) || a.place - b.place;
      return (x < y ? -way : x > y ? way : 0) || a.place - b.place;
    });
    shown = 0;
    if (view() === "table") table();
    else {
      body = make("div", { class: "gallery" });
      list.replaceChildren(body);
    }
    count.textContent = found.length + " of " + data.prompts.length + " prompts, similarity by " + data.measure
      + (data.threshold === null ? "" : ", threshold " + number(data.threshold)) + ", g = " + guidance.value;
    grow();
  };

  // What the reader has chosen is part of the address, so that it can be sent and gone back to.
  const CHOSEN = ["search", "group", "state", "grade", "guidance", "sort", "order", "score", "low", "high"];
  const USUAL = { guidance: data.lead, sort: "0", order: "down", score: "0" };
  const listed = () => {
    const told = new URLSearchParams();
    for (const name of CHOSEN) if ($(name).value !== (USUAL[name] || "")) told.set(name, $(name).value);
    if (view() !== "gallery") told.set("view", view());
    const text = told.toString();
    return "#prompts" + (text ? "?" + text : "");
  };
  const choose = (text) => {
    const told = new URLSearchParams(text);
    for (const name of CHOSEN) {
      $(name).value = told.has(name) ? told.get(name) : USUAL[name] || "";
      // A select shows nothing for a value that it lacks.
      if ($(name).selectedIndex === -1) $(name).value = USUAL[name] || "";
    }
    const wanted = document.querySelector("input[name=view][value=" + (told.get("view") === "table" ? "table" : "gallery") + "]");
    wanted.checked = true;
    refresh();
  };
  const filter = () => { refresh(); history.replaceState(history.state, "", listed()); };
  $("controls").addEventListener("input", filter);
  $("controls").addEventListener("reset", () => setTimeout(() => { setLead(); filter(); }));
  $("csv").addEventListener("click", () => saveTable("prompts", [
    ["prompt_id", "prompt", "group", "seen", "tokens", "guidance", "state", "copies_of_another", "borderline", "grade", "n", ...data.columns.map((column) => column.label)],
    ...found.map((prompt) => [prompt.id, prompt.text, prompt.group, prompt.seen, prompt.tokens, Number(guidance.value),
      WORDS[at(prompt).state], at(prompt).another, at(prompt).borderline, at(prompt).grade, at(prompt).n, ...data.columns.map((_, column) => at(prompt).v[column])])]));
  more.addEventListener("click", grow);
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && !more.hidden) grow();
  }, { rootMargin: "600px" }).observe(more);

  // ---- the detail of a prompt -----------------------------------------------------------------

  const KEPT = 16;
  const details = new Map();
  const read = (place) => {
    const held = $("detail-" + place);
    if (held) return Promise.resolve(JSON.parse(held.textContent));
    // A page opened from a disk may not read a file, but a frame may post what it holds.
    return new Promise((resolve, reject) => {
      const source = "data/" + place + ".html";
      const frame = make("iframe", { hidden: "", sandbox: "allow-scripts", title: "Data of a prompt", src: source });
      const done = (act, value) => {
        clearTimeout(late);
        removeEventListener("message", hear);
        frame.remove();
        act(value);
      };
      const hear = (event) => {
        if (event.source === frame.contentWindow && event.data.place === place) done(resolve, event.data.detail);
      };
      const late = setTimeout(() => done(reject, new Error(source + " cannot be read; keep the folder of this page whole")), 15000);
      addEventListener("message", hear);
      document.body.append(frame);
    });
  };
  const load = async (place) => {
    const detail = details.get(place) || await read(place);
    details.delete(place);
    details.set(place, detail);
    if (details.size > KEPT) details.delete(details.keys().next().value);
    return detail;
  };

  // ---- curves ---------------------------------------------------------------------------------

  const CHARTS = [
    { name: "w0", title: "Weight of the image, w0", about: "how much of the image is in the state", beside: "alpha", dashed: "schedule α" },
    { name: "wT", title: "Weight of the noise, wT", about: "how much of the starting noise is left in the state", beside: "sigma", dashed: "schedule σ" },
    { name: "k", title: "Over-estimation, k", about: "how many times the image is in the guided estimate", one: 1, dashed: "exactly once" },
    { name: "gap", title: "Gap the prompt makes", about: "how much the prompt changes the noise estimate" },
    { name: "variance", title: "Variance across seeds", about: "how far the guided estimates of the seeds differ" },
  ];
  const WIDE = 270;
  const HIGH = 165;
  const BOX = { left: 38, right: 8, top: 10, bottom: 28 };
  const calls = (data.schedule.alpha || []).length;
  const x = (t) => BOX.left + (WIDE - BOX.left - BOX.right) * (calls > 1 ? t / (calls - 1) : 0.5);
  const mean = (rows) => Array.from({ length: calls }, (_, t) => {
    const values = rows.map((one) => one[t]).filter(known);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  });
  const dashedOf = (spec) => (spec.beside ? data.schedule[spec.beside] : spec.one ? Array(calls).fill(spec.one) : null);
  const reach = (spec, all) => {
    const values = all.flatMap((curves) => (curves ? curves[spec.name].flat() : [])).concat(dashedOf(spec) || []).filter(known);
    const [from, to] = [Math.min(0, ...values), Math.max(...values)];
    return [from, to > from ? to : from + 1];
  };
  const ticks = ([from, to]) => {
    const rough = (to - from) / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const marks = [];
    for (let at = Math.ceil(from / step - 1e-9); at * step <= to + step * 1e-9; at += 1) marks.push(Number((at * step).toPrecision(6)));
    return marks;
  };
  const line = (values, y) => {
    let path = "";
    let pen = "M";
    values.forEach((value, t) => {
      if (!known(value)) pen = "M";
      else {
        path += pen + x(t).toFixed(1) + " " + y(value).toFixed(1);
        pen = "L";
      }
    });
    return path;
  };
  const chart = (spec, curves, range, colour, whom, move) => {
    const rows = curves[spec.name];
    const y = (value) => BOX.top + (HIGH - BOX.top - BOX.bottom) * (1 - (value - range[0]) / (range[1] - range[0]));
    const middle = mean(rows);
    const dashed = dashedOf(spec);
    const svg = draw("svg", { viewBox: "0 0 " + WIDE + " " + HIGH, role: "img", class: "chart",
      "aria-label": spec.title + ", " + whom + ". From " + number(middle[0]) + " at the first call to " + number(middle[calls - 1]) + " at the last." });
    for (const mark of ticks(range)) {
      svg.append(draw("path", { d: "M" + BOX.left + " " + y(mark) + "H" + (WIDE - BOX.right), stroke: "var(--rule)", "stroke-width": ".6" }),
        draw("text", { x: BOX.left - 6, y: y(mark) + 3.5, "text-anchor": "end", "font-size": "11.5", fill: "var(--soft)" }, signed(String(mark))));
    }
    for (let mark = 0; mark < calls; mark += Math.max(1, Math.round(calls / 5))) {
      svg.append(draw("text", { x: x(mark), y: HIGH - 16, "text-anchor": "middle", "font-size": "11.5", fill: "var(--soft)" }, String(mark + 1)));
    }
    svg.append(draw("text", { x: WIDE - BOX.right, y: HIGH - 3, "text-anchor": "end", "font-size": "11.5", fill: "var(--soft)" }, "call"));
    if (dashed) svg.append(draw("path", { d: line(dashed, y), fill: "none", stroke: "var(--schedule)", "stroke-width": "1.5", "stroke-dasharray": "5 4" }));
    if (rows.length > 1) for (const one of rows) svg.append(draw("path", { d: line(one, y), fill: "none", stroke: colour, "stroke-width": ".9", opacity: ".38" }));
    svg.append(draw("path", { d: line(middle, y), fill: "none", stroke: colour, "stroke-width": "2.4", "stroke-linejoin": "round" }));
    const marker = draw("path", { stroke: "currentColor", "stroke-width": "1.2" });
    const dot = draw("circle", { r: "4.2", fill: colour, stroke: "var(--paper)", "stroke-width": "1.5" });
    svg.append(marker, dot);
    const readout = make("span", { class: "readout" });
    const drag = (event) => {
      const area = svg.getBoundingClientRect();
      const inside = (event.clientX - area.left) / area.width * WIDE;
      move(Math.round((inside - BOX.left) / (WIDE - BOX.left - BOX.right) * (calls - 1)));
    };
    svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); drag(event); });
    svg.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
    const figure = make("figure", { class: "curve" },
      make("figcaption", {}, make("strong", {}, spec.title), " ", readout), svg,
      make("p", { class: "hint" }, spec.about, dashed ? "; dashed: " + spec.dashed : "", savers(spec.name, svg, spec.title + ", " + whom)));
    const show = (t) => {
      marker.setAttribute("d", "M" + x(t) + " " + BOX.top + "V" + (HIGH - BOX.bottom));
      const value = middle[t];
      dot.setAttribute("visibility", known(value) ? "visible" : "hidden");
      if (known(value)) {
        dot.setAttribute("cx", x(t));
        dot.setAttribute("cy", y(value));
      }
      readout.textContent = number(value) + (dashed && spec.beside ? ", schedule " + number(dashed[t]) : "");
    };
    return { figure, show };
  };

  // ---- filmstrips -----------------------------------------------------------------------------

  const BRANCHES = [["unconditional", "without the prompt"], ["conditional", "with the prompt"], ["guided", "guided"]];
  const nearest = (list, t) => list.reduce((best, call, at) => (Math.abs(call - t) < Math.abs(list[best] - t) ? at : best), 0);
  const frame = (film, branch, words) => {
    const image = make("img", { src: "data:image/webp;base64," + film.image, alt: words });
    const rows = film.branches.length;
    const columns = film.calls.length;
    image.style.width = 100 * columns + "%";
    image.style.height = 100 * rows + "%";
    const row = film.branches.indexOf(branch);
    const show = (t) => {
      image.style.transform = "translate(" + -100 / columns * nearest(film.calls, t) + "%," + -100 / rows * row + "%)";
    };
    return { element: make("span", { class: "frame" }, image), show };
  };
  const film = (prompt, g, detail, here) => {
    const shows = [];
    const grid = make("div", { class: "film" });
    const columns = here.samples;
    grid.style.setProperty("--seeds", Math.max(1, columns.length));
    const films = new Map(here.films.map((one) => [one.seed, one]));
    const rows = BRANCHES.filter(([branch]) => here.films.some((one) => one.branches.includes(branch)));
    for (const [branch, words] of rows) {
      const said = words === "with the prompt" && g === "1" ? "with the prompt, unguided" : words;
      grid.append(make("span", { class: "branch" }, said));
      for (const sample of columns) {
        const one = films.get(sample.seed);
        if (!one) grid.append(hole(sample.status === "ok" ? "not on this page" : sample.status));
        else {
          const made = frame(one, branch, "Estimate " + said + ", seed " + sample.seed + ", at the chosen call");
          shows.push(made.show);
          grid.append(made.element);
        }
      }
    }
    grid.append(make("span", { class: "branch" }, "the finished sample"));
    for (const sample of columns) {
      grid.append(make("figure", { class: "final " + sample.copies }, picture(sample, "Sample from seed " + sample.seed, "sample"),
        make("figcaption", {}, "seed " + sample.seed + ", " + (sample.status === "ok" ? number(sample.similarity) : sample.status + " " + sample.reason)
          + ({ own: ", reproduces it", another: ", copies another" }[sample.copies] || "") + (sample.borderline ? ", borderline" : ""))));
    }
    const own = make("div", { class: "own" });
    for (const one of detail.own) own.append(make("figure", {}, picture(one, prompt.image, "target"), make("figcaption", {}, prompt.image)));
    if (!detail.own.length) own.append(hole("no training image"));
    if (here.nearest) {
      const copied = here.nearest.copied;
      own.append(make("figure", { class: copied ? "copied" : "" }, picture(here.nearest, "Nearest training image of another prompt", "target"),
        make("figcaption", {}, (copied ? "copied in " + copied + " of " + at(prompt, g).n + " samples: of another prompt" : "nearest of all other training images")
          + ", similarity " + number(here.nearest.similarity))));
    }
    const kept = here.films[0];
    const note = make("p", { class: "hint" }, kept
      ? "What the network takes the finished image to be. Kept of " + kept.calls.length + " of " + calls + " calls; the nearest is shown."
      : data.redacted ? "Pictures are redacted." : data.films ? "No room on this page for this prompt's filmstrips; they are in the run folder."
        : "This run kept no pictures on the way. A study with --filmstrip 16 keeps those of 16 calls.");
    return { element: make("div", {}, make("div", { class: "stage" }, own, make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Samples and estimates of " + prompt.id + " at g = " + g }, grid)), note), shows };
  };

  // ---- the page of a prompt -------------------------------------------------------------------

  const stage = $("prompt");
  const roleOf = (prompt) => at(prompt, data.lead).state;
  let now = Math.floor(calls / 4);
  let shows = [];
  let playing = 0;
  let back = null;
  let opened = 0;
  let place = null;

  const moveTo = (t) => {
    now = Math.max(0, Math.min(calls - 1, t));
    for (const show of shows) show(now);
  };
  const stop = () => {
    clearInterval(playing);
    playing = 0;
    for (const play of stage.querySelectorAll(".play")) play.textContent = "Play";
  };
  const link = (sides) => "#p/" + sides.map(([place, g]) => place + "/" + g).join("/with/");

  // ---- scores of detectors ----------------------------------------------------------------------

  const TICKS = 300;
  const ranked = (rank, n) => (rank === 1 ? "the highest of " : "rank " + rank + " of ") + n + " prompts";
  // Where a score lies among those of the run's other prompts, at the same guidance scale.
  const strip = (prompt, g, name, column) => {
    const others = data.prompts.filter((one) => known(at(one, g).v[column])).sort((a, b) => at(a, g).v[column] - at(b, g).v[column]);
    const values = others.map((one) => at(one, g).v[column]);
    const [from, to] = [values[0], values[values.length - 1]];
    const place = (value) => (4 + (WIDE - 8) * (to > from ? (value - from) / (to - from) : 0.5)).toFixed(1);
    const svg = draw("svg", { viewBox: "0 0 " + WIDE + " 34", role: "img", class: "strip",
      "aria-label": name + " of " + values.length + " prompts, from " + number(from) + " to " + number(to) + "; of this one " + number(at(prompt, g).v[column]) });
    svg.append(draw("path", { d: "M0 17H" + WIDE, stroke: "var(--rule)" }));
    const every = Math.ceil(others.length / TICKS);
    others.forEach((one, rank) => {
      if (rank % every) return;
      const role = roleOf(one);
      svg.append(draw("path", { d: "M" + place(at(one, g).v[column]) + " 17v" + (role === "memorized" ? -11 : 11),
        stroke: ROLES[role], "stroke-width": "1.5", opacity: ".75" }));
    });
    svg.append(draw("circle", { cx: place(at(prompt, g).v[column]), cy: 17, r: 5, fill: "var(--ink)", stroke: "var(--paper)", "stroke-width": "1.5" }));
    return svg;
  };
  const scoreBlock = (prompt, g, scores, level) => {
    if (!scores.length) return make("div", { class: "scores" });
    const said = (place) => {
      const [score, rank] = scores[place];
      return known(score) ? [make("strong", {}, number(score)), ", " + ranked(rank, data.detectors[place].n[g])] : ["no score: " + rank];
    };
    const first = data.detectors.map((one, place) => [one, place, data.columns.findIndex((column) => column.label === one.name)])
      .filter(([, , column]) => column >= 0);
    const cell = (text, kind = "") => make("td", { class: kind }, text);
    return make("div", { class: "scores" },
      make(level, { class: "subtitle" }, "What detectors say of it"),
      ...first.map(([one, place, column]) => make("div", { class: "scored" },
        make("p", {}, make("code", {}, one.name), " ", ...said(place)),
        ...(known(scores[place][0]) ? [strip(prompt, g, one.name, column)] : []))),
      ...(first.length ? [make("p", { class: "hint" }, "Larger is more memorized. The dot is this prompt at g = " + g
        + "; a line upwards is a memorized prompt of the run, a line downwards another one (grey: not judged).")] : []),
      make("details", {}, make("summary", {}, make("span", {}, "All " + scores.length + " detectors")),
        make("table", { class: "ranks" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "detector"),
          make("th", { scope: "col", class: "num" }, "score"), make("th", { scope: "col", class: "num" }, "rank"))),
        make("tbody", {}, ...scores.map(([score, rank], place) => make("tr", {},
          make("th", { scope: "row" }, make("code", {}, data.detectors[place].name)),
          cell(known(score) ? number(score) : "no score", "num"),
          known(score) ? cell(rank + " of " + data.detectors[place].n[g], "num") : cell(rank, "method")))))));
  };

  const sideOf = (prompt, g, detail, ranges, level) => {
    const here = detail.at[g];
    const role = roleOf(prompt);
    const drawn = film(prompt, g, detail, here);
    const whom = "g = " + g;
    const parts = here.curves ? CHARTS.filter((spec) => here.curves[spec.name].length)
      .map((spec) => chart(spec, here.curves, ranges.get(spec.name), ROLES[role], whom, (t) => { stop(); moveTo(t); })) : [];
    const listed = at(prompt, g);
    const element = make("article", { class: "side " + role },
      make(level, { class: "title" }, make("bdi", { class: "prompt" }, detail.text)),
      make("p", { class: "facts" }, make("strong", { class: "role" }, WORDS[role]), " at g = " + data.lead
        + (role === "unjudged" && prompt.group === "control" ? ", a control" : "") + (role === "unjudged" && detail.own.length ? ": " + data.unjudged : "") + ". Shown at ", make("strong", {}, whom), ": " + said(listed), ...doubt(listed.borderline), ". " + about(prompt) + (known(prompt.tokens) ? "; " + prompt.tokens + " tokens" : "") + (prompt.truncated ? ", cut at the model's window" : "") + "; ", make("code", {}, prompt.id), "."),
      make("div", { class: "work" }, drawn.element, make("div", { class: "curves" }, ...parts.map((one) => one.figure))),
      parts.length ? make("p", { class: "hint" }, "Bold: mean over " + here.curves.seeds.length + " seeds; thin: each seed. The image is "
        + (here.curves.reference === "target" ? "the " + prompt.image : "the sample's own end, since the prompt has none") + ".")
        : make("p", { class: "warning" }, "The run recorded no path of this prompt at this guidance scale."),
      scoreBlock(prompt, g, here.scores, level === "h1" ? "h2" : "h3"),
      make("details", {}, make("summary", {}, make("span", {}, "All numbers of this prompt")),
        make("table", {}, make("tbody", {}, ...data.columns.map((column, place) => make("tr", {},
          make("th", { scope: "row" }, column.label), make("td", { class: "num" }, number(listed.v[place])), make("td", { class: "method" }, column.about)))))));
    return { element, shows: [...drawn.shows, ...parts.map((one) => one.show)] };
  };

  const beside = (main, second) => {
    const [place, g] = main;
    const select = make("select", { id: "beside" });
    const chosen = second ? second.join("/") : "";
    option(select, "", "nothing");
    for (const scale of data.guidances) if (scale !== g) option(select, place + "/" + scale, "this prompt at g = " + scale);
    for (const [role, words] of [["memorized", "the most severe prompt"], ["another", "a prompt that copies another image"], ["plain", "a prompt that is not memorized"], ["control", "a control"],
      ["unjudged", "a prompt that is not judged"]]) {
      const rank = role === "plain" ? [...data.prompts].reverse() : data.prompts;
      const other = rank.find((prompt) => roleOf(prompt) === role && prompt.place !== place);
      if (other) option(select, other.place + "/" + g, words);
    }
    if (chosen && ![...select.options].some((one) => one.value === chosen)) option(select, chosen, data.prompts[second[0]].text.slice(0, 60));
    select.value = chosen;
    select.addEventListener("change", () => {
      const [other, scale] = select.value.split("/");
      location.hash = link(select.value ? [main, [Number(other), scale]] : [main]);
    });
    const hits = make("div", { class: "hits" });
    const words = make("input", { type: "search", placeholder: "words of another prompt", "aria-label": "Another prompt to show beside it", autocomplete: "off" });
    words.addEventListener("input", () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      hits.replaceChildren(...(wanted.length ? data.prompts.filter((prompt) => prompt.place !== place
        && wanted.every((word) => prompt.text.toLowerCase().includes(word))).slice(0, 8) : [])
        .map((prompt) => button(make("bdi", {}, prompt.text), () => { location.hash = link([main, [prompt.place, g]]); }, { class: "open" })));
    });
    return make("div", { class: "beside-it" }, make("label", {}, "Beside it ", select), make("div", { class: "finder" }, words, hits));
  };

  const player = () => {
    const slider = make("input", { type: "range", min: 0, max: Math.max(0, calls - 1), step: 1, value: now, id: "step", "aria-label": "Denoising call" });
    const words = make("span", { class: "where" });
    const play = button("Play", () => {
      if (playing) stop();
      else {
        if (now === calls - 1) moveTo(0);
        playing = setInterval(() => { if (now >= calls - 1) stop(); else moveTo(now + 1); }, 110);
        play.textContent = "Pause";
      }
    }, { class: "play" });
    slider.addEventListener("input", () => { stop(); moveTo(slider.valueAsNumber); });
    const show = (t) => {
      slider.value = t;
      const text = "call " + (t + 1) + " of " + calls;
      words.textContent = text + " · image α " + number(data.schedule.alpha[t]) + ", noise σ " + number(data.schedule.sigma[t]);
      slider.setAttribute("aria-valuetext", text);
    };
    return { element: make("div", { class: "player" }, play, slider, words), show };
  };

  const openPrompt = async (sides) => {
    const turn = opened += 1;
    const prompts = sides.map(([place]) => data.prompts[place]);
    let loaded;
    try {
      loaded = await Promise.all(prompts.map((prompt) => load(prompt.place)));
    } catch (error) {
      loaded = null;
      stage.replaceChildren(button("All prompts", close), make("p", { class: "warning", role: "alert" }, error.message));
    }
    // The reader may have gone on while the detail was read.
    if (turn !== opened) return;
    stop();
    const fresh = place !== sides[0][0] || stage.hidden;
    const focused = document.activeElement ? document.activeElement.id : "";
    place = sides[0][0];
    if (stage.hidden && back === null) back = scrollY;
    document.body.classList.add("on-prompt");
    stage.hidden = false;
    if (loaded) {
      const ranges = new Map(CHARTS.map((spec) => [spec.name, reach(spec, sides.map(([, g], at) => loaded[at].at[g].curves))]));
      const drawn = sides.map(([, g], at) => sideOf(prompts[at], g, loaded[at], ranges, at ? "h2" : "h1"));
      drawn[0].element.querySelector(".title").id = "prompt-title";
      const bar = player();
      shows = calls ? [...drawn.flatMap((one) => one.shows), bar.show] : [];
      const rank = found.indexOf(prompts[0]);
      const step = (by, text, id) => {
        const next = found[rank + by];
        const made = button(text, () => { location.hash = link([[next.place, sides[0][1]], ...sides.slice(1)]); }, { id });
        made.disabled = rank < 0 || !next;
        return made;
      };
      const scale = make("select", { id: "scale" });
      for (const value of data.guidances) option(scale, value, "g = " + value);
      scale.value = sides[0][1];
      scale.addEventListener("change", () => { location.hash = link([[sides[0][0], scale.value], ...sides.slice(1)]); });
      stage.replaceChildren(
        make("div", { class: "bar" }, button("All prompts", close), step(-1, "Previous", "previous"), step(1, "Next", "next"),
          make("label", {}, "Guidance ", scale), beside(sides[0], sides[1])),
        make("div", { class: "two n" + sides.length }, ...drawn.map((one) => one.element)),
        ...(calls ? [bar.element] : []));
      moveTo(now);
    }
    if (fresh) scrollTo({ top: 0, behavior: "instant" });
    // What the reader was using is drawn anew, and keeps the focus.
    const again = focused ? $(focused) : null;
    (again && stage.contains(again) && !again.disabled ? again : stage).focus({ preventScroll: true });
  };
  const close = () => { location.hash = listed(); };
  const LIST = /^#prompts(?:\?(.*))?$/;
  const route = () => {
    const parts = location.hash.match(/^#p\/(\d+)\/?([^/]*)(?:\/with\/(\d+)\/([^/]+))?$/);
    const sides = parts ? [[Number(parts[1]), parts[2] || data.lead], ...(parts[3] ? [[Number(parts[3]), parts[4]]] : [])] : [];
    if (sides.length && sides.every(([place, g]) => data.prompts[place] && data.guidances.includes(g))) {
      openPrompt(sides);
      return;
    }
    opened += 1;
    stop();
    tip.hidden = true;
    const chosen = location.hash.match(LIST);
    // Going back restores the list as the address says it was, unless it is so already.
    if (chosen && location.hash !== listed()) choose(chosen[1] || "");
    if (!document.body.classList.contains("on-prompt")) {
      if (chosen && chosen[1] && !history.state) $("prompts").scrollIntoView();
      return;
    }
    document.body.classList.remove("on-prompt");
    stage.hidden = true;
    stage.replaceChildren();
    shows = [];
    const place = history.state && known(history.state.scroll) ? history.state.scroll : back;
    back = null;
    if (known(place) && (chosen || !location.hash || history.state)) scrollTo({ top: place, behavior: "instant" });
    else (chosen ? $("prompts") : $(location.hash.slice(1)))?.scrollIntoView();
  };
  // Where the reader was is kept with the address that is left, so that going back returns there.
  let leaving = 0;
  addEventListener("scroll", () => {
    if (!stage.hidden) return;
    clearTimeout(leaving);
    leaving = setTimeout(() => { if (stage.hidden) history.replaceState({ scroll: scrollY }, ""); }, 150);
  }, { passive: true });
  addEventListener("hashchange", route);
  addEventListener("keydown", (event) => {
    if (stage.hidden || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target.closest("input, select, textarea, .scroll")) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      stop();
      moveTo(now + (event.key === "ArrowRight" ? 1 : -1));
      event.preventDefault();
    } else if (event.key === "Escape") close();
  });

  // ---- dots of scatter plots --------------------------------------------------------------------

  const tip = make("div", { class: "tip", hidden: "" });
  document.body.append(tip);
  for (const svg of document.querySelectorAll("figure.panel svg")) {
    svg.addEventListener("pointermove", (event) => {
      const dot = event.target.closest("[data-place]");
      tip.hidden = !dot;
      if (!dot) return;
      const prompt = data.prompts[Number(dot.dataset.place)];
      if (tip.dataset.place !== dot.dataset.place || !tip.firstChild) {
        tip.dataset.place = dot.dataset.place;
        tip.className = "tip " + roleOf(prompt);
        tip.replaceChildren(make("bdi", { class: "prompt" }, prompt.text), make("span", { class: "share" }, said(at(prompt, data.lead))),
          cardOf(prompt, data.lead));
      }
      tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
      tip.style.top = Math.max(8, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
    });
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
    svg.addEventListener("click", (event) => {
      const dot = event.target.closest("[data-place]");
      if (dot) location.hash = link([[Number(dot.dataset.place), data.lead]]);
    });
  }

  setLead();
  refresh();
  route();
})();
