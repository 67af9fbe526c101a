"use strict";
// Sorts and filters the tables that ask for it. The page is whole without: all controls are made here.
{
  const collator = new Intl.Collator("en", { numeric: true });
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  /** Rows of each group; the heading of a group is never moved and never counted. */
  function groupsOf(table) {
    return [...table.tBodies].map((body) => {
      const rows = [...body.rows];
      return {
        body,
        heading: rows.find((row) => row.classList.contains("heading")),
        rows: rows.filter((row) => !row.classList.contains("heading")),
      };
    });
  }

  /** What a cell is sorted by: its full-precision number, its text, or null where nothing is known. */
  function keyOf(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "" || text === "–" ? null : text;
  }

  /** Numbers before text, and unknown last whichever way the column runs. */
  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
  }

  function sort(groups, column, direction) {
    const sign = direction === "descending" ? -1 : 1;
    for (const { body, rows } of groups) {
      const keyed = rows.map((row) => [keyOf(row, column), row]);
      if (direction !== "none") keyed.sort((a, b) => compare(a[0], b[0], sign));
      body.append(...keyed.map(([, row]) => row));
    }
  }

  function makeSortable(table, groups) {
    const heads = [...table.tHead.rows[0].cells].filter((cell) => cell.tagName === "TH");
    for (const head of heads) {
      const button = element("button", { type: "button", className: "sort" }, ...head.childNodes);
      button.addEventListener("click", () => {
        const direction = NEXT[head.getAttribute("aria-sort") ?? "none"];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (direction !== "none") head.setAttribute("aria-sort", direction);
        sort(groups, head.cellIndex, direction);
      });
      head.append(button);
    }
  }

  /** Hide rows that lack one of the words, in their cells or in the name of their group, and groups without a row. */
  function filter(groups, typed) {
    const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (text) => words.every((word) => text.toLowerCase().includes(word));
    let shown = 0;
    for (const { body, heading, rows } of groups) {
      const name = heading ? heading.cells[0].textContent : "";
      for (const row of rows) {
        row.hidden = !has(`${name} ${row.textContent}`);
        shown += !row.hidden;
      }
      body.hidden = rows.length ? rows.every((row) => row.hidden) : !has(name);
    }
    return shown;
  }

  function makeFilterable(table, groups) {
    const total = groups.reduce((sum, group) => sum + group.rows.length, 0);
    const field = element("input", { type: "search", autocomplete: "off", spellcheck: false });
    const status = element("output", { ariaLive: "polite" }, `${total} rows`);
    field.addEventListener("input", () => {
      const shown = filter(groups, field.value);
      status.textContent = shown === total ? `${total} rows` : `${shown} of ${total} rows`;
    });
    const box = table.closest(".scroll") ?? table;
    box.before(element("p", { className: "filter" }, element("label", {}, "Filter rows ", field), " ", status));
  }

  for (const table of document.querySelectorAll("table[data-sort], table[data-filter]")) {
    const groups = groupsOf(table);
    if ("sort" in table.dataset) makeSortable(table, groups);
    if ("filter" in table.dataset) makeFilterable(table, groups);
  }
}
