"use strict";
// Without this script the page is whole; with it the columns sort and the rows can be filtered.
(() => {
  const table = document.querySelector("table");
  if (!table) return;
  const headers = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));

  const sort = (header) => {
    const other = { ascending: "descending", descending: "ascending" };
    const order = other[header.getAttribute("aria-sort")] || header.dataset.sort;
    const sign = order === "ascending" ? 1 : -1;
    headers.forEach((each) => each.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", order);
    const keyed = rows.map((row) => [value(row, header.cellIndex), row]);
    keyed.sort((a, b) => sign * compare(a[0], b[0]));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  };
  for (const header of headers.filter((each) => each.dataset.sort)) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header));
    header.append(button);
  }
  headers[0].setAttribute("aria-sort", "ascending"); // as the page comes

  const tools = document.querySelector(".tools");
  const box = tools.querySelector("input");
  const status = tools.querySelector("output");
  const texts = rows.map((row) =>
    [".example", ".given", ".suggested"].map((part) => row.querySelector(part).textContent.trim().toLowerCase()));
  // "4 -> 9" asks for these two labels, either side may be empty; anything else for rows with all its words.
  const test = (query) => {
    const pair = query.split(/->|→/).map((side) => side.trim());
    if (pair.length === 2) {
      return ([, given, suggested]) => (!pair[0] || given === pair[0]) && (!pair[1] || suggested === pair[1]);
    }
    const words = query.split(/\s+/).filter(Boolean);
    return (parts) => words.every((word) => parts.some((part) => part.includes(word)));
  };
  const filter = () => {
    const query = box.value.toLowerCase().trim();
    const wanted = test(query);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !wanted(texts[i]);
      shown += row.hidden ? 0 : 1;
    });
    status.textContent = query ? `${shown} of ${rows.length} rows` : "";
  };
  box.addEventListener("input", filter);
  filter(); // the browser may have kept what was typed
  tools.hidden = false;
  document.body.classList.remove("still");
})();
