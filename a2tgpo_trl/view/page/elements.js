"use strict";
// Elements and numbers. Text only ever becomes text: nothing here, or elsewhere in our code, writes HTML.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// What is under a name that others chose: "constructor" is on every object.
const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);

function fill(id, ...children) {
  document.getElementById(id).replaceChildren(...children);
}

function options(select, texts) {
  select.replaceChildren(...texts.map((text, number) => element("option", { value: number }, text)));
}

function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size < 1e-6) return "0"; // rounding
  return size < 0.001 || size >= 1e6 ? value.toExponential(2) : value.toFixed(size < 1 ? 3 : 2);
}

function signed(value) {
  return (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(2);
}

// head: texts; rows: lists of texts, the first of which names its row.
function plainTable(head, rows) {
  const cells = (name, texts) => texts.map((text) => element(name, name === "th" ? { scope: "col" } : {}, text));
  const body = rows.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...cells("td", rest)));
  return element("table", { class: "plain" },
    element("thead", {}, element("tr", {}, ...cells("th", head))), element("tbody", {}, ...body));
}

// Made of `make()` when it is opened for the first time.
function folded(summary, make, open = false) {
  const details = element("details", { open }, element("summary", {}, summary));
  const unfold = () => {
    if (details.open && details.childElementCount === 1) details.append(make());
  };
  details.addEventListener("toggle", unfold);
  unfold();
  return details;
}
