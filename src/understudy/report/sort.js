// Click a head to sort a table by its column: numbers from the largest, names from A; then reversed; then as written.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], written = [...body.rows], heads = [...table.tHead.rows[0].cells];
  if (written.length < 2) continue;
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.numbers) return parseFloat(cell.dataset.numbers);
    return column === 0 ? cell.textContent.toLowerCase() : null;
  };
  const compare = (column, sign) => (one, other) => {
    const [a, b] = [key(one, column), key(other, column)];
    if (a === null || b === null) return (a === null) - (b === null);  // without a number: last
    return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const orders = column === 0 ? ["ascending", "descending", "none"] : ["descending", "ascending", "none"];
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = orders[(orders.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach((each) => each.setAttribute("aria-sort", each === head ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      body.append(...(order === "none" ? written : [...written].sort(compare(column, sign))));
    });
  });
}
