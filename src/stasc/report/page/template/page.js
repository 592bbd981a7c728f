// Behaviour of the page: theme, charts (Vega), sortable tables and the list of answers (DataTables).

const root = document.documentElement;
const data = JSON.parse(document.getElementById("data").textContent);

const unpack = async (id) => {
  const packed = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
};

const library = async (id) => {
  const text = await (await unpack(id)).text();
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  const module = await import(url);
  URL.revokeObjectURL(url);
  return module;
};

const element = (name, className, ...children) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children); // strings become text, never markup: answers are untrusted
  return made;
};

// Theme: the system's until the reader chooses one.
const themes = { light: "dark", dark: "light" };
const system = matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");
const show = (theme) => {
  root.dataset.theme = theme;
  root.classList.toggle("dark", theme === "dark"); // DataTables' name for it
  button.textContent = theme === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Show the page in ${themes[theme]} colours`);
};
let chosen;
try {
  chosen = localStorage.getItem("theme");
} catch {} // without storage, the choice is lost with the page
const current = () => (themes[chosen] ? chosen : system.matches ? "dark" : "light");
show(current());
system.addEventListener("change", () => show(current()));
button.hidden = false;
button.addEventListener("click", () => {
  chosen = themes[root.dataset.theme];
  try {
    localStorage.setItem("theme", chosen);
  } catch {}
  show(chosen);
});
addEventListener("beforeprint", () => show("light"));
addEventListener("afterprint", () => show(current()));

// Charts: as many columns as fit.
const LEAST = { effects: 250, interactions: 250, comparisons: 250, curves: 130, transitions: 130, trajectories: 190 };
const fitted = (name, spec, available) => {
  const margin = LEAST[name] === 250 ? 190 : 62;
  const columns = Math.max(1, Math.min(spec.columns, Math.floor((available - margin + 20) / (LEAST[name] + 20))));
  const width = Math.max(110, Math.floor((available - margin - 20 * (columns - 1)) / columns));
  return { ...spec, columns, spacing: 20, spec: { ...spec.spec, width: Math.min(width, 420) } };
};

const draw = async (vegaEmbed, place) => {
  const available = Math.floor(place.clientWidth);
  if (!available || place.dataset.available === String(available)) return;
  place.dataset.available = available;
  const name = place.dataset.chart;
  const spec = fitted(name, data.charts[name], available);
  await vegaEmbed(place, spec, { renderer: "svg", actions: false, ast: true, config: data.config });
  place.dataset.drawn = "true";
};

const charts = [...document.querySelectorAll("[data-chart]")];
if (charts.length) {
  const { default: vegaEmbed } = await library("vega");
  const seen = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => draw(vegaEmbed, e.target)),
    { rootMargin: "600px" },
  );
  charts.forEach((place) => seen.observe(place));
  const drawAll = (all) => charts.forEach((place) => (all || place.dataset.drawn) && draw(vegaEmbed, place));
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  addEventListener("beforeprint", () => drawAll(true));
}

// Sections grow as charts and tables appear: keep the section of the link in view until the reader moves.
let asked = null;
const keep = () => asked?.scrollIntoView();
const ask = () => {
  asked = location.hash ? document.getElementById(location.hash.slice(1)) : null;
  keep();
};
for (const name of ["wheel", "touchstart", "keydown", "pointerdown"]) {
  addEventListener(name, () => (asked = null), { passive: true });
}
addEventListener("click", (event) => event.target.closest?.("a[href^='#']") && setTimeout(ask));
addEventListener("hashchange", ask);
new ResizeObserver(keep).observe(document.body);
ask();

// Tables.
const { default: DataTable } = await library("datatables");
DataTable.ext.errMode = "throw";
document.querySelectorAll("table.sortable").forEach((table) => {
  const long = table.tBodies[0].rows.length > 12;
  const options = { paging: false, info: false, searching: long, order: [], autoWidth: false };
  new DataTable(table, { ...options, layout: { topEnd: long ? "search" : null }, language: { search: "Find" } });
});

// The list of answers.
const form = document.getElementById("filters");
if (form) browse(form);

function browse(form) {
  const { cells, questions, why, blocks } = data.samples;
  const opened = new Map();
  const open = (block) => {
    const id = block.join("-");
    if (!opened.has(id)) opened.set(id, unpack(`block-${id}`).then((response) => response.json()));
    return opened.get(id);
  };
  const lower = (text) => text.toLowerCase();
  const asked = questions.map((q) => lower(`${q.id}\n${q.text ?? ""}`));
  const field = (name) => form.elements[name].value;
  const right = (reward) => reward >= data.correct_at;
  const transition = (r1, r2) => `${right(r1) ? "right" : "wrong"}_${right(r2) ? "right" : "wrong"}`;

  const offer = (name, values) => {
    const select = form.elements[name];
    const before = select.value;
    select.replaceChildren(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    select.value = values.map(String).includes(before) ? before : "";
  };
  const offerBlocks = () => {
    const own = blocks.filter(([kind]) => kind === field("kind"));
    offer("seed", [...new Set(own.map(([, seed]) => seed))]);
    offer("n", [...new Set(own.map(([, , n]) => n))].sort((a, b) => a - b));
    form.elements.kept.closest("label").hidden = field("kind") !== "train";
  };

  const matches = async () => {
    const [kind, seed, n, variant, change] = ["kind", "seed", "n", "variant", "transition"].map(field);
    const [question, text, kept] = [lower(field("question")), lower(field("text")), field("kept")];
    const cell = variant ? cells.indexOf(variant) : null;
    const wanted = asked.map((q, i) => !question || q.includes(question) || lower(questions[i].id) === question);
    const found = [];
    const chosen = blocks.filter(
      (b) => b[0] === kind && (!seed || String(b[1]) === seed) && (!n || String(b[2]) === n),
    );
    for (const block of chosen) {
      const rows = await open(block);
      const holds = text && rows.texts.map((one) => lower(one).includes(text));
      for (let i = 0; i < rows.cell.length; i++) {
        if (cell !== null && rows.cell[i] !== cell) continue;
        if (!wanted[rows.question[i]]) continue;
        if (change && transition(rows.r1[i], rows.r2[i]) !== change) continue;
        if (kept && kind === "train" && String(rows.kept[i]) !== kept) continue;
        if (holds && !holds[rows.y1[i]] && !holds[rows.y2[i]] && !asked[rows.question[i]].includes(text)) continue;
        found.push([block, rows, i]);
      }
    }
    return found;
  };

  const answer = (label, text, reward) => {
    const mark = element("span", right(reward) ? "mark right" : "mark wrong", right(reward) ? "✓ right" : "✗ wrong");
    mark.title = `reward ${reward}`;
    const head = element("div", "answer-head", element("span", "muted", label), mark);
    if (reward !== 0 && reward !== 1) head.append(element("span", "muted", `reward ${reward.toFixed(2)}`));
    return element("div", "answer", head, element("p", "said", text.trim() ? text : "(empty)"));
  };
  const row = ([[kind, seed, n], rows, i]) => {
    const q = questions[rows.question[i]];
    const only = element("button", "link", "only this question");
    only.type = "button";
    only.addEventListener("click", () => {
      form.elements.question.value = q.id;
      refresh();
    });
    const about = element("div", "asked", element("p", "question", q.text ?? q.id));
    if (q.references?.length) about.append(element("p", "muted", `Expected: ${q.references.join(" | ")}`));
    about.append(element("p", "muted", q.text ? `${q.id} · ` : "", only));
    const run = element("div", "run", element("strong", "", cells[rows.cell[i]]), ` seed ${seed}, iteration ${n}`);
    if (kind === "train") {
      const label = rows.kept[i] ? "kept" : "not kept";
      run.append(element("p", rows.kept[i] ? "kept" : "muted", `${label}: ${why[rows.why[i]]}`));
    }
    return [
      about,
      answer("Initial answer", rows.texts[rows.y1[i]], rows.r1[i]),
      answer("Correction", rows.texts[rows.y2[i]], rows.r2[i]),
      run,
    ];
  };

  let latest;
  let table;
  let answers;
  const refresh = () => {
    latest = null;
    table.page("first").draw("page");
  };
  const start = () => {
    if (table) return;
    offer("variant", cells);
    offerBlocks();
    const first = blocks.find(([kind]) => kind === field("kind"));
    if (first) [form.elements.seed.value, form.elements.n.value] = [String(first[1]), String(first[2])];
    const status = document.getElementById("found");
    table = new DataTable("#samples-table", {
      serverSide: true, // the functions above play the server, so only visible answers become rows
      searching: false,
      ordering: false,
      autoWidth: false,
      pageLength: 10,
      lengthMenu: [10, 25, 50, 100],
      layout: { topStart: "info", topEnd: "pageLength", bottomStart: null, bottomEnd: "paging" },
      language: { info: "_START_ to _END_ of _TOTAL_ pairs", infoEmpty: "no pairs", lengthMenu: "_MENU_ a page" },
      columns: ["question", "initial", "correction", "run"].map((className) => ({
        className: `column-${className}`,
        data: null,
        defaultContent: "",
      })),
      createdRow: (tr, found) => [...tr.cells].forEach((td, i) => td.replaceChildren(row(found)[i])),
      ajax: async ({ draw, start, length }, callback) => {
        status.textContent = "Searching …";
        const mine = (latest ??= matches());
        const found = await mine;
        if (mine === latest) status.textContent = `${found.length.toLocaleString("en")} pairs match`;
        const shown = found.slice(start, start + length);
        callback({ draw, recordsTotal: found.length, recordsFiltered: found.length, data: shown });
      },
    });
    let waiting;
    form.addEventListener("input", (event) => {
      clearTimeout(waiting);
      if (event.target.name === "kind") offerBlocks();
      waiting = setTimeout(refresh, event.target.matches("select") ? 0 : 250);
    });
    form.addEventListener("reset", () => setTimeout(() => (offerBlocks(), refresh())));
    form.addEventListener("submit", (event) => event.preventDefault());
  };
  new IntersectionObserver((entries) => entries.some((e) => e.isIntersecting) && start(), {
    rootMargin: "200px",
  }).observe(form);
}

root.dataset.ready = "true";
