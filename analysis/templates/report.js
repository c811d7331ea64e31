document.querySelectorAll("table.sortable thead th").forEach((head) => head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], at = head.cellIndex;
  const order = head.dataset.order === "1" ? -1 : 1;
  table.querySelectorAll("th").forEach((other) => delete other.dataset.order);
  head.dataset.order = order;
  const key = (row) => { const cell = row.cells[at]; return "v" in cell.dataset ? parseFloat(cell.dataset.v) : cell.textContent.trim(); };
  const empty = (value) => value === "" || Number.isNaN(value);
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (empty(x) || empty(y)) return empty(x) - empty(y);
    return order * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true }));
  }).forEach((row) => body.appendChild(row));
}));
document.querySelectorAll("input[data-filter]").forEach((field) => field.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\s+/);
  for (const row of document.getElementById(field.dataset.filter).tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
}));
