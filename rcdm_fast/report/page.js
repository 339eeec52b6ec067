"use strict";
const save = (content, name, kind) => {
  const link = document.createElement("a");
  link.href = content instanceof Blob || kind ? URL.createObjectURL(new Blob([content], { type: kind })) : content;
  link.download = name;
  link.click();
};
const text = (id) => document.getElementById(id).textContent;
const inks = { ".grid": "stroke:#ddd", ".zero": "stroke:#888", text: "fill:#222;font:12px sans-serif" };

const drawing = (svg) => {
  const copy = svg.cloneNode(true);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  for (const [which, style] of Object.entries(inks))
    copy.querySelectorAll(which).forEach((each) => each.setAttribute("style", style));
  return new XMLSerializer().serializeToString(copy);
};

const table = (rows) =>
  [...rows].map((row) => [...row.cells].map((cell) => `"${(cell.title || cell.textContent).replaceAll('"', '""')}"`).join(",")).join("\n");

const sort = (heading) => {
  const body = heading.closest("table").tBodies[0];
  const place = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  const key = (row) => row.cells[place].dataset.v ?? row.cells[place].textContent;
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    const apart = x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : String(x).localeCompare(String(y));
    return down ? -apart : apart;
  };
  heading.parentElement.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...[...body.rows].sort(order));
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { figure, chart, table: csv, get, copy } = button.dataset;
  if (figure) save(button.closest("figure").querySelector("img").src, figure);
  else if (chart) save(drawing(button.closest(".chart").querySelector("svg")), chart, "image/svg+xml");
  else if (csv) save(table(button.closest(".table").querySelector("table").rows), csv, "text/csv");
  else if (get) save(text(get), get === "numbers" ? "report.json" : `${get}.txt`, "text/plain");
  else if (copy) navigator.clipboard.writeText(text(copy)).then(() => (button.textContent = "Copied"));
  else if ("print" in button.dataset) window.print();
  else if (button.closest("th")) sort(button.closest("th"));
});

const contents = document.getElementById("contents");
const wide = window.matchMedia("(min-width: 75rem)");
const fit = () => (contents.open = wide.matches);
wide.addEventListener("change", fit);
fit();
contents.addEventListener("click", (event) => {
  if (event.target.closest("a") && !wide.matches) contents.open = false;
});
