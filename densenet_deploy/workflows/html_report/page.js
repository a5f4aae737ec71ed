"use strict";
// Headings become buttons that sort their table; without this script the tables are read as they are.
const value = (row, column, numeric) => {
  const key = row.cells[column].dataset.key;
  return numeric && key !== undefined ? Number(key) : key;
};

const compare = (first, second) => {
  if (typeof first === "number" && typeof second === "number") return first - second;
  return String(first).localeCompare(String(second), "en", { numeric: true });
};

const sort = (table, heading, column) => {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const numeric = heading.classList.contains("number");
  const rows = [...table.tBodies[0].rows];
  const known = rows.filter((row) => value(row, column, numeric) !== undefined);
  const unknown = rows.filter((row) => value(row, column, numeric) === undefined);
  known.sort((a, b) => (descending ? -1 : 1) * compare(value(a, column, numeric), value(b, column, numeric)));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  table.tBodies[0].append(...known, ...unknown);
};

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(table, heading, column));
    heading.append(button);
  });
}
