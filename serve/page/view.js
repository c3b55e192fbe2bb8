// Parts of the page, made from answers. Text goes in as text, never as HTML.

export const byId = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const nameOf = (row) => row.title || row.item_id;

export function tagsOf(row) {
  const parts = row.title && row.title !== row.item_id ? [row.item_id] : [];
  for (const [column, value] of Object.entries(row)) {
    if (column === "item_id" || column === "title" || value === null) continue;
    if (Array.isArray(value)) parts.push(...value);
    else parts.push(`${column} ${Number(value.toPrecision(6))}`);
  }
  return parts.join(" \u00b7 ");
}

const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(2);

// A list item of a recommendation; `before` is its place in the list shown before, if any.
export function recommendation(item, row, rank, top, before, hadList) {
  const element = byId("item-template").content.firstElementChild.cloneNode(true);
  const part = (name) => element.querySelector(`.${name}`);
  element.dataset.item = item.item_id;
  part("rank").textContent = rank;
  part("title").textContent = nameOf(row);
  part("tags").textContent = tagsOf(row);
  part("tags").title = tagsOf(row);
  part("meter").firstElementChild.style.width = `${Math.max(0, Math.min(1, item.score / top)) * 100}%`;
  part("score").querySelector(".number").textContent = item.score.toFixed(2);
  part("score").querySelector(".number").title = item.score;
  for (const name of ["why", "similar"]) part(name).setAttribute("aria-label", `${part(name).textContent}: ${nameOf(row)}`);
  if (hadList) mark(part("move"), element, rank, before);
  return element;
}

function mark(move, element, rank, before) {
  if (before === undefined) {
    move.textContent = "new";
    move.dataset.way = "new";
    element.classList.add("fresh");
  } else if (before !== rank) {
    move.dataset.way = before > rank ? "up" : "down";
    move.textContent = `${before > rank ? "\u25b2" : "\u25bc"} ${Math.abs(before - rank)}`;
    move.setAttribute("aria-label", `${before > rank ? "up" : "down"} ${Math.abs(before - rank)}`);
  }
}

// Effects with bars to both sides of zero, all on one scale.
function effects(title, pairs, scale) {
  const rows = pairs.map(([name, value]) => {
    const width = `${Math.min(1, Math.abs(value) / scale) * 100}%`;
    const [less, more] = [make("span"), make("span")];
    (value < 0 ? less : more).style.width = width;
    return make(
      "tr", {},
      make("th", { scope: "row", textContent: name }),
      make("td", {}, make("div", { className: "two-sided", ariaHidden: "true" }, less, more)),
      make("td", { className: "number", textContent: signed(value) }),
    );
  });
  return [make("h3", { textContent: title }), make("table", { className: "effects" }, make("tbody", {}, ...rows))];
}

export function reasons(why, rows) {
  const largestFirst = (effects) => Object.entries(effects).sort(([, a], [, b]) => Math.abs(b) - Math.abs(a));
  const [history, context] = [largestFirst(why.history), largestFirst(why.context)];
  const sources = Object.entries(why.sources);
  const scale = (pairs) => Math.max(1e-9, ...pairs.map(([, value]) => Math.abs(value)));
  const both = Math.max(scale(history), scale(context));
  const titled = history.map(([id, value]) => [nameOf(rows.get(id)), value]);
  const made = [];
  if (titled.length) made.push(...effects("Change of the score without this part of the history", titled, both));
  if (context.length) made.push(...effects("\u2026 and without this part of the moment (times: against their mean)", context, both));
  made.push(...effects("Parts of the model, which sum to the score", sources, scale(sources)));
  return made;
}

export function plainList(items, rows) {
  return make(
    "ol", { className: "plain" },
    ...items.map((item) =>
      make("li", {}, make("span", { textContent: nameOf(rows.get(item.item_id)) }), make("span", { className: "number", textContent: item.score.toFixed(3) })),
    ),
  );
}

export function event(told) {
  const when = new Date(told.timestamp * 1000).toISOString().slice(0, 16).replace("T", " ");
  const about = [when, told.action, ...Object.entries(told.context).map(([name, value]) => `${name} ${value}`)];
  return make(
    "li", {},
    make("span", { textContent: told.title || told.item_id }),
    make("span", { className: "meta", textContent: about.filter(Boolean).join(" \u00b7 ") }),
  );
}

export function stageRows(stages) {
  const most = Math.max(...stages.map(([, ms]) => ms), 1e-9);
  return stages.map(([stage, ms]) => {
    const bar = make("span");
    bar.style.width = `${(ms / most) * 100}%`;
    return make(
      "tr", {},
      make("th", { scope: "row", textContent: stage }),
      make("td", { textContent: ms.toFixed(2) }),
      make("td", { className: "bar" }, make("div", { className: "meter", ariaHidden: "true" }, bar)),
    );
  });
}

// A labelled field for a context feature or a filter.
export function field(id, label, control) {
  control.id = id;
  return [make("label", { htmlFor: id, textContent: label }), control];
}

export function choice(values, nothing) {
  const options = values.map((value) => make("option", { value, textContent: value }));
  return make("select", {}, make("option", { value: "", textContent: nothing }), ...options);
}
