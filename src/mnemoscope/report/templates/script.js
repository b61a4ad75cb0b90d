"use strict";
// The explorer. Everything a run says enters the page through textContent or an image's source.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("list");
  if (!list) return;
  const $ = (id) => document.getElementById(id);
  const [search, group, grade, guidance, sort, count, more, detail] =
    ["search", "group", "grade", "guidance", "sort", "count", "more", "detail"].map($);
  const PAGE = 48;
  let found = [];
  let shown = 0;
  let body = null;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    for (const child of children) element.append(child);
    return element;
  };
  const option = (select, value, text) => select.append(make("option", { value }, text));
  const image = (place, alt, kind) => make("img", {
    src: "data:image/webp;base64," + data.images[place], alt, loading: "lazy", decoding: "async",
    class: kind,
  });
  const hole = (why) => make("div", { class: "missing" }, why);
  const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(3).replace("-", "−"));
  const percent = (value) => (value === null || value === undefined ? "–" : Math.round(100 * value) + " %");
  const at = (prompt) => prompt.at[guidance.value] || { samples: [], more: 0 };
  const gradeOf = (prompt) => at(prompt).grade || "not graded";
  const said = (prompt) => {
    const here = at(prompt);
    return low(here.share) > -Infinity ? percent(here.share) + " of " + here.n + " samples reproduce it" : "not judged: no threshold or no training image";
  };
  const sample = (one) => (one.image === null
    ? hole(one.status === "ok" ? "not on this page" : one.status)
    : image(one.image, "Generated from seed " + one.seed, "sample"));

  const unique = (values) => [...new Set(values)].sort();
  for (const value of data.guidances) option(guidance, value, "g = " + value);
  if (data.lead !== null) guidance.value = data.lead;
  for (const value of unique(data.prompts.map((prompt) => prompt.group))) option(group, value, value);
  for (const value of unique(data.prompts.flatMap((prompt) =>
    Object.values(prompt.at).map((here) => here.grade || "not graded")))) option(grade, value, value);

  const view = () => document.querySelector("input[name=view]:checked").value;
  const low = (value) => (value === null || value === undefined ? -Infinity : value);
  const severity = (a, b) => low(at(b).share) - low(at(a).share) || low(at(b).mean) - low(at(a).mean) || 0;
  const orders = {
    share: severity,
    least: (a, b) => severity(b, a),
    text: (a, b) => (a.text < b.text ? -1 : a.text > b.text ? 1 : 0),
    level: (a, b) => low(b.level) - low(a.level) || severity(a, b),
  };

  const card = (prompt, place) => {
    const four = make("div", { class: "four" });
    for (const one of at(prompt).samples.slice(0, 4)) four.append(sample(one));
    const target = prompt.own.length
      ? image(prompt.own[0], prompt.image, "target") : hole("no training image");
    const button = make("button", { type: "button", class: "card" + (low(at(prompt).share) >= 0.5 ? " hit" : "") },
      make("div", { class: "pair" }, target, four),
      make("bdi", { class: "prompt" }, prompt.text),
      make("span", { class: "share" }, said(prompt)),
      make("small", {}, prompt.group + (prompt.level === null ? "" : ", level " + prompt.level) + ", " + gradeOf(prompt)));
    button.addEventListener("click", () => open(place));
    return button;
  };
  const row = (prompt, place) => {
    const strip = make("div", { class: "strip" });
    if (prompt.own.length) strip.append(image(prompt.own[0], prompt.image, "target"));
    for (const one of at(prompt).samples.slice(0, 4)) {
      if (one.image !== null) strip.append(image(one.image, "Generated from seed " + one.seed, "sample"));
    }
    const button = make("button", { type: "button", class: "open" }, make("bdi", { class: "prompt" }, prompt.text));
    button.addEventListener("click", () => open(place));
    const cell = (text, kind = "") => make("td", { class: kind }, text);
    return make("tr", {}, make("td", {}, button), make("td", {}, strip), cell(prompt.group),
      cell(prompt.level === null ? "" : String(prompt.level), "num"), cell(gradeOf(prompt)),
      cell(percent(at(prompt).share), "num"), cell(number(at(prompt).mean), "num"),
      cell(number(at(prompt).max), "num"), cell(String(at(prompt).n ?? 0), "num"));
  };
  const heads = [["prompt", "text"], ["images", ""], ["group", ""], ["level", "level"], ["grade", ""],
    ["share", "share"], ["mean similarity", ""], ["closest", ""], ["n", ""]];
  const table = () => {
    const head = make("tr");
    heads.forEach(([name, key], place) => {
      const cell = make("th", { scope: "col", class: place === 3 || place > 4 ? "num" : "" });
      if (key) {
        const button = make("button", { type: "button", class: "open" }, name);
        button.addEventListener("click", () => {
          sort.value = key === "share" && sort.value === "share" ? "least" : key;
          refresh();
        });
        const by = sort.value === "least" ? "share" : sort.value;
        if (by === key) cell.setAttribute("aria-sort", key === "text" || sort.value === "least" ? "ascending" : "descending");
        cell.append(button);
      } else cell.append(name);
      head.append(cell);
    });
    body = make("tbody");
    list.replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Prompts" },
      make("table", { class: "rows" }, make("thead", {}, head), body)));
  };

  const grow = () => {
    const draw = view() === "table" ? row : card;
    const next = found.slice(shown, shown + PAGE);
    body.append(...next.map((prompt, step) => draw(prompt, shown + step)));
    shown += next.length;
    more.hidden = shown >= found.length;
  };
  const refresh = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = data.prompts.filter((prompt) => {
      const text = (prompt.text + " " + prompt.id).toLowerCase();
      return words.every((word) => text.includes(word)) && (!group.value || prompt.group === group.value)
        && (!grade.value || gradeOf(prompt) === grade.value);
    }).sort(orders[sort.value]);
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

  const open = (place) => {
    const prompt = found[place];
    const here = at(prompt);
    const step = (by, text, key) => {
      const button = make("button", { type: "button" }, text);
      button.disabled = !found[place + by];
      button.addEventListener("click", () => open(place + by));
      button.dataset.key = key;
      return button;
    };
    const close = make("button", { type: "button" }, "Close");
    close.addEventListener("click", () => detail.close());
    const own = make("div", { class: "own" });
    prompt.own.forEach((one, index) => own.append(make("figure", {}, image(one, prompt.image, "target"),
      make("figcaption", {}, (index ? "another " : "") + prompt.image))));
    if (!prompt.own.length) own.append(hole("no training image"));
    if (here.nearest !== null && here.nearest !== undefined && !prompt.own.includes(here.nearest)) {
      own.append(make("figure", {}, image(here.nearest, "Nearest training image", "target"),
        make("figcaption", {}, "nearest of all known training images")));
    }
    const seeds = make("div", { class: "seeds" });
    for (const one of here.samples) {
      const above = data.threshold !== null && low(one.similarity) > data.threshold;
      const words = "seed " + one.seed + ", " + (one.status === "ok" ? number(one.similarity) : one.status + " " + one.reason)
        + (above ? ", above threshold" : "");
      seeds.append(make("figure", { class: above ? "above" : "" }, sample(one), make("figcaption", {}, words)));
    }
    if (here.more) seeds.append(hole(here.more + " more in the run folder"));
    detail.replaceChildren(
      make("div", { class: "bar" }, step(-1, "Previous", "ArrowLeft"), step(1, "Next", "ArrowRight"), close),
      make("h3", { id: "detail-title" }, make("bdi", { class: "prompt" }, prompt.text)),
      make("p", {}, said(prompt) + "; mean " + number(here.mean) + ", closest " + number(here.max) + " (" + data.measure
        + ", g = " + guidance.value + "). " + gradeOf(prompt) + "; " + prompt.group
        + (prompt.level === null ? "" : ", level " + prompt.level) + "; " + prompt.tokens + " tokens"
        + (prompt.truncated ? ", cut at the model's window" : "") + "; " + prompt.id + "."),
      make("div", { class: "sides" }, own, seeds));
    if (!detail.open) detail.showModal();
    close.focus();
  };
  detail.addEventListener("keydown", (event) => {
    const button = [...detail.querySelectorAll("button")].find((one) => one.dataset.key === event.key);
    if (button && !button.disabled) button.click();
  });
  detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });

  $("controls").addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", refresh);
  $("controls").addEventListener("change", (event) => { if (event.target !== search) refresh(); });
  more.addEventListener("click", grow);
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && !more.hidden) grow();
  }, { rootMargin: "600px" }).observe(more);
  refresh();
})();
