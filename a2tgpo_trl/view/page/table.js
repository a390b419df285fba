"use strict";
// The table of groups: Tabulator draws the rows that are in view; we say what is in them and which are left out.

const COLUMNS = [
  ["step", "step", 80],
  ["group", "group", 85],
  ["question", "prompt", null],
  ["reward", "mean reward", 130],
  ["spread", "gain spread", 125],
  ["solved", "solved", 90],
  ["failed", "failed", 85],
  ["failures", "failed turns", 125],
  ["other", "reward beside", 140],
  ["gap", "difference", 115],
];
const BESIDE = ["other", "gap"]; // shown where a run is chosen to be beside

// address: of a group, by its line; shownNow hears how many lines are shown.
function groupTable(address, shownNow) {
  const table = new Tabulator("#table", {
    index: "key",
    height: "26rem",
    layout: "fitColumns",
    placeholder: "No group is like that.",
    printAsHtml: true,
    printStyled: false, // not as on the screen, which may be dark
    printRowRange: "active",
    columns: COLUMNS.map(([field, title, width]) => ({
      field,
      title,
      ...(width ? { width, hozAlign: "right", headerHozAlign: "right" }
        : { minWidth: 220, formatter: (cell) => linkTo(cell, address) }),
      ...(["reward", "spread", "other"].includes(field) ? { formatter: (cell) => number(cell.getValue()) } : {}),
      ...(field === "gap" ? { formatter: (cell) => gapText(cell.getValue()) } : {}),
      visible: !BESIDE.includes(field),
      sorter: field === "question" ? "string" : "number",
      sorterParams: { alignEmptyValues: "bottom" },
      headerSortStartingDir: ["step", "group", "question"].includes(field) ? "asc" : "desc",
      resizable: false,
    })),
  });
  table.on("rowClick", (_, row) => {
    location.hash = address(row.getData());
  });
  table.on("dataFiltered", (_, rows) => shownNow(rows.length));
  table.on("tableBuilt", () => headingsByKeyboard(table));
  byArrows(document.getElementById("table"));
  return table;
}

const gapText = (gap) => (gap === null || gap === undefined ? "–" : signed(gap));

function linkTo(cell, address) {
  return element("a", { href: `#${address(cell.getData())}` }, cell.getValue() || "(nothing)");
}

function headingsByKeyboard(table) {
  for (const column of table.getColumns()) {
    const heading = column.getElement();
    heading.tabIndex = 0;
    heading.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      heading.click();
    });
  }
}

// Up and down from the link of a row to that of its neighbour.
function byArrows(place) {
  place.addEventListener("keydown", (event) => {
    const row = event.target.closest(".tabulator-row");
    const other = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling }[event.key];
    const link = other?.querySelector("a");
    if (!link) return;
    event.preventDefault();
    link.focus();
  });
}
