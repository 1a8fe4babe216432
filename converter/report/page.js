"use strict";
document.documentElement.classList.add("scripted");
for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
        const button = document.createElement("button");
        button.type = "button";
        button.append(...head.childNodes);
        head.append(button);
        button.addEventListener("click", () => {
            const down = head.getAttribute("aria-sort") === "ascending";
            heads.forEach(other => other.removeAttribute("aria-sort"));
            head.setAttribute("aria-sort", down ? "descending" : "ascending");
            const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
            const rows = [...body.rows].sort((a, b) => key(a).localeCompare(key(b), "en", {numeric: true}));
            if (head.classList.contains("number")) rows.sort((a, b) => Number(key(a)) - Number(key(b)));
            body.append(...(down ? rows.reverse() : rows));
        });
    });
    const filters = document.querySelectorAll(`[data-filters="${table.id}"]`);
    const count = document.querySelector(`[data-counts="${table.id}"]`);
    const apply = () => {
        let shown = 0;
        for (const row of body.rows) {
            row.hidden = ![...filters].every(filter => filter.tagName === "SELECT"
                ? !filter.value || row.dataset.state === filter.value
                : row.textContent.toLowerCase().includes(filter.value.toLowerCase()));
            shown += !row.hidden;
        }
        if (count) count.textContent = `${shown} of ${body.rows.length} rows`;
    };
    filters.forEach(filter => filter.addEventListener("input", apply));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));
